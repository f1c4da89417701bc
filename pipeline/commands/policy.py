"""Which policy of a run a command is about."""

from pathlib import Path

from data.errors import ConfigError
from pipeline.runs import RunFolder, open_run
from pipeline.store import verify_recorded
from stages.contract import Artifact, StageName


def trained_policy(output_dir: str, name: str, stage: StageName | None) -> tuple[RunFolder, StageName, Artifact]:
    """Find a run's policy, the last one where no stage is named, and verify it.

    Args:
        output_dir: Folder of the runs.
        name: Name of the run.
        stage: `sft`, `ppo`, or None for the later of the two.

    Raises:
        ConfigError: There is no such run, or it has no such policy.
        ArtifactError: The policy is missing or damaged.
    """
    run = open_run(Path(output_dir).expanduser().resolve(), name)
    wanted: tuple[StageName, ...] = (stage,) if stage else ("ppo", "sft")
    for candidate in wanted:
        artifact = run.artifact(candidate)
        if artifact is not None:
            verify_recorded(run.store_dir, artifact, (run.stage(candidate) or {}).get("fingerprint"))
            return run, candidate, artifact
    raise ConfigError(
        f"run {run.name}: {' and '.join(wanted)} left no policy; `rlhf show {run.name}` says how far it came"
    )
