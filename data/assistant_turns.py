"""Demonstrations as token ids with a mask of what is learned: the response alone, or every turn of the assistant.

The ids are those of `data.chat` in either case, and so those that a policy sees before it answers; the mask differs.
"""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data.batch_encoding import EpisodeIds, Ids, encode_episodes
from data.chat import render_prompt_text, uses_chat_template
from data.errors import DataError
from data.schema import Demonstration, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LearnedRow(NamedTuple):
    """A demonstration.

    Attributes:
        ids: Prompt and response, which ends with EOS.
        mask: For each of them 1 where it is in the loss, else 0.
    """

    ids: Ids
    mask: "array[int]"


class LearnedRows(NamedTuple):
    """Demonstrations, and how far earlier turns could be learned.

    Attributes:
        rows: In order.
        num_turns: Earlier turns of the assistant that are learned.
        num_open_turns: Those of them whose end is not, because the form of the prompt ends a turn without EOS.
        num_unclear: Demonstrations of which only the response is learned, because the chat template writes their
            earlier turns in another way than it wrote them when they were answers, or because the tokenizer is a slow
            one.
    """

    rows: list[LearnedRow]
    num_turns: int = 0
    num_open_turns: int = 0
    num_unclear: int = 0


class _Span(NamedTuple):
    """A turn of the assistant in a prompt's text."""

    start: int
    end: int
    ends_with_eos: bool


def encode_demonstrations(
    tokenizer: "PreTrainedTokenizerBase", demonstrations: Sequence[Demonstration], *, all_responses: bool
) -> LearnedRows:
    """Encode demonstrations.

    Args:
        tokenizer: A tokenizer of transformers.
        demonstrations: Any number.
        all_responses: Whether earlier turns of the assistant are learned, too.

    Raises:
        DataError: The chat template refuses a prompt.
        ModelError: As `data.chat.encode_episode`.
    """
    encoded = encode_episodes(tokenizer, [(each.prompt, (each.response,)) for each in demonstrations])
    rows = [_last_response(ids) for ids in encoded]
    if not all_responses:
        return LearnedRows(rows)
    spans: dict[int, list[_Span]] = {}
    num_unclear = 0
    for row, each in enumerate(demonstrations):
        if isinstance(each.prompt, str) or all(turn.role != "assistant" for turn in each.prompt):
            continue
        found = _spans(tokenizer, each.prompt) if tokenizer.is_fast else None
        if found is None:
            num_unclear += 1
        else:
            spans[row] = found
    texts = [render_prompt_text(tokenizer, demonstrations[row].prompt) for row in spans]
    for (row, own), offsets in zip(spans.items(), _offsets(tokenizer, texts), strict=True):
        before = len(encoded[row].prompt) - len(offsets)  # BOS, which the text of a plain prompt does not hold
        mask = np.frombuffer(rows[row].mask, dtype=np.int32)
        for span in own:
            inside = (offsets[:, 0] >= span.start) & (offsets[:, 1] <= span.end) & (offsets[:, 1] > offsets[:, 0])
            mask[before : len(encoded[row].prompt)] |= inside
    every = [span for own in spans.values() for span in own]
    return LearnedRows(rows, len(every), sum(not span.ends_with_eos for span in every), num_unclear)


def _last_response(ids: EpisodeIds) -> LearnedRow:
    (response,) = ids.responses
    mask = array("i", bytes(4 * len(ids.prompt))) + array("i", [1]) * len(response)
    return LearnedRow(array("i", [*ids.prompt, *response]), mask)


def _offsets(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> "list[np.ndarray]":
    """For each text, where its tokens begin and end."""
    if not texts:
        return []
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    found = backend.encode_batch(list(texts), add_special_tokens=False)
    return [np.array(each.offsets, dtype=np.int64).reshape(-1, 2) for each in found]


def _spans(tokenizer: "PreTrainedTokenizerBase", prompt: tuple[Message, ...]) -> list[_Span] | None:
    """The assistant's turns in a prompt's text; None where the text of an earlier prompt does not begin it.

    A turn is learned from where a policy would have begun to write it, with EOS where that ends it: what the form puts
    between two turns is no work of the assistant.
    """
    whole = render_prompt_text(tokenizer, prompt)
    eos = str(tokenizer.eos_token)
    found = []
    for place, turn in enumerate(prompt):
        if turn.role != "assistant":
            continue
        try:
            before = render_prompt_text(tokenizer, prompt[:place])
        except DataError:
            return None
        if not whole.startswith(before):
            return None
        text = turn.content.strip()
        start = whole.find(text, len(before))
        between = whole[len(before) : start] if start >= 0 else None
        if between is None or between.strip():
            return None  # the template changed what was said, or wrote something before it
        end = start + len(text)
        with_eos = uses_chat_template(tokenizer, prompt) and whole.startswith(eos, _skip_space(whole, end))
        found.append(_Span(len(before), _skip_space(whole, end) + len(eos) if with_eos else end, with_eos))
    return found


def _skip_space(text: str, start: int) -> int:
    """Where the white space behind a place ends."""
    return start + len(text[start:]) - len(text[start:].lstrip())
