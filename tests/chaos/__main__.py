"""`make chaos`: kills the smoke flow again and again, resumes it, compares, prints a table.

    python -m tests.chaos [--kills 50] [--seed 0] [--only NAME]... [--json FILE]

Exit code 1 where a result differs, something is left behind or an attack did what it should not.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from pipeline.server import lease_server
from tests.chaos.flow import Target, run_whole
from tests.chaos.plan import (
    DDP,
    INLINE,
    KILLS_A_TRIAL,
    VLLM,
    ZERO,
    Trial,
    aimed_trials,
    ended_trials,
    engine_trial,
    helper_trials,
    random_trials,
)
from tests.chaos.trials import Verdict, carry_out
from tests.tiny import tiny_model_dir


def main() -> int:
    """Carry out the plan."""
    options = _options()
    verdicts: list[Verdict] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rlhf-chaos-") as name:
        folder = Path(name)
        os.environ["PREFECT_HOME"] = str(folder / "home-shared")
        lease = lease_server()
        try:
            lease.wait_until_healthy()
            os.environ.update(lease.environment)
            base = tiny_model_dir("llama", folder / "llama", hidden=64)
            for whole, trials in _parts(options, base, folder):
                for trial in trials:
                    verdict = carry_out(trial, whole, folder)
                    verdicts.append(verdict)
                    _print(verdict)
        finally:
            lease.release()
    killed = Counter(hit.stage for verdict in verdicts for hit in verdict.hits if "SIGKILL" in hit.kind)
    problems = [f"{verdict.trial}: {problem}" for verdict in verdicts for problem in verdict.problems]
    minutes = (time.monotonic() - start) / 60
    places = ", ".join(f"{number} in {stage}" for stage, number in killed.most_common())
    print(f"\n{killed.total()} kills ({places}) in {len(verdicts)} runs, {minutes:.0f} min; {len(problems)} problems")
    print("\n".join(problems))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=2), encoding="utf-8")
    return 1 if problems else 0


def _parts(options: argparse.Namespace, base: Path, folder: Path) -> Iterator[tuple[Target, list[Trial]]]:
    """Whole runs with the trials that are compared with them; those that no trial needs are not run."""

    def chosen(trials: list[Trial]) -> list[Trial]:
        return [trial for trial in trials if not options.only or any(part in trial.name for part in options.only)]

    aimed = aimed_trials()
    fixed = [*aimed, *ended_trials(), *helper_trials(folder / "home-own")]
    num_random = -(-max(options.kills - sum(len(trial.attacks) for trial in aimed), 0) // KILLS_A_TRIAL)
    if chosen(fixed) or any("random".startswith(part) or "random" in part for part in options.only):
        plain = run_whole(Target(folder / "whole", "whole", base, INLINE))
        yield plain, chosen([*random_trials(plain, num_random, random.Random(options.seed)), *fixed])
    for name, settings in {"vllm": VLLM, "ddp": DDP, "zero": ZERO}.items():
        trials = chosen([engine_trial(name, settings)])
        if trials:
            yield run_whole(Target(folder / f"whole-{name}", "whole", base, settings)), trials


def _print(verdict: Verdict) -> None:
    outcome = "same result" if not verdict.problems else "; ".join(verdict.problems)
    print(f"{verdict.trial}: {outcome}", flush=True)
    for hit in verdict.hits:
        checkpoint = "none" if hit.checkpoint is None else f"step {hit.checkpoint}"
        print(f"    {hit.stage:<13} step {hit.step:<3} checkpoint {checkpoint:<8} {hit.kind}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs of the flow, aimed ones among them")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="trials whose name holds this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts there, too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
