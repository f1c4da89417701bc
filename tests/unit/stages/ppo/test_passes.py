"""The shared first pass, the cached trunk and token budgets: each gives what the plain way gives."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.contract import Episode
from rewards.learned import LearnedReward
from stages.models.config import ModelConfig
from stages.models.scalar_head import ScoreHead, ScoreNormalization
from stages.models.score_model import SharedBaseScoreModel
from stages.models.shared_base import SharedBase
from stages.models.trunk import TrunkCache
from stages.models.tuning import score_weight
from stages.ppo import trainer as trainer_module
from stages.ppo.trainer import PPOTrainer
from tests.tiny import tiny_model_dir
from tests.unit.stages.parts import PAD, Folders, FoldersOf, all_roles, random_rows, save_random_adapter, snapshot
from tests.unit.stages.ppo.trainers import PROMPTS, MakeTrainer, build_trainer, cut_short, ppo_config, spy, trained

TIMES = ("time/", "memory/", "rollout/tokens_per_second")
DEMONSTRATIONS = list(zip(random_rows([3] * 8, seed=81), random_rows([1, 9, 2, 5] * 2, seed=82), strict=True))


def _run(trainer: PPOTrainer, steps: int = 2) -> tuple[list[dict[str, float]], list[torch.Tensor]]:
    """Metrics without times, and the weights at the end."""
    rows = [trainer.step(PROMPTS) for _ in range(steps)]
    plain = [{name: value for name, value in row.items() if not name.startswith(TIMES)} for row in rows]
    return plain, snapshot(trained(trainer))


def _assert_same(found: Any, expected: Any) -> None:
    assert found[0] == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"entropy_coef": 0.1, "ptx_coef": 0.2},
        {"kl_placement": "loss", "kl_estimator": "k2", "advantage_estimator": "reinforce_plus_plus"},
        {"max_approx_kl": 1e-6},
    ],
    ids=["gae", "bonus and demonstrations", "no critic", "early stop"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_shared_first_pass_changes_no_bit(
    folders: FoldersOf, make: MakeTrainer, settings: dict[str, Any], checkpointing: bool
) -> None:
    """Two minibatches an epoch: the second's old pass is made before any update, both ways.

    Episodes pass alone, so that every pass is the same kernel on the same numbers.
    """
    found = {}
    for share in (True, False):
        shared = all_roles(folders("llama"))
        if checkpointing:
            shared.enable_gradient_checkpointing()
        demonstrations = DEMONSTRATIONS if "ptx_coef" in settings else ()
        trainer = make(
            ppo_config(microbatch_size=1, share_first_pass=share, **settings),
            shared=shared,
            alter=cut_short,
            demonstrations=demonstrations,
        )
        found[share] = _run(trainer)
    _assert_same(found[True], found[False])
    assert found[True][0][1]["policy/approx_kl"] > 0


def test_a_shared_first_pass_spares_a_pass_of_its_minibatch(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {}
    for share in (True, False):
        trainer = make(ppo_config(microbatch_size=1, share_first_pass=share))
        passes = spy(monkeypatch, trainer.models.shared_base, "hidden_states")
        trainer.step(PROMPTS)
        counts[share] = len(passes)
    # Eight episodes: old policy, reference and critic once; policy and critic once in each of two epochs.
    assert counts[False] == 8 * (3 + 2 * 2)
    assert counts[True] == counts[False] - 4 * 2, "policy and critic of the four episodes of the first minibatch"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checklist_40_a_shared_first_pass_has_ratio_exactly_one(
    folders: FoldersOf, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Also in bfloat16 and with microbatches of several episodes, where two passes differ by their padding."""
    first = {}
    for share in ("auto", False):
        model = ModelConfig.model_validate(
            {"base": str(folders("llama").base), "dtype": dtype, "tuning": {"rank": 4, "alpha": 8.0}}
        )
        trainer = build_trainer(
            folders("llama"),
            ppo_config(minibatch_size=4, microbatch_size=4, share_first_pass=share),
            shared=all_roles(folders("llama"), model),
            alter=cut_short,
        )
        calls = spy(monkeypatch, trainer.update, "_minibatch")
        trainer.step(PROMPTS)
        first[share] = calls[0][2][0]
    shared = first["auto"]
    assert shared["policy/ratio"] == 1.0 and shared["policy/approx_kl"] == 0.0
    assert shared["policy/clip_fraction"] == shared["value/clip_fraction"] == 0.0
    if dtype == "float32":
        assert first[False]["policy/approx_kl"] != 0.0, "the control: two passes differ"


def test_auto_shares_where_a_minibatch_is_one_microbatch(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, trainer_module, "collect_experience")
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"microbatch_size": 4}, True),
        ({"microbatch_size": 2}, False),
        ({"microbatch_size": 4, "microbatch_tokens": 1000}, False),
        ({"microbatch_size": 2, "share_first_pass": True}, True),
        ({"microbatch_size": 4, "share_first_pass": False}, False),
    ]
    for settings, shares in cases:
        trainer = make(ppo_config(**settings))
        trainer.step(PROMPTS)
        first = calls[-1][1]["first"]
        assert first == (trainer.update.first_minibatch(step=0) if shares else []), settings
        assert len(set(first)) == (4 if shares else 0)


def test_a_skipped_batch_lets_its_passes_go(make: MakeTrainer) -> None:
    scores = iter([[math.nan] * 8, [0.5] * 8])
    trainer = make(ppo_config(microbatch_size=4), reward=lambda episodes: next(scores))
    before = snapshot(trained(trainer))
    metrics = trainer.step(PROMPTS)
    assert metrics["train/bad_steps"] == 1.0 and "policy/loss" not in metrics
    assert all(torch.equal(a, b) for a, b in zip(before, trained(trainer), strict=True))
    assert not [weight for weight in trained(trainer) if weight.grad is not None]
    assert math.isfinite(trainer.step(PROMPTS)["policy/loss"])


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("tokens", [1, 9, 24, 1000])
def test_a_token_budget_cuts_otherwise_and_changes_nothing(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tokens: int, share: bool
) -> None:
    def run(**settings: Any) -> tuple[dict[str, float], list[torch.Tensor]]:
        trainer = make(ppo_config(num_ppo_epochs=1, share_first_pass=share, **settings), alter=cut_short, moved=True)
        return trainer.step(PROMPTS), snapshot(trained(trainer))

    expected = run(microbatch_size=1)
    original, widths = SharedBase.hidden_states, []

    def record(self: SharedBase, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        widths.append(int(attention_mask.sum(dim=1).max()) * len(input_ids))
        return original(self, input_ids, attention_mask)

    monkeypatch.setattr(SharedBase, "hidden_states", record)
    found = run(microbatch_size=4, microbatch_tokens=tokens)
    longest = max(len(prompt) for prompt in PROMPTS) + 6
    assert max(widths) <= max(tokens, longest)
    assert (max(widths) > longest) == (tokens > 20), "the control: larger budgets are used"
    for new, old in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-4)
    for name in ("policy/grad_norm", "value/loss", "objective/kl", "policy/approx_kl"):
        assert found[0][name] == pytest.approx(expected[0][name], rel=1e-3, abs=1e-6), name


@pytest.fixture(scope="module")
def upper(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Folders, SharedBase]]:
    """Give fresh roles on a base of four blocks, with adapters on the upper two."""
    root: Path = tmp_path_factory.mktemp("upper")
    folders = Folders(tiny_model_dir("llama", root / "base", layers=4), root / "policy", root / "reward")
    save_random_adapter(folders.policy, folders.base, "causal_lm", seed=1, layers={"last": 2})
    save_random_adapter(folders.reward, folders.base, "seq_cls", seed=2, layers={"last": 2})
    model = ModelConfig.model_validate(
        {"base": str(folders.base), "dtype": "float32", "tuning": {"rank": 4, "alpha": 8.0, "layers": {"last": 2}}}
    )
    return lambda: (folders, all_roles(folders, model))


@pytest.mark.parametrize(("share", "ptx"), [(False, 0.0), (True, 0.0), (True, 0.3)])
def test_a_cached_trunk_changes_no_bit_of_two_steps(
    upper: Callable[[], tuple[Folders, SharedBase]], monkeypatch: pytest.MonkeyPatch, share: bool, ptx: float
) -> None:
    """With the reward model on the shared base; the trunk passes once an episode, for four roles and two epochs."""
    computed: list[int] = []
    original = TrunkCache.run

    def count(self: TrunkCache, *args: Any) -> Any:
        before = self.num_computed
        result = original(self, *args)
        computed.append(self.num_computed - before)
        return result

    monkeypatch.setattr(TrunkCache, "run", count)
    found = {}
    for cached in (False, True):
        folders, shared = upper()
        if cached:
            assert shared.enable_trunk_cache() == 2
        head = ScoreHead(score_weight(folders.reward), ScoreNormalization(0.1, 2.0))
        judge = LearnedReward(SharedBaseScoreModel(shared, {"reward": [head]}, pad_token_id=PAD, batch_size=1))
        seen: list[Sequence[Episode]] = []

        def reward(
            episodes: Sequence[Episode], judge: LearnedReward = judge, seen: list[Sequence[Episode]] = seen
        ) -> list[float]:
            seen.append(episodes)
            return judge(episodes)

        config = ppo_config(microbatch_size=1, share_first_pass=share, ptx_coef=ptx)
        demonstrations = DEMONSTRATIONS if ptx else ()
        trainer = build_trainer(
            folders, config, shared=shared, reward=reward, alter=cut_short, demonstrations=demonstrations
        )
        computed.clear()
        found[cached] = _run(trainer)
        episodes = {(each.prompt_ids, each.response_ids) for each in seen[0]}
        if cached:
            others = 2 * len(DEMONSTRATIONS) if ptx else 0
            assert len(episodes) == 8 and sum(computed) == 2 * 8 + others
        else:
            assert computed == []
    _assert_same(found[True], found[False])
