"""One tiny model folder a family, built once a session; nobody writes into it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import Family, tiny_model_dir
from tests.unit.stages.models.separate import Pair, Precision, load_pair
from tests.unit.stages.parts import Folders, FoldersOf, save_random_adapter

FamilyDir = Callable[[Family], Path]
PairOf = Callable[[Family, Precision], Pair]


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


@pytest.fixture(scope="session")
def wide_folders(tmp_path_factory: pytest.TempPathFactory) -> FoldersOf:
    """Give base and adapters of a family in which every row is a multiple of 64, as NF4 on a CPU wants them."""
    built: dict[Family, Folders] = {}

    def build(family: Family) -> Folders:
        if family not in built:
            root: Path = tmp_path_factory.mktemp(f"wide-{family}")
            # OPT's embedding is half as wide as its blocks.
            base = tiny_model_dir(family, root / "base", hidden=128 if family == "opt" else 64)
            built[family] = Folders(base, root / "policy", root / "reward")
            save_random_adapter(built[family].policy, base, "causal_lm", seed=1)
            save_random_adapter(built[family].reward, base, "seq_cls", seed=2)
        return built[family]

    return build


@pytest.fixture(scope="session")
def pair_of(wide_folders: FoldersOf) -> PairOf:
    """Give the shared base and the separate models of a family, for tests that leave both as they are."""
    built: dict[tuple[Family, Precision], Pair] = {}

    def build(family: Family, precision: Precision) -> Pair:
        if (family, precision) not in built:
            built[family, precision] = load_pair(wide_folders(family), precision)
        return built[family, precision]

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
