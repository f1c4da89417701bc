"""Pickles are known by name and by content, are refused in artifacts and are never executed."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.errors import ArtifactError
from stages.artifacts import combine_digests, file_digests, publish_payload, verify_artifact
from stages.contract import PolicyArtifact
from stages.safe_files import pickled_files


class Harmful:
    """Leaves a file behind when somebody unpickles it."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._trace,)


def plant(folder: Path, name: str, trace: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    value = {"weight": Harmful(trace)}
    if name.endswith((".bin", ".pt")):
        torch.save(value, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "rows.jsonl", "notes.txt", "sub.pkl"])
def test_a_planted_pickle_is_refused_on_the_way_in_and_on_the_way_out_and_never_runs(tmp_path: Path, name: str) -> None:
    payload, trace = tmp_path / "payload", tmp_path / "executed"
    plant(payload, name, trace)
    with pytest.raises(ArtifactError, match=rf"{name}: pickled files, which run code when they are read; artifacts"):
        publish_payload(payload, tmp_path / "store")
    artifact = PolicyArtifact(payload, combine_digests(file_digests(payload)))
    with pytest.raises(ArtifactError, match=rf"{name}: pickled files, .* an artifact holds none: remove the folder"):
        verify_artifact(artifact)
    assert not trace.exists()


def test_torch_files_are_known_under_any_name(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.json", _use_new_zipfile_serialization=False)
    assert pickled_files(tmp_path) == ["old.json", "weights.safetensors"]


def test_what_artifacts_hold_is_no_pickle(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    save_file({"a": torch.zeros(3)}, tmp_path / "sub" / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "spiece.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    np.save(tmp_path / "figures.npy", np.zeros(3))
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("rows.jsonl", "{}")
    assert pickled_files(tmp_path) == []
    (tmp_path / "cut.zip").write_bytes((tmp_path / "archive.zip").read_bytes()[:20])
    assert pickled_files(tmp_path) == ["cut.zip"]
