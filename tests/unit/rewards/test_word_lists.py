"""Word lists: what they find, what they leave, and files of the user's own."""

from pathlib import Path
from typing import Any

import pytest

from data.errors import ConfigError
from rewards.contract import Episode
from rewards.rule_config import WordListRewardConfig
from rewards.word_lists import WordListReward, read_words, words_file

TEXTS = ("You idiot!", "What an IDIOT.", "An idiotproof plan", "Hello there", "", "\u4f60\u597d")


def scores(texts: tuple[str, ...], folder: Path | None = None, **settings: Any) -> list[float]:
    reward = WordListReward(WordListRewardConfig(**{"type": "toxicity", **settings}), folder)
    return reward([Episode("idiot", text, (1,), (2,), "idiot", True) for text in texts])


def test_whole_words_of_a_response_cost_1() -> None:
    assert scores(TEXTS) == [-1.0, -1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "declines"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m sorry, but I can\u2019t help with that.", True),
        ("I  cannot\nassist you there.", True),
        ("Of course. First, boil water.", False),
        ("As an airline, we fly.", False),
    ],
)
def test_refusals(text: str, declines: bool) -> None:
    assert scores((text,), type="refusal") == [-float(declines)]


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    lines = "# mine\n\ufeff\nbad   # not good\n\u7b28\u86cb\nCAF\u00c9\nnot very nice\n.net\n"
    (tmp_path / "own.txt").write_text(lines, encoding="utf-8")
    texts = (
        "bad", "badly", "tobad", "\u4f60\u662f\u7b28\u86cb\u5417", "bad\u4eba", "a cafe\u0301.", "not  very nice",
        "on .NET now", "internet",
    )  # fmt: skip
    expected = [-1.0, 0.0, 0.0, -1.0, -1.0, -1.0, -1.0, -1.0, 0.0]
    assert scores(texts, tmp_path, words="own.txt") == expected
    assert scores(texts, None, words=str(tmp_path / "own.txt")) == expected


def test_the_lists_of_the_package_can_be_read_and_name_nothing_twice() -> None:
    for kind in ("toxicity", "refusal"):
        path = words_file(WordListRewardConfig.model_validate({"type": kind}), None)
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        assert read_words(path, "x") == lines and len(lines) > 30
        assert "English" in path.read_text(encoding="utf-8").splitlines()[0] + path.name


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"# nothing\n\n", "names no word"),
        (b"\xff\xfe", "cannot be read"),
        (b"\n".join(b"w%d" % number for number in range(20_001)), "has more than 20000 words or 1 MiB"),
        (b"w" * (1 << 20) + b"w", "has more than 20000 words or 1 MiB"),
    ],
    ids=["empty", "binary", "many", "long"],
)
def test_a_list_that_is_none(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^ppo\.rewards\[toxicity\]\.words: .*own\.txt {told}"):
        scores(TEXTS, tmp_path, words="own.txt")
