"""One tiny model folder a family and one adapter of each kind on it, built once a session; nobody writes into them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tiny import Family, tiny_model_dir
from tests.unit.stages.parts import Folders, save_random_adapter


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Products of this size only lose by a second thread, most of all beside other work on the machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Folders]:
    """Give base, policy artifact and reward-model artifact of a family; the adapters are random, B is not 0."""
    built: dict[Family, Folders] = {}

    def build(family: Family) -> Folders:
        if family not in built:
            root: Path = tmp_path_factory.mktemp(f"tiny-{family}")
            base = tiny_model_dir(family, root / "base")
            built[family] = Folders(base, root / "policy", root / "reward")
            save_random_adapter(built[family].policy, base, "causal_lm", seed=1)
            save_random_adapter(built[family].reward, base, "seq_cls", seed=2)
        return built[family]

    return build
