"""`rlhf chat RUN`: talk with a trained policy on the terminal."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from data.errors import ConfigError
from pipeline.launch import set_environment, stage_environment
from pipeline.loading import load_config
from pipeline.runs import open_run
from pipeline.store import verify_recorded
from stages.contract import StageName


def chat(options: argparse.Namespace) -> int:
    """Answer each line of standard input until it ends."""
    run = open_run(Path(options.output_dir).expanduser().resolve(), options.run)
    wanted: tuple[StageName, ...] = (options.stage,) if options.stage else ("ppo", "sft")
    policy = next(((stage, artifact) for stage in wanted if (artifact := run.artifact(stage)) is not None), None)
    if policy is None:
        raise ConfigError(
            f"run {run.name}: {' and '.join(wanted)} left no policy to talk with; "
            f"`rlhf show {run.name}` says how far it came"
        )
    stage, artifact = policy
    verify_recorded(run.store_dir, artifact, (run.stage(stage) or {}).get("fingerprint"))
    config = load_config(run.path / "config.yaml")
    set_environment(stage_environment(config, run.config_dir))
    print(f"the policy of {stage} of {run.name}; an empty line or Ctrl-D ends", file=sys.stderr)
    from stages.models.chat import chat_session

    for response in chat_session(artifact.path, config.model, config.launch.device, _prompts()):
        print(response, flush=True)
    return 0


def _prompts() -> Iterator[str]:
    """Lines of standard input, with a sign to write on a terminal."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        yield line
