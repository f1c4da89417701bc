"""Adapters on their way to an engine: each version in a folder of its own, in RAM-backed storage.

vLLM caches an adapter by its id and key-value blocks by name and path: an id used twice keeps the old weights
without a word, a path used twice serves stale blocks. So neither is ever used twice.

A stage that was killed could not remove its folder, and RAM is dear: each later one removes those whose owner is gone.
The owner holds a lock on its folder, which the operating system ends with the process.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from stages.artifacts import combine_digests, file_digests
from stages.models.shared_base import SharedBase
from stages.models.tuning import save_adapter
from stages.ranks import Ranks
from stages.rollouts.contract import PublishedAdapter

_SHARED_MEMORY = Path("/dev/shm")
_PREFIX, _UNLOCKED = "rlhf-adapter-", ".rlhf-adapter-"


class AdapterFiles:
    """Writes the versions and removes them again. With several ranks, one writes and all read."""

    def __init__(
        self, shared_base: SharedBase, base_spec: str, parent: Path | None, scratch_dir: Path, ranks: Ranks
    ) -> None:
        """Make the folder of all versions.

        Args:
            shared_base: The trainer's model.
            base_spec: `model.base` of the configuration.
            parent: Folder that the engine can read; None is RAM-backed storage of this machine.
            scratch_dir: In its place where this machine has none.
            ranks: Processes of this stage.
        """
        self._shared_base = shared_base
        self._base_spec = base_spec
        self._ranks = ranks
        self._version = 0
        self._lock: int | None = None
        folder = ""
        if ranks.is_main:
            chosen = parent or (_SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else scratch_dir)
            chosen.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(chosen)
            folder, self._lock = _make_folder(chosen)
        self.folder = Path(ranks.broadcast(folder))

    def publish(self, role: str) -> PublishedAdapter:
        """Save an adapter as it is now, as the next version."""
        self._version += 1
        # A server that runs for several stages knows their adapters by name.
        name = f"{role}-v{self._version}-{self.folder.name.removeprefix(_PREFIX)}"
        folder = self.folder / name
        digest = ""
        if self._ranks.is_main:
            save_adapter(self._shared_base.peft_model, role, folder, base_spec=self._base_spec)
            for file in folder.iterdir():
                file.chmod(0o644)  # safetensors writes for its owner alone
            digest = folder_digest(folder)
        return PublishedAdapter(self._version, name, folder, self._ranks.broadcast(digest))

    def go_on_before(self, version: int) -> None:
        """Have the next version carry this number."""
        self._version = version - 1

    def remove(self, adapter: PublishedAdapter) -> None:
        """Delete a version's files, once no rank reads them."""
        self._ranks.barrier()
        if self._ranks.is_main:
            shutil.rmtree(adapter.folder)

    def close(self) -> None:
        """Delete all files."""
        if self._ranks.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _make_folder(parent: Path) -> tuple[str, int]:
    """A new folder with its lock; under its own name only once the lock is held."""
    unlocked = Path(tempfile.mkdtemp(prefix=_UNLOCKED, dir=parent))
    os.chmod(unlocked, 0o755)  # a server may run as another user
    lock = os.open(unlocked, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = parent / unlocked.name.replace(_UNLOCKED, _PREFIX, 1)
    os.rename(unlocked, folder)
    return str(folder), lock


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError:
            continue  # its owner has just removed it, or it is another user's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # in use
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def folder_digest(folder: Path) -> str:
    """SHA-256 over the files of an adapter's folder."""
    return combine_digests(file_digests(folder))
