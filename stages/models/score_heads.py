"""The score heads of a saved reward model: one in its adapter, or several that share the adapter's pass.

The mean of several normalised heads is a linear head again,

    mean_k (w_k h - shift_k) / scale_k = (mean_k w_k / scale_k) h - mean_k shift_k / scale_k

so that is what the adapter is saved with: whoever loads it as a reward model of one score gets the ensemble's.

Shape legend: N = heads, D = hidden size.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.models.adapters import ADAPTER_WEIGHTS, SCORE_KEY
from stages.models.reward_members import HEADS_FILE, check_heads, member_folders
from stages.models.scalar_head import ScoreHead, ScoreNormalization
from stages.models.tuning import adapter_state, score_weight


def load_heads(folder: Path) -> list[ScoreHead]:
    """The heads of one adapter, each with its normalisation.

    Raises:
        ModelError: Their file, or the adapter, is damaged.
    """
    if check_heads(folder) == 1:
        return [ScoreHead(score_weight(folder), ScoreNormalization.load(folder))]
    saved = load_file(folder / HEADS_FILE)
    return [
        ScoreHead(weight[None], ScoreNormalization(shift, scale))
        for weight, shift, scale in zip(saved["weight"], saved["shift"].tolist(), saved["scale"].tolist(), strict=True)
    ]


def save_normalizations(folder: Path, normalizations: Sequence[ScoreNormalization]) -> None:
    """Write the normalisation of each member of a reward model, in the order of its scores.

    Args:
        folder: Of the reward model.
        normalizations: One a member.
    """
    first = 0
    for each in member_folders(folder):
        heads = load_heads(each)
        own = normalizations[first : first + len(heads)]
        if len(heads) == 1:
            own[0].save(each)
        else:
            save_heads(each, torch.cat([head.weight for head in heads]), own)
        first += len(heads)


def save_heads(folder: Path, weights: Float[Tensor, "N D"], normalizations: Sequence[ScoreNormalization]) -> None:
    """Write several heads beside their adapter, and their mean into it.

    Args:
        folder: With the adapter.
        weights: A row a head, raw.
        normalizations: Of each head.
    """
    shifts, scales = [each.shift for each in normalizations], [each.scale for each in normalizations]
    tensors = {
        "weight": weights.float().contiguous(),
        "shift": torch.tensor(shifts, dtype=torch.float64),
        "scale": torch.tensor(scales, dtype=torch.float64),
    }
    save_file(tensors, folder / HEADS_FILE)
    state = adapter_state(folder)
    state[SCORE_KEY] = (weights.double() / tensors["scale"][:, None]).mean(dim=0, keepdim=True).float()
    save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    shift = fmean(shift / scale for shift, scale in zip(shifts, scales, strict=True))
    ScoreNormalization(shift, 1.0, normalizations[0].num_responses).save(folder)
