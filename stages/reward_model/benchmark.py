"""A finished reward model on a benchmark's pairs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from data.batch_encoding import encode_episodes, retokenize_episodes
from data.errors import DataError
from data.schema import PreferencePair
from stages.models.adapters import check_reward_model
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.own_base import read_own_base
from stages.models.reward_loading import load_score_model
from stages.models.separate_score_model import SeparateScoreModel
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer

_CHUNK_PAIRS = 64


class BenchScores(NamedTuple):
    """What a reward model says of pairs.

    Attributes:
        rows: Index of each pair that was scored.
        differences: Score of the chosen minus that of the rejected response.
        lengths: Tokens of the chosen minus those of the rejected response.
        dropped: Pairs of which a side is too long.
        longest: Tokens of the longest sequence that was scored.
    """

    rows: list[int]
    differences: list[float]
    lengths: list[int]
    dropped: int
    longest: int


def score_benchmark(
    folder: Path,
    model: ModelConfig,
    pairs: Sequence[PreferencePair],
    *,
    device: str,
    batch_size: int,
    max_length: int | None = None,
    config_dir: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BenchScores:
    """Score both responses of each pair as the reward model's training read them.

    Args:
        folder: Artifact of the stage `reward_model`.
        model: The shared model section of its run.
        pairs: Of a benchmark.
        device: Where the model is loaded.
        batch_size: Sequences in one forward pass.
        max_length: Pairs with a longer side are dropped, in tokens; never more than the base has positions.
        config_dir: Folder of the configuration file.
        progress: Told how many pairs are scored, and of how many.

    Raises:
        DataError: No pair is short enough.
        ModelError: The reward model does not fit its base, or that base cannot be loaded.
    """
    check_reward_model(folder, model, config_dir=config_dir)
    own = read_own_base(folder)
    tokenizer = load_tokenizer(folder, (own or model).model_copy(update={"chat_template": None}))
    shared_base = SharedBase(load_causal_lm(resolve_base(model, config_dir), model, device), model)
    scorer = load_score_model(
        folder,
        model,
        shared_base,
        pad_token_id=tokenizer.pad_token_id,
        batch_size=batch_size,
        device=device,
        config_dir=config_dir,
    )
    separate = isinstance(scorer, SeparateScoreModel)
    positions = scorer.max_positions if isinstance(scorer, SeparateScoreModel) else shared_base.max_positions
    limits = [limit for limit in (max_length, positions) if limit is not None]
    encode = retokenize_episodes if separate else encode_episodes
    encoded = encode(tokenizer, [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs])
    sizes = [len(prompt) + max(len(response) for response in responses) for prompt, responses in encoded]
    kept = [row for row, size in enumerate(sizes) if all(size <= limit for limit in limits)]
    if not kept:
        raise DataError(
            f"all {len(pairs)} pairs of the benchmark are longer than {min(limits)} tokens; at least one has to fit; "
            f"raise --max-length, or take a reward model whose base knows more positions"
        )
    differences: dict[int, float] = {}
    by_size = sorted(kept, key=lambda row: (sizes[row], row))  # so that little is padded
    for start in range(0, len(by_size), _CHUNK_PAIRS):
        rows = by_size[start : start + _CHUNK_PAIRS]
        scores = scorer.score(
            [tuple(encoded[row].prompt) for row in rows for _ in range(2)],
            [tuple(response) for row in rows for response in encoded[row].responses],
        )
        differences |= {
            row: chosen - rejected for row, chosen, rejected in zip(rows, scores[::2], scores[1::2], strict=True)
        }
        progress(len(differences), len(kept))
    return BenchScores(
        rows=kept,
        differences=[differences[row] for row in kept],
        lengths=[len(encoded[row].responses[0]) - len(encoded[row].responses[1]) for row in kept],
        dropped=len(pairs) - len(kept),
        longest=max(sizes[row] for row in kept),
    )
