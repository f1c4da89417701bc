"""One tiny model folder a family, built once a session; nobody writes into it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import Family, tiny_model_dir

FamilyDir = Callable[[Family], Path]


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Products of this size only lose by a second thread, most of all beside other work on the machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def family_dir(tmp_path_factory: pytest.TempPathFactory) -> FamilyDir:
    """Give the shared folder of a family."""
    built: dict[Family, Path] = {}

    def build(family: Family) -> Path:
        if family not in built:
            built[family] = tiny_model_dir(family, tmp_path_factory.mktemp("tiny") / family)
        return built[family]

    return build


@pytest.fixture
def llama_copy(family_dir: FamilyDir, tmp_path: Path) -> Path:
    """Give a Llama folder that the test may damage."""
    return Path(shutil.copytree(family_dir("llama"), tmp_path / "llama"))


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Give a function that changes keys of a JSON file."""

    def edit(path: Path, **values: Any) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit
