"""Artifacts: digest of content alone, published whole, never a hit when damaged, the changed file by name."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from data.errors import ArtifactError
from stages import artifacts
from stages.artifacts import (
    RECORDS,
    combine_digests,
    file_digest,
    file_digests,
    find_artifact,
    link_artifact,
    publish_payload,
    publish_record,
    read_record,
    stored_artifact,
    verify_artifact,
    write_json,
)
from stages.contract import Artifact, PolicyArtifact


def _payload(store: Path, name: str = ".payload-1", **files: str) -> Path:
    folder = store / name
    for path, text in ({"a.txt": "alpha", "sub/b.txt": "beta"} | files).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def _published(tmp_path: Path) -> tuple[Path, PolicyArtifact, dict[str, str]]:
    store = tmp_path / "store"
    digest, files = publish_payload(_payload(store), store)
    artifact = PolicyArtifact(store / digest, digest, {"dataset": "d" * 64})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    manifest = {"artifact": artifact.to_json(), "files": files}
    publish_record(store, "key", manifest, tmp_path / "metrics.jsonl")
    return store, artifact, files


def _writable(artifact: Artifact, name: str) -> Path:
    path = artifact.path / name
    path.chmod(0o644)
    return path


def test_the_digest_is_that_of_sorted_paths_and_contents() -> None:
    a, b = (hashlib.sha256(text).hexdigest() for text in (b"alpha", b"beta"))
    expected = hashlib.sha256(f"a.txt\0{a}\nsub/b.txt\0{b}\n".encode()).hexdigest()
    assert combine_digests({"sub/b.txt": b, "a.txt": a}) == expected


def test_the_digest_does_not_depend_on_place_time_or_mode(tmp_path: Path) -> None:
    first, second = _payload(tmp_path, "one"), _payload(tmp_path / "elsewhere", "two")
    os.utime(second / "a.txt", (1, 1))
    (second / "a.txt").chmod(0o444)
    assert file_digests(first) == file_digests(second)
    for changed in ({"a.txt": "alphb"}, {"c.txt": ""}, {"sub/a.txt": "alpha"}):
        other = _payload(tmp_path, f"other-{sorted(changed)[0].replace('/', '-')}-{len(changed)}", **changed)
        assert combine_digests(file_digests(other)) != combine_digests(file_digests(first))


def test_large_files_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_CHUNK_BYTES", 7)
    (tmp_path / "x").write_bytes(b"0123456789" * 5)
    assert file_digest(tmp_path / "x") == hashlib.sha256(b"0123456789" * 5).hexdigest()


def test_publishing_moves_the_payload_and_makes_it_read_only(tmp_path: Path) -> None:
    store, artifact, files = _published(tmp_path)
    assert not (store / ".payload-1").exists()
    assert (artifact.path / "sub" / "b.txt").read_text() == "beta"
    assert not (artifact.path / "a.txt").stat().st_mode & 0o222
    assert combine_digests(files) == artifact.digest
    verify_artifact(artifact)
    assert find_artifact(store, "key") == artifact
    assert (store / RECORDS / "key" / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_equal_content_is_stored_once(tmp_path: Path) -> None:
    store, artifact, _ = _published(tmp_path)
    inode = (artifact.path / "a.txt").stat().st_ino
    digest, _ = publish_payload(_payload(store, ".payload-2"), store)
    assert digest == artifact.digest and (artifact.path / "a.txt").stat().st_ino == inode
    assert sorted(path.name for path in store.iterdir()) == sorted([digest, RECORDS])


def test_two_runs_may_publish_the_same_content_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    first, second = _payload(store, ".payload-1"), _payload(store, ".payload-2")
    rename = os.rename

    def other_was_quicker(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        publish_payload(second, store)
        rename(source, target)

    monkeypatch.setattr(os, "rename", other_was_quicker)
    digest, files = publish_payload(first, store)
    assert file_digests(store / digest) == files
    assert [path.name for path in store.iterdir()] == [digest]


def test_a_damaged_payload_is_replaced_by_a_good_one(tmp_path: Path) -> None:
    store, artifact, _ = _published(tmp_path)
    _writable(artifact, "a.txt").write_text("broken")
    publish_payload(_payload(store, ".payload-2"), store)
    verify_artifact(artifact)


def test_an_empty_payload_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="the stage wrote no file; an artifact needs at least one"):
        publish_payload(tmp_path / "empty", tmp_path)


def test_checklist_52_what_changed_is_named_and_is_never_a_hit(tmp_path: Path) -> None:
    store, artifact, files = _published(tmp_path)
    _writable(artifact, "a.txt").write_text("alphA")
    (artifact.path / "sub" / "b.txt").unlink()
    (artifact.path / "new.txt").write_text("")
    with pytest.raises(
        ArtifactError, match=r"changed: a\.txt; missing: sub/b\.txt; added: new\.txt\); artifacts are never edited"
    ):
        verify_artifact(artifact, files)
    with pytest.raises(ArtifactError, match=rf"the digest {artifact.digest[:12]} says \(changed\)"):
        verify_artifact(artifact)
    assert find_artifact(store, "key") is None


def test_checklist_52_a_missing_folder_is_no_hit(tmp_path: Path) -> None:
    store, artifact, _ = _published(tmp_path)
    artifact.path.rename(store / "moved")
    assert find_artifact(store, "key") is None
    with pytest.raises(ArtifactError, match=r"the policy artifact \w{12} is missing; run the stage that makes it"):
        verify_artifact(artifact)


@pytest.mark.parametrize("text", ["", '{"artifact": {"digest": "ab', "{}", "[]", '{"artifact": {}, "files": {}}'])
def test_checklist_52_a_half_written_record_is_no_hit(tmp_path: Path, text: str) -> None:
    store, _, _ = _published(tmp_path)
    (store / RECORDS / "key" / "manifest.json").write_text(text)
    assert find_artifact(store, "key") is None and read_record(store, "key") is None


def test_an_unknown_fingerprint_is_no_hit(tmp_path: Path) -> None:
    store, _, _ = _published(tmp_path)
    assert find_artifact(store, "other") is None and read_record(store, "other") is None
    (store / RECORDS / "half").mkdir()
    (store / RECORDS / "half" / "metrics.jsonl").write_text("")
    assert find_artifact(store, "half") is None


def test_a_store_that_was_moved_still_hits(tmp_path: Path) -> None:
    store, artifact, _ = _published(tmp_path)
    moved = store.rename(tmp_path / "moved")
    found = find_artifact(moved, "key")
    assert found is not None and found.path == moved / artifact.digest and found.parents == artifact.parents


def test_the_link_is_relative_and_replaced(tmp_path: Path) -> None:
    store, artifact, _ = _published(tmp_path)
    stage_dir = tmp_path / "run" / "sft"
    stage_dir.mkdir(parents=True)
    for digest in ("0" * 64, artifact.digest):
        link_artifact(stage_dir, store, digest)
    assert os.readlink(stage_dir / "artifact") == f"../../store/{artifact.digest}"
    assert (stage_dir / "artifact" / "a.txt").read_text() == "alpha"


def test_json_is_canonical_and_replaces_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "x" / "y.json"
    write_json(path, {"b": 1, "a": "\u00e9"})
    assert path.read_bytes() == '{\n  "a": "\u00e9",\n  "b": 1\n}\n'.encode()
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text())["b"] == 1
    assert [file.name for file in path.parent.iterdir()] == ["y.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_checklist_52_links_in_a_payload_are_refused(tmp_path: Path) -> None:
    """A link's target may hold what the digest says now and something else when it is read."""
    store, artifact, files = _published(tmp_path)
    outside = tmp_path / "outside.txt"
    file = _writable(artifact, "a.txt")
    outside.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(outside)
    with pytest.raises(ArtifactError, match=r"a\.txt: links, which may lead out of the artifact; artifacts hold files"):
        verify_artifact(artifact, files)
    assert find_artifact(store, "key") is None


@pytest.mark.parametrize("digest", ["../../elsewhere", "..", "", "AB" * 32, "a" * 63, "a" * 64 + "/.."])
def test_checklist_52_a_record_that_leads_out_of_the_store_is_refused(tmp_path: Path, digest: str) -> None:
    store, _, _ = _published(tmp_path)
    manifest = read_record(store, "key")
    assert manifest is not None
    manifest["artifact"]["digest"] = digest
    publish_record(store, "key", manifest, tmp_path / "metrics.jsonl")  # whole, with its own digests
    with pytest.raises(ArtifactError, match="the record of an artifact is cut off or was changed; a whole one is"):
        stored_artifact(store, "key")
    assert find_artifact(store, "key") is None


def test_checklist_52_every_flipped_byte_and_every_cut_is_seen(tmp_path: Path) -> None:
    store, artifact, files = _published(tmp_path)
    for name in files:
        file = _writable(artifact, name)
        content = file.read_bytes()
        for at in range(len(content)):
            for damaged in (content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], content[:at]):
                file.write_bytes(damaged)
                with pytest.raises(ArtifactError, match=rf"changed: {name}\)"):
                    stored_artifact(store, "key")
        file.write_bytes(content)
    assert stored_artifact(store, "key") == artifact
