"""A ready reward model in the place of one that is trained: measured, normalised, and named in the artifact."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from data.schema import PreferencePair, read_split, split_path
from stages.accelerator import is_main_process
from stages.contract import Artifact, StageContext, StageOutput
from stages.memory_errors import memory_errors_told
from stages.models.adapters import check_adapter
from stages.models.classifier import ClassifierScoreModel
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.own_base import save_classifier
from stages.models.reward_loading import as_reward
from stages.models.scalar_head import ScoreNormalization
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.evaluation import evaluate_scores
from stages.reward_model.evaluation_pairs import TokenizedPair
from stages.reward_model.normalization import normalize

logger = logging.getLogger(__name__)


def use_pretrained(
    config: RewardModelConfig, model: ModelConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageOutput:
    """Load the model that the configuration names, measure it, and write down which it is.

    Args:
        config: With `pretrained`.
        model: The shared base and adapter: the policy's.
        inputs: `dataset`, `policy` and, where that stage ran, `preferences`.
        context: Where to write.

    Returns:
        `eval/*` on held-out pairs, where there are any, `normalization/{shift,scale}`, counts.

    Raises:
        ConfigError: It has no such label or template.
        DataError: No prompt is short enough to normalise on.
        ModelError: It cannot be loaded.
    """
    assert config.pretrained is not None
    check_adapter(inputs["policy"].path, model, config_dir=context.config_dir)
    if not is_main_process():
        return StageOutput({})
    raw = ClassifierScoreModel(
        config.pretrained,
        ScoreNormalization.load(context.payload_dir),  # none yet: its scores are raw
        batch_size=config.normalization.batch_size,
        device=context.device,
        config_dir=context.config_dir,
    )
    save_classifier(context.payload_dir, config.pretrained)
    folder = inputs.get("preferences", inputs["dataset"]).path
    has_pairs = split_path(folder, "preferences", "held_out").is_file()
    pairs = read_split(folder, "preferences", "held_out") if has_pairs else []
    tokenized = [_tokenized(raw, pair) for pair in pairs]
    kept = [row for row, pair in enumerate(tokenized) if raw.max_length is None or _length(pair) <= raw.max_length]
    metrics = {"data/held_out": float(len(kept)), "data/dropped": float(len(pairs) - len(kept))}
    notes: dict[str, Any] = {}
    if kept:
        own = [pairs[row] for row in kept]
        found, notes = evaluate_scores(
            _scores(raw, own, [pair.chosen for pair in own]),
            _scores(raw, own, [pair.rejected for pair in own]),
            [tokenized[row] for row in kept],
        )
        metrics |= found
        logger.info("%s: held-out accuracy %.3f on %d pairs", config.pretrained.base, found["eval/accuracy"], len(kept))
    sections = config.model_dump(mode="json"), model.model_dump(mode="json")
    with memory_errors_told("reward_model", "normalization", *sections):
        shared_base = SharedBase(load_causal_lm(resolve_base(model, context.config_dir), model, context.device), model)
        shared_base.add_adapter("policy", inputs["policy"].path, trainable=False)
        (normalization,) = normalize(config.normalization, as_reward(raw), shared_base, inputs, model, context)
    normalization.save(context.payload_dir)
    metrics |= {"normalization/shift": normalization.shift, "normalization/scale": normalization.scale}
    return StageOutput(metrics, notes=notes)


def _scores(raw: ClassifierScoreModel, pairs: Sequence[PreferencePair], responses: Sequence[str]) -> list[float]:
    return raw.score_texts([pair.prompt for pair in pairs], responses, [True] * len(pairs))


def _tokenized(raw: ClassifierScoreModel, pair: PreferencePair) -> TokenizedPair:
    """The pair as the model reads it: each side is one sequence of tokens."""
    chosen, rejected = (raw.encode(pair.prompt, text)["input_ids"] for text in (pair.chosen, pair.rejected))
    return TokenizedPair((), chosen, rejected, pair.margin, pair.weight, pair.source, pair.ranking)


def _length(pair: TokenizedPair) -> int:
    return max(len(pair.chosen_ids), len(pair.rejected_ids))
