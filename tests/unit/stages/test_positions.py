"""Sequences that are longer than the base knows positions for, refused before anything is trained on them."""

from types import SimpleNamespace

import pytest

from data.errors import ConfigError
from stages.positions import check_examples, check_prompts, known_positions


def test_examples_have_to_fit() -> None:
    check_examples("sft", [3, 8], 8)
    check_examples("sft", [900], None)
    check_examples("sft", [], 8)
    with pytest.raises(ConfigError) as error:
        check_examples("sft", [3, 9, 4], 8)
    assert str(error.value) == (
        "sft: the longest example has 9 tokens, but the base knows 8 positions; each example has to fit; set "
        "`sft.max_length: 8`, which drops longer ones, or take another base"
    )


@pytest.mark.parametrize(
    ("new_tokens", "remedy"),
    [
        (6, "set `ppo.max_prompt_tokens: 2`, which drops longer prompts, or lower"),
        (8, "lower"),
        (80, "lower"),
    ],
)
def test_a_prompt_leaves_room_for_the_response(new_tokens: int, remedy: str) -> None:
    prompts = [(1,), (1, 2, 3)]
    with pytest.raises(ConfigError) as error:
        check_prompts("ppo", prompts, new_tokens, 8)
    assert str(error.value) == (
        f"ppo: the longest prompt has 3 tokens, a response up to {new_tokens}, but the base knows 8 positions; the two "
        f"have to fit together; {remedy} `ppo.rollout.max_new_tokens`"
    )
    check_prompts("ppo", prompts, new_tokens, 3 + new_tokens)
    check_prompts("ppo", prompts, new_tokens, None)


def test_what_a_base_knows_is_said_by_its_configuration() -> None:
    for known in (256, None):
        text = SimpleNamespace() if known is None else SimpleNamespace(max_position_embeddings=known)
        assert known_positions(SimpleNamespace(get_text_config=lambda text=text: text)) == known
