"""A step of PPO that fails half-way: the stage ends clearly, and goes on later to the result of an undisturbed one."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.errors import StageError
from rewards.learned import LearnedReward
from stages.models.shared_base import SharedBase
from stages.ppo import trainer as trainer_module
from stages.ppo.guard import check_kl
from stages.ppo.trainer import PPOTrainer
from stages.ppo.update import Update
from stages.rollouts.hf_engine import HFEngine
from stages.run import StageSpec
from tests.unit.stages.parts import Executed, run_quietly
from tests.unit.stages.ppo.trainers import PROMPTS, MakeTrainer, move, policy_parameters, ppo_config
from tests.unit.stages.test_resume import rows, scramble


def elsewhere(run: Executed, folder: Path) -> StageSpec:
    """The same stage in another folder, with no checkpoint due before its end."""
    return replace(run.spec, stage_dir=folder / "night" / "ppo", store_dir=folder / "store")


def failing_at(number: int, original: Callable[..., Any], error: Exception, *, after: bool = False) -> Any:
    """The function, with its call of this number (from 1) raising; `after` lets it do its work first."""
    calls = [0]

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and not after:
            raise error
        result = original(*args, **kwargs)
        if calls[0] == number:
            raise error
        return result

    return wrapper


# Three steps of two minibatches in each of two epochs: the sixth minibatch is in the middle of the second step, and
# the third loading of the policy ends it.
PLACES = {
    "judging": (LearnedReward, "__call__", 2),
    "updating": (Update, "_minibatch", 6),
    "sending the adapter": (HFEngine, "load_policy", 3),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_step_that_fails_anywhere_is_done_again_and_the_result_is_the_same(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    owner, name, number = PLACES[place]
    spec = elsewhere(ppo_run, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing_at(number, getattr(owner, name), StageError("the wire broke"), after=True))
        with pytest.raises(StageError) as caught:
            run_quietly(spec)
    kept = spec.stage_dir / "checkpoints" / "step-00000001"
    assert str(caught.value) == (
        f"the wire broke. The state after step 1 is kept in {kept}: `rlhf resume night` goes on from there, with the "
        f"same settings; changed settings need a new run, which takes the stages before this one from the store"
    )
    assert rows(spec) == rows(ppo_run.spec)[:1]
    scramble()
    steps: list[int] = []
    step = PPOTrainer.step

    def counted(self: PPOTrainer, prompts: Any) -> dict[str, float]:
        steps.append(self.num_steps + 1)
        return step(self, prompts)

    monkeypatch.setattr(PPOTrainer, "step", counted)
    assert run_quietly(spec)["artifact"]["digest"] == ppo_run.artifact.digest
    assert steps == [2, 3]
    assert rows(spec) == rows(ppo_run.spec)


def test_a_fault_of_another_kind_keeps_the_state_too_and_comes_through(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = elsewhere(ppo_run, tmp_path)
    monkeypatch.setattr(Update, "_minibatch", failing_at(6, Update._minibatch, KeyError("column")))
    with caplog.at_level(logging.ERROR), pytest.raises(KeyError, match="column"):
        run_quietly(spec)
    assert "The state after step 1 is kept in" in caplog.text
    assert (spec.stage_dir / "checkpoints" / "step-00000001" / "checkpoint.json").is_file()


def test_a_first_step_that_fails_leaves_nothing_to_go_on_from_and_says_so(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = elsewhere(ppo_run, tmp_path)
    monkeypatch.setattr(HFEngine, "generate", failing_at(1, HFEngine.generate, StageError("the wire broke")))
    with pytest.raises(StageError, match=r"^the wire broke. It has no checkpoint yet: `rlhf resume night` starts it"):
        run_quietly(spec)


def test_a_policy_that_has_left_its_reference_ends_the_stage_before_the_update(make: MakeTrainer) -> None:
    trainer = make(ppo_config(max_kl_per_token=0.05))
    assert trainer.step(PROMPTS)["objective/kl"] < 0.01
    move(policy_parameters(trainer), scale=1.0)
    trainer.rollout_engine.load_policy("policy")
    before = trainer.num_steps
    with pytest.raises(
        StageError,
        match=r"ppo: step 2: the KL of policy and reference is \d+\.\d\d nats a token, more than "
        r"ppo\.max_kl_per_token=0\.05: .*Raise `ppo\.kl_coef`, lower `ppo\.learning_rate`",
    ):
        trainer.step(PROMPTS)
    assert trainer.num_steps == before


def test_the_bound_of_the_kl_is_on_the_mean_of_the_tokens() -> None:
    check_kl(1, 5.0, 5.0)
    check_kl(1, 1e9, None)
    with pytest.raises(StageError, match=r"step 7: .* is 5\.01 nats"):
        check_kl(7, 5.01, 5.0)


def test_the_kl_that_is_judged_is_a_mean_over_tokens_of_all_responses(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sum over the tokens by their number, which the mean KL of a response and the mean length give, too."""
    judged: list[float] = []
    monkeypatch.setattr(trainer_module, "check_kl", lambda step, kl, bound: judged.append(kl))
    trainer = make(ppo_config(), moved=True)
    found = trainer.step(PROMPTS)
    assert judged == [pytest.approx(found["objective/kl"] / found["rollout/response_length"], rel=1e-5)]
    assert isinstance(trainer.models.shared_base, SharedBase) and judged[0] != 0.0
