"""`rlhf export RUN --to DIR [--merge]`: a trained policy for use outside of this project."""

import argparse
import shlex
from pathlib import Path

from data.errors import ConfigError
from pipeline.commands.policy import trained_policy
from pipeline.launch import set_environment, stage_environment
from pipeline.loading import load_config
from stages.models.exporting import check_target, export_adapter
from stages.models.sources import resolve_base
from stages.rollouts.vllm_limits import max_lora_rank


def export(options: argparse.Namespace) -> int:
    """Write the adapter, or the merged model, into a folder of its own and say how it is loaded."""
    run, stage, artifact = trained_policy(options.output_dir, options.run, options.stage)
    config = load_config(run.path / "config.yaml")
    device = config.launch.device
    if device == "auto":
        raise ConfigError(f"run {run.name}: its configuration is not resolved; run it again with `rlhf run`")
    target = Path(options.to).expanduser().resolve()
    quoted = shlex.quote(str(target))
    check_target(target)
    if target.is_relative_to(run.store_dir):
        raise ConfigError(
            f"{target}: lies in the store of artifacts; an export needs a folder outside of it: name another one with "
            f"--to DIR"
        )
    if options.merge:
        set_environment(stage_environment(config, run.config_dir))
        from stages.models.merging import export_merged

        lost = export_merged(artifact.path, config.model, target, device=device, config_dir=run.config_dir)
        print(f"the policy of {stage} of {run.name}, merged into its base: {target}")
        print(f"rounding to {config.model.dtype} lost {lost:.1%} of the adapter's update")
        print(f"vllm serve {quoted}")
        return 0
    export_adapter(artifact.path, target)
    base = shlex.quote(str(resolve_base(config.model, run.config_dir)))
    rank = max_lora_rank(config.model.tuning.rank)
    print(f"the adapter of {stage} of {run.name}: {target}")
    print(f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules policy={quoted}")
    return 0
