"""Carrying out a trial: attack after attack, resumed to the end, compared with the run that nobody interrupted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.attacks import Hit, environment_with
from tests.chaos.flow import Execution, Target
from tests.chaos.leftovers import leftovers
from tests.chaos.plan import Trial

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """What came of a trial.

    Attributes:
        trial: Its name.
        hits: What its attacks have done; those that came too late are left out.
        differences: Artifacts and metrics that are not those of the whole run.
        left: What it left behind.
        failure: Why it could not be carried to its end.
    """

    trial: str
    hits: tuple[Hit, ...]
    differences: tuple[str, ...]
    left: tuple[str, ...]
    failure: str | None = None

    @property
    def problems(self) -> list[str]:
        """Everything that should not be."""
        own = [f"{hit.kind} in {hit.stage}: {hit.problem}" for hit in self.hits if hit.problem]
        own += [f"{stage} differs" for stage in self.differences] + [f"left: {name}" for name in self.left]
        return own + ([self.failure] if self.failure else [])


def carry_out(trial: Trial, whole: Target, folder: Path) -> Verdict:
    """Attack a run of its own folder, resume it to its end, and compare.

    Args:
        trial: What to do.
        whole: The run to compare with, of the same settings.
        folder: Gets a folder of runs for the trial.
    """
    target = Target(folder / trial.name, trial.name, whole.base, trial.settings)
    target.outputs.mkdir(parents=True)
    whole.give_stored(trial.stored, target)
    log = target.outputs / "said.txt"
    hits = []
    for attack in trial.attacks:

        def start(victim: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Execution:
            arguments = target.resume_arguments() if target.record() else target.run_arguments()
            return Execution(arguments, log, victim, environment_with(environment or {}))

        hit = attack(target, start)
        if hit is not None:
            hits.append(hit)
    if target.record().get("status") != "completed":
        last = Execution(target.resume_arguments(), log)
        status = last.finish()
        if status != 0:
            return Verdict(trial.name, tuple(hits), (), (), f"resume ended with {status}:\n{last.tail()}")
    return Verdict(trial.name, tuple(hits), differences(target, whole), tuple(leftovers(target.outputs)))


def differences(target: Target, whole: Target) -> tuple[str, ...]:
    """What is not as in the whole run: artifacts by stage, metrics by stage and name."""
    found, expected = target.digests(), whole.digests()
    different = [f"artifact of {stage}" for stage in expected if found.get(stage) != expected[stage]]
    for stage in expected:
        names = _different_metrics(target.rows(stage), whole.rows(stage))
        different += [f"metrics of {stage} ({', '.join(names)})"] if names else []
    return tuple(different)


def _different_metrics(found: Rows, expected: Rows) -> list[str]:
    if [row.get("step") for row in found] != [row.get("step") for row in expected]:
        return ["the steps"]
    pairs = zip(found, expected, strict=True)
    return sorted({name for one, other in pairs for name in {*one, *other} if one.get(name) != other.get(name)})
