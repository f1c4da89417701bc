"""A planted pickle is refused and never runs: in an artifact, a checkpoint, a base model, an adapter."""

import io
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file

from data.errors import ArtifactError, ModelError
from stages.artifacts import combine_digests, file_digests, publish_payload, verify_artifact
from stages.checkpoint import Checkpoints
from stages.contract import CheckpointSchedule, PolicyArtifact
from stages.models.config import ModelConfig
from stages.models.folders import check_model_folder
from stages.models.loading import load_causal_lm
from stages.models.tuning import load_adapter
from stages.ranks import Ranks
from stages.safe_checkpoints import check_checkpoint
from stages.safe_files import pickle_reason
from stages.trainer_checkpoints import restore_checkpoint
from tests.tiny import tiny_model_dir
from tests.unit.stages.parts import save_random_adapter, stage_context


class Malicious:
    """What touches a file when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.touched),)


@pytest.fixture
def touched(tmp_path: Path) -> Path:
    """The folder that the planted pickles make."""
    return tmp_path / "touched"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir("llama", tmp_path_factory.mktemp("safe") / "llama")


def saved_by_torch(value: object, *, as_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=as_zip)
    return buffer.getvalue()


def test_the_planted_pickle_does_run_when_it_is_loaded(touched: Path) -> None:
    """Else none of these tests could fail."""
    pickle.loads(pickle.dumps(Malicious(touched)))
    assert touched.is_dir()


def contents(touched: Path) -> dict[str, bytes]:
    """Files that could run code, by their names."""
    planted = Malicious(touched)
    array = io.BytesIO()
    numpy.save(array, numpy.array([planted], dtype=object), allow_pickle=True)
    broken = saved_by_torch(planted)[:-30]
    return {
        **{f"weights{suffix}": b"anything" for suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".PKL", ".npy")},
        **{f"protocol{protocol}.json": pickle.dumps(planted, protocol) for protocol in (2, 3, 4, 5)},
        "torch.safetensors": saved_by_torch(planted),
        "legacy.txt": saved_by_torch(planted, as_zip=False),
        "array.dat": array.getvalue(),
        "broken.json": broken,
    }


def test_each_kind_of_file_is_found(tmp_path: Path, touched: Path) -> None:
    for name, content in contents(touched).items():
        (tmp_path / name).write_bytes(content)
        assert pickle_reason(tmp_path / name) is not None, name
    assert not touched.exists()


def test_what_an_artifact_holds_is_no_pickle(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "a.json").write_text('{"x": 1}')
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text.jinja").write_text("\u0080\u0002 PK")
    with zipfile.ZipFile(tmp_path / "harmless", "w") as archive:
        archive.writestr("a.txt", "text")
    assert [pickle_reason(path) for path in tmp_path.iterdir()] == [None] * 5


@pytest.mark.parametrize("name", ["weights.bin", "protocol4.json", "torch.safetensors"])
def test_no_artifact_with_a_pickle_is_published_or_read(name: str, tmp_path: Path, touched: Path) -> None:
    payload = tmp_path / "payload"
    payload.mkdir()
    (payload / "a.json").write_text("{}")
    (payload / name).write_bytes(contents(touched)[name])
    # Copied from elsewhere: its digest is right.
    copied = PolicyArtifact(payload, combine_digests(file_digests(payload)), {})
    with pytest.raises(ArtifactError, match=f"{name}: an artifact holds no pickle"):
        verify_artifact(copied)
    with pytest.raises(ArtifactError, match=f"{name}: an artifact holds no pickle"):
        publish_payload(payload, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert not touched.exists()


def test_a_base_model_with_pickled_weights_is_refused(llama: Path, tmp_path: Path, touched: Path) -> None:
    base = Path(shutil.copytree(llama, tmp_path / "base"))
    (base / "pytorch_model.bin").write_bytes(saved_by_torch(Malicious(touched)))
    section = ModelConfig(base=str(base), dtype="float32")
    load_causal_lm(base, section, "cpu")  # beside safetensors it is not even opened
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the weights are pickled"):
        check_model_folder(base, str(base))
    # The loader itself: of a repository of the hub no file is looked at before.
    with pytest.raises(ModelError):
        load_causal_lm(base, section, "cpu")
    assert not touched.exists()


def test_a_pickled_adapter_is_refused(llama: Path, tmp_path: Path, touched: Path) -> None:
    adapter = tmp_path / "adapter"
    save_random_adapter(adapter, llama, "causal_lm", seed=1)
    (adapter / "adapter_model.safetensors").unlink()
    model = load_causal_lm(llama, ModelConfig(base=str(llama), dtype="float32"), "cpu")
    (adapter / "adapter_model.bin").write_bytes(saved_by_torch({"weight": torch.zeros(1)}))  # PEFT would take it
    with pytest.raises(ModelError, match="no readable adapter weights"):
        load_adapter(model, adapter, "policy", trainable=False)
    assert not hasattr(model, "peft_config")  # nothing was put into it before the refusal
    (adapter / "adapter_model.bin").write_bytes(saved_by_torch(Malicious(touched)))
    with pytest.raises(ModelError, match="no readable adapter weights"):
        load_adapter(model, adapter, "policy", trainable=False)
    assert not touched.exists()


def test_a_pickle_planted_into_a_checkpoint_is_passed_over(tmp_path: Path, touched: Path) -> None:
    """Its digest does not fit; with a digest that was made to fit, the restricted unpickler refuses it."""
    checkpoints = Checkpoints(tmp_path, "f", CheckpointSchedule(every_steps=1))
    state = {"step": 1, "moments": torch.ones(2), "random": numpy.arange(3, dtype=numpy.uint32)}
    for step in (1, 2):
        checkpoints.write(step, lambda path: torch.save(state, path / "optimizer.pt"), Ranks())
    newest = tmp_path / "checkpoints" / "step-00000002"
    check_checkpoint(newest)  # tensors, numbers and numpy's random state
    (newest / "optimizer.pt").write_bytes(saved_by_torch(Malicious(touched)))
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 1
    description = json.loads((newest / "checkpoint.json").read_text())
    digests = {name: digest for name, digest in file_digests(newest).items() if name != "checkpoint.json"}
    (newest / "checkpoint.json").write_text(json.dumps({**description, "files": digests}))
    assert checkpoints.latest() is not None
    for as_zip in (True, False):
        (newest / "optimizer.pt").write_bytes(saved_by_torch(Malicious(touched), as_zip=as_zip))
        with pytest.raises(ArtifactError, match=r"optimizer\.pt: a checkpoint holds tensors and plain values"):
            check_checkpoint(newest)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(newest / "optimizer.pt", weights_only=True)  # as PPO and the trainers load
    assert not touched.exists()


def test_a_trainer_is_not_given_a_checkpoint_with_a_planted_pickle(tmp_path: Path, touched: Path) -> None:
    """With a digest that was made to fit: accelerate and DeepSpeed would unpickle what is laid before them."""
    context = replace(stage_context(tmp_path), fingerprint="f", checkpoints=CheckpointSchedule(every_steps=1))

    def save(folder: Path) -> None:
        (folder / "current").mkdir()
        (folder / "current" / "trainer_state.json").write_text('{"best_model_checkpoint": null}')
        (folder / "current" / "scheduler.pt").write_bytes(saved_by_torch(saved))

    saved: object = {"last_epoch": 1}
    Checkpoints.of(context).write(1, save, Ranks())
    assert restore_checkpoint(context) == str(context.scratch_dir / "checkpoint-1"), "the control"
    saved = Malicious(touched)
    Checkpoints.of(context).write(2, save, Ranks())
    with pytest.raises(ArtifactError, match=r"scheduler\.pt: a checkpoint holds tensors and plain values"):
        restore_checkpoint(context)
    assert not touched.exists()
