"""Many texts to tokens at once, on as many threads as there are cores; the ids are those of `data.chat`.

Ids are kept as arrays of 32-bit integers: a hundred thousand pairs would take gigabytes as lists of Python's.
"""

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from data.chat import (
    encode_prompt,
    encode_response,
    render_prompt_text,
    response_text,
    uses_chat_template,
    without_final_eos,
)
from data.schema import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[int]

_CHUNK_ROWS = 2_000
_THREADS = "TOKENIZERS_PARALLELISM"


class EpisodeIds(NamedTuple):
    """Token ids of a prompt and of responses to it; those of responses end with EOS."""

    prompt: Ids
    responses: tuple[Ids, ...]


def encode_episodes(
    tokenizer: "PreTrainedTokenizerBase",
    episodes: Sequence[tuple[Prompt, Sequence[str]]],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[EpisodeIds]:
    """Encode prompts with their responses, as `data.chat.encode_episode` does one by one.

    Args:
        tokenizer: A tokenizer of transformers.
        episodes: Each prompt with the responses to it.
        progress: Told how many are done, and of how many.

    Raises:
        DataError: The chat template refuses a prompt.
        ModelError: As `encode_episode`.
    """
    encoded: list[EpisodeIds] = []
    with _threads():
        for start in range(0, len(episodes), _CHUNK_ROWS):
            chunk = episodes[start : start + _CHUNK_ROWS]
            prompts = _encode_prompts(tokenizer, [prompt for prompt, _ in chunk])
            texts = [response_text(tokenizer, prompt, text) for prompt, responses in chunk for text in responses]
            responses = iter(_encode_responses(tokenizer, texts))
            encoded += [
                EpisodeIds(ids, tuple(next(responses) for _ in own))
                for ids, (_, own) in zip(prompts, chunk, strict=True)
            ]
            progress(len(encoded), len(episodes))
    return encoded


def count_tokenization_differences(
    tokenizer: "PreTrainedTokenizerBase", episodes: Sequence[tuple[Prompt, str]], encoded: Sequence[Ids]
) -> int:
    """Count episodes whose text, encoded at once, has other ids than prompt and response encoded apart.

    A difference is no error, since generation always continues a finished prompt. Many of them say that
    prompts end where the tokenizer would not cut, e.g. with a space.

    Args:
        tokenizer: A tokenizer of transformers.
        episodes: Prompts with their responses.
        encoded: Of each the ids of prompt and response, encoded apart, with EOS at the end.
    """
    different = 0
    with _threads():
        for start in range(0, len(episodes), _CHUNK_ROWS):
            chunk = episodes[start : start + _CHUNK_ROWS]
            texts = [
                render_prompt_text(tokenizer, prompt) + response_text(tokenizer, prompt, response)
                for prompt, response in chunk
            ]
            templated = [row for row, (prompt, _) in enumerate(chunk) if uses_chat_template(tokenizer, prompt)]
            found = _ids(tokenizer, [texts[row] for row in templated], split_special_tokens=False)
            at_once = dict(zip(templated, found, strict=True))
            for row, text in enumerate(texts):
                whole = at_once[row] if row in at_once else array("i", encode_prompt(tokenizer, text))
                different += whole != array("i", encoded[start + row])[:-1]
    return different


def retokenize_episodes(
    tokenizer: "PreTrainedTokenizerBase", episodes: Sequence[tuple[Prompt, Sequence[str]]]
) -> list[EpisodeIds]:
    """Encode finished episodes for another model than the one that wrote them, as `data.chat.retokenize_episode` does.

    Arguments and errors as `encode_episodes`.
    """
    stripped = [
        (prompt, responses if isinstance(prompt, str) else [text.lstrip() for text in responses])
        for prompt, responses in episodes
    ]
    return encode_episodes(tokenizer, stripped)


def _encode_prompts(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Prompt]) -> list[Ids]:
    """Those that a chat template writes at once; plain text one by one, since it needs its first token looked for."""
    templated = [row for row, prompt in enumerate(prompts) if uses_chat_template(tokenizer, prompt)]
    texts = [render_prompt_text(tokenizer, prompts[row]) for row in templated]
    found = dict(zip(templated, _ids(tokenizer, texts, split_special_tokens=False), strict=True))
    return [
        found[row] if row in found else array("i", encode_prompt(tokenizer, prompt))
        for row, prompt in enumerate(prompts)
    ]


def _encode_responses(tokenizer: "PreTrainedTokenizerBase", responses: Sequence[str]) -> list[Ids]:
    if tokenizer.eos_token_id is None:
        return [array("i", encode_response(tokenizer, text)) for text in responses]  # says what is wrong
    texts = [without_final_eos(tokenizer, text) for text in responses]
    found = _ids(tokenizer, texts, split_special_tokens=True)
    for ids in found:
        ids.append(int(tokenizer.eos_token_id))
    return [*found]


def _ids(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, split_special_tokens: bool
) -> "list[array[int]]":
    if not texts:
        return []
    if not tokenizer.is_fast:
        options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": split_special_tokens}
        return [array("i", tokenizer.encode(text, **options)) for text in texts]
    # Its own batches, without offsets and masks: transformers makes objects of each token, which takes as long again.
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = split_special_tokens
    try:
        return [array("i", each.ids) for each in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


@contextmanager
def _threads() -> Iterator[None]:
    """Let the tokenizer use threads. Stages switch them off, for processes that fork later."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before
