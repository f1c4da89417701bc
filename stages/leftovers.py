"""What a process that was killed left in the folders of its execution, removed by the next execution of the same.

`remove_leftovers` is to be called by who holds the execution's lock: then nobody else writes there.
"""

import shutil
from pathlib import Path

PAYLOAD, SCRATCH = ".payload-", ".scratch-"
TOKENS, TOKENS_SUFFIX = "tokens", ".npz"
"""Folder of the store with tokens of data sets, and how its files end; their names begin with the data set's digest."""

_NAMED = 16
"""Characters of the fingerprint in a payload's temporary name."""


def payload_prefix(fingerprint: str) -> str:
    """Start of the temporary name, in the store, of the payload of an execution."""
    return f"{PAYLOAD}{fingerprint[:_NAMED]}-"


def remove_leftovers(stage_dir: Path, store_dir: Path, fingerprint: str) -> None:
    """Remove temporary folders and files of killed executions.

    Args:
        stage_dir: Folder of the execution in its run.
        store_dir: The store.
        fingerprint: Of the execution.
    """
    remove_stage_leftovers(stage_dir)
    for folder in store_dir.glob(f"{payload_prefix(fingerprint)}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (store_dir / "records" / fingerprint).glob(".*.json.*"):
        file.unlink(missing_ok=True)


def remove_stage_leftovers(stage_dir: Path) -> None:
    """Remove those in the stage's folder of a run: whoever holds the run may."""
    for folder in stage_dir.glob(f"{SCRATCH}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for pattern in (".spec.json*", ".manifest.json.*", ".artifact.new"):
        for file in stage_dir.glob(pattern):
            file.unlink(missing_ok=True)
