"""`rlhf rerun STAGE --run SOURCE`: one stage again, on the inputs that a run recorded, as a new run."""

import argparse
from pathlib import Path

from data.errors import ConfigError
from pipeline.config import PipelineConfig
from pipeline.execution import execute_run
from pipeline.graph import downstream, upstream
from pipeline.loading import dump_config, read_yaml, resolve, validate_values
from pipeline.runs import RunFolder, check_name, create_run, open_run
from pipeline.session import Recorded, RunPlan
from pipeline.store import stage_section, verify_recorded
from stages.contract import StageName


def rerun(options: argparse.Namespace) -> int:
    """Take the earlier stages as recorded, execute STAGE, and with `--downstream` what follows."""
    source = open_run(Path(options.output_dir).expanduser().resolve(), options.source)
    stage: StageName = options.stage
    values = read_yaml(source.path / "config.yaml")
    recorded_config = validate_values(values, [], str(source.path / "config.yaml"))
    changed = validate_values(values, options.set, str(source.path / "config.yaml"))
    # The folder may have been moved since; the recorded artifacts lie where it is now.
    config = resolve(changed.model_copy(update={"output_dir": str(source.output_dir)}))
    if options.name is not None:
        check_name(options.name)
    plan = plan_rerun(source, recorded_config, config, stage, with_downstream=options.downstream)
    folder = create_run(
        source.output_dir,
        f"{source.name}-{stage}",
        options.name,
        dump_config(config),
        config.enabled_stages(),
        config_path=source.record.get("config_path"),
        source_run=source.name,
        plan=plan.to_json(),
    )
    return execute_run(config, source.config_dir, folder, plan)


def plan_rerun(
    source: RunFolder,
    recorded_config: PipelineConfig,
    config: PipelineConfig,
    stage: StageName,
    *,
    with_downstream: bool,
) -> RunPlan:
    """Which stages are taken from the source run, which executed, which left out.

    Raises:
        ConfigError: The source run lacks the stage or an artifact, or `--set` changes an earlier stage.
        ArtifactError: A recorded artifact is missing or damaged.
    """
    for name, enabled in ((f"run {source.name}", recorded_config), ("the changed configuration", config)):
        if stage not in enabled.enabled_stages():
            raise ConfigError(
                f"rerun {stage}: {name} has no such stage; its stages are {', '.join(enabled.enabled_stages())}"
            )
    earlier = upstream(config, stage)
    _check_unchanged(recorded_config, config, stage, earlier)
    recorded = {}
    for name in earlier:
        artifact = source.artifact(name)
        if artifact is None:
            raise ConfigError(
                f"run {source.name}: {name} left no artifact, but `rerun {stage}` starts from it; "
                f"finish the run first with `rlhf run`, or rerun {name}"
            )
        fingerprint = (source.stage(name) or {}).get("fingerprint") or ""
        verify_recorded(source.store_dir, artifact, fingerprint)
        recorded[name] = Recorded(artifact, fingerprint, source.name)
    skipped = frozenset() if with_downstream else frozenset(downstream(config, stage))
    return RunPlan(forced=frozenset({stage}), recorded=recorded, skipped=skipped)


def _check_unchanged(
    before: PipelineConfig, after: PipelineConfig, stage: StageName, earlier: tuple[StageName, ...]
) -> None:
    """Earlier stages are taken as recorded: with other settings `config.yaml` would not tell the truth."""
    for name in earlier:
        if name not in before.enabled_stages() or stage_section(before, name) != stage_section(after, name):
            raise ConfigError(
                f"--set changes {name}, which `rerun {stage}` takes as recorded; "
                f"drop that, or start earlier with `rerun {name} --downstream`"
            )
    if any(name != "data" for name in earlier) and before.model != after.model:
        raise ConfigError(
            f"--set changes model, on which the recorded stages before {stage} were trained; "
            f"drop that, or start earlier with `rerun sft --downstream`"
        )
