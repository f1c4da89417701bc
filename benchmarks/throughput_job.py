"""The job of `benchmarks.ppo_throughput`, and our sides of it, each in a process of its own.

python -m benchmarks.throughput_job ours JOB.json     # the PPO stage; the rows of its metrics.jsonl as JSON
python -m benchmarks.throughput_job floor JOB.json    # bare generation and passes; seconds of each as JSON
"""

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from data.chat import encode_prompt
from data.collators import PromptResponseBatch, collate_episodes, left_pad
from data.schema import PromptRecord, write_records
from stages.artifacts import combine_digests, file_digests
from stages.contract import Artifact, DatasetArtifact, PolicyArtifact, RewardModelArtifact
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm, load_sequence_classifier
from stages.models.scalar_head import ScoreNormalization
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer, save_tokenizer
from stages.models.tuning import attach_adapter, lora_config, save_adapter
from stages.ppo.config import PPOConfig
from stages.run import StageSpec, run_stage

_SAMPLES = Path(__file__).parents[1] / "data" / "samples" / "openings.jsonl"
ROLES = {"policy": "policy", "reference": "policy", "reward": "reward_model", "critic": "reward_model"}


@dataclass(frozen=True)
class Job:
    """One process of the benchmark, ours or the peer's.

    Attributes:
        base: Folder of the base.
        prompts: Plain texts.
        dtype: Type of the weights.
        attention: Implementation in transformers.
        autocast: Compute in bfloat16 on weights of another type; the peer's default.
        last: Number of upper blocks with adapters; None is all.
        steps: PPO steps, the first of which warms up.
        batch_size: Episodes a step, one optimizer step an epoch.
        max_new_tokens: Response tokens at most.
        num_ppo_epochs: Passes over the episodes of a step.
        rank: Of LoRA, on all linear layers.
        learning_rate: Of the policy and of the critic.
        device: `cpu` or `cuda`.
        quantization: `none` or `nf4`; ours alone.
        eos_token: Of the policy's tokenizer, in place of its own; ours alone. One that the base never says makes every
            response as long as it may be.
        ppo: Further settings of our PPO.
    """

    base: str
    prompts: list[str]
    dtype: str = "bfloat16"
    attention: str = "sdpa"
    autocast: bool = False
    last: int | None = None
    steps: int = 3
    batch_size: int = 32
    max_new_tokens: int = 24
    num_ppo_epochs: int = 2
    rank: int = 16
    learning_rate: float = 1e-5
    device: str = "cpu"
    quantization: str = "none"
    eos_token: str | None = None
    ppo: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @property
    def model(self) -> ModelConfig:
        """The model section."""
        tuning: dict[str, Any] = {"rank": self.rank, "alpha": 2.0 * self.rank}
        if self.last is not None:
            tuning["layers"] = {"last": self.last}
        settings: dict[str, Any] = {"base": self.base, "dtype": self.dtype, "attention": self.attention}
        return ModelConfig.model_validate(settings | {"quantization": self.quantization, "tuning": tuning})

    @property
    def ppo_config(self) -> PPOConfig:
        """The PPO section: one minibatch and one microbatch a step, as the peer's defaults are."""
        settings: dict[str, Any] = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "minibatch_size": self.batch_size,
            "microbatch_size": self.batch_size,
            "num_ppo_epochs": self.num_ppo_epochs,
            "learning_rate": self.learning_rate,
            "rollout": {"engine": "hf", "max_new_tokens": self.max_new_tokens, "temperature": 0.7},
        }
        return PPOConfig.model_validate(settings | self.ppo)


def sample_prompts() -> list[str]:
    """The beginnings of reviews that the quickstart has, 3 to 12 tokens each."""
    return [json.loads(line)["prompt"] for line in _SAMPLES.read_text(encoding="utf-8").splitlines()]


def make_inputs(job: Job, folder: Path) -> dict[str, Artifact]:
    """A data set, a policy that is the base, and a reward model with a random head; what is there is taken."""
    if not (folder / "dataset").is_dir():
        _write_inputs(job, folder)

    def digest(name: str) -> str:
        return combine_digests(file_digests(folder / name))

    return {
        "dataset": DatasetArtifact(folder / "dataset", digest("dataset")),
        "policy": PolicyArtifact(folder / "policy", digest("policy")),
        "reward_model": RewardModelArtifact(folder / "reward_model", digest("reward_model")),
    }


def _write_inputs(job: Job, folder: Path) -> None:
    model = job.model
    base = resolve_base(model, None)
    tokenizer = load_tokenizer(base, model)
    torch.manual_seed(0)
    for name, task in (("policy", "causal_lm"), ("reward_model", "seq_cls")):
        if task == "causal_lm":
            loaded = load_causal_lm(base, model, job.device)
        else:
            loaded = load_sequence_classifier(base, model, job.device, pad_token_id=tokenizer.pad_token_id, seed=0)
        adapter = attach_adapter(loaded, lora_config(model, loaded.config, task), seed=0)  # type: ignore[arg-type]
        save_adapter(adapter, "default", folder / name, base_spec=model.base)
        if job.eos_token is not None and name == "policy":
            tokenizer.eos_token = job.eos_token
        save_tokenizer(tokenizer, folder / name)
    ScoreNormalization().save(folder / "reward_model")
    for kind, records in (("prompts", [PromptRecord(prompt=text) for text in job.prompts]), ("demonstrations", [])):
        write_records(folder / "dataset" / kind / "train.jsonl", records)


def run_ours(job: Job, *, inputs_dir: Path | None = None) -> list[dict[str, float]]:
    """The stage on this job: one row of metrics a step.

    Args:
        job: What to run.
        inputs_dir: Keeps the stage's inputs for the next job on the same base and blocks; None keeps nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        spec = StageSpec(
            stage="ppo",
            config=job.ppo_config.model_dump(mode="json"),
            model=job.model.model_dump(mode="json"),
            inputs=make_inputs(job, inputs_dir or root / "inputs"),
            stage_dir=root / "run" / "ppo",
            store_dir=root / "store",
            seed=0,
            device=job.device,
            fingerprint="throughput",
        )
        run_stage(spec, lambda done, total, what: print(f"{done}/{total} {what}", file=sys.stderr, flush=True))
        lines = (spec.stage_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def run_floor(job: Job) -> list[dict[str, float]]:
    """Bare generation and the passes that a step cannot do without, on the same base, adapters and prompts.

    Passes: reward model and reference forward; policy and critic forward and backward once an epoch. No rewards, no
    advantages, no losses beyond a sum, no optimizer. Every response has all its tokens.
    """
    model, tokens = job.model, job.max_new_tokens
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(job, Path(folder))
        base = SharedBase(load_causal_lm(resolve_base(model, None), model, "cpu"), model)
        for role, source in ROLES.items():
            base.add_adapter(role, inputs[source].path, trainable=role in ("policy", "critic"))
        tokenizer = load_tokenizer(inputs["policy"].path, model)
    if job.last is not None:
        base.enable_trunk_cache()
    prompts = [encode_prompt(tokenizer, text) for text in job.prompts[: job.batch_size]]
    input_ids, mask = left_pad(prompts, tokenizer.pad_token_id)
    settings = GenerationConfig(
        max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    rows: list[dict[str, float]] = []
    for _ in range(job.steps):
        start = time.perf_counter()
        with torch.no_grad(), base.role("policy"):
            sequences = base.generate(input_ids, mask, generation_config=settings)
        generated = time.perf_counter()
        responses = sequences[:, input_ids.shape[1] :].tolist()
        batch = collate_episodes(prompts, responses, tokenizer.pad_token_id)
        with base.cached_trunk():
            _bare_passes(base, batch, epochs=job.num_ppo_epochs)
        end = time.perf_counter()
        rows.append({"generate": generated - start, "passes": end - generated, "step": end - start})
    return rows


def _bare_passes(base: SharedBase, batch: PromptResponseBatch, *, epochs: int) -> None:
    with torch.no_grad():
        with base.role("reward"):
            base.hidden_states(batch.input_ids, batch.attention_mask)
        with base.role("reference"):
            base.training_logprobs(batch, temperature=1.0)
    for _ in range(epochs):
        with base.role("policy"):
            base.training_logprobs(batch, temperature=1.0).sum().backward()
        with base.role("critic"):
            base.response_hidden_states(batch).float().sum().backward()


if __name__ == "__main__":
    run = {"ours": run_ours, "floor": run_floor}[sys.argv[1]]
    print(json.dumps(run(Job(**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))))))
