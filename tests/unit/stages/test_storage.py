"""Full disks and folders that cannot be written: a clear error, what was there stays, and it works once there is room.

The full disk is a real one: a tmpfs of a few hundred KiB in a mount namespace of its own (`unshare --map-root-user`),
so that no rights are needed and nothing stays mounted.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import StorageError
from stages import storage
from stages.artifacts import write_json
from stages.checkpoint import Checkpoints
from stages.contract import CheckpointSchedule
from stages.ranks import Ranks
from stages.storage import check_room, storage_error

ROOT = Path(__file__).resolve().parents[3]


def on_a_small_disk(folder: Path, kib: int, program: str) -> str:
    """What a program prints that has `disk` mounted as a file system of this size."""
    folder.mkdir(exist_ok=True)
    command = 'mount -t tmpfs -o size="$1"k none "$2" && exec "$3" -c "$4" "$2"'
    finished = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", command, "sh", str(kib), str(folder), sys.executable,
         program],
        capture_output=True, text=True, check=False, timeout=240, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_stage_on_a_full_disk_ends_clearly_and_is_done_once_there_is_room(tmp_path: Path) -> None:
    """At every size of the disk the stage either ends with the error or has its result, never a part of it."""
    program = """
import json, sys
from pathlib import Path
import stages.run
from data.errors import StorageError
from stages.artifacts import find_artifact, verify_artifact
from stages.contract import StageOutput
disk = Path(sys.argv[1])

def execute(spec, context):
    for step in range(1, 20):
        context.metrics.write(step, {"a": 1.0})
    (context.payload_dir / "big.jsonl").write_bytes(b"x" * 60 * 1024)
    return StageOutput({"a": 1.0})

stages.run._execute = execute
spec = stages.run.StageSpec(stage="data", config={}, model={}, inputs={}, stage_dir=disk / "run" / "data",
                            store_dir=disk / "store", seed=0, device="cpu", fingerprint="f" * 64)
(disk / "store").mkdir()
outcomes = []
for taken in range(256, 0, -4):
    (disk / "filler").write_bytes(b"y" * taken * 1024)
    try:
        stages.run.run_stage(spec, lambda *_: None)
        outcomes.append("done")
        break
    except StorageError as error:
        outcomes.append(str(error))
        assert find_artifact(disk / "store", spec.fingerprint) is None, "half of a result is taken for one"
        left = [path.name for path in disk.rglob(".*")]
        assert left == [], left
found = find_artifact(disk / "store", spec.fingerprint)
verify_artifact(found)
json.dump(outcomes, sys.stdout)
"""
    outcomes = json.loads(on_a_small_disk(tmp_path / "disk", 300, program))
    assert outcomes[-1] == "done" and len(outcomes) > 5
    for message in outcomes[:-1]:
        assert message.startswith(f"{tmp_path / 'disk' / 'store'}: no space left on its file system (")
        assert "free of 300 KiB); room for artifacts, checkpoints and logs is needed; free some" in message


def test_a_checkpoint_without_room_leaves_the_one_before_it(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
import torch
from data.errors import StorageError
from stages.checkpoint import Checkpoints
from stages.contract import CheckpointSchedule
from stages.ranks import Ranks
disk = Path(sys.argv[1])
checkpoints = Checkpoints(disk / "stage", "f", CheckpointSchedule())
save = lambda folder: torch.save(torch.zeros(25_000), folder / "state.pt")  # 100 KB, and torch loses the errno
checkpoints.write(1, save, Ranks())
checkpoints.write(2, save, Ranks())
try:
    checkpoints.write(3, save, Ranks())
except StorageError as error:
    print(error)
print(checkpoints.latest().step, sorted(path.name for path in (disk / "stage" / "checkpoints").iterdir()))
"""
    said = on_a_small_disk(tmp_path / "disk", 280, program).splitlines()
    assert said[0].startswith(f"{tmp_path / 'disk' / 'stage' / 'checkpoints'}: no space left on its file system")
    assert said[1] == "2 ['step-00000001', 'step-00000002']"


def test_a_full_disk_is_freed_by_gc(tmp_path: Path) -> None:
    """It needs a lock for that, on the disk that has no room for a byte."""
    program = """
import sys
from pathlib import Path
from pipeline.cli import main
disk = Path(sys.argv[1])
unused = disk / "store" / ("a" * 64)
unused.mkdir(parents=True)
(unused / "rows.jsonl").write_bytes(b"x" * 40 * 1024)
filler = (disk / "filler").open("wb", buffering=0)
try:
    while True:
        filler.write(b"y" * 4096)
except OSError as error:
    print(error.errno)
print(main(["gc", "--remove", "--output-dir", str(disk)]))
print(sorted(path.name for path in disk.rglob("*")))
"""
    said = on_a_small_disk(tmp_path / "disk", 64, program).splitlines()
    assert said[0] == str(errno.ENOSPC)
    assert said[1].endswith("removed 1 unused files and folders, 0.0 MiB") and said[2] == "0"
    assert said[3] == "['filler', 'store']"


def test_json_that_has_no_room_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from stages.artifacts import write_json
disk = Path(sys.argv[1])
write_json(disk / "run.json", {"status": "running"})
(disk / "filler").write_bytes(b"y" * 52 * 1024)
try:
    write_json(disk / "run.json", {"status": "x" * 20_000})
except OSError as error:
    print(error.errno)
print((disk / "run.json").read_text().split(), sorted(path.name for path in disk.iterdir()))
"""
    said = on_a_small_disk(tmp_path / "disk", 64, program).splitlines()
    assert said[0] == str(errno.ENOSPC)
    assert "['{', '\"status\":', '\"running\"', '}'] ['filler', 'run.json']" == said[1]


def test_a_read_only_folder_is_named_with_what_to_do(tmp_path: Path) -> None:
    """On a file system that is mounted read-only: root's rights do not help there either."""
    program = """
import subprocess, sys
from pathlib import Path
from pipeline.cli import main
disk = Path(sys.argv[1])
subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
sys.stderr = sys.stdout
print(main(["run", "configs/smoke.yaml", "--set", "model.base=" + sys.argv[1], "--output-dir", str(disk / "outputs")]))
"""
    (tmp_path / "disk").mkdir()
    program = program.replace("configs/smoke.yaml", str(ROOT / "configs" / "quickstart.yaml")).replace(
        '"--set", "model.base=" + sys.argv[1], ', ""
    )
    said = on_a_small_disk(tmp_path / "disk", 100_000, program)
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "2"
    assert "cannot be written; a folder that this user may write is needed" in said and "--output-dir DIR" in said


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_file_that_may_not_be_written_is_named_only_where_we_write(tmp_path: Path, number: int) -> None:
    inside = OSError(number, os.strerror(number), str(tmp_path / "store" / "x"))
    text = str(storage_error(inside, tmp_path))
    assert text == (
        f"{tmp_path / 'store' / 'x'}: cannot be written ({os.strerror(number)}); a folder that this user may write is "
        f"needed; correct its permissions, or give another one with --output-dir DIR"
    )
    assert storage_error(OSError(number, "no", "/data/rows.jsonl"), tmp_path) is None


def test_other_failures_are_left_alone(tmp_path: Path) -> None:
    assert storage_error(RuntimeError("matrix is singular"), tmp_path) is None, "the disk has room"
    assert storage_error(OSError(errno.ENOENT, "no such file", str(tmp_path / "x")), tmp_path) is None
    wrapped = ValueError("could not save")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(storage_error(wrapped, tmp_path), StorageError)


def test_the_room_is_checked_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: usage(10 << 20, 7 << 20, 3 << 20))
    check_room(tmp_path / "not" / "made" / "yet", 3 << 20)
    with pytest.raises(StorageError) as error:
        check_room(tmp_path / "not" / "made" / "yet", (3 << 20) + 1)
    assert str(error.value) == (
        f"{tmp_path / 'not' / 'made' / 'yet'}: 3 MiB free on this file system; at least 3 MiB are needed for a run; "
        "free some (`rlhf gc` lists what no run uses), or give another folder with --output-dir DIR"
    )


def test_a_save_that_fails_leaves_no_unfinished_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "f", CheckpointSchedule())

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise ValueError("not this time")

    with pytest.raises(ValueError):
        checkpoints.write(1, fail, Ranks())
    assert not list((tmp_path / "checkpoints").iterdir())


def test_json_that_cannot_be_said_leaves_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
