"""Preference pairs as token ids: from the cache, or made from the records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.batch_encoding import encode_episodes, retokenize_episodes
from data.schema import PreferencePair, Split, read_split
from stages.contract import Artifact
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.evaluation_pairs import TokenizedPair
from stages.token_cache import (
    Arrays,
    cached_arrays,
    pack_numbers,
    pack_rows,
    pack_texts,
    unpack_numbers,
    unpack_rows,
    unpack_texts,
)


def tokenized_split(
    source: Artifact, split: Split, tokenizer: Any, config: RewardModelConfig, token_dir: Path | None
) -> tuple[list[TokenizedPair], int]:
    """The pairs of a split that are short enough, and how many are not.

    Args:
        source: With `preferences`.
        split: Which of them.
        tokenizer: The reward model's own.
        config: Whose base it is, and the longest sequence.
        token_dir: Where tokens are kept; None keeps none.

    Raises:
        DataError: The chat template refuses a prompt.
    """
    is_apart = config.model is not None
    arrays = cached_arrays(
        token_dir,
        source.digest,
        tokenizer,
        f"preferences/{split}{'/retokenized' if is_apart else ''}",
        lambda: _to_arrays(tokenize_pairs(read_split(source.path, "preferences", split), tokenizer, is_apart=is_apart)),
    )
    pairs = _from_arrays(arrays)
    kept = [
        pair
        for pair in pairs
        if len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) <= config.max_length
    ]
    return kept, len(pairs) - len(kept)


def tokenize_pairs(pairs: Sequence[PreferencePair], tokenizer: Any, *, is_apart: bool) -> list[TokenizedPair]:
    """Encode pairs.

    Args:
        pairs: In any number.
        tokenizer: The reward model's own.
        is_apart: Whether the policy has another one: its responses will be scored by their text then, and training has
            to see the same form.
    """
    encode = retokenize_episodes if is_apart else encode_episodes
    encoded = encode(tokenizer, [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs])
    return [
        TokenizedPair(prompt, chosen, rejected, pair.margin, pair.weight, pair.source, pair.ranking)
        for (prompt, (chosen, rejected)), pair in zip(encoded, pairs, strict=True)
    ]


def _to_arrays(pairs: Sequence[TokenizedPair]) -> Arrays:
    return {
        **pack_rows("prompt", [pair.prompt_ids for pair in pairs]),
        **pack_rows("chosen", [pair.chosen_ids for pair in pairs]),
        **pack_rows("rejected", [pair.rejected_ids for pair in pairs]),
        **pack_numbers("margin", [pair.margin for pair in pairs]),
        **pack_numbers("weight", [pair.weight for pair in pairs]),
        **pack_texts("source", [pair.source for pair in pairs]),
        **pack_texts("ranking", [pair.ranking for pair in pairs]),
    }


def _from_arrays(arrays: Arrays) -> list[TokenizedPair]:
    columns = (
        *(unpack_rows(name, arrays) for name in ("prompt", "chosen", "rejected")),
        *(unpack_numbers(name, arrays) for name in ("margin", "weight")),
        *(unpack_texts(name, arrays) for name in ("source", "ranking")),
    )
    return [TokenizedPair(*row) for row in zip(*columns, strict=True)]
