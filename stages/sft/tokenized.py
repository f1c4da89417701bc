"""Demonstrations as token ids: from the cache, or made from the records."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.assistant_turns import LearnedRow, LearnedRows, encode_demonstrations
from data.batch_encoding import count_tokenization_differences
from data.schema import Split, read_split
from stages.contract import Artifact
from stages.token_cache import Arrays, cached_arrays, pack_rows, unpack_rows

_COUNTS = ("num_turns", "num_open_turns", "num_unclear", "num_different")


class TokenizedDemonstrations(NamedTuple):
    """Demonstrations of a split.

    Attributes:
        learned: Their ids with what is in the loss.
        num_different: Those whose text, encoded at once, has other ids.
    """

    learned: LearnedRows
    num_different: int


def tokenized_split(
    source: Artifact, split: Split, tokenizer: Any, *, all_responses: bool, token_dir: Path | None
) -> TokenizedDemonstrations:
    """The demonstrations of a split.

    Args:
        source: With `demonstrations`.
        split: Which of them.
        tokenizer: Of the base.
        all_responses: Whether earlier turns of the assistant are learned, too.
        token_dir: Where tokens are kept; None keeps none.

    Raises:
        DataError: The chat template refuses a prompt.
    """

    def make() -> Arrays:
        records = read_split(source.path, "demonstrations", split)
        learned = encode_demonstrations(tokenizer, records, all_responses=all_responses)
        different = count_tokenization_differences(
            tokenizer, [(each.prompt, each.response) for each in records], [row.ids for row in learned.rows]
        )
        counts = (learned.num_turns, learned.num_open_turns, learned.num_unclear, different)
        return {
            **pack_rows("ids", [row.ids for row in learned.rows]),
            **pack_rows("mask", [row.mask for row in learned.rows]),
            **{name: np.array(count) for name, count in zip(_COUNTS, counts, strict=True)},
        }

    what = f"demonstrations/{split}/{'all_responses' if all_responses else 'last_response'}"
    arrays = cached_arrays(token_dir, source.digest, tokenizer, what, make)
    turns, open_turns, unclear, different = (int(arrays[name]) for name in _COUNTS)
    rows = [LearnedRow(*row) for row in zip(unpack_rows("ids", arrays), unpack_rows("mask", arrays), strict=True)]
    return TokenizedDemonstrations(LearnedRows(rows, turns, open_turns, unclear), different)
