"""What many steps learn: a planted target, with each estimator, and less of it on a leash."""

from collections.abc import Sequence

import pytest

from rewards.contract import Episode
from tests.unit.stages.parts import FoldersOf, all_roles
from tests.unit.stages.ppo.trainers import MakeTrainer, ppo_config, zero_value_head

STEPS, BATCH = 10, 64


@pytest.mark.parametrize(("estimator", "responses"), [("gae", 1), ("rloo", 4), ("grpo", 4), ("reinforce_plus_plus", 1)])
def test_learning_a_planted_target_with_and_without_a_leash(
    make: MakeTrainer, folders: FoldersOf, estimator: str, responses: int
) -> None:
    """Reward: the share of tokens with a positive first coordinate of the embedding, half of them at first.

    Such a set is within reach of an adapter on states of width 32; a random half of 320 tokens is not.
    """
    rows = all_roles(folders("llama")).peft_model.get_base_model().get_output_embeddings().weight
    planted = {token for token in range(len(rows)) if rows[token, 0] > 0}
    prompts = [[20 + number // responses] for number in range(BATCH)]

    def share(episodes: Sequence[Episode]) -> list[float]:
        return [sum(token in planted for token in e.response_ids) / len(e.response_ids) for e in episodes]

    def learn(kl_coef: float) -> list[dict[str, float]]:
        config = ppo_config(
            advantage_estimator=estimator, responses_per_prompt=responses, kl_coef=kl_coef, learning_rate=0.02,
            steps=STEPS, batch_size=BATCH, minibatch_size=BATCH // 2, microbatch_size=BATCH // 2,
            rollout={"max_new_tokens": 4},
        )  # fmt: skip
        trainer = make(config, reward=share)
        if config.has_critic:  # one that starts at random takes longer than these steps
            zero_value_head(trainer)
        return [trainer.step(prompts) for _ in range(STEPS)]

    def last(steps: list[dict[str, float]], name: str) -> float:
        return sum(step[name] for step in steps[-3:]) / 3

    free, leashed = learn(0.0), learn(1000.0)
    assert free[0]["objective/scores"] == pytest.approx(0.5, abs=0.08)
    assert last(free, "objective/scores") > 0.66
    assert last(leashed, "objective/scores") < 0.61
    assert last(free, "objective/kl") > 0.8
    assert abs(last(leashed, "objective/kl")) < 0.7
