"""What a checkpoint costs: its size, its seconds, and its share of a stage's time at the default interval.

    python -m benchmarks.checkpoints [--config configs/quickstart.yaml] [--steps 8] [--set KEY=VALUE] [--json FILE]

One run in which SFT, reward model and PPO take a few steps each and write a checkpoint after every one. At the
default interval a stage writes one in each `launch.checkpoints.every_minutes`, so the share is seconds by that
interval; a stage that is shorter writes none.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.commands import last_lines, measured_environment, rlhf
from benchmarks.conditions import condition_lines
from pipeline.config import CheckpointConfig

STAGES = ("sft", "reward_model", "ppo")
GOAL_PERCENT = 2.0
_PACKAGES = ("torch", "transformers")
_WRITTEN = re.compile(r"checkpoint of step \d+: ([\d.]+) MiB in ([\d.]+) s")


@dataclass(frozen=True)
class Cost:
    """The checkpoints of one stage.

    Attributes:
        stage: Its name.
        mib: Size of the last one, in MiB.
        seconds: Of each write.
    """

    stage: str
    mib: float
    seconds: tuple[float, ...]

    def percent(self, interval_minutes: float) -> float:
        """Median seconds by the interval, in percent."""
        return 100 * median(self.seconds) / (60 * interval_minutes)


def read_cost(run_dir: Path, stage: str) -> Cost:
    """What a stage's log says of its checkpoints.

    Raises:
        ValueError: It wrote none.
    """
    text = (run_dir / stage / "log.txt").read_text(encoding="utf-8")
    found = [(float(size), float(seconds)) for size, seconds in _WRITTEN.findall(text)]
    if not found:
        raise ValueError(f"{run_dir / stage}: no checkpoint was written; give the stage at least two steps")
    return Cost(stage, found[-1][0], tuple(seconds for _, seconds in found))


def read_remembering(run_dir: Path) -> tuple[float, float]:
    """Of PPO's metrics: median seconds of holding the state at a step's start in memory, and of a step."""
    lines = (run_dir / "ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return median(row["time/remember_seconds"] for row in rows), median(row["time/step_seconds"] for row in rows)


def table(costs: Sequence[Cost], interval_minutes: float) -> str:
    """As Markdown."""
    lines = [
        "| stage | checkpoints | MiB | s, median (range) | % of the interval |",
        "|---|---|---|---|---|",
    ]
    for cost in costs:
        seconds = f"{median(cost.seconds):.3f} ({min(cost.seconds):.3f}-{max(cost.seconds):.3f})"
        percent = cost.percent(interval_minutes)
        lines.append(f"| {cost.stage} | {len(cost.seconds)} | {cost.mib:.1f} | {seconds} | {percent:.3f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where the run failed or the goal is missed."""
    options = _parse(arguments)
    interval = CheckpointConfig().every_minutes
    assert interval is not None
    overrides = [
        "launch.checkpoints.every_steps=1", f"sft.max_steps={options.steps}",
        f"reward_model.max_steps={options.steps}", f"ppo.steps={options.steps}", "evaluation=null", *options.set,
    ]  # fmt: skip
    print("\n".join([*condition_lines(_PACKAGES), f"configs/{options.config.name} with {', '.join(overrides)}", ""]))
    with tempfile.TemporaryDirectory(prefix="checkpoints-") as scratch:
        folder = Path(scratch)
        command = ["run", str(options.config), "--run", "measured", "--output-dir", str(folder / "outputs")]
        command += [part for value in overrides for part in ("--set", value)]
        finished = rlhf(command, folder / "log.txt", environment=measured_environment(folder / "prefect"))
        if finished.code != 0:
            print(f"exit code {finished.code}; its last lines:\n{last_lines(finished.output)}", file=sys.stderr)
            return 1
        costs = [read_cost(folder / "outputs" / "measured", stage) for stage in STAGES]
        held, step = read_remembering(folder / "outputs" / "measured")
    print(table(costs, interval))
    print(f"\nPPO holds the state at the start of each step in memory, too: {held:.4f} s of {step:.2f} s (medians).")
    met = all(cost.percent(interval) <= GOAL_PERCENT for cost in costs)
    print(f"\nOne in {interval:g} minutes; goal at most {GOAL_PERCENT:g} %: {'met' if met else 'not met'}.")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n", encoding="utf-8")
    return 0 if met else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=lambda text: Path(text).resolve(), default="configs/quickstart.yaml")
    parser.add_argument("--steps", type=int, default=8, help="of each training stage")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="passed on to the run")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
