"""`rlhf validate CONFIG`: everything that a run would refuse, and what it would do; trains nothing."""

import argparse
from pathlib import Path

from data.config import source_parts
from pipeline.checks import check_inputs, stored_stages
from pipeline.commands.run import configured
from pipeline.config import PipelineConfig
from pipeline.console import table
from pipeline.graph import stage_inputs
from pipeline.runs import STORE


def validate(options: argparse.Namespace) -> int:
    """Check, then print the plan."""
    path = Path(options.config)
    config = configured(path, options.set, options.output_dir)
    config_dir = path.resolve().parent
    check_inputs(config, config_dir)
    print("\n".join([f"{path}: valid", "", *_settings(config), "", *_plan(config, config_dir)]))
    return 0


def _settings(config: PipelineConfig) -> list[str]:
    launch = config.launch
    ranks = f", {launch.num_processes} processes" if launch.num_processes > 1 else ""
    lines = [
        f"base      {config.model.base} ({config.model.dtype}, quantization {config.model.quantization})",
        f"launch    {launch.mode} on {launch.device}{ranks}",
        f"tracking  {config.tracking.mode}",
        f"outputs   {config.output_path()}",
    ]
    own = config.own_reward_base
    if own is not None:
        lines.insert(1, f"reward    {own.base} ({own.dtype}, quantization {own.quantization}), loaded apart")
    for _, key, part in source_parts(config.data):
        place = part.path if part.hub is None else f"{part.hub} (hub; read by the data stage, not checked here)"
        lines.append(f"data      {key.removeprefix('data.')}: {place}")
    return lines


def _plan(config: PipelineConfig, config_dir: Path) -> list[str]:
    found = stored_stages(config, config_dir, config.output_path() / STORE)
    rows = []
    for stage, inputs in stage_inputs(config).items():
        artifact = found[stage]
        sources = ", ".join(dict.fromkeys(inputs.values())) or "the files"
        rows.append((stage, sources, f"cached {artifact.digest[:12]}" if artifact is not None else "execute"))
    return table(("stage", "reads", "would"), rows)
