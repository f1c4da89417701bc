"""Scalar heads on the shared base: the score of a response, and the value of each of its tokens.

A Hugging Face score head has no bias. Shift and scale of the normalised scores lie beside it in
`score_normalization.json`, and every loader of ours applies them:

    score = (raw - shift) / scale

Shape legend: B = rows, S = tokens, T = response tokens, D = hidden size.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from data.errors import ModelError
from stages.algorithms.masking import last_true_index
from stages.artifacts import write_json

NORMALIZATION_FILE = "score_normalization.json"


@dataclass(frozen=True)
class ScoreNormalization:
    """Shift and scale that make scores 0 in the mean on responses of the SFT policy.

    Attributes:
        shift: Mean of the raw scores on those responses.
        scale: Divides the shifted scores; 1, or their standard deviation.
        num_responses: How many responses the figures come from.
    """

    shift: float = 0.0
    scale: float = 1.0
    num_responses: int = 0

    def save(self, folder: Path) -> None:
        """Write `score_normalization.json`."""
        write_json(folder / NORMALIZATION_FILE, self.__dict__)

    @classmethod
    def load(cls, folder: Path) -> "ScoreNormalization":
        """Read `score_normalization.json`; a folder without one has raw scores.

        Raises:
            ModelError: The file is damaged, or its numbers are of no use.
        """
        path = folder / NORMALIZATION_FILE
        if not path.is_file():
            return cls()
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
            usable = math.isfinite(found.shift) and 0.0 < found.scale < math.inf
        except (ValueError, TypeError, RecursionError) as error:
            raise _unusable(path, str(error)) from error
        if not usable:
            raise _unusable(path, f"shift {found.shift}, scale {found.scale}")
        return found


def _unusable(path: Path, found: str) -> ModelError:
    return ModelError(
        f"{path}: no usable normalisation ({found}). A finite `shift` and a `scale` above 0 are needed. Run the stage "
        "`reward_model` again."
    )


class ScoreHead(nn.Module):
    """Score of a response: the head at its last real token, normalised."""

    def __init__(self, weight: Float[Tensor, "1 D"], normalization: ScoreNormalization) -> None:
        """Keep weight and normalisation; nothing here is trained."""
        super().__init__()
        self.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.normalization = normalization

    def forward(self, hidden: Float[Tensor, "B S D"], attention_mask: Bool[Tensor, "B S"]) -> Float[Tensor, " B"]:
        """Normalised scores, read where the attention mask says that the last token is."""
        last = last_true_index(attention_mask)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        raw = hidden[rows, last].float() @ self.weight[0]
        return (raw - self.normalization.shift) / self.normalization.scale


class ValueHead(nn.Module):
    """Value of each state, in units of the normalised scores."""

    def __init__(self, hidden_size: int) -> None:
        """Say 0 for every state: the mean of the normalised scores on responses of the SFT policy."""
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def from_score_head(cls, weight: Float[Tensor, "1 D"], normalization: ScoreNormalization) -> Self:
        """Start as the normalised score of the reward model (Stiennon et al. 2020, appendix B.1).

        Shift and scale are folded into weight and bias, so that the first values are in the units of the scores.
        """
        head = cls(weight.shape[-1])
        with torch.no_grad():
            head.linear.weight.copy_(weight.float() / normalization.scale)
            head.linear.bias.fill_(-normalization.shift / normalization.scale)
        return head

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T"]:
        """Value of each state."""
        values: Tensor = self.linear(hidden.float()).squeeze(-1)
        return values
