"""Bytes that tensors hold: of a model, of a role's adapter, of NF4 weights by formula, and alive at once.

Storages are counted, not tensors: tied weights and views count once.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROLES = ("policy", "reference", "critic", "reward")
TRAINED_ROLES = ("policy", "critic")

_FLOAT32 = 4
_NF4_BLOCK = 64  # weights that share one scale
_NF4_SCALE_BLOCK = 256  # scales that share one scale of their own
_NF4_CODES = 16
_SCALE_CODES = 256


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages under some tensors; works on the meta device too."""
    return sum({_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def model_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every parameter and buffer, and the quantisation state that bitsandbytes keeps beside a weight."""
    for tensor in (*model.parameters(), *model.buffers()):
        yield tensor
        yield from _state_tensors(getattr(tensor, "quant_state", None))


def base_tensors(model: nn.Module) -> list[Tensor]:
    """What `model_tensors` gives, without the adapters' parameters."""
    adapter = {id(parameter) for name, parameter in model.named_parameters() if "lora_" in name}
    return [tensor for tensor in model_tensors(model) if id(tensor) not in adapter]


def adapter_parameters(model: nn.Module, role: str) -> list[nn.Parameter]:
    """Parameters of one named adapter."""
    return [parameter for name, parameter in model.named_parameters() if "lora_" in name and f".{role}." in name]


def nf4_bytes(num_weights: int) -> int:
    """Bytes of one linear module's weights in NF4 with double quantisation, as bitsandbytes keeps them.

        4 bits a weight
        8 bits a block of 64 weights              its scale, quantised
        32 bits a block of 256 scales             the scale of the scales
        16 + 256 + 1 float32                      both code books and the offset, for each module

    Dettmers et al. 2023, section 3, https://arxiv.org/abs/2305.14314.

    Args:
        num_weights: Input times output features.
    """
    blocks = -(-num_weights // _NF4_BLOCK)
    scale_blocks = -(-blocks // _NF4_SCALE_BLOCK)
    constants = scale_blocks + _NF4_CODES + _SCALE_CODES + 1
    return -(-num_weights // 2) + blocks + constants * _FLOAT32


def adamw_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """State of AdamW after its first step: two moments of each float32 parameter and one step count a tensor."""
    return sum(2 * _FLOAT32 * parameter.numel() + _FLOAT32 for parameter in parameters)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they live.

    Works on fake tensors as on real ones, through forward, recomputation and backward. What a kernel
    allocates inside itself (a workspace) is not seen.

    Attributes:
        current: Bytes that are alive now, made since the start.
        peak: The most that were alive at once.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        """Count from here on.

        Args:
            existing: Tensors that do not count, weights and optimizer state say, although operations give views
                of them.
        """
        super().__init__()
        self.current = 0
        self.peak = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in existing}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.current -= size


def _key(tensor: Tensor) -> int:
    """A storage's address; on the meta device, where all addresses are 0, the storage itself."""
    storage = tensor.untyped_storage()
    return storage._cdata if tensor.is_meta else storage.data_ptr()


def _state_tensors(state: Any) -> Iterator[Tensor]:
    for value in vars(state).values() if state is not None else ():
        if isinstance(value, Tensor):
            yield value
        elif hasattr(value, "absmax"):
            yield from _state_tensors(value)
