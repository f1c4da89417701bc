"""The loss mask of conversations: which tokens are learned, by forms whose text can be written down."""

from collections.abc import Sequence
from typing import Any

import pytest

from data.assistant_turns import LearnedRow, encode_demonstrations
from data.chat import encode_episode
from data.schema import Demonstration, Message
from tests.unit.data.test_chat import TEMPLATE, byte_tokenizer

HEADED = (
    "{% for m in messages %}<{{ m.role }}>\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %} {{ m.content }} </s>{% endif %}"
    "{% endfor %}"
)
ANOTHER_END = HEADED.replace("</s>", "<end>")
THINKING = HEADED.replace("<assistant>\n", "<assistant>\n<think>\n")
UPPER = HEADED.replace("m.content | trim", "m.content | upper")


def talk(*turns: str, system: str | None = None) -> tuple[Message, ...]:
    """User and assistant in turns."""
    start = () if system is None else (Message(role="system", content=system),)
    return (
        *start,
        *(Message(role="assistant" if place % 2 else "user", content=text) for place, text in enumerate(turns)),
    )


DEMONSTRATION = Demonstration(prompt=talk("Hé?", " the A \U0001f44b ", "and?", "B", "so?", system="Be."), response="C")


def marked(tokenizer: Any, row: LearnedRow) -> str:
    """The text with what is learned in braces."""
    parts, inside = [], False
    for token, learned in [*zip(row.ids, row.mask, strict=True), (None, 0)]:
        if bool(learned) != inside:
            parts.append("}" if inside else "{")
            inside = bool(learned)
        if token is not None:
            parts.append(token)
    text, run = "", []
    for part in [*parts, ""]:
        if isinstance(part, int):
            run.append(part)
            continue
        text += tokenizer.decode(run) + part
        run = []
    return text


def learned(tokenizer: Any, demonstration: Demonstration = DEMONSTRATION) -> tuple[str, tuple[int, int, int]]:
    found = encode_demonstrations(tokenizer, [demonstration], all_responses=True)
    (row,) = found.rows
    prompt, response = encode_episode(tokenizer, demonstration.prompt, demonstration.response)
    assert [*row.ids] == [*prompt, *response], "the ids are those of a rollout"
    assert [*row.mask[len(prompt) :]] == [1] * (len(row.ids) - len(prompt))
    return marked(tokenizer, row), (found.num_turns, found.num_open_turns, found.num_unclear)


@pytest.mark.parametrize(
    ("template", "text", "counts"),
    [
        (
            TEMPLATE,
            "<s>[system]Be.</s>[user]Hé?</s>[assistant]{ the A \U0001f44b </s>}[user]and?</s>"
            "[assistant]{B</s>}[user]so?</s>[assistant]{C</s>}",
            (2, 0, 0),
        ),
        (
            HEADED,
            "<system>\nBe.</s>\n<user>\nHé?</s>\n<assistant>\n{the A \U0001f44b</s>}\n<user>\nand?</s>\n"
            "<assistant>\n{B</s>}\n<user>\nso?</s>\n<assistant>\n{C</s>}",
            (2, 0, 0),
        ),
        (SPACED, " Be. </s>[Hé?]{  the A \U0001f44b  </s>}[and?]{ B </s>}[so?]{ C</s>}", (2, 0, 0)),
        (
            ANOTHER_END,
            "<system>\nBe.<end>\n<user>\nHé?<end>\n<assistant>\n{the A \U0001f44b}<end>\n<user>\nand?<end>\n"
            "<assistant>\n{B}<end>\n<user>\nso?<end>\n<assistant>\n{C</s>}",
            (2, 2, 0),
        ),
    ],
    ids=["plain_markers", "headers", "spaces", "another_end"],
)
def test_checklist_02_turns_are_learned_with_their_end_and_nothing_else_is(
    template: str, text: str, counts: Any
) -> None:
    assert learned(byte_tokenizer("<s> $A", chat_template=template)) == (text, counts)


def test_the_plain_form_ends_no_turn() -> None:
    found = learned(byte_tokenizer("<s> $A </s>"))
    assert found == (
        "<s>Be.\n\nHuman: Hé?\n\nAssistant:{  the A \U0001f44b} \n\nHuman: and?\n\nAssistant:{ B}\n\nHuman: so?"
        "\n\nAssistant:{ C</s>}",
        (2, 2, 0),
    )


@pytest.mark.parametrize("template", [THINKING, UPPER], ids=["prompt_differs", "text_differs"])
def test_where_the_template_rewrites_earlier_turns_the_last_alone_is_learned(template: str) -> None:
    text, counts = learned(byte_tokenizer(chat_template=template))
    assert counts == (0, 0, 1) and text.count("{") == 1 and text.endswith("{C</s>}")


def test_a_response_that_repeats_earlier_words_is_found_at_its_place() -> None:
    prompt = talk("A", "A", "A", "AA", "A")
    text, _ = learned(byte_tokenizer(chat_template=TEMPLATE), Demonstration(prompt=prompt, response="A"))
    assert text == "<s>[user]A</s>[assistant]{A</s>}[user]A</s>[assistant]{AA</s>}[user]A</s>[assistant]{A</s>}"


def test_a_token_that_reaches_over_the_beginning_is_not_learned() -> None:
    # `he` is one token: written in one piece, the header's h swallows the answer's e.
    template = TEMPLATE.replace("[{{ m.role }}]", "[{{ m.role }}]h").replace(
        "[assistant]{% endif", "[assistant]h{% endif"
    )
    text, counts = learned(
        byte_tokenizer(chat_template=template), Demonstration(prompt=talk("q", "eat", "r"), response="C")
    )
    assert text == "<s>[user]hq</s>[assistant]he{at</s>}[user]hr</s>[assistant]h{C</s>}" and counts == (1, 0, 0)


@pytest.mark.parametrize("around", ["$A", "<s> $A"])
def test_else_only_the_last_response_is_learned(around: str) -> None:
    tokenizer = byte_tokenizer(around, chat_template=TEMPLATE)
    rows: Sequence[Demonstration] = [DEMONSTRATION, Demonstration(prompt="the", response="C")]
    found = encode_demonstrations(tokenizer, rows, all_responses=False)
    assert (found.num_turns, found.num_open_turns, found.num_unclear) == (0, 0, 0)
    for row, each in zip(found.rows, rows, strict=True):
        prompt, response = encode_episode(tokenizer, each.prompt, each.response)
        assert [*row.ids] == [*prompt, *response]
        assert [*row.mask] == [0] * len(prompt) + [1] * len(response)
    both = encode_demonstrations(tokenizer, rows, all_responses=True).rows
    assert both[1] == found.rows[1] and both[0].ids == found.rows[0].ids and sum(both[0].mask) > sum(found.rows[0].mask)
