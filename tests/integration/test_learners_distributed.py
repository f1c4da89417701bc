"""PPO's learners and trainer on two gloo ranks, replicated and under ZeRO, beside one process on the whole batch."""

from typing import Any

import pytest
import torch

from stages.ranks import Ranks
from tests.integration import ppo_on_ranks
from tests.ranks import run_on_ranks
from tests.tiny import tiny_model_dir
from tests.unit.stages import on_ranks
from tests.unit.stages.parts import Folders, save_random_adapter

KINDS = ("replicated", "zero1", "zero2")
Found = dict[str, Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Give a tiny base and two random adapters."""
    root = tmp_path_factory.mktemp("models")
    base = tiny_model_dir("llama", root / "base")
    save_random_adapter(root / "policy", base, "causal_lm", seed=1)
    save_random_adapter(root / "reward", base, "seq_cls", seed=2)
    return Folders(base, root / "policy", root / "reward")


@pytest.fixture(scope="module")
def single(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Give what one process computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        kept = tmp_path_factory.mktemp("kept")
        return ppo_on_ranks.everything(Ranks(), *map(str, folders), kept=str(kept))["replicated"]
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def together(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """Give what each of two ranks computes."""
    root = tmp_path_factory.mktemp("ranks")
    arguments = {"base": str(folders.base), "policy": str(folders.policy), "reward": str(folders.reward)}
    function = "tests.integration.ppo_on_ranks:everything"
    return run_on_ranks(function, root, size=2, kept=str(root / "kept"), **arguments)


def _close(found: list[float], expected: list[float], *, tolerance: float) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=tolerance)


def test_checklist_47_each_rank_samples_its_rows_as_one_process_does(single: Found, together: list[Found]) -> None:
    first, second = (found["replicated"] for found in together)
    for step in range(2):
        assert first["seeds"][step] + second["seeds"][step] == single["seeds"][step]
        assert len(set(single["seeds"][step])) == 8
    assert not set(single["seeds"][0]) & set(single["seeds"][1])
    rollouts = first["own"][0]["rollouts"] + second["own"][0]["rollouts"]
    for (prompt, response, logprobs, _), one in zip(rollouts, single["own"][0]["rollouts"], strict=True):
        assert (prompt, response) == (list(one[0]), list(one[1]))
        assert logprobs == pytest.approx(one[2], abs=1e-5)  # batches of four instead of eight
    assert len({tuple(rollout[1]) for rollout in rollouts}) == 8


def test_every_rank_knows_the_experience_of_all(single: Found, together: list[Found]) -> None:
    first, second = (found["replicated"] for found in together)
    assert single["gathered"] == single["own"], "one rank has nothing to gather"
    for step in range(2):
        assert first["gathered"][step] == second["gathered"][step]
        own = [found["own"][step] for found in (first, second)]
        gathered = first["gathered"][step]
        assert gathered["rollouts"] == own[0]["rollouts"] + own[1]["rollouts"]
        # The first rank's responses have one token, the second's six: padded here to the longest of all.
        assert [len(part["values"][0]) for part in own] == [1, 6]
        for name, rows in gathered.items():
            if name != "rollouts":
                filler = False if name == "response_mask" else 0.0
                parts = [row + [filler] * (6 - len(row)) for part in own for row in part[name]]
                assert rows == parts, name


def test_moments_and_multipliers_are_those_of_the_whole_batch_on_every_rank(
    single: Found, together: list[Found]
) -> None:
    for kind in KINDS:
        first, second = (found[kind]["rewards"] for found in together)
        assert first == second == single["rewards"]
    count, mean, _ = single["rewards"]["moments"]["running"]
    assert count == 16 and mean > 0.1 and single["rewards"]["multipliers"]["bound"] > 0.2


def test_checklist_34_whitening_has_the_statistics_of_the_whole_batch(single: Found, together: list[Found]) -> None:
    for kind in KINDS:
        first, second = (found[kind] for found in together)
        assert first["advantages"] == second["advantages"]
        advantages = torch.tensor(first["advantages"][0])
        mask = torch.tensor(first["gathered"][0]["response_mask"])
        assert advantages[mask].mean().item() == pytest.approx(0.0, abs=1e-6)
        assert advantages[mask].var(correction=0).item() == pytest.approx(1.0, abs=1e-4)
        variances = [advantages[rows][mask[rows]].var(correction=0).item() for rows in (slice(0, 4), slice(4, 8))]
        assert max(variances) > 1.5, "those of one rank alone vary otherwise"
        torch.testing.assert_close(advantages, torch.tensor(single["advantages"][0]), rtol=0, atol=1e-4)


def test_checklist_43_gradients_over_ranks_are_those_of_the_whole_minibatch(
    single: Found, together: list[Found]
) -> None:
    tokens = [sum(found["replicated"]["tokens"][:2]) for found in together]
    assert max(tokens) > 2 * min(tokens), "ranks have very unequal numbers of tokens"
    for found in together:
        for role in ("policy", "critic"):
            gradients, expected = found["replicated"]["gradients"][role], single["gradients"][role]
            assert len(gradients) == len(expected) == 3
            assert max(map(abs, expected[0])) > 0.01
            _close(gradients[0], expected[0], tolerance=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_make_the_steps_of_one_process(single: Found, together: list[Found], kind: str) -> None:
    found = [rank[kind] for rank in together]
    assert found[0]["weights"] == found[1]["weights"]
    # Adam's first step has the size of the learning rate whatever the gradient, so that one near 0 is worth 1e-3.
    _close(found[0]["weights"], single["weights"], tolerance=2e-4)
    for step in range(2):
        row, expected = found[0]["metrics"][step], single["metrics"][step]
        assert row.keys() == expected.keys()
        for name in row:
            # Ranks cut their microbatches out of other episodes, and are timed apart.
            if not name.startswith(("time/", "memory/", "rollout/tokens_per_second", "policy/padding_share")):
                assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=2e-4), name
    assert single["metrics"][1]["policy/grad_norm"] > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_checklist_50_ranks_go_on_from_a_saved_state(single: Found, together: list[Found], kind: str) -> None:
    for rank in together:
        uninterrupted, loaded = rank[kind]["after_third"]
        assert uninterrupted == loaded != rank[kind]["weights"]
        assert rank[kind]["third"][0] == rank[kind]["third"][1]
    uninterrupted, loaded = single["after_third"]
    assert uninterrupted == loaded


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_sharded_learner_lives_as_a_replicated_one(together: list[Found], stage: int) -> None:
    """Clipping, steps that are not applied and NaN included; see `tests.unit.stages.on_ranks`."""
    alone = on_ranks.replicated(Ranks())
    for rank in together:
        found = rank[f"learner_zero{stage}"]
        assert found["not_applied"] == found["after_nan"] == found["second"]
        assert found["loaded"] == found["third"] != found["second"]
        assert not found["gradients_left"]
        for name in ("first", "second", "third", "clipped"):
            assert found[name] == pytest.approx(alone[name], abs=1e-5), name
        for name in ("norm", "norm_before_clipping"):
            assert found[name] == pytest.approx(alone[name], rel=1e-5), name
        for name in ("norm_of_nan", "norm_of_infinity"):
            assert found[name] != found[name] or abs(found[name]) == float("inf"), name
