"""Several score heads on one adapter: what is saved, and the one head that is their mean."""

import shutil
from pathlib import Path

import torch

from stages.models.scalar_head import ScoreHead, ScoreNormalization
from stages.models.score_heads import load_heads, save_heads, save_normalizations
from stages.models.tuning import adapter_state, score_weight
from tests.unit.stages.parts import FoldersOf


def test_checklist_11_12_the_mean_head_is_that_of_the_normalised_heads(folders: FoldersOf, tmp_path: Path) -> None:
    """Where shifts and scales differ."""
    folder = tmp_path / "judge"
    shutil.copytree(folders("llama").reward, folder)
    before = adapter_state(folder)
    weights = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    save_heads(folder, weights, [ScoreNormalization()] * 3)
    given = [ScoreNormalization(0.5, 2.0, 8), ScoreNormalization(-1.0, 0.25, 8), ScoreNormalization(0.0, 1.0, 8)]
    save_normalizations(folder, given)
    heads = load_heads(folder)
    found = [(head.normalization.shift, head.normalization.scale) for head in heads]
    assert found == [(each.shift, each.scale) for each in given]
    assert torch.equal(torch.cat([head.weight for head in heads]), weights)
    hidden, mask = torch.randn(5, 3, 32), torch.ones(5, 3, dtype=torch.bool)
    expected = torch.stack([head(hidden, mask) for head in heads]).mean(dim=0)
    mean = ScoreHead(score_weight(folder), ScoreNormalization.load(folder))
    torch.testing.assert_close(mean(hidden, mask), expected, atol=1e-5, rtol=1e-5)
    after = adapter_state(folder)
    assert all(torch.equal(before[key], after[key]) for key in before if "score" not in key)


def test_one_head_is_the_adapters_own(folders: FoldersOf, tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(folders("llama").reward, folder)
    save_normalizations(folder, [ScoreNormalization(0.5, 2.0, 8)])
    (head,) = load_heads(folder)
    assert torch.equal(head.weight, score_weight(folder)) and head.normalization == ScoreNormalization(0.5, 2.0, 8)
