"""What cases of bad data are built from: good rows to stand beside bad ones, and files in every form."""

import gzip
import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def pairs(count: int) -> Rows:
    """Good preference rows."""
    return [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(count)]


def demos(count: int) -> Rows:
    """Good demonstrations."""
    return [{"prompt": f"q{n}", "response": f"answer {n}"} for n in range(count)]


def chats(*conversations: list[dict[str, Any]]) -> Rows:
    """Rows with a list of messages, nine good ones first."""
    good = [{"messages": [turn("user", f"q{n}"), turn("assistant", f"a{n}")]} for n in range(9)]
    return good + [{"messages": each} for each in conversations]


def turn(role: str, content: Any) -> dict[str, Any]:
    """One message."""
    return {"role": role, "content": content}


def lines(rows: Rows) -> bytes:
    """JSON lines; halves of characters as JSON spells them."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: Rows) -> bytes:
    """A Parquet file, its texts in plain sight."""
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, compression="none", use_dictionary=False)
    return buffer.getvalue()


def packed(content: bytes) -> bytes:
    """Content as gzip packs it, the same every time."""
    return gzip.compress(content, mtime=0)


def linked(target: str, name: str = "p.jsonl") -> Callable[[Path], None]:
    """A symbolic link in the case's folder."""
    return lambda folder: os.symlink(target, folder / name)


def pipe(folder: Path) -> None:
    """A named pipe that nobody writes to: opening it waits for ever."""
    os.mkfifo(folder / "p.jsonl")


def bound_socket(folder: Path) -> None:
    """A socket's file."""
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket is at most 107 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind("p.jsonl")
    finally:
        os.chdir(here)


def folders(*names: str) -> Callable[[Path], None]:
    """Empty folders."""

    def build(folder: Path) -> None:
        for name in names:
            (folder / name).mkdir(parents=True)

    return build


def circles(folder: Path) -> None:
    """Two links back to their folder: whoever follows them has 2^40 ways to go."""
    (folder / "d").mkdir()
    for name in ("one", "two"):
        os.symlink(".", folder / "d" / name)
