"""Shares of a list, and what processes tell one another: on two real processes, started once."""

import math
import struct
from typing import Any

import pytest
import torch

from stages.ranks import Ranks
from tests.ranks import run_on_ranks


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Give what each of two ranks knows after talking to the other."""
    return run_on_ranks("tests.unit.stages.on_ranks:collectives", tmp_path_factory.mktemp("ranks"), size=2)


def test_shares_are_neighbours_of_nearly_equal_number_and_lose_none() -> None:
    assert [list(Ranks(rank, 3).share("abcdefgh")) for rank in range(3)] == [
        ["a", "b"],
        ["c", "d", "e"],
        ["f", "g", "h"],
    ]
    assert [list(Ranks(rank, 3).share([7])) for rank in range(3)] == [[], [], [7]]
    assert [list(Ranks(rank, 2).share([])) for rank in range(2)] == [[], []]
    assert Ranks().share((1, 2, 3)) == (1, 2, 3)
    for size in (1, 2, 3, 5):
        for number in range(12):
            shares = [list(Ranks(rank, size).share(range(number))) for rank in range(size)]
            assert sum(shares, []) == list(range(number))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_tells_itself_without_any_group() -> None:
    alone, tensor = Ranks(), torch.tensor([1.0, 2.0])
    items = [{"a": (1, 2)}, math.nan]
    assert alone.gather(items)[0] == {"a": (1, 2)} and alone.gather(items) is not items
    assert alone.broadcast("x") == "x" and alone.is_main and not Ranks(1, 2).is_main
    assert alone.sum(tensor) is tensor and tensor.tolist() == [1.0, 2.0]
    alone.barrier()


def test_items_of_all_ranks_come_in_their_order_to_every_rank(found: list[dict[str, Any]]) -> None:
    assert [rank["is_main"] for rank in found] == [True, False]
    for rank in found:
        assert rank["uneven"] == ["a", "b", "c"]
        assert rank["nothing"] == []
        assert rank["shared"] == [0, 1, 2, 3, 4]
        assert rank["after"] == [0, 1]
        text = "\u00fc\u65e5\U0001f600 \n"
        assert rank["objects"] == [{"text": text, "rank": number, "flags": [True, None]} for number in (0, 1)]


def test_floats_come_back_as_they_were_sent(found: list[dict[str, Any]]) -> None:
    drawn = torch.cat([torch.randn(7, generator=torch.Generator().manual_seed(rank)) for rank in range(2)])
    for rank in found:
        assert rank["bits"] == drawn.view(torch.int32).tolist()
        for values in (rank["special"][:5], rank["special"][5:]):
            assert math.isnan(values[0]) and values[1:3] == [math.inf, -math.inf]
            assert [struct.pack("d", value) for value in values[3:]] == [struct.pack("d", v) for v in (-0.0, 1e-45)]


def test_the_main_rank_is_heard_and_sums_are_over_all(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["broadcast"] == {"from": 0, "what": "\u00e9" * 3}
        assert rank["sum"] == [3.0, 10.0] and rank["in_place"]
