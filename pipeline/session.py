"""What one run knows while it goes on, and which of its stages it takes from where."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.config import PipelineConfig
from pipeline.console import Console
from pipeline.graph import stage_inputs
from pipeline.runs import RunFolder
from pipeline.timings import Timings
from pipeline.tracking import Tracker
from stages.contract import Artifact, StageName, artifact_from_json


@dataclass(frozen=True)
class Recorded:
    """A stage's result as a run recorded it.

    Attributes:
        artifact: What the stage made.
        fingerprint: The key under which it was made; empty where that run did not say.
        run: Name of the run that recorded it; None for one that is taken as the store has it.
    """

    artifact: Artifact
    fingerprint: str
    run: str | None = None


@dataclass(frozen=True)
class RunPlan:
    """What differs from the rule "a stage is taken from the store if it is there, else executed".

    Attributes:
        forced: Executed even if the store has them.
        stored: Taken from the store, and never executed.
        recorded: Taken from another run, whatever their fingerprint would be now.
        skipped: Left out.
    """

    forced: frozenset[StageName] = frozenset()
    stored: frozenset[StageName] = frozenset()
    recorded: Mapping[StageName, Recorded] = field(default_factory=dict)
    skipped: frozenset[StageName] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """As `run.json` has it, for `rlhf resume`."""
        return {
            **{name: sorted(getattr(self, name)) for name in ("forced", "stored", "skipped")},
            "recorded": {
                stage: {
                    "artifact": recorded.artifact.to_json(),
                    "fingerprint": recorded.fingerprint,
                    "run": recorded.run,
                }
                for stage, recorded in self.recorded.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], store_dir: Path) -> Self:
        """The inverse of `to_json`; the store may have been moved since."""
        return cls(
            **{name: frozenset(data[name]) for name in ("forced", "stored", "skipped")},
            recorded={
                stage: Recorded(_in_store(value["artifact"], store_dir), value["fingerprint"], value.get("run"))
                for stage, value in data["recorded"].items()
            },
        )


def _in_store(data: Mapping[str, Any], store_dir: Path) -> Artifact:
    return artifact_from_json({**data, "path": str(store_dir / data["digest"])})


@dataclass(frozen=True)
class Session:
    """The parts of a run that its stages share.

    Attributes:
        config: The resolved configuration.
        config_dir: Folder of the configuration file, for relative paths in it.
        run: The run's folder.
        plan: Which stages are taken from where.
        console: What the user sees.
        tracker: The mirror into W&B.
        timings: Where the run's time goes beside its stages.
    """

    config: PipelineConfig
    config_dir: Path | None
    run: RunFolder
    plan: RunPlan
    console: Console
    tracker: Tracker
    timings: Timings = field(default_factory=Timings)

    @property
    def stages(self) -> tuple[StageName, ...]:
        """The stages of this run, in order: executed or taken from somewhere."""
        return tuple(stage for stage in stage_inputs(self.config) if stage not in self.plan.skipped)
