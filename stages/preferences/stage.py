"""Preference collection: K responses a prompt from a policy, ranked by a labeler.

Pairs for validation come from held-out prompts, so that the reward model is judged on prompts that no stage
trains on. Where people judge, the stage is executed twice: it samples, keeps the responses and ends, so that no model
stays in memory while they label; and when they have, it takes the kept responses and loads none.
"""

import logging
import random
from collections.abc import Iterable, Mapping, Sequence

from data.errors import StageError
from data.schema import SPLITS, PreferencePair, Split, split_path, write_records
from stages.contract import Artifact, StageContext, StageOutput
from stages.models.config import ModelConfig
from stages.preferences.config import HumanLabelerConfig, PreferencesConfig, SimulatedLabelerConfig
from stages.preferences.contract import Candidates, Opinion, RecordingLabeler
from stages.preferences.disagreement import prompt_disagreement
from stages.preferences.labelers import build_labeler
from stages.preferences.labeling import LABELING
from stages.preferences.ranking import rank_pairs
from stages.preferences.sampled import Sampled, keep_sampled, kept_sampled, sampling_key
from stages.seeds import derive_seed

logger = logging.getLogger(__name__)

_KEPT = "sampled"


def run(
    config: PreferencesConfig, model: ModelConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageOutput:
    """Sample, judge, pair.

    Args:
        config: How many responses, by which labeler.
        model: Base and adapter.
        inputs: `dataset` and `policy`, the SFT adapter.
        context: Where to write.

    Returns:
        Counts of responses and pairs, mean score of the labeler, share of distinct responses.

    Raises:
        StageError: No pair came out.
        WaitingForPeople: The responses are sampled and kept; people have not judged enough of them yet.
    """
    sampled = _sampled(config, model, inputs, context)
    priority = None
    if sampled.disagreements is not None:
        priority = [prompt_disagreement(pairs) for split in SPLITS for pairs in sampled.disagreements[split]]
    labeler = build_labeler(config, context, priority)
    opinions = labeler([each for split in SPLITS for each in sampled.candidates[split]])
    metrics: dict[str, float] = {}
    for split in SPLITS:
        mine, opinions = opinions[: len(sampled.candidates[split])], opinions[len(sampled.candidates[split]) :]
        disagreements = None if sampled.disagreements is None else sampled.disagreements[split]
        pairs = _pair(config, sampled.candidates[split], mine, disagreements, context, split)
        write_records(split_path(context.payload_dir, "preferences", split), pairs)
        found = _figures(sampled.candidates[split])
        found |= {"dropped": float(sampled.dropped[split]), "pairs": float(len(pairs))}
        if not isinstance(config.labeler, HumanLabelerConfig):  # ranks of people have no unit
            found["labeler_score"] = _mean(value for opinion in mine for value in opinion if value is not None)
        counts = f"{found['responses']:.0f} responses to {found['prompts']:.0f} prompts"
        logger.info("%s: %s, %d pairs", split, counts, len(pairs))
        metrics |= {f"{split}/{name}": value for name, value in found.items()}
    if isinstance(labeler, RecordingLabeler):
        metrics |= labeler.record(context.payload_dir)
    if not metrics["train/pairs"]:
        raise StageError(
            f"preferences: no pair came out of {metrics['train/responses']:.0f} responses: the labeler gave all "
            f"responses to a prompt one score, they are all alike, or the length limit cut them off "
            f"({metrics['train/finished_share']:.0%} ended by themselves); use another `preferences.labeler`, a higher "
            f"`preferences.rollout.temperature` or `max_new_tokens`, or `preferences.only_finished: false`"
        )
    context.metrics.write(0, metrics)
    return StageOutput(metrics)


def _sampled(
    config: PreferencesConfig, model: ModelConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Sampled:
    """The responses: those that people are judging already, else new ones."""
    is_human = isinstance(config.labeler, HumanLabelerConfig)
    folder = context.stage_dir / LABELING / _KEPT
    key = sampling_key(
        {
            "config": config.model_dump(mode="json", exclude={"labeler", "only_finished", "pairs_per_prompt"}),
            "model": model.model_dump(mode="json"),
            "inputs": {role: artifact.digest for role, artifact in inputs.items()},
            "seed": context.seed,
        }
    )
    if is_human and (kept := kept_sampled(folder, key)) is not None:
        logger.info("the responses that are being labeled are kept; none is sampled")
        return kept
    from stages.preferences.sampling import sample  # here, so that the second execution loads no torch

    sampled = sample(config, model, inputs, context)
    if is_human:
        keep_sampled(folder, key, sampled)
    return sampled


def _pair(
    config: PreferencesConfig,
    candidates: Sequence[Candidates],
    opinions: Sequence[Opinion],
    disagreements: Sequence[Sequence[float]] | None,
    context: StageContext,
    split: Split,
) -> list[PreferencePair]:
    """The pairs of one split."""
    label_noise = config.labeler.label_noise if isinstance(config.labeler, SimulatedLabelerConfig) else 0.0
    rng = random.Random(derive_seed(context.seed, f"labels/{split}", 0))
    pairs: list[PreferencePair] = []
    for row, (each, opinion) in enumerate(zip(candidates, opinions, strict=True)):
        usable = (episode.finished or not config.only_finished for episode in each.episodes)
        pairs += rank_pairs(
            each,
            tuple(value if kept else None for value, kept in zip(opinion, usable, strict=True)),
            pairs_per_prompt=config.pairs_per_prompt,
            label_noise=label_noise,
            rng=rng,
            disagreements=None if disagreements is None else disagreements[row],
        )
    return pairs


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return sum(kept) / max(len(kept), 1)


def _figures(candidates: Sequence[Candidates]) -> dict[str, float]:
    """What is worth knowing of the responses of one split."""
    episodes = [episode for each in candidates for episode in each.episodes]
    texts = {(episode.prompt_text, episode.response_text) for episode in episodes}
    return {
        "prompts": float(len(candidates)),
        "responses": float(len(episodes)),
        "finished_share": sum(episode.finished for episode in episodes) / max(len(episodes), 1),
        "distinct_share": len(texts) / max(len(episodes), 1),
    }
