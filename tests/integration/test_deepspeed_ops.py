"""DeepSpeed's operators after a run that was killed while it built or loaded them."""

import subprocess
import sys

import pytest

from stages.deepspeed_ops import load_deepspeed_operators, operators_dir
from stages.process import source_root

LOAD = "from stages.deepspeed_ops import load_deepspeed_operators as load; load()"


def test_the_file_of_a_killed_build_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/somebody/else")
    load_deepspeed_operators()  # at most one compiler run
    left = operators_dir() / "deepspeed_shm_comm" / "lock"
    assert left.parent.is_dir(), "the operator is built elsewhere"
    left.touch()
    subprocess.run([sys.executable, "-c", LOAD], cwd=source_root(), check=True, timeout=120)
    assert not left.exists()
