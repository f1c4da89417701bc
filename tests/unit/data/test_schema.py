"""Records, their JSON lines, and the hash that splits them."""

import hashlib
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from data.errors import DataError
from data.schema import (
    Demonstration,
    Message,
    PreferencePair,
    PromptRecord,
    is_held_out,
    prompt_key,
    read_records,
    read_split,
    split_key,
    split_path,
    write_records,
)

TURNS = (
    Message(role="system", content="Be kind."),
    Message(role="user", content="Hi\u2028there\n\n\U0001f469‍\U0001f680"),
)
WORLD = [
    "plain",
    "Grüße aus Zürich",
    "سلام، كيف حالك؟",
    "שלום",
    "日本語のテキスト",
    "\U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "a\u2028b\u0085c",
    "\x00\t",
]


def test_json_line_is_canonical() -> None:
    pair = PreferencePair(prompt="p", chosen="é", rejected="b")
    assert pair.to_json() == '{"chosen": "é", "prompt": "p", "rejected": "b"}'
    assert Demonstration(prompt=TURNS[:1], response="r").to_json() == (
        '{"prompt": [{"content": "Be kind.", "role": "system"}], "response": "r"}'
    )
    assert PreferencePair(prompt="p", chosen="a", rejected="b", margin=0.5).to_json() == (
        '{"chosen": "a", "margin": 0.5, "prompt": "p", "rejected": "b"}'
    )


def test_records_come_back_equal_in_every_script(tmp_path: Path) -> None:
    demonstrations = [Demonstration(prompt=TURNS, response=text) for text in WORLD]
    pairs = [PreferencePair(prompt=text, chosen=text + "!", rejected="", margin=1.5) for text in WORLD]
    prompts = [PromptRecord(prompt=text) for text in WORLD] + [PromptRecord(prompt=TURNS)]
    write_records(tmp_path / "d" / "d.jsonl", demonstrations)
    write_records(tmp_path / "p.jsonl", pairs)
    write_records(split_path(tmp_path, "prompts", "held_out"), prompts)
    assert read_records(tmp_path / "d" / "d.jsonl", "demonstrations") == demonstrations
    assert read_records(tmp_path / "p.jsonl", "preferences") == pairs
    assert read_split(tmp_path, "prompts", "held_out") == prompts
    assert (tmp_path / "p.jsonl").read_bytes().count(b"\n") == len(pairs)


def test_empty_file_has_no_records(tmp_path: Path) -> None:
    write_records(tmp_path / "none.jsonl", [])
    assert read_records(tmp_path / "none.jsonl", "prompts") == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "x"}', "bad.jsonl:2: response: Field required; a line of demonstrations"),
        ('{"prompt": "x", "response": "y", "extra": 1}', "bad.jsonl:2: extra: Extra inputs"),
        ("{", "bad.jsonl:2: line: Invalid JSON"),
        ('{"prompt": [], "response": "y"}', "bad.jsonl:2: prompt"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "x", "response": "y"}\n' + line + "\n")
    with pytest.raises(DataError) as error:
        read_records(path, "demonstrations")
    assert expected in str(error.value)
    assert "run the stage that made the file again" in str(error.value)


def test_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.jsonl: there is no such file; .*; give `data.preferences`"):
        read_split(tmp_path, "preferences", "train")


def test_prompt_key_is_sha256_of_canonical_json() -> None:
    expected = hashlib.sha256('[{"content": "Grüße", "role": "user"}]'.encode()).hexdigest()
    assert prompt_key("Grüße") == expected


def test_prompt_key_ignores_unicode_form_and_outer_space_only() -> None:
    assert prompt_key(unicodedata.normalize("NFD", " Grüße\n")) == prompt_key("Grüße")
    assert prompt_key("a b") != prompt_key("a  b")
    assert prompt_key("a") != prompt_key("A")
    assert prompt_key([Message(role="user", content=" Hi ")]) == prompt_key("Hi")
    assert prompt_key([Message(role="assistant", content="Hi")]) != prompt_key("Hi")
    assert prompt_key(TURNS) != prompt_key(TURNS[::-1])


def test_records_without_prompt_are_told_apart_by_their_response() -> None:
    assert split_key(Demonstration(prompt="", response="a")) != split_key(Demonstration(prompt=" ", response="b"))
    assert split_key(PreferencePair(prompt="", chosen="a", rejected="b")) == prompt_key("a")
    assert split_key(Demonstration(prompt="q", response="a")) == split_key(PromptRecord(prompt="q"))


def test_held_out_shares_are_nested_and_about_right() -> None:
    prompts = [f"prompt number {number}" for number in range(2000)]
    sides = {share: {prompt for prompt in prompts if is_held_out(prompt, share)} for share in (0.0, 0.1, 0.3, 0.99)}
    assert sides[0.0] == set()
    assert sides[0.1] < sides[0.3] < sides[0.99]
    # Binomial: the standard deviation of 2000 x 0.1 is 13.4; four of them.
    assert abs(len(sides[0.1]) - 200) < 54
    assert abs(len(sides[0.3]) - 600) < 82


def test_schema_and_sources_import_no_heavy_package() -> None:
    code = (
        "import sys, data.schema, data.sources, data.formats, data.config\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
