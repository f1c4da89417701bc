"""KL coefficient and shaping of the scores, by hand arithmetic."""

import pytest
import torch

from stages.ppo.config import AdaptiveKLConfig, FixedKLConfig, PPOConfig
from stages.ppo.controllers import KLController, ScoreShaper

SCORES = torch.tensor([4.0, -3.0, 0.5])
FINISHED = torch.tensor([True, False, True])


def _shaped(scores: torch.Tensor = SCORES, finished: torch.Tensor = FINISHED, **settings: object) -> list[float]:
    return ScoreShaper(PPOConfig.model_validate(settings))(scores, finished).tolist()


def test_checklist_30_the_adaptive_coefficient_rises_above_the_target_and_falls_below() -> None:
    controller = KLController(AdaptiveKLConfig(target=6.0, horizon=1000.0), 0.5)
    controller.update(60.0, num_episodes=100)  # error clipped to 0.2: 0.5 * (1 + 0.2 * 0.1)
    assert controller.value == pytest.approx(0.51)
    controller.update(0.0, num_episodes=100)  # -0.2: 0.51 * (1 - 0.02)
    assert controller.value == pytest.approx(0.4998)
    controller.update(6.6, num_episodes=200)  # 0.1: 0.4998 * (1 + 0.1 * 0.2)
    assert controller.value == pytest.approx(0.509796)


def test_a_fixed_coefficient_stays() -> None:
    controller = KLController(FixedKLConfig(), 0.5)
    controller.update(60.0, num_episodes=1000)
    assert controller.value == 0.5


def test_scores_pass_unshaped_by_default_and_are_copied() -> None:
    shaped = ScoreShaper(PPOConfig())(SCORES, FINISHED)
    assert torch.equal(shaped, SCORES)
    shaped[0] = 9.0
    assert SCORES[0] == 4.0


def test_checklist_19_a_missing_eos_replaces_or_penalises_the_score() -> None:
    assert _shaped(missing_eos_score=-1.0) == [4.0, -1.0, 0.5]
    assert _shaped(missing_eos_penalty=1.5) == [4.0, -4.5, 0.5]
    # The replacement is what it says, also where scores are clipped below it.
    assert _shaped(missing_eos_score=-9.0, score_clip=2.0) == [2.0, -9.0, 0.5]
    assert _shaped(missing_eos_penalty=1.5, score_clip=2.0) == [2.0, -3.5, 0.5]
    with pytest.raises(ValueError, match="both set; a missing EOS is either replaced or penalised: drop one"):
        PPOConfig(missing_eos_score=-1.0, missing_eos_penalty=0.0)


def test_scores_are_clipped_on_both_sides() -> None:
    assert _shaped(score_clip=1.0) == [1.0, -1.0, 0.5]


def test_scores_are_divided_by_the_deviation_of_all_scores_seen() -> None:
    shaper = ScoreShaper(PPOConfig(normalize_scores=True))
    everything = torch.ones(2, dtype=torch.bool)
    # 1, 3: deviation 1. Then 1, 3, 5, 7: mean 4, squares 9 + 1 + 1 + 9 = 20, deviation sqrt(5).
    assert shaper(torch.tensor([1.0, 3.0]), everything).tolist() == [1.0, 3.0]
    found = shaper(torch.tensor([5.0, 7.0]), everything)
    assert found.tolist() == pytest.approx([5 / 5**0.5, 7 / 5**0.5])
    assert (shaper.num_scores, shaper.mean, shaper.sum_of_squares) == (4, 4.0, 20.0)


def test_equal_scores_are_left_as_they_are() -> None:
    assert _shaped(torch.tensor([2.0, 2.0]), torch.tensor([True, True]), normalize_scores=True) == [2.0, 2.0]
    assert _shaped(torch.tensor([2.0]), torch.tensor([True]), normalize_scores=True) == [2.0]
