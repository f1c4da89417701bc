"""Score and value heads: where the score is read, and that both start in the units of the normalised scores."""

import json
from pathlib import Path

import torch

from stages.models.scalar_head import NORMALIZATION_FILE, ScoreHead, ScoreNormalization, ValueHead


def test_checklist_10_the_score_is_read_at_the_last_real_token() -> None:
    # One feature; the state of each column is its number. Head 10, shift 5, scale 2: (10 n - 5) / 2.
    hidden = torch.arange(4.0).reshape(1, 4, 1).repeat(3, 1, 1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    head = ScoreHead(torch.tensor([[10.0]]), ScoreNormalization(shift=5.0, scale=2.0))
    assert head(hidden, mask).tolist() == [12.5, 2.5, 7.5]
    assert not any(weight.requires_grad for weight in head.parameters())


def test_heads_compute_in_float32_on_bfloat16_states() -> None:
    hidden, mask = torch.ones(1, 2, 3, dtype=torch.bfloat16), torch.ones(1, 2, dtype=torch.bool)
    weight = torch.full((1, 3), 1.001)
    assert torch.allclose(ScoreHead(weight, ScoreNormalization())(hidden, mask), torch.tensor([3.003]), atol=1e-6)
    values = ValueHead.from_score_head(weight.bfloat16(), ScoreNormalization())(hidden)
    assert values.dtype == torch.float32 and values.shape == (1, 2)


def test_checklist_37_the_value_head_starts_as_the_normalised_score() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 5, 8, generator=generator), torch.randn(1, 8, generator=generator)
    normalization = ScoreNormalization(shift=1.5, scale=0.25)
    head = ValueHead.from_score_head(weight, normalization)
    scores = ScoreHead(weight, normalization)(hidden, torch.ones(2, 5, dtype=torch.bool))
    torch.testing.assert_close(head(hidden)[:, -1], scores)
    assert all(weight.requires_grad for weight in head.parameters())


def test_normalization_is_saved_and_loaded_and_absent_means_raw(tmp_path: Path) -> None:
    normalization = ScoreNormalization(shift=-0.125, scale=3.5, num_responses=7)
    normalization.save(tmp_path)
    assert ScoreNormalization.load(tmp_path) == normalization
    saved = json.loads((tmp_path / NORMALIZATION_FILE).read_text())
    assert saved == {"shift": -0.125, "scale": 3.5, "num_responses": 7}
    (tmp_path / NORMALIZATION_FILE).unlink()
    assert ScoreNormalization.load(tmp_path) == ScoreNormalization(0.0, 1.0, 0)
