"""Rule rewards against figures that were counted by hand."""

import pytest

from rewards.config import CharacterShareRewardConfig, VaderRewardConfig
from rewards.contract import Episode
from rewards.rules import CharacterShareReward, VaderReward, build_rule_reward


def _episodes(*texts: str, prompt: str = "") -> list[Episode]:
    return [Episode(prompt, text, (1,), (2,), prompt, True) for text in texts]


def test_vader_is_the_published_compound_score() -> None:
    """Figures of the README of vaderSentiment 3.3.2."""
    reward = VaderReward(VaderRewardConfig())
    found = reward(
        _episodes(
            "VADER is smart, handsome, and funny.",
            "VADER is not smart, handsome, nor funny.",
            "Today SUX!",
        )
    )
    assert found == [0.8316, -0.7424, -0.5461]


def test_vader_reads_the_prompt_only_where_asked() -> None:
    episodes = _episodes(" and the table.", prompt="What a wonderful room")
    both = build_rule_reward(VaderRewardConfig())(episodes)
    response = build_rule_reward(VaderRewardConfig(text="response"))(episodes)
    assert both[0] > 0.3 and response == [0.0]


def test_character_share_by_hand() -> None:
    reward = build_rule_reward(CharacterShareRewardConfig(characters="ae"))
    assert isinstance(reward, CharacterShareReward)
    assert reward(_episodes("aabb", "e", "xyz", "", "Aa a")) == [0.5, 1.0, 0.0, 0.0, 0.5]


def test_rules_judge_no_episode_and_need_characters() -> None:
    assert build_rule_reward(VaderRewardConfig())([]) == []
    with pytest.raises(ValueError, match="at least 1 character"):
        CharacterShareRewardConfig(characters="")
