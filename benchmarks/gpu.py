"""PPO on one CUDA GPU, in under eight minutes, with random weights of the shapes of Llama 3 8B and SmolLM2-135M.

    python -m benchmarks.gpu [--out FOLDER] [--minutes 8]

Needs torch, transformers, peft, accelerate, pydantic and jaxtyping. bitsandbytes (QLoRA) and vLLM (rollouts, sync) are
optional: what needs one that is missing says `not measured`, with the reason, and so does everything where there is no
GPU. Each case is the PPO stage in a process of its own; its first step warms up and is left out. Then the `gpu` tests.
`--shapes tiny --device cpu` tries the script where there is no GPU; its figures mean nothing.
"""

import argparse
import datetime
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conditions import condition_lines, markdown_table

_COLUMNS = (
    "case", "peak memory, GiB", "episodes/s", "step, s", "generate", "score", "experience", "update", "sync",
    "generated tokens/s", "share of vLLM's own rate",
)  # fmt: skip
_RESULT = "result.json"  # as gpu_case names it, which imports torch
_FIGURES = len(_COLUMNS) - 1


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        shape: Name of the base's shape.
        quantization: `none` or `nf4`.
        engine: `hf` or `vllm`.
    """

    shape: str
    quantization: str
    engine: str

    @property
    def name(self) -> str:
        """As the table has it."""
        weights = "QLoRA (NF4)" if self.quantization == "nf4" else "LoRA on bf16"
        return f"{self.shape}, {weights}, rollouts by {self.engine}"

    def missing(self) -> str | None:
        """What is not there that the case needs."""
        needed = {"bitsandbytes": self.quantization == "nf4", "vllm": self.engine == "vllm"}
        absent = [name for name, is_needed in needed.items() if is_needed and importlib.util.find_spec(name) is None]
        return f"{absent[0]} is not installed" if absent else None


def make_cases(shapes: Sequence[str]) -> list[Case]:
    """All lines; the large base first in bfloat16, then in 4 bits."""
    return [
        Case(shape, quantization, engine)
        for shape in shapes
        for quantization in ("none", "nf4")
        for engine in ("hf", "vllm")
        if not (quantization == "nf4" and engine == "vllm")
    ]


def line(case: Case, rows: Sequence[Mapping[str, float]], raw_rate: float | None, batch_size: int) -> tuple[str, ...]:
    """One line of the table from the measured steps.

    Args:
        case: What ran.
        rows: Metrics of its steps, without the first.
        raw_rate: Tokens a second of vLLM alone on the same prompts; None where there is none.
        batch_size: Episodes of a step.
    """

    def median(name: str) -> float:
        return statistics.median(row[name] for row in rows)

    step, tokens = median("time/step_seconds"), median("rollout/tokens_per_second")
    parts = [f"{median(f'time/{part}_seconds'):.2f}" for part in _COLUMNS[4:9]]
    share = "" if raw_rate is None else f"{tokens / raw_rate:.2f}"
    memory = max(row["memory/peak_gib"] for row in rows)
    return (case.name, f"{memory:.1f}", f"{batch_size / step:.2f}", f"{step:.2f}", *parts, f"{tokens:.0f}", share)


def not_measured(case: Case, reason: str) -> tuple[str, ...]:
    """The line of a case that did not run."""
    return (case.name, f"not measured: {reason}", *[""] * (_FIGURES - 1))


def run_case(case: Case, engine: str, folder: Path, *, device: str, seconds: float) -> dict[str, Any] | str:
    """Run a case in a process of its own; what it found, or in words why it found nothing.

    Args:
        case: What to run.
        engine: Its engine, or `raw` for vLLM alone.
        folder: Keeps bases and adapters.
        device: `cuda` or `cpu`.
        seconds: Longest it may take.
    """
    arguments = [case.shape, case.quantization, engine, device, str(folder)]
    command = [sys.executable, "-m", "benchmarks.gpu_case", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        return "the time ran out"
    sys.stderr.write(done.stderr[-2000:])
    if done.returncode != 0:
        last = [text for text in done.stderr.splitlines() if text.strip()][-1:]
        return f"exit status {done.returncode} ({last[0][:120] if last else 'no output'})"
    found: dict[str, Any] = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    return found


def run_tests(*, seconds: float) -> str:
    """The last line of the `gpu` tests."""
    if importlib.util.find_spec("pytest") is None:
        return "not run: pytest is not installed"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        return "not finished: the time ran out"
    if done.returncode != 0:
        sys.stderr.write(done.stdout[-4000:])
    return (done.stdout.strip().splitlines() or ["no output"])[-1]


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for results.json and table.md")
    parser.add_argument("--minutes", type=float, default=8.0, help="cases that would begin later are left out")
    parser.add_argument("--shapes", nargs="+", default=["llama-8b", "smollm2-135m"], help="bases by their shape")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    import torch

    end = time.monotonic() + 60 * options.minutes
    has_device = options.device == "cpu" or torch.cuda.is_available()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    lines, results = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for case in make_cases(options.shapes):
            reason = "no CUDA GPU" if not has_device else case.missing()
            left = end - time.monotonic()
            if reason is None and left < 20:
                reason = "the time ran out"
            found = reason or run_case(case, case.engine, Path(folder), device=options.device, seconds=left)
            results[case.name] = found
            if isinstance(found, str):
                lines.append(not_measured(case, found))
            else:
                left, raw = end - time.monotonic(), None
                if case.engine == "vllm":
                    raw = run_case(case, "raw", Path(folder), device=options.device, seconds=left)
                rate = raw["raw_rate"] if isinstance(raw, dict) else None
                lines.append(line(case, found["rows"][1:], rate, found["batch_size"]))
            print(f"{case.name}: {' | '.join(lines[-1][1:])}", file=sys.stderr, flush=True)
    tests = run_tests(seconds=end - time.monotonic()) if has_device and options.device == "cuda" else "not run: no GPU"
    table = "\n".join(
        [
            f"GPU: {name}; {datetime.datetime.now(datetime.UTC).date().isoformat()}",
            *condition_lines(("torch", "transformers", "peft")),
            "",
            markdown_table(_COLUMNS, lines),
            "",
            f"`gpu` tests: {tests}",
        ]
    )
    print(table)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
        (options.out / "table.md").write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
