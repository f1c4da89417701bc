"""Versions of an adapter on their way: no name or folder twice, the digest of what lies there, removal."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from stages.ranks import Ranks
from stages.rollouts import adapter_files
from stages.rollouts.adapter_files import AdapterFiles, folder_digest
from tests.unit.stages.parts import FoldersOf, all_roles, model_config


@pytest.fixture
def shared(folders: FoldersOf) -> SharedBase:
    return all_roles(folders("llama"))


def _files(shared: SharedBase, folder: Path, ranks: Ranks | None = None) -> AdapterFiles:
    return AdapterFiles(shared, "some/base", folder, folder / "scratch", ranks or Ranks())


def _by_hand(folder: Path) -> str:
    lines = [f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in sorted(folder.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_no_name_and_no_folder_is_used_twice(shared: SharedBase, tmp_path: Path) -> None:
    first, second = _files(shared, tmp_path), _files(shared, tmp_path)
    published = [files.publish(role) for files in (first, second) for role in ("policy", "reference", "policy")]
    assert [(adapter.version, adapter.name.rpartition("-")[0]) for adapter in published[:3]] == [
        (1, "policy-v1"),
        (2, "reference-v2"),
        (3, "policy-v3"),
    ]
    # Names too: two stages may share one server.
    assert len({adapter.folder for adapter in published}) == len({adapter.name for adapter in published}) == 6
    for adapter in published[:3]:
        first.remove(adapter)
    after = first.publish("policy")
    assert after.version == 4 and after.folder not in {adapter.folder for adapter in published}


def test_the_digest_is_that_of_the_files_and_follows_the_weights(shared: SharedBase, tmp_path: Path) -> None:
    files = _files(shared, tmp_path)
    one, same = files.publish("policy"), files.publish("policy")
    assert one.digest == folder_digest(one.folder) == _by_hand(one.folder) == same.digest
    with torch.no_grad():
        shared.parameters("policy")[0][0, 0] += 1e-5
    moved = files.publish("policy")
    assert moved.digest == _by_hand(moved.folder) != one.digest
    assert folder_digest(one.folder) == one.digest, "an earlier version stays as it was sent"


def test_a_published_adapter_is_the_role_as_it_is_now(shared: SharedBase, folders: FoldersOf, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in shared.parameters("policy"):
            parameter.mul_(1.5)
    folder = _files(shared, tmp_path).publish("policy").folder
    base = folders("llama").base
    loaded = PeftModel.from_pretrained(load_causal_lm(base, model_config(base), "cpu"), str(folder))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), shared.role("policy"):
        expected = shared.next_token_logprobs(ids, torch.ones_like(ids, dtype=torch.bool))
        found = torch.log_softmax(loaded(ids).logits[:, -1], dim=-1)
    torch.testing.assert_close(found, expected)


def test_removal_takes_one_version_and_closing_takes_all(shared: SharedBase, tmp_path: Path) -> None:
    files = _files(shared, tmp_path)
    one, two = files.publish("policy"), files.publish("policy")
    files.remove(one)
    assert not one.folder.exists() and two.folder.is_dir()
    files.close()
    assert not files.folder.exists() and list(tmp_path.iterdir()) == []
    files.close()


def test_another_user_may_read_and_nobody_else_may_write(shared: SharedBase, tmp_path: Path) -> None:
    published = _files(shared, tmp_path).publish("policy")
    assert published.folder.parent.stat().st_mode & 0o777 == 0o755
    for path in (published.folder, *published.folder.iterdir()):
        assert path.stat().st_mode & 0o004 and not path.stat().st_mode & 0o002


@pytest.mark.parametrize("exists", [True, False])
def test_without_a_folder_of_its_own_it_is_shared_memory_or_else_scratch(
    exists: bool, shared: SharedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "memory"
    if exists:
        memory.mkdir()
    monkeypatch.setattr(adapter_files, "_SHARED_MEMORY", memory)
    files = AdapterFiles(shared, "some/base", None, tmp_path / "scratch", Ranks())
    assert files.folder.parent == (memory if exists else tmp_path / "scratch")


class _SecondRank(Ranks):
    """The second of two: it hears what the first one says."""

    def __init__(self, heard: list[Any]) -> None:
        super().__init__(rank=1, size=2)
        object.__setattr__(self, "heard", heard)

    def broadcast(self, value: Any) -> Any:
        return self.__dict__["heard"].pop(0)

    def barrier(self) -> None:
        assert self.__dict__["heard"] == []


def test_another_rank_reads_what_the_main_one_wrote(shared: SharedBase, tmp_path: Path) -> None:
    main = _files(shared, tmp_path)
    sent = main.publish("policy")
    other = _files(shared, tmp_path, _SecondRank([str(main.folder), sent.digest]))
    received = other.publish("policy")
    assert received == sent
    assert load_file(received.folder / "adapter_model.safetensors").keys()
    other.remove(received)
    other.close()
    assert sent.folder.is_dir(), "only the main rank deletes"


def test_a_folder_whose_owner_was_killed_is_removed_by_the_next_one_and_others_stay(
    shared: SharedBase, tmp_path: Path
) -> None:
    theirs = tmp_path / "rlhf-adapter-theirs"
    theirs.mkdir()
    program = (
        "import fcntl, os, signal, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('held', flush=True); signal.pause()"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(theirs)], stdout=subprocess.PIPE)
    assert owner.stdout is not None and owner.stdout.readline() == b"held\n"
    living = _files(shared, tmp_path)
    assert theirs.is_dir()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    last = _files(shared, tmp_path)
    assert {path for path in tmp_path.iterdir()} == {living.folder, last.folder}
    last.close()
    living.close()
    living.close()  # twice does no harm
    assert not list(tmp_path.iterdir())
