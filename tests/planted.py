"""Secrets that tests plant, and the search for them in every file below some folders."""

import base64
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

SECRETS = {
    "WANDB_API_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c",
    "HF_TOKEN": "hf_plantedTokenOfTheHub",
    "OPENAI_API_KEY": "sk-planted/key+of=another",
    "PREFECT_API_KEY": "pnu_plantedKeyOfPrefect",
    "MY_DATABASE_PASSWORD": "planted pass:word@home",
    "PIP_INDEX_URL": "https://planteduser:plantedpassword@127.0.0.1:9/simple",
}
"""By the environment variable."""

_NEEDLES = [value for name, value in SECRETS.items() if name != "PIP_INDEX_URL"] + ["plantedpassword"]


def spellings(secret: str) -> set[bytes]:
    """A secret as it is, as in a URL, as in JSON and as inside of any base64."""
    found = {secret, quote(secret), quote(secret, safe="")}
    for shift in range(3):
        # Of the first and the last characters a neighbour decides; the ones between are the secret's own.
        encoded = base64.b64encode(b"\0" * shift + secret.encode()).decode().rstrip("=")
        found |= {encoded[4:-2], encoded[4:-2].replace("+", "-").replace("/", "_")}
    return {spelling.encode() for spelling in found}


def leaks(*folders: Path) -> list[str]:
    """Where the planted secrets are found below the folders: `file: secret`."""
    wanted: Mapping[str, set[bytes]] = {needle: spellings(needle) for needle in _NEEDLES}
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            for content in _contents(path):
                found += [f"{path}: {needle}" for needle, ways in wanted.items() if any(way in content for way in ways)]
    return found


def _contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file; of a database its rows too, which may lie apart; of what is compressed the inside."""
    raw = path.read_bytes()
    yield raw
    if raw.startswith(b"SQLite format 3"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            for (table,) in database.execute("select name from sqlite_master where type = 'table'").fetchall():
                for row in database.execute(f'select * from "{table}"'):
                    yield "\0".join(map(str, row)).encode()
    for mark, bits in ((b"\x1f\x8b\x08", 31), (b"\x78\x9c", 15)):
        at = raw.find(mark)
        while at >= 0:
            try:
                yield zlib.decompressobj(bits).decompress(raw[at:])
            except zlib.error:
                pass  # these bytes stood there by chance
            at = raw.find(mark, at + 1)
