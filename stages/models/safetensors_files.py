"""What the header of a safetensors file says, read without torch: names, types, shapes, and how long the file is.

Read by hand: 8 bytes little-endian length, a JSON header of that length with `dtype`, `shape` and `data_offsets` of
every tensor, then the data (https://github.com/huggingface/safetensors#format). A half-copied file is so found without
reading its weights.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import ModelError
from stages.safe_files import pickle_reason

_MAX_HEADER_BYTES = 100_000_000
_BYTES = {
    "BOOL": 1, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
    "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
# BF16 is the upper half of F32, which numpy does not know: its exponent is looked at by hand.
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}
_BF16_EXPONENT = 0x7F80


class Tensor(NamedTuple):
    """A tensor of a file.

    Attributes:
        dtype: As the header spells it, `BF16`.
        shape: Its shape.
        start: Of its data, in bytes from the start of the file.
        end: One byte after its data.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def check_safetensors(path: Path, where: str) -> dict[str, Tensor]:
    """Compare the header of a safetensors file with the file's size.

    Args:
        path: The file.
        where: Begins the message.

    Returns:
        The tensors by name, in the order of their data.

    Raises:
        ModelError: The file is pickled, its header cannot be read or announces more or fewer bytes than there are.
    """
    size = path.stat().st_size
    remedy = "The file is damaged or only partly copied. Copy or download it again."
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ModelError(f"{where}: {path.name} has {size} bytes, too few for a safetensors header. {remedy}")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER_BYTES, size - 8):
            if (reason := pickle_reason(path)) is not None:
                raise ModelError(
                    f"{where}: {path.name} is no safetensors file but pickled ({reason}), which can run code when it "
                    f"is loaded. Weights in safetensors are needed. Get them from where the model comes from."
                )
            raise ModelError(f"{where}: {path.name} announces a header of {length} bytes in a file of {size}. {remedy}")
        raw = file.read(length)
    try:
        tensors = _tensors(json.loads(raw), 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{where}: {path.name} has an unreadable safetensors header. {remedy}") from error
    expected = 8 + length
    for name, tensor in tensors.items():
        if tensor.start != expected or tensor.end < tensor.start:
            raise ModelError(
                f"{where}: {path.name} has {name} at bytes {tensor.start} to {tensor.end}, not from {expected} on. "
                f"Tensors that follow one another without gaps are needed. {remedy}"
            )
        expected = tensor.end
    if size != expected:
        raise ModelError(f"{where}: {path.name} has {size} bytes, its header announces {expected}. {remedy}")
    for name, tensor in tensors.items():
        needed = math.prod(tensor.shape) * _BYTES.get(tensor.dtype, 0)
        if tensor.dtype in _BYTES and tensor.end - tensor.start != needed:
            raise ModelError(
                f"{where}: {path.name} has {tensor.end - tensor.start} bytes for {name}, {tensor.dtype} of shape "
                f"{tensor.shape}, which needs {needed}. {remedy}"
            )
    return tensors


def first_not_finite(path: Path, tensors: dict[str, Tensor]) -> str | None:
    """Name of the first tensor with NaN or infinity in it; None where all are finite. Reads the whole file."""
    import numpy

    with path.open("rb") as file:
        for name, tensor in tensors.items():
            if tensor.dtype not in _FLOATS:
                continue
            file.seek(tensor.start)
            values = numpy.frombuffer(file.read(tensor.end - tensor.start), dtype=_FLOATS[tensor.dtype])
            if tensor.dtype == "BF16":
                finite = (values & _BF16_EXPONENT) != _BF16_EXPONENT
            else:
                finite = numpy.isfinite(values)
            if not finite.all():
                return name
    return None


def _tensors(header: Any, offset: int) -> dict[str, Tensor]:
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
        if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, end)):
            raise ValueError(name)
        found[name] = Tensor(str(entry["dtype"]), shape, offset + start, offset + end)
    return dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].end)))
