"""Rows from files of columns: Parquet, and Arrow in both of its forms (file and stream; `datasets` writes streams).

pyarrow is imported late: it takes a quarter of a second, and only these files need it.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from data.errors import DataError
from data.files import open_data_file, packed_suffix
from data.rows import Row
from data.shown import shown, shown_list

if TYPE_CHECKING:
    from pyarrow import RecordBatch

_BATCH_ROWS = 1024
_ARROW_FILE = b"ARROW1"


def read_parquet(path: Path) -> Iterator[Row]:
    """Read the rows of a Parquet file. Errors as `data.readers.read_file`."""
    with _seekable(path) as content:
        if _head(content):
            import pyarrow.parquet

            with _damage(path, "Parquet"):
                yield from _rows(pyarrow.parquet.ParquetFile(content).iter_batches(batch_size=_BATCH_ROWS), path)


def read_arrow(path: Path) -> Iterator[Row]:
    """Read the rows of an Arrow file or stream. Errors as `data.readers.read_file`."""
    with _seekable(path) as content:
        if head := _head(content):
            import pyarrow

            with _damage(path, "Arrow"):
                if head == _ARROW_FILE:
                    reader = pyarrow.ipc.open_file(content)
                    batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
                else:
                    batches = iter(pyarrow.ipc.open_stream(content))
                yield from _rows(batches, path)


@contextmanager
def _seekable(path: Path) -> Iterator[IO[bytes]]:
    """The file itself, so that it may be larger than memory; a packed one is unpacked into memory."""
    with open_data_file(path) as file:
        yield io.BytesIO(file.read()) if packed_suffix(path) else file


def _head(content: IO[bytes]) -> bytes:
    head = content.read(len(_ARROW_FILE))
    content.seek(0)
    return head


def _rows(batches: "Iterator[RecordBatch]", path: Path) -> Iterator[Row]:
    number = 0
    for batch in batches:
        if len(set(batch.schema.names)) < len(batch.schema.names):
            raise DataError(
                f"{path}: the columns {shown_list(batch.schema.names)} have a name twice; one name a column is "
                f"needed; write the file again without the repeated one"
            )
        for start in range(0, batch.num_rows, _BATCH_ROWS):  # a file of one large batch is not unrolled at once
            for values in batch.slice(start, _BATCH_ROWS).to_pylist():
                number += 1
                yield Row(values, f"{path}: row {number}")


@contextmanager
def _damage(path: Path, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    # Damaged pages end in errors of Python too: text that is not UTF-8, times that no calendar has.
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, TypeError, LookupError) as error:
        raise DataError(
            f"{path}: damaged {kind} file ({shown(str(error), 200)}); a complete one is needed; fetch or write it again"
        ) from None
