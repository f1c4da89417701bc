"""A finished reward model on a benchmark's pairs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from data.batch_encoding import encode_episodes, retokenize_episodes
from data.errors import DataError
from data.schema import PreferencePair
from stages.models.adapters import check_reward_model
from stages.models.classifier import ClassifierScoreModel
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.own_base import read_classifier, read_own_base
from stages.models.reward_loading import load_trained_model
from stages.models.scalar_head import ScoreNormalization
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
    judge = _load(folder, model, pairs, device=device, batch_size=batch_size, config_dir=config_dir)
    limits = [limit for limit in (max_length, judge.positions) if limit is not None]
    sizes = judge.sizes
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
        scores = judge.score(rows)
        differences |= {
            row: chosen - rejected for row, chosen, rejected in zip(rows, scores[::2], scores[1::2], strict=True)
        }
        progress(len(differences), len(kept))
    return BenchScores(
        rows=kept,
        differences=[differences[row] for row in kept],
        lengths=[judge.lengths[row] for row in kept],
        dropped=len(pairs) - len(kept),
        longest=max(sizes[row] for row in kept),
    )


class _Judge(NamedTuple):
    """A loaded reward model with the pairs in its tokens.

    Attributes:
        sizes: Tokens of each pair's longer sequence.
        lengths: Tokens of its chosen minus those of its rejected response.
        positions: Longest sequence that it reads; None where it does not say.
        score: Scores of both responses of some pairs, one after the other.
    """

    sizes: list[int]
    lengths: list[int]
    positions: int | None
    score: Callable[[Sequence[int]], list[float]]


def _load(
    folder: Path,
    model: ModelConfig,
    pairs: Sequence[PreferencePair],
    *,
    device: str,
    batch_size: int,
    config_dir: Path | None,
) -> _Judge:
    check_reward_model(folder, model, config_dir=config_dir)
    ready = read_classifier(folder)
    if ready is not None:
        normalization = ScoreNormalization.load(folder)
        return _read_as_text(
            ClassifierScoreModel(ready, normalization, batch_size=batch_size, device=device, config_dir=config_dir),
            pairs,
        )
    own = read_own_base(folder)
    tokenizer = load_tokenizer(folder, (own or model).model_copy(update={"chat_template": None}))
    shared_base = SharedBase(load_causal_lm(resolve_base(model, config_dir), model, device), model)
    scorer = load_trained_model(
        folder,
        model,
        shared_base,
        pad_token_id=tokenizer.pad_token_id,
        batch_size=batch_size,
        device=device,
        config_dir=config_dir,
    )
    is_apart = isinstance(scorer, SeparateScoreModel)
    positions = scorer.max_positions if isinstance(scorer, SeparateScoreModel) else shared_base.max_positions
    encode = retokenize_episodes if is_apart else encode_episodes
    encoded = encode(tokenizer, [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs])

    def score(rows: Sequence[int]) -> list[float]:
        return scorer.score(
            [tuple(encoded[row].prompt) for row in rows for _ in range(2)],
            [tuple(response) for row in rows for response in encoded[row].responses],
        )

    return _Judge(
        sizes=[len(prompt) + max(len(response) for response in responses) for prompt, responses in encoded],
        lengths=[len(chosen) - len(rejected) for _, (chosen, rejected) in encoded],
        positions=positions,
        score=score,
    )


def _read_as_text(scorer: ClassifierScoreModel, pairs: Sequence[PreferencePair]) -> _Judge:
    sides = [
        [len(scorer.encode(pair.prompt, text)["input_ids"]) for text in (pair.chosen, pair.rejected)] for pair in pairs
    ]

    def score(rows: Sequence[int]) -> list[float]:
        both = [(pairs[row].prompt, text) for row in rows for text in (pairs[row].chosen, pairs[row].rejected)]
        return scorer.score_texts([prompt for prompt, _ in both], [text for _, text in both], [True] * len(both))

    return _Judge(
        sizes=[max(own) for own in sides],
        lengths=[chosen - rejected for chosen, rejected in sides],
        positions=scorer.max_length,
        score=score,
    )
