"""The repository keeps its own rules: imports, sizes, configurations, a quick command line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.loading import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
PACKAGES = ("pipeline", "stages", "rewards", "data")
MAX_LINES = 400
TOP_LEVEL = {
    "pipeline", "stages", "rewards", "data", "configs", "tests", "pyproject.toml", "README.md", "docs", "benchmarks",
    "Makefile", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "prefect.yaml",
}  # fmt: skip
HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "prefect", "wandb", "numpy")


def tracked_files() -> list[str]:
    output = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return output.splitlines()


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_loads(name: str) -> None:
    load_config(ROOT / "configs" / name)


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_starts_with_command_hardware_and_outcome(name: str) -> None:
    lines = (ROOT / "configs" / name).read_text(encoding="utf-8").splitlines()[:3]
    assert all(line.startswith("# ") and len(line) > 10 for line in lines)
    assert lines[0].startswith((f"# rlhf run configs/{name}", "# make "))


def test_import_rules() -> None:
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    result = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.cli",
        "pipeline.loading",
        "pipeline.store",
        "pipeline.server",
        "pipeline.execution",
        "pipeline.commands.export",
        "pipeline.commands.run",
        "pipeline.commands.show",
        "data.schema",
        "stages.run",
        "stages.models.sources",
    ],
)
def test_light_import(module: str) -> None:
    program = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_files_are_short() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): count
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long


def test_top_level_is_fixed() -> None:
    names = {name.split("/")[0] for name in tracked_files()}
    extra = {name for name in names if not name.startswith(".") and name not in TOP_LEVEL and "lock" not in name}
    assert not extra


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "pipeline", "--help"], cwd=ROOT, capture_output=True, check=True)
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 0.5


def test_unknown_command_is_the_users_fault() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pipeline", "rum"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_package_that_hides_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("", encoding="utf-8")
    program = f"import sys; sys.path.append({str(ROOT)!r}); from pipeline.cli import main; sys.exit(main(['runs']))"
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert f"{tmp_path / 'data'}: the package 'data' there hides ours" in result.stderr
