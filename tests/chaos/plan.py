"""Which attacks are tried on which runs: random ones, aimed ones, and requests to end."""

import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.attacks import (
    TRAINED,
    Attack,
    asked_to_end,
    killed_at,
    killed_at_row,
    killed_in,
    parent_killed,
    prefect_killed,
    stage_killed,
    wandb_killed,
)
from tests.chaos.flow import Target

INLINE, PROCESS = ("launch.mode=inline",), ("launch.mode=process",)
VLLM = (
    "launch.mode=process",
    *(f"{stage}.rollout.engine=vllm" for stage in ("preferences", "ppo", "evaluation")),
)
_RANKS = ("launch.num_processes=2", "sft.microbatch_size=8", "reward_model.microbatch_size=8", "ppo.microbatch_size=4")
DDP = ("launch.mode=accelerate", *_RANKS)
ZERO = ("launch.mode=deepspeed", *_RANKS)
KILLS_A_TRIAL = 4
"""Of a random trial: one in each training stage and one in any other."""

_UNTRAINED = ("data", "preferences", "evaluation")
_STEP_SECONDS = 0.4
"""A little more than a step of the smoke flow takes."""


@dataclass(frozen=True)
class Trial:
    """One run and what it goes through, in this order; then it is resumed to its end.

    Attributes:
        name: Of the run.
        settings: `KEY=VALUE`.
        attacks: One an execution.
        stored: Stages that are taken from the store of the whole run, where the attacks come after them.
    """

    name: str
    settings: tuple[str, ...]
    attacks: tuple[Attack, ...]
    stored: tuple[str, ...] = ()


def random_trials(whole: Target, number: int, rng: random.Random) -> list[Trial]:
    """Runs that are killed `KILLS_A_TRIAL` times each."""
    seconds = {stage["name"]: float(stage["seconds"]) for stage in whole.record()["stages"]}
    order = list(seconds)
    trials = []
    for trial in range(number):
        aims = [(stage, _anywhere(stage, whole, seconds[stage], rng)) for stage in TRAINED]
        other = rng.choice(_UNTRAINED)
        aims.append((other, killed_in(other, rng.uniform(0, seconds[other]))))
        attacks = tuple(attack for _, attack in sorted(aims, key=lambda aim: order.index(aim[0])))
        trials.append(Trial(f"random-{trial + 1}", (INLINE, PROCESS)[trial % 2], attacks))
    return trials


def aimed_trials() -> list[Trial]:
    """Kills in the middle of a write and around each rename that a result rests on."""
    trials = []
    for stage in TRAINED:
        place = f"/{stage}/checkpoints/"
        half = killed_at("write" if stage == "ppo" else "copy", place, 2)
        attacks = (
            killed_at("flush", place, 3), half, killed_at("rename-before", place, 1),
            killed_at("rename-after", place, 1),
        )  # fmt: skip
        trials.append(Trial(f"checkpoint-{stage}", INLINE, attacks))
    publication = (
        killed_at("rename-before", "/store/", 1), killed_at("rename-after", "/store/", 1),
        killed_at("replace-before", "/store/records/", 1), killed_at("replace-after", "/run.json", 6),
    )  # fmt: skip
    return [*trials, Trial("publication", INLINE, publication)]


def ended_trials() -> list[Trial]:
    """Requests to end, and processes of a run that are killed apart from it."""
    return [
        Trial("asked-inline", INLINE, (asked_to_end(signal.SIGTERM, "sft", 2), asked_to_end(signal.SIGINT, "ppo", 2))),
        Trial(
            "asked-process",
            PROCESS,
            (asked_to_end(signal.SIGINT, "reward_model", 2), asked_to_end(signal.SIGTERM, "ppo", 2)),
        ),
        Trial("apart", PROCESS, (parent_killed("sft", 2), stage_killed("reward_model", 2), parent_killed("ppo", 2))),
    ]


def helper_trials(home: Path) -> list[Trial]:
    """The servers of others: W&B's process and the Prefect server."""
    return [
        Trial("wandb", INLINE, (wandb_killed("ppo", 1),)),
        Trial("prefect", INLINE, (prefect_killed("ppo", 1, home),)),
    ]


def engine_trial(name: str, settings: Sequence[str]) -> Trial:
    """Kills in each training stage under another engine or launcher."""
    attacks = (
        killed_at_row("sft", 3, 0.1), killed_at_row("reward_model", 2, 0.1), killed_at_row("ppo", 1, 0.1),
        killed_at_row("ppo", 3, 0.1),
    )  # fmt: skip
    return Trial(name, tuple(settings), attacks)


def short_trials() -> list[Trial]:
    """Six kills for CI: an aimed one in each training stage, and the processes of a run one by one."""
    return [
        Trial(
            "short-inline",
            INLINE,
            (
                killed_at("copy", "/sft/checkpoints/", 12),
                killed_at("rename-before", "/reward_model/checkpoints/", 2),
                killed_at("write", "/ppo/checkpoints/", 4),
            ),
        ),
        Trial(
            "short-process",
            PROCESS,
            (killed_at_row("reward_model", 2, 0.1), parent_killed("ppo", 1), asked_to_end(signal.SIGTERM, "ppo", 3)),
            stored=("data", "sft", "preferences"),
        ),
    ]


def _anywhere(stage: str, whole: Target, seconds: float, rng: random.Random) -> Attack:
    """Three times out of four at a random place between two steps, else at a random moment of the whole stage."""
    if rng.random() < 0.25:
        return killed_in(stage, rng.uniform(0, seconds))
    return killed_at_row(stage, rng.randint(1, whole.last_step(stage) - 1), rng.uniform(0, _STEP_SECONDS))
