"""Content-addressed artifacts: digest, publication into the store, verification on load.

    <store>/<digest>/                 the payload, written once, never changed
    <store>/records/<fingerprint>/    manifest.json and metrics.jsonl of the stage run that made it, and the
                                      digests of these two

The digest covers the relative paths and bytes of the payload alone, so equal content has one digest
whatever run, path, host or time made it.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from data.errors import ArtifactError
from stages.contract import Artifact, artifact_from_json
from stages.safe_files import check_no_pickle

RECORDS = "records"
_DIGESTS = "digests.json"
_RECORD_FILES = ("manifest.json", "metrics.jsonl")
_CHUNK_BYTES = 1 << 20
DIGEST = re.compile("[0-9a-f]{64}")
"""What names the folder of an artifact."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def payload_files(folder: Path) -> list[Path]:
    """All regular files below `folder`, sorted by their relative POSIX path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file by its relative path."""
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in payload_files(folder)}


def combine_digests(digests: dict[str, str]) -> str:
    """The digest of a payload from those of its files: SHA-256 over sorted `path NUL digest NEWLINE` lines."""
    combined = hashlib.sha256()
    for name in sorted(digests):
        combined.update(f"{name}\0{digests[name]}\n".encode())
    return combined.hexdigest()


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON (sorted keys, indented) and replace the file atomically."""
    text = _json_text(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:  # a full disk, Ctrl-C: what was there before stays, and nothing beside it
        Path(name).unlink(missing_ok=True)
        raise


def publish_payload(payload_dir: Path, store_dir: Path) -> tuple[str, dict[str, str]]:
    """Move a finished payload into the store, whole or not at all.

    Args:
        payload_dir: Folder on the store's file system; it is gone afterwards.
        store_dir: The store.

    Returns:
        The payload's digest and the digest of each of its files.

    Raises:
        ArtifactError: The payload is empty, or holds a pickle.
    """
    check_no_pickle(payload_dir, payload_files(payload_dir))
    digests = file_digests(payload_dir)
    if not digests:
        raise ArtifactError(f"{payload_dir}: the stage wrote no file; an artifact needs at least one")
    digest = combine_digests(digests)
    target = store_dir / digest
    if target.exists() and file_digests(target) == digests:
        shutil.rmtree(payload_dir)
        return digest, digests
    if target.exists():  # damaged: what is stored under this digest is not what the digest says
        shutil.rmtree(target)
    for path in payload_files(payload_dir):
        path.chmod(0o444)
    payload_dir.chmod(0o755)  # a temporary folder is its owner's alone
    try:
        os.rename(payload_dir, target)
    except OSError:  # another run published the same content in the meantime
        if not target.exists() or file_digests(target) != digests:
            raise
        shutil.rmtree(payload_dir)
    return digest, digests


def verify_artifact(artifact: Artifact, digests: dict[str, str] | None = None) -> None:
    """Check that a payload is what its handle says.

    Args:
        artifact: The handle.
        digests: Digest of each file as the manifest has it; lets the message name the file that changed.

    Raises:
        ArtifactError: The folder is missing, its content has another digest, or a file holds a pickle.
    """
    if not artifact.path.is_dir():
        raise ArtifactError(
            f"{artifact.path}: the {artifact.TYPE} artifact {artifact.digest[:12]} is missing; "
            f"run the stage that makes it again"
        )
    entries = artifact.path.rglob("*")
    links = sorted(path.relative_to(artifact.path).as_posix() for path in entries if path.is_symlink())
    if links:
        raise ArtifactError(
            f"{artifact.path}: {', '.join(links)}: links, which may lead out of the artifact; artifacts hold files "
            f"alone: remove the folder and run the stage that makes it again"
        )
    found = file_digests(artifact.path)
    if combine_digests(found) == artifact.digest:
        check_no_pickle(
            artifact.path, payload_files(artifact.path)
        )  # one that was made elsewhere has a true digest too
        return
    expected = digests or {}
    changed = sorted(name for name in expected if name in found and found[name] != expected[name])
    missing = sorted(set(expected) - set(found))
    added = sorted(set(found) - set(expected)) if expected else []
    what = "; ".join(
        f"{kind}: {', '.join(names)}"
        for kind, names in (("changed", changed), ("missing", missing), ("added", added))
        if names
    )
    raise ArtifactError(
        f"{artifact.path}: the content is not what the digest {artifact.digest[:12]} says ({what or 'changed'}); "
        f"artifacts are never edited in place: remove the folder and run the stage that makes it again"
    )


def read_record(store_dir: Path, fingerprint: str) -> dict[str, Any] | None:
    """The manifest of the stage run with this fingerprint, if the store has a whole and unchanged one."""
    record = store_dir / RECORDS / fingerprint
    try:
        digests = json.loads((record / _DIGESTS).read_bytes())
        if digests != {name: file_digest(record / name) for name in _RECORD_FILES}:
            return None
        manifest: dict[str, Any] = json.loads((record / "manifest.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return manifest


def stored_artifact(store_dir: Path, fingerprint: str) -> Artifact | None:
    """The artifact of a fingerprint, verified; None where the store has none.

    Raises:
        ArtifactError: There is one, and it is damaged or not whole.
    """
    path = store_dir / RECORDS / fingerprint / "manifest.json"
    manifest = read_record(store_dir, fingerprint)
    if manifest is None and not path.exists():
        return None
    try:
        if manifest is None:
            raise ValueError("its digests differ")
        recorded = manifest["artifact"]
        if not DIGEST.fullmatch(recorded["digest"]):
            raise ValueError(recorded["digest"])
        stored = artifact_from_json({**recorded, "path": str(store_dir / recorded["digest"])})
        files = dict(manifest["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path}: the record of an artifact is cut off or was changed; a whole one is needed; remove its folder, "
            f"and run the stage that makes it again"
        ) from error
    verify_artifact(stored, files)
    return stored


def find_artifact(store_dir: Path, fingerprint: str) -> Artifact | None:
    """As `stored_artifact`, and None for a damaged one, too: it is never a hit."""
    try:
        return stored_artifact(store_dir, fingerprint)
    except ArtifactError:
        return None


def publish_record(store_dir: Path, fingerprint: str, manifest: dict[str, Any], metrics_path: Path) -> Path:
    """Write manifest and metrics of a finished stage beside the payloads; returns the record's folder."""
    record = store_dir / RECORDS / fingerprint
    record.mkdir(parents=True, exist_ok=True)
    (record / "manifest.json").unlink(missing_ok=True)  # of an earlier execution: no hit until the new one is whole
    shutil.copyfile(metrics_path, record / "metrics.jsonl")
    manifest_digest = hashlib.sha256(_json_text(manifest).encode()).hexdigest()
    metrics_digest = file_digest(record / "metrics.jsonl")
    write_json(record / _DIGESTS, {"manifest.json": manifest_digest, "metrics.jsonl": metrics_digest})
    write_json(record / "manifest.json", manifest)  # last: a record without a manifest is no hit
    return record


def link_artifact(stage_dir: Path, store_dir: Path, digest: str) -> None:
    """Put the relative link `artifact` to the stored payload into a stage's folder of a run."""
    new = stage_dir / ".artifact.new"
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(store_dir / digest, stage_dir), target_is_directory=True)
    os.replace(new, stage_dir / "artifact")
