"""`rlhf data check` on files and configurations: figures, samples, page, exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig
from data.schema import Message
from pipeline.cli import main
from pipeline.data_check import Limit, check_data, source_of_path
from tests.unit.data.test_chat import TEMPLATE, byte_tokenizer
from tests.unit.stages.data.test_data_stage import write


class WordTokenizer:
    """One id a word; a chat template of a few marks. EOS is 1."""

    bos_token_id, eos_token_id, eos_token, chat_template, is_fast = 0, 1, "<e>", "yes", False

    def encode(self, text: str, **options: Any) -> list[int]:
        """Ids from 2 on."""
        return [2 + len(word) for word in text.split()]

    def decode(self, ids: list[int], **options: Any) -> str:
        """A mark for each id."""
        return " ".join("<e>" if token == 1 else "x" * (token - 2) for token in ids)

    def apply_chat_template(self, turns: list[dict[str, str]], **options: Any) -> str:
        """Turns behind their roles."""
        return " ".join(f"<{turn['role']}> {turn['content']}" for turn in turns) + " <assistant>"


def rows(count: int, words: int = 3) -> list[dict[str, Any]]:
    """Pairs whose chosen response is the longer one in every second row."""
    return [
        {
            "prompt": f"Question number {number} about things",
            "chosen": " ".join(["good"] * (words + number % 2)),
            "rejected": " ".join(["bad"] * (words + 1 - number % 2)),
        }
        for number in range(count)
    ]


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """Messages as rows hold them."""
    return [Message.model_validate({"role": role, "content": text}).model_dump() for role, text in turns]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preferences"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}, "preferences"),
        ({"prompt": "q", "response": "a"}, "demonstrations"),
        ({"messages": said(("user", "q"), ("assistant", "a"))}, "demonstrations"),
        ({"prompt": "q"}, "prompts"),
    ],
)
def test_a_file_is_read_as_what_it_holds(row: dict[str, Any], kind: str, tmp_path: Path) -> None:
    found = source_of_path(write(tmp_path / "rows.jsonl", [row]))
    assert [name for name in ("demonstrations", "preferences", "prompts") if getattr(found, name)] == [kind]


def test_tokens_limits_and_samples_are_those_of_the_stages(tmp_path: Path) -> None:
    data = source_of_path(write(tmp_path / "p.jsonl", [*rows(40), *rows(1, words=30)]))
    limits = [
        Limit("reward_model", "reward_model.max_length", 20, "preferences", prompt_alone=False),
        Limit("ppo", "ppo.max_prompt_tokens", 5, "prompts", prompt_alone=True),
    ]
    found = check_data(
        data, name="x", config_dir=None, tokenizer=WordTokenizer(), limits=limits, progress=lambda *_: None
    )
    lengths = found.lengths["preferences"]
    # A prompt of 5 words; responses of 3 to 4, and 30 to 31, words and EOS.
    assert lengths["prompt"].percentiles["100"] == 5
    assert lengths["chosen"].percentiles["50"] in (4, 5) and lengths["chosen"].percentiles["100"] in (31, 32)
    assert [(row["setting"], row["dropped"]) for row in found.truncation] == [
        ("reward_model.max_length", 1), ("ppo.max_prompt_tokens", 0)
    ]  # fmt: skip
    assert [finding["check"] for finding in found.findings] == ["truncation"] and not found.errors
    assert len(found.samples) == 16
    pair = next(sample for sample in found.samples if sample.kind == "preferences")
    assert [role for role, _ in pair.parts] == ["context", "chosen", "rejected"]
    assert pair.parts[1][1].endswith("<e>") and not pair.parts[0][1].endswith("<e>")
    learned = next(sample for sample in found.samples if sample.kind == "demonstrations")
    assert [role for role, _ in learned.parts] == ["context", "learned"] and learned.tokens[0] == 5


def test_samples_show_every_learned_turn(tmp_path: Path) -> None:
    turns = (("user", "q"), ("assistant", "a b"), ("user", "r"), ("assistant", "c"))
    path = write(tmp_path / "p.jsonl", [{"messages": said(*turns)}])
    data = DataConfig.model_validate({"demonstrations": {"path": path, "held_out": 0}})
    tokenizer = byte_tokenizer(chat_template=TEMPLATE)
    for all_responses, expected in (
        (False, [("context", "<s>[user]q</s>[assistant]a b</s>[user]r</s>[assistant]"), ("learned", "c</s>")]),
        (
            True,
            [
                ("context", "<s>[user]q</s>[assistant]"), ("learned", "a b</s>"),
                ("context", "[user]r</s>[assistant]"), ("learned", "c</s>"),
            ],
        ),
    ):  # fmt: skip
        found = check_data(
            data, name="x", config_dir=None, tokenizer=tokenizer, all_responses=all_responses, progress=lambda *_: None
        )
        sample = next(each for each in found.samples if each.kind == "demonstrations")
        assert list(sample.parts) == expected and len(sample.tokens) == len(expected)


def test_a_file_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = {"prompt": "<script>alert(1)</script> سلام", "chosen": "\U0001f600 <b>", "rejected": "你好"}
    path = write(tmp_path / "p.jsonl", [*rows(4), hostile])
    assert main(["data", "check", path, "--output-dir", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "preferences: 5 rows" in shown and "nothing found" in shown
    folder = tmp_path / "out" / "data_check"
    page = (folder / "p.html").read_text()
    assert "<script" not in page and "سلام" in page and "http" not in page.replace("http-equiv", "")
    values = json.loads((folder / "p.json").read_text())
    assert values["quality"]["kinds"]["preferences"]["rows"] == 5 and values["lengths"] == {}


def test_an_error_ends_with_code_2_and_the_page_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opposed = [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows(30)[:8]]
    path = write(tmp_path / "p.jsonl", [*rows(40), *opposed])
    assert main(["data", "check", path, "--output-dir", str(tmp_path)]) == 2
    assert "ERROR    data.preferences: 16 of 48 pairs say the opposite" in capsys.readouterr().out
    assert "16 of 48 pairs" in (tmp_path / "data_check" / "p.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere.jsonl"], "there is no such file"),
        (["p.jsonl", "--set", "seed=1"], "is data, not a configuration"),
        (["odd.jsonl"], "no format of prompts fits the columns `a`"),
    ],
)
def test_what_cannot_be_checked(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.jsonl", rows(3))
    write(tmp_path / "odd.jsonl", [{"a": 1}])
    assert main(["data", "check", *arguments]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "outputs").exists()
