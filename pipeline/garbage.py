"""What lies in a folder of runs and is used by no run: artifacts, records, tokens, and what killed processes left.

An artifact is used by every run that names it in `run.json`, finished or not; a run names the artifact of each of its
stages, so whatever lineage leads back to is used, too.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.errors import ConfigError
from pipeline.locks import is_locked, release, try_lock
from pipeline.runs import GC_LOCK, STORE, RunFolder, list_runs
from pipeline.store import LOCKS
from stages.artifacts import DIGEST, RECORDS, read_record
from stages.leftovers import PAYLOAD, SCRATCH, TOKENS, TOKENS_SUFFIX, payload_prefix

Kind = Literal["artifact", "record", "tokens", "temporary", "lock"]


@dataclass(frozen=True)
class Garbage:
    """Something that no run uses.

    Attributes:
        kind: What it is.
        path: A file or folder.
        size: Of all its files, in bytes.
    """

    kind: Kind
    path: Path
    size: int


def find_garbage(output_dir: Path) -> list[Garbage]:
    """All that no run uses, by kind and name.

    Raises:
        ConfigError: A run's record cannot be read, so that what it uses is not known.
    """
    runs = list_runs(output_dir, on_damaged=_refuse)
    store = output_dir / STORE
    used = {digest for run in runs for digest in _digests(run.record)}
    used |= {link.readlink().name for link in output_dir.glob("*/*/artifact") if link.is_symlink()}
    found = [_garbage("artifact", path) for path in store.glob("*") if _is_unused_artifact(path, used)]
    found += [_garbage("record", path) for path in (store / RECORDS).glob("*") if not _leads_to(path, store, used)]
    tokens = store / TOKENS
    found += [_garbage("tokens", path) for path in tokens.glob(f"*{TOKENS_SUFFIX}") if _data_set(path) not in used]
    busy = [path.stem for path in (store / LOCKS).glob("*.lock") if is_locked(path)]
    prefixes = tuple(payload_prefix(fingerprint) for fingerprint in busy)
    found += [_garbage("temporary", path) for path in store.glob(f"{PAYLOAD}*") if not path.name.startswith(prefixes)]
    if not busy:
        found += [_garbage("temporary", path) for path in tokens.glob("*.writing")]
    for run in runs:
        if not run.is_held():
            found += [_garbage("temporary", path) for path in _temporary(run)]
    found += [_garbage("lock", path) for path in (store / LOCKS).glob("*.lock") if path.stem not in busy]
    return sorted(found, key=lambda entry: (entry.kind, entry.path))


def remove(garbage: list[Garbage]) -> None:
    """Remove it; within `no_run_at_work`."""
    for entry in garbage:
        if entry.path.is_dir():
            for path in entry.path.rglob("*"):
                if path.is_dir():
                    path.chmod(0o755)
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink(missing_ok=True)


@contextmanager
def no_run_at_work(output_dir: Path) -> Iterator[None]:
    """Keep runs from starting meanwhile: one that does waits until this is over.

    Raises:
        ConfigError: A run is at work, or another `rlhf gc` is.
    """
    path = output_dir / GC_LOCK
    lock = try_lock(path, "rlhf gc")
    if lock is None:
        raise ConfigError(f"{output_dir}: another `rlhf gc --remove` is at work; one at a time may; wait for its end")
    try:
        busy = [run.name for run in list_runs(output_dir, on_damaged=_refuse) if run.is_held()]
        if busy:
            raise ConfigError(
                f"{output_dir}: {', '.join(busy)} {'is' if len(busy) == 1 else 'are'} at work, and may be about to use "
                f"what is unused now; nothing may run while something is removed; wait for the end, or end it"
            )
        yield
    finally:
        release(lock, path)


def _refuse(error: ConfigError) -> None:
    raise ConfigError(f"{error}; until then nothing is known to be unused")


def _digests(record: dict[str, Any]) -> Iterator[str]:
    for stage in record["stages"]:
        if stage["artifact"]:
            yield stage["artifact"]["digest"]
    for recorded in (record.get("plan") or {"recorded": {}})["recorded"].values():
        yield recorded["artifact"]["digest"]


def _is_unused_artifact(path: Path, used: set[str]) -> bool:
    return bool(DIGEST.fullmatch(path.name)) and path.name not in used


def _data_set(tokens: Path) -> str:
    """The digest of the artifact that tokens were made of, by the name of their file."""
    return tokens.name.partition("-")[0]


def _leads_to(record: Path, store: Path, used: set[str]) -> bool:
    """Whether a record stands for an artifact that is there and stays."""
    manifest = read_record(store, record.name)
    digest = (manifest or {}).get("artifact", {}).get("digest")
    return digest in used and (store / digest).is_dir()


def _temporary(run: RunFolder) -> Iterator[Path]:
    """What a killed process left in a run's folder; checkpoints stay, `rlhf resume` goes on from them."""
    yield from run.path.glob(".run.json.*")
    for stage in run.record["stages"]:
        folder = run.stage_dir(stage["name"])
        yield from folder.glob(f"{SCRATCH}*")
        yield from folder.glob("checkpoints/.writing-*")
        yield from folder.glob("rollouts/.step-*")
        yield from folder.glob(".spec.json*")
    yield from run.path.glob(".lock")


def _garbage(kind: Kind, path: Path) -> Garbage:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return Garbage(kind, path, sum(file.stat().st_size for file in files))
