"""The formats of docs/chat.md are what SFT trains on, and the page is what the program writes."""

import pytest

from tests.chat_table import FAMILIES, PAGE, TALK, Family, marked, page_with, table, tokenizer_of


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_with(table()), "run `python -m tests.chat_table`"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.file)
def test_what_is_learned_is_what_the_assistant_said(family: Family) -> None:
    text, found = marked(family)
    assert text.endswith(f"⟦ {TALK.response}{family.eos}⟧") or text.endswith(f"⟦{TALK.response}{family.eos}⟧")
    assert text.count("⟦") == 1
    assert text.count("⟪") == found.num_turns == 1 - found.num_unclear
    if found.num_turns:
        earlier = text.split("⟪")[1].split("⟫")[0]
        end = "" if found.num_open_turns else family.eos
        assert earlier.strip().replace(" " + family.eos, family.eos) == f"Not yet.{end}"
    assert text.count(family.bos or "\0") <= (2 if family.file == "llama-2" else 1)
    said = [turn.content for turn in TALK.prompt if not isinstance(turn, str)]
    assert all(text.count(words) == 1 for words in said), "all that was said is there, once"
    assert tokenizer_of(family).decode([]) == ""
