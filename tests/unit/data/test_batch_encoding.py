"""Many texts at once have the ids that each has alone."""

import os
from typing import Any

import pytest

from data.batch_encoding import encode_episodes, retokenize_episodes
from data.chat import encode_episode, retokenize_episode
from data.errors import DataError, ModelError
from data.schema import Message, Prompt
from data.token_table import ids_table
from tests.unit.data.test_chat import EOS, TALK, TEMPLATE, byte_tokenizer

EPISODES: list[tuple[Prompt, tuple[str, ...]]] = [
    ("The film ", ("was fun.", "was</s></s>", "")),
    (TALK, (" hé \U0001f469\u200d\U0001f680", "</s>inside")),
    ("", ("سلام",)),
    ("<s>twice?", ()),
    ((Message(role="user", content="你好"),), ("  spaces first",)),
]


@pytest.mark.parametrize("around", ["$A", "<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_ids_are_those_of_one_by_one(around: str, template: str | None) -> None:
    tokenizer = byte_tokenizer(around, chat_template=template)
    many = EPISODES * 700  # more than a chunk
    for found, alone in (
        (encode_episodes(tokenizer, many), lambda prompt, text: encode_episode(tokenizer, prompt, text)),
        (
            retokenize_episodes(tokenizer, many),
            lambda prompt, text: retokenize_episode(tokenizer, prompt, text, finished=True),
        ),
    ):
        assert len(found) == len(many) and found[: len(EPISODES)] == found[-len(EPISODES) :]
        for ids, (prompt, responses) in zip(found, EPISODES, strict=False):
            assert len(ids.responses) == len(responses)
            for response, text in zip(ids.responses, responses, strict=True):
                expected: Any = alone(prompt, text)
                assert (list(ids.prompt), list(response)) == expected and response[-1] == EOS


class Slow:
    """A tokenizer of transformers without the fast backend."""

    is_fast = False

    def __init__(self, fast: Any) -> None:
        self._fast = fast

    def __getattr__(self, name: str) -> Any:
        if name == "backend_tokenizer":
            raise AttributeError(name)
        return getattr(self._fast, name)


def test_a_tokenizer_without_fast_backend() -> None:
    tokenizer = byte_tokenizer("<s> $A")
    assert encode_episodes(Slow(tokenizer), EPISODES) == encode_episodes(tokenizer, EPISODES)  # type: ignore[arg-type]


def test_the_tokenizer_is_left_as_it_was() -> None:
    tokenizer = byte_tokenizer()
    encode_episodes(tokenizer, EPISODES)
    assert tokenizer.backend_tokenizer.encode_special_tokens is False
    assert tokenizer.encode("</s>", add_special_tokens=False) == [EOS]


def test_progress_threads_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    told: list[tuple[int, int]] = []
    encode_episodes(byte_tokenizer(), EPISODES * 500, progress=lambda *done: told.append(done))
    assert told == [(2000, 2500), (2500, 2500)] and os.environ["TOKENIZERS_PARALLELISM"] == "false"
    tool = (Message(role="tool", content="x"),)
    with pytest.raises(DataError, match="the chat template refuses it"):
        encode_episodes(byte_tokenizer(chat_template=TEMPLATE), [(tool, ("a",))])
    with pytest.raises(ModelError, match="has no EOS token"):
        encode_episodes(byte_tokenizer(eos_token=None), [("q", ("a",))])
    assert encode_episodes(byte_tokenizer(), []) == []


def test_columns_hold_the_rows() -> None:
    rows = encode_episodes(byte_tokenizer(), EPISODES)
    table = ids_table({"prompt": [row.prompt for row in rows], "again": [[1], [], [2, 3], [4], []]})
    assert table["prompt"].to_pylist() == [list(row.prompt) for row in rows]
    assert (
        table["again"].to_pylist() == [[1], [], [2, 3], [4], []]
        and str(table.schema.field("again").type) == "list<item: int32>"
    )
    assert ids_table({"x": []}).num_rows == 0
