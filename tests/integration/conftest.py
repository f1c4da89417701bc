"""One Prefect server for all integration tests, and runs of the command line in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.server import lease_server
from tests.tiny import tiny_model_dir

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all tests: a new one for each would take ten seconds a test."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
    patch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    patch.delenv("PREFECT_API_URL", raising=False)
    lease = lease_server()
    lease.wait_until_healthy()
    # Before prefect is imported: its background threads have the settings of that moment.
    for name, value in lease.environment.items():
        patch.setenv(name, value)
    yield lease.api_url
    lease.release()
    patch.undo()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two blocks, 64 wide: NF4 on a CPU wants rows of whole blocks of 64."""
    return tiny_model_dir("llama", tmp_path_factory.mktemp("tiny") / "llama", hidden=64)


@pytest.fixture
def rlhf(tmp_path: Path, prefect_api: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `rlhf` as a user would, in a process of its own, with its outputs in the test's folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments, "--output-dir", str(tmp_path / "outputs")],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": prefect_api, "OMP_NUM_THREADS": "2"},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    return run
