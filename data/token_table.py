"""Rows of token ids as columns of Arrow, which a trainer's data set holds without a Python object a token."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from data.batch_encoding import Ids

if TYPE_CHECKING:
    import pyarrow


def ids_table(columns: Mapping[str, Sequence[Ids]]) -> "pyarrow.Table":
    """Lists of 32-bit integers, one column a name.

    Args:
        columns: Rows of ids by name, the same number of rows each.
    """
    import pyarrow  # late: what only reads text does without

    return pyarrow.table({name: _list_column(rows) for name, rows in columns.items()})


def _list_column(rows: Sequence[Ids]) -> "pyarrow.ListArray":
    import numpy as np
    import pyarrow

    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.empty(offsets[-1], dtype=np.int32)
    for row, start, end in zip(rows, offsets, offsets[1:], strict=False):
        values[start:end] = row
    return pyarrow.ListArray.from_arrays(offsets, values)
