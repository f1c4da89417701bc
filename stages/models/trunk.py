"""The hidden states below the lowest block that carries an adapter: computed once, used by every role.

With adapters on the last N blocks only, the blocks below are the frozen base's under every role and in every epoch
(trlx computes them once for policy and reference by its `num_layers_unfrozen`). A pass then begins at the lowest
adapted block. The model's own forward runs all the same, with the other blocks replaced, so that masks, positions
and the family's peculiarities stay the model's own.

Hidden states are kept a sequence of tokens at a time, without padding, so that they serve any microbatch that the
sequence is part of later. Padding gets zeros: nothing that counts attends to it.

Shape legend: B = rows, S = tokens of the longest row, n = real tokens of one row, D = hidden size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from data.errors import ModelError
from stages.models.loading import embedding_rows, find_blocks

_PROBE_TOKENS = 8

Ids = tuple[int, ...]


class Trunk:
    """The blocks of one model, cut below the lowest one that carries an adapter."""

    def __init__(self, model: Any) -> None:
        """Find the blocks, and where the adapters of all roles begin.

        Args:
            model: A `PreTrainedModel` with all its adapters attached.

        Raises:
            ModelError: An adapter lies outside the blocks, roles begin at different blocks, no block is free, or the
                model cannot be cut this way.
        """
        name, self._blocks = find_blocks(model)
        self.depth = _lowest_adapted_block(model, f"{name}.")
        self._check(model)

    @torch.no_grad()
    def compute(self, run: Callable[[], Any]) -> Float[Tensor, "B S D"]:
        """What enters the lowest adapted block while `run` runs the model."""
        seen: list[Tensor] = []

        def see(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(hidden)
            return hidden

        with _replaced(self._blocks[self.depth : self.depth + 1], see):
            with _replaced(self._blocks[self.depth + 1 :], _pass_on):
                run()
        return seen[0]

    def resume(self, hidden: Float[Tensor, "B S D"], run: Callable[[], Any]) -> Any:
        """What `run` returns where the lowest adapted block gets these hidden states.

        They are handed on as the result of the block before: activation checkpointing runs a block again in the
        backward, with what it was given, when this method is long over.
        """

        def give(_: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return hidden

        with _replaced(self._blocks[: self.depth - 1], _pass_on):
            with _replaced(self._blocks[self.depth - 1 : self.depth], give):
                return run()

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        """See on a probe that cutting changes nothing: a family may pass more than hidden states between blocks."""

        def run() -> Tensor:
            hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            return hidden

        ids = torch.arange(_PROBE_TOKENS, device=model.device).unsqueeze(0) % embedding_rows(model)
        problem = "its last hidden states are others"
        try:
            hidden = self.compute(run)
            if hidden.shape[:2] == ids.shape and torch.equal(self.resume(hidden, run), run()):
                return
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            problem = f"{type(error).__name__}: {error}"
        raise ModelError(
            f"{type(model).__name__} cannot be cut below block {self.depth} ({problem}); a cached trunk needs blocks "
            f"that hand one tensor on. Set `ppo.cache_trunk: false`"
        )


class TrunkCache:
    """Hidden states of the sequences seen so far."""

    def __init__(self, trunk: Trunk) -> None:
        """Start empty."""
        self._trunk = trunk
        self._rows: dict[Ids, Float[Tensor, "n D"]] = {}
        self.num_computed = 0
        """Sequences whose trunk was computed."""

    def run(self, input_ids: Int[Tensor, "B S"], attention_mask: Bool[Tensor, "B S"], run: Callable[[], Any]) -> Any:
        """What `run` returns on these rows, the trunk taken from the cache or computed and kept."""
        sequences = _sequences(input_ids, attention_mask)
        if not all(ids in self._rows for ids in sequences):
            hidden = self._trunk.compute(run)
            for ids, row, mask in zip(sequences, hidden, attention_mask, strict=True):
                self._rows.setdefault(ids, row[mask])
            self.num_computed += len(sequences)
        rows = [self._rows[ids] for ids in sequences]
        hidden = rows[0].new_zeros((*input_ids.shape, rows[0].shape[-1]))
        hidden[attention_mask] = torch.cat(rows)
        return self._trunk.resume(hidden, run)


def _sequences(input_ids: Int[Tensor, "B S"], attention_mask: Bool[Tensor, "B S"]) -> list[Ids]:
    """The real tokens of each row."""
    rows = zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
    return [tuple(token for token, real in zip(ids, mask, strict=True) if real) for ids, mask in rows]


def _lowest_adapted_block(model: Any, prefix: str) -> int:
    """Number of the block at which the adapters of all roles begin."""
    lowest: dict[str, int] = {}
    for name, module in model.named_modules():
        for role in _adapters_of(module):
            if not name.startswith(prefix):
                raise ModelError(
                    f"an adapter of the role {role!r} sits on {name!r}, outside the model's blocks; a cached trunk "
                    f"needs all below the lowest adapted block to be the frozen base. Set `ppo.cache_trunk: false`"
                )
            block = int(name.removeprefix(prefix).partition(".")[0])
            lowest[role] = min(block, lowest.get(role, block))
    depths = sorted(set(lowest.values()))
    if len(depths) != 1:
        raise ModelError(
            f"the roles' adapters begin at different blocks ({lowest}); a cached trunk needs one lowest block for all. "
            f"Train the adapters with one `model.tuning.layers`, or set `ppo.cache_trunk: false`"
        )
    if depths == [0]:
        raise ModelError(
            "adapters sit on the lowest block already, so that there is no trunk to cache; set "
            "`model.tuning.layers: {last: N}`, or `ppo.cache_trunk: false`"
        )
    return depths[0]


def _adapters_of(module: Any) -> Sequence[str]:
    if not isinstance(module, BaseTunerLayer):
        return []
    return sorted({name for kind in module.adapter_layer_names for name in getattr(module, kind)})


def _pass_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Do nothing, in place of a block."""
    return hidden


@contextmanager
def _replaced(blocks: Iterable[nn.Module], forward: Callable[..., Tensor]) -> Iterator[None]:
    """Have blocks compute something else; a forward that another library put on a block comes back afterwards."""
    before = [(vars(block), vars(block).get("forward")) for block in blocks]
    for attributes, _ in before:
        attributes["forward"] = forward
    try:
        yield
    finally:
        for attributes, own in before:
            if own is None:
                del attributes["forward"]
            else:
                attributes["forward"] = own
