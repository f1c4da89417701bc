"""`rlhf chat RUN`: talk with a trained policy on the terminal."""

import argparse
import sys
from collections.abc import Iterator

from data.errors import ConfigError
from data.schema import read_split
from pipeline.commands.policy import trained_policy
from pipeline.launch import set_environment, stage_environment
from pipeline.loading import load_config
from stages.contract import Artifact


def chat(options: argparse.Namespace) -> int:
    """Answer each line of standard input until it ends."""
    run, stage, artifact = trained_policy(options.output_dir, options.run, options.stage)
    config = load_config(run.path / "config.yaml")
    set_environment(stage_environment(config, run.config_dir))
    print(f"the policy of {stage} of {run.name}; an empty line or Ctrl-D ends", file=sys.stderr)
    from stages.rollouts.chat import chat_session
    from stages.rollouts.config import SamplingConfig

    device = config.launch.device
    if device == "auto":
        raise ConfigError(f"run {run.name}: its configuration is not resolved; run it again with `rlhf run`")
    responses = chat_session(
        artifact.path,
        config.model,
        device,
        _prompts(),
        conversational=_is_conversational(run.artifact("data")),
        sampling=SamplingConfig() if config.ppo is None else config.ppo.rollout,
        config_dir=run.config_dir,
        seed=config.seed,
    )
    for response in responses:
        print(response, flush=True)
    return 0


def _is_conversational(dataset: Artifact | None) -> bool:
    """Whether the policy was trained on turns, by the first demonstration that it saw."""
    if dataset is None:
        return False
    return not isinstance(read_split(dataset.path, "demonstrations", "train")[0].prompt, str)


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
