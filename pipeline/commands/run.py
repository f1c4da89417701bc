"""`rlhf run CONFIG`: all stages of a configuration."""

import argparse
from pathlib import Path

from data.errors import ConfigError
from pipeline.checks import check_inputs, check_stored
from pipeline.config import PipelineConfig
from pipeline.execution import execute_run
from pipeline.graph import downstream, upstream
from pipeline.loading import dump_config, load_config, resolve
from pipeline.runs import STORE, check_name, create_run
from pipeline.session import RunPlan
from stages.contract import StageName


def run(options: argparse.Namespace) -> int:
    """Check everything that can be checked at once, then run."""
    path = Path(options.config)
    config = configured(path, options.set, options.output_dir)
    config_dir = path.resolve().parent
    if options.name is not None:
        check_name(options.name)
    plan = plan_run(config, from_stage=options.from_stage, only=options.only, force=options.force)
    check_inputs(config, config_dir)
    check_stored(config, config_dir, config.output_path() / STORE, plan)
    folder = create_run(
        config.output_path(),
        path.stem,
        options.name,
        dump_config(config),
        config.enabled_stages(),
        config_path=str(path.resolve()),
        plan=plan.to_json(),
    )
    return execute_run(config, config_dir, folder, plan)


def configured(path: Path, overrides: list[str], output_dir: str | None) -> PipelineConfig:
    """The resolved configuration of a file and the command's options."""
    config = load_config(path, overrides)
    if output_dir is not None:
        config = config.model_copy(update={"output_dir": output_dir})
    return resolve(config)


def plan_run(
    config: PipelineConfig,
    *,
    from_stage: StageName | None = None,
    only: StageName | None = None,
    force: StageName | None = None,
) -> RunPlan:
    """What `--from`, `--only` and `--force` ask for.

    Raises:
        ConfigError: They name a stage that the configuration switches off, or contradict one another.
    """
    enabled = config.enabled_stages()
    for option, stage in (("--from", from_stage), ("--only", only), ("--force", force)):
        if stage is not None and stage not in enabled:
            raise ConfigError(
                f"{option} {stage}: the configuration switches this stage off; its stages are {', '.join(enabled)}"
            )
    target = from_stage or only
    stored = frozenset(upstream(config, target)) if target is not None else frozenset()
    skipped = frozenset(downstream(config, only)) if only is not None else frozenset()
    if force is not None and force in stored | skipped:
        option = "--from" if from_stage is not None else "--only"
        raise ConfigError(f"--force {force}: {option} {target} does not execute this stage; drop one of the two")
    return RunPlan(forced=frozenset({force} if force is not None else ()), stored=stored, skipped=skipped)
