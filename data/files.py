"""Opening data files so that none can hang or flood the machine: regular files only, sniffed, unpacked with bounds.

Knows nothing of rows. Every defect is a `DataError` that names the file and, in text, the line.
"""

import codecs
import errno
import gzip
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data.errors import DataError
from data.shown import shown

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = (".gz", ".zst")
MAX_LINE_BYTES = 1 << 26
"""Longest line of JSON lines and tables, 64 MiB: a file without line ends is no file of rows."""

# Text packs 3 to 10 times; a bomb, or a file of one byte repeated, packs 1000 times with deflate and more with zstd.
_MAX_UNPACKED_RATIO = 200
_MIN_UNPACKED_BYTES = 1 << 25
_CHUNK_BYTES = 1 << 20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip data", "add .gz to its name"),
    (b"PAR1\x15", "a Parquet file", "give it the suffix .parquet"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or export it as CSV"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "add .zst to its name"),
    (b"BZh91AY", "bzip2 data", "unpack it with `bunzip2`"),
    (b"\xfd7zXZ\x00", "xz data", "unpack it with `unxz`"),
    (b"%PDF-", "a PDF document", "export the rows as JSON lines"),
    (b"\x89PNG", "a PNG image", "name the file of the rows"),
    (b"SQLite format 3\x00", "an SQLite data base", "export the table as CSV"),
    (b"ARROW1", "an Arrow file", "give it the suffix .arrow"),
    (b"version https://git-lfs", "a pointer of Git LFS instead of the data", "run `git lfs pull`"),
    (b"<!doctype html", "a web page", "download the file itself, not the page that shows it"),
    (b"<html", "a web page", "download the file itself, not the page that shows it"),
    (b"<?xml", "XML", "export the rows as JSON lines"),
)

_OTHER_MARKS = (  # in this order: the mark of UTF-32 begins with that of UTF-16
    ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "UTF-32"),
    ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "UTF-16"),
)


def file_suffix(path: Path) -> str:
    """The suffix that says how a file is read, without `.gz` or `.zst`; empty when it is none that can be read."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def packed_suffix(path: Path) -> str:
    """The suffix that says how a file is packed; empty where it is not."""
    return next((suffix for suffix in PACKED if path.name.lower().endswith(suffix)), "")


def check_regular(path: Path, name: str | None = None) -> None:
    """Refuse what is no file with an end: opening a pipe or a socket would wait for ever.

    Args:
        path: What is to be read.
        name: The source's key in the configuration, for messages.

    Raises:
        DataError: It is a folder, pipe, socket or device, a link that leads nowhere, or cannot be looked at.
    """
    where = f"{path}: {name}" if name else str(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if os.path.islink(path):
            circle = isinstance(error, OSError) and error.errno == errno.ELOOP
            raise DataError(
                f"{where}: a symbolic link that leads {'in a circle' if circle else 'nowhere'}; a link to a file is "
                f"needed; remove it, or let it point to the data"
            ) from None
        raise DataError(
            f"{where}: cannot be read ({reason_of(error)}); a readable file is needed; check the path and its "
            f"permissions"
        ) from None
    if not stat.S_ISREG(mode):
        kind = next((text for test, text in _KINDS if test(mode)), "no file")
        raise DataError(
            f"{where}: this is {kind}; a regular file is needed, which can be read twice; write its content into a "
            f"file and name that"
        )


def reason_of(error: OSError | ValueError) -> str:
    """What an error of the operating system says, without its number and path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextmanager
def open_data_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, unpacked where its name ends so. Its errors become a `DataError`."""
    try:
        check_regular(path)
        with path.open("rb") as raw:
            match packed_suffix(path):
                case ".gz":
                    with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
                        yield io.BufferedReader(_Bounded(unpacked.read1, raw, path, "gzip"), _CHUNK_BYTES)
                case ".zst":
                    yield io.BufferedReader(_Bounded(_zstd_reader(raw, path), raw, path, "zstd"), _CHUNK_BYTES)
                case _:
                    yield raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: damaged gzip file ({error}); a complete one is needed; fetch or compress it again"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({reason_of(error)}); a readable file is needed; "
            f"check the path and its permissions"
        ) from None


def _zstd_reader(raw: IO[bytes], path: Path) -> Callable[[int], bytes]:
    """Reads what a zstd file unpacks to, frame after frame."""
    import pyarrow  # late: a quarter of a second, and only such a file needs it

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")

    def read(size: int) -> bytes:
        try:
            return bytes(stream.read(size))
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(
                f"{path}: damaged zstd file ({shown(str(error), 200)}); a complete one is needed; fetch or compress it "
                f"again"
            ) from None

    return read


class _Bounded(io.RawIOBase):
    """An unpacked stream that ends with an error where it grows out of all proportion to the file."""

    def __init__(self, read: Callable[[int], bytes], packed: IO[bytes], path: Path, kind: str) -> None:
        self._read, self._packed, self._path, self._kind = read, packed, path, kind
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        self._count += len(data)
        if self._count > max(_MIN_UNPACKED_BYTES, _MAX_UNPACKED_RATIO * self._packed.tell()):
            raise DataError(
                f"{self._path}: the {self._kind} file unpacks to over {_MAX_UNPACKED_RATIO} times its size; text packs "
                f"3 to 10 times, so this is no data; check where the file comes from, or unpack it yourself"
            )
        return len(data)


def text_lines(path: Path, *, bounded: bool = True) -> Iterator[str]:
    """Decoded lines with their ends. Lines end at a newline only: U+2028 may stand inside a JSON string.

    Args:
        path: A file of text.
        bounded: Refuse lines over `MAX_LINE_BYTES`.

    Raises:
        DataError: The file cannot be read, is not UTF-8 or no text at all.
    """
    offset = 0
    with open_data_file(path) as file:
        number, sniffed = 0, False
        while raw := file.readline(MAX_LINE_BYTES + 1 if bounded else -1):
            number += 1
            if not sniffed and raw.strip():
                _check_content(path, number, raw)
                sniffed = True
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if b"\0" in line:
                raise DataError(
                    f"{path}:{number}: binary content (a zero byte), or text in UTF-16 or UTF-32; UTF-8 text is "
                    f"needed; save it as UTF-8, or give the file the suffix of what it is"
                )
            if bounded and len(raw) > MAX_LINE_BYTES:
                raise DataError(
                    f"{path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB; one row a line is needed; "
                    f"check where the file comes from and its line ends"
                )
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + len(raw) - len(line) + error.start
                raise DataError(
                    f"{path}:{number}: byte {at} of the file (0x{line[error.start]:02x}) is not UTF-8; UTF-8 "
                    f"text is needed; convert it, e.g. `iconv -f latin1 -t utf-8`"
                ) from None
            yield text
            offset += len(raw)


def _check_content(path: Path, number: int, head: bytes) -> None:
    """Name what is no text of rows by its first bytes, which says more than the first byte that is not UTF-8."""
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic) or head[:40].lstrip().lower().startswith(magic):
            raise DataError(f"{path}:{number}: holds {what}, not text; rows in UTF-8 text are needed; {remedy}")
    for marks, encoding in _OTHER_MARKS:
        if head.startswith(marks):
            raise DataError(
                f"{path}:{number}: text in {encoding} (by its byte order mark); UTF-8 text is needed; convert it, e.g. "
                f"`iconv -f {encoding} -t UTF-8`"
            )
