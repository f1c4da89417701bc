"""The reward model on the shared base as a score model: order, batches, and a real token that equals the pad."""

import pytest
import torch

from stages.models.scalar_head import ScoreHead, ScoreNormalization
from stages.models.score_model import SharedBaseScoreModel
from stages.models.shared_base import SharedBase
from stages.models.tuning import score_weight
from tests.unit.stages.parts import PAD, FoldersOf, all_roles, random_rows

PROMPTS = random_rows([5, 2, 8, 3], seed=31)
RESPONSES = random_rows([4, 7, 1, 2], seed=32)


@pytest.fixture(scope="module")
def shared(folders: FoldersOf) -> SharedBase:
    """Give a shared base that the tests leave as it is."""
    return all_roles(folders("llama"))


@pytest.fixture(scope="module")
def head(folders: FoldersOf) -> ScoreHead:
    """Give the head of the reward model."""
    return ScoreHead(score_weight(folders("llama").reward), ScoreNormalization(shift=0.2, scale=1.5))


def _score_model(shared: SharedBase, head: ScoreHead, batch_size: int) -> SharedBaseScoreModel:
    return SharedBaseScoreModel(shared, {"reward": [head]}, pad_token_id=PAD, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 99])
def test_scores_are_those_of_each_row_alone_in_order(shared: SharedBase, head: ScoreHead, batch_size: int) -> None:
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        ids = torch.tensor([prompt + response])
        with torch.no_grad(), shared.role("reward"):
            last = shared.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]
        expected.append((float(last @ head.weight[0]) - 0.2) / 1.5)
    found = _score_model(shared, head, batch_size).score(PROMPTS, RESPONSES)
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(set(found)) == len(found)


def test_checklist_10_a_real_token_that_equals_the_pad_counts(shared: SharedBase, head: ScoreHead) -> None:
    model = _score_model(shared, head, 8)
    plain, ending = [20, 21, 22], [20, 21, 22, PAD]
    together = model.score([PROMPTS[0]] * 3, [plain, ending, [20] * 9])
    alone = [model.score([PROMPTS[0]], [response])[0] for response in (plain, ending)]
    assert together[:2] == pytest.approx(alone, abs=1e-5)
    assert abs(together[0] - together[1]) > 1e-3


def test_no_episode_has_no_score_and_scoring_leaves_the_role(shared: SharedBase, head: ScoreHead) -> None:
    model = _score_model(shared, head, 8)
    assert model.score([], []) == []
    with shared.role("policy"), torch.no_grad():
        ids = torch.tensor([PROMPTS[0]])
        before = shared.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))
        model.score(PROMPTS, RESPONSES)
        assert torch.equal(before, shared.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool)))


def test_checklist_16_scoring_records_no_gradient(
    shared: SharedBase, head: ScoreHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with activations recomputed, where the base's own outputs want gradients."""
    recorded: list[bool] = []
    original = SharedBase.hidden_states

    def spy(self: SharedBase, *args: torch.Tensor) -> torch.Tensor:
        recorded.append(torch.is_grad_enabled())
        return original(self, *args)

    monkeypatch.setattr(SharedBase, "hidden_states", spy)
    _score_model(shared, head, 8).score(PROMPTS, RESPONSES)
    assert recorded == [False]
    assert all(weight.grad is None for weight in shared.peft_model.parameters())
