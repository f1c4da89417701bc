"""Examples of like lengths in one forward pass, without another choice of examples for any optimizer step."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler


class SortedBatchSampler(Sampler[int]):
    """A random order, sorted by length inside each optimizer step's batch.

    The examples of a step are those that a random sampler of the same seed gives it, so that sorting changes its
    gradient by rounding alone, and saves padding.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        """Keep the lengths.

        Args:
            lengths: Tokens of each example.
            batch_size: Examples of one optimizer step, over all processes.
            seed: Of the order, which is another one in each epoch.
        """
        self._lengths = list(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        """Indices of one epoch; the next call gives the next one."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self._seed + self._epoch)).tolist()
        for start in range(0, len(order), self._batch_size):
            yield from sorted(order[start : start + self._batch_size], key=self._lengths.__getitem__)
        self._epoch += 1

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch: accelerate's loaders call this before each, and after a checkpoint."""
        self._epoch = epoch


class SortsByLength:
    """Gives one of Hugging Face's trainers that order. Stands before it among the base classes."""

    def __init__(self, *, lengths: Sequence[Sequence[int]], batch_size: int, **arguments: Any) -> None:
        """Keep what the order needs; the rest goes on.

        Args:
            lengths: Of each training example, those of its sequences, in tokens.
            batch_size: Examples of one optimizer step, over all processes.
            arguments: Of the trainer.
        """
        self._lengths, self._step_size = longest(lengths), batch_size
        super().__init__(**arguments)

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedBatchSampler:
        seed = self.args.data_seed  # type: ignore[attr-defined]
        return SortedBatchSampler(self._lengths, batch_size=self._step_size, seed=seed)


def padding_share(examples: Sequence[Sequence[int]], order: Iterable[int], microbatch_size: int) -> float:
    """Share of padding among the positions that pass through the model.

    Args:
        examples: Lengths of the sequences of each example, in tokens: one of a demonstration, two of a pair.
        order: In which they pass.
        microbatch_size: Examples in one pass, all of whose sequences are as wide as the longest.
    """
    rows = list(order)
    positions = tokens = 0
    for start in range(0, len(rows), microbatch_size):
        sequences = [length for row in rows[start : start + microbatch_size] for length in examples[row]]
        positions += len(sequences) * max(sequences)
        tokens += sum(sequences)
    return 1.0 - tokens / positions if positions else 0.0


def padding_metrics(
    examples: Sequence[Sequence[int]], *, batch_size: int, microbatch_size: int, seed: int
) -> dict[str, float]:
    """Padding of the first epoch: as it passes, and as it would unsorted.

    Args:
        examples: As for `padding_share`.
        batch_size: Examples of one optimizer step.
        microbatch_size: Examples in one pass.
        seed: Of the order.
    """
    as_passed = SortedBatchSampler(longest(examples), batch_size=batch_size, seed=seed)
    unsorted = SortedBatchSampler([0] * len(examples), batch_size=batch_size, seed=seed)
    return {
        "data/padding_share": padding_share(examples, as_passed, microbatch_size),
        "data/padding_share_unsorted": padding_share(examples, unsorted, microbatch_size),
    }


def longest(examples: Sequence[Sequence[int]]) -> list[int]:
    """Length of each example's longest sequence, which the others are padded to."""
    return [max(lengths) for lengths in examples]
