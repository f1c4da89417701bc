"""Words replaced and left out: how many, which never, and nothing but words."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.augmentation.words import delete_words, replace_words

TEXT = "Please explain why the quick engine fails at 20 km/h, see https://cars.example/engine and `engine.start()`."


def known(word: str) -> tuple[str, ...]:
    return {"engine": ("motor",), "quick": ("fast", "rapid"), "explain": ("describe",), "very": ("really",)}.get(
        word, ()
    )


def test_every_word_with_a_synonym_where_the_share_asks_for_it() -> None:
    found = replace_words(TEXT, 0.9, known, random.Random(0))
    assert found in [
        TEXT.replace("explain", "describe").replace("quick engine", f"{quick} motor") for quick in ("fast", "rapid")
    ]


@pytest.mark.parametrize(("share", "changed"), [(0.01, 1), (0.18, 2), (0.3, 3)])
def test_the_share_is_of_all_words(share: float, changed: int) -> None:
    # Ten words stand outside addresses, code and what has figures: 0.18 and 0.3 of them round to 2 and 3.
    found = replace_words(TEXT, share, known, random.Random(1))
    assert sum(a != b for a, b in zip(TEXT.split(), found.split(), strict=True)) == changed


def test_a_capital_stays_and_names_and_function_words_are_left() -> None:
    assert replace_words("Quick!", 0.5, lambda word: ("fast",), random.Random(0)) == "Fast!"
    assert replace_words("So. Quick, Quick", 0.9, lambda word: ("fast",), random.Random(0)) == "So. Fast, Quick"
    for text in ("NASA", "McKay", "very", "which", "car", "x-quick", "quick's", "Wörter2", "", "你好吗"):
        assert replace_words(text, 0.9, lambda word: ("other",), random.Random(0)) == text


def test_words_are_left_out_with_the_space_behind_them() -> None:
    found = {delete_words("one two  three\nfour", 0.25, random.Random(seed)) for seed in range(20)}
    assert found == {"two  three\nfour", "one three\nfour", "one two  \nfour", "one two  three\n"}
    assert delete_words("alone", 0.9, random.Random(0)) == "alone"
    assert delete_words("没有空格的句子", 0.9, random.Random(0)) == "没有空格的句子"
    assert len(delete_words("a b c d", 0.99, random.Random(0)).split()) == 1, "one stays"


@given(st.text(max_size=80), st.integers(0, 9))
def test_any_text_loses_nothing_but_words(text: str, seed: int) -> None:
    left = delete_words(text, 0.3, random.Random(seed))
    letters = iter(text)
    assert all(letter in letters for letter in left), "what is left stands in its order"
    kept = [code for code in re.findall(r"`[^`\n]*`", text)]
    assert all(code in left for code in kept)
    assert replace_words(text, 0.3, lambda word: (), random.Random(seed)) == text
