"""The processes of a stage and what they tell one another. No collective of our own: torch.distributed's.

Objects travel as JSON, never as pickles; floats come back as they were sent.

Shape legend: N = rows of one rank (the same on all), T = columns.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data.errors import StageError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among those of its stage.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes; with 1 nothing is sent and no group has to exist.
        device: Where tensors have to be for the group's backend (`cpu` for gloo, `cuda` for NCCL).
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this rank writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The part of `items` that is this rank's: neighbours stay together, sizes differ by at most one."""
        first, last = (len(items) * rank // self.size for rank in (self.rank, self.rank + 1))
        return items[first:last]

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """All ranks' items in the order of the ranks, on every rank. The inverse of `share`.

        Args:
            items: Anything that JSON can say; tuples come back as lists.
        """
        if self.size == 1:
            return list(items)
        encoded = torch.frombuffer(bytearray(json.dumps(list(items)).encode()), dtype=torch.uint8).to(self.device)
        length = torch.tensor([len(encoded)], device=self.device)
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length)
        longest = int(torch.cat(lengths).max())
        padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        padded[: len(encoded)] = encoded
        parts = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        texts = [bytes(part[: int(size)].cpu().numpy()).decode() for part, size in zip(parts, lengths, strict=True)]
        return [item for text in texts for item in json.loads(text)]

    def broadcast(self, value: Item) -> Item:
        """The main rank's value, on every rank."""
        received: Item = self.gather([value])[0]
        return received

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def together(self, act: Callable[[], Result]) -> Result:
        """Do something that may fail on one rank alone: where it does, all ranks fail, and none waits for the others.

        Raises:
            StageError: Of the first rank that has one.
        """
        if self.size == 1:
            return act()
        error: StageError | None = None
        try:
            result = act()
        except StageError as caught:
            error = caught
        messages = [text for text in self.gather([None if error is None else str(error)]) if text is not None]
        if messages:
            raise StageError(messages[0]) from error
        return result

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()
