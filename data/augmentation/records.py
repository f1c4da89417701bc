"""Reworded copies of records: which records, what of them, and what becomes of copies that are none."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.augmentation.config import (
    BackTranslationConfig,
    ParaphraseConfig,
    RandomDeletionConfig,
    StepConfig,
    SynonymsConfig,
)
from data.augmentation.rewording import FIELDS, PARAPHRASE_TEMPLATE, Progress, reword, translate_there_and_back
from data.augmentation.wordnet import Synonyms, wordnet_folder
from data.augmentation.words import delete_words, replace_words
from data.endpoint import ChatEndpoint
from data.questions import read_template
from data.schema import Kind, Message, Prompt, Record, key_is_held_out, split_key

SETTING = "data.augmentation"
ANSWERS = "augmentation_answers.sqlite"
"""In the stage's folder: what endpoints answered."""

_Rewrite = Callable[[Sequence[Record]], Iterable[tuple[Record, str | None]]]


class Augmented(NamedTuple):
    """Copies by kind, and what they took.

    Attributes:
        copies: By kind, in the order of the records they are of.
        metrics: `augmentation/<step>_{copies,unchanged,refused,held_out}`; of steps with an endpoint also requests,
            tokens and cost.
    """

    copies: dict[Kind, list[Record]]
    metrics: dict[str, float]


def augment(
    train: Mapping[Kind, Sequence[Record]],
    held_out_keys: frozenset[str],
    steps: Sequence[StepConfig],
    *,
    config_dir: Path | None,
    cache_dir: Path,
    progress: Progress = lambda done, total: None,
) -> Augmented:
    """Make copies of training records with a reworded prompt and the same responses.

    The last turn of the user is reworded, of plain text all of it. Responses stay: they are what is learned. A copy
    whose prompt is held out anywhere, or is one that its kind has already, is left out.

    Args:
        train: Training records by kind.
        held_out_keys: Hash of every held-out prompt of any kind, from `data.schema.split_key`.
        steps: How.
        config_dir: Folder of the configuration file, for relative paths.
        cache_dir: Where the answers of endpoints are kept.
        progress: Told how many prompts a step has reworded by an endpoint, and of how many.

    Raises:
        ConfigError: WordNet, a template or a token is not there.
        StageError: An endpoint fails for good.
    """
    copies: dict[Kind, list[Record]] = {kind: [] for kind in train}
    counts: dict[str, float] = {}
    used = {kind: {split_key(record) for record in rows} for kind, rows in train.items()}
    for number, step in enumerate(steps):
        setting, name = f"{SETTING}.{number}", f"augmentation/{number}_{step.type}"
        counts.update({f"{name}_{what}": 0 for what in ("copies", "unchanged", "refused", "held_out")})
        rewrite, usage = _rewriter(step, setting, config_dir, cache_dir, progress)
        for kind in (kind for kind in train if kind in step.kinds):
            chosen = [record for record in train[kind] if _is_chosen(record, step.share, number)]
            made: dict[Record, str] = {}
            for record, text in rewrite(chosen):
                if text is None:
                    counts[f"{name}_refused"] += 1
                    continue
                copy = _copy(record, text, step.type)
                key = split_key(copy)
                if key in held_out_keys:
                    counts[f"{name}_held_out"] += 1
                elif key in used[kind] or copy in made:
                    counts[f"{name}_unchanged"] += 1
                else:
                    counts[f"{name}_copies"] += 1
                    made[copy] = key
            copies[kind] += made
            used[kind].update(made.values())
        counts.update({f"{name}_{what}": value for what, value in usage().items()})
    return Augmented(copies, counts)


def step_files(steps: Sequence[StepConfig], config_dir: Path | None) -> dict[str, Path | str]:
    """What the steps read beside the records, by setting: the folder of WordNet, or the text of a question.

    Raises:
        ConfigError: It is not there, or a question lacks a field.
    """
    found: dict[str, Path | str] = {}
    for number, step in enumerate(steps):
        setting = f"{SETTING}.{number}"
        if isinstance(step, SynonymsConfig):
            found[f"{setting}.wordnet"] = wordnet_folder(step.wordnet, config_dir, setting)
        elif isinstance(step, ParaphraseConfig):
            found[f"{setting}.template"] = _question(step, setting, config_dir)
    return found


def _question(step: ParaphraseConfig, setting: str, config_dir: Path | None) -> str:
    return read_template(step.template, PARAPHRASE_TEMPLATE, FIELDS, config_dir, f"{setting}.template")


def _rewriter(
    step: StepConfig, setting: str, config_dir: Path | None, cache_dir: Path, progress: Progress
) -> tuple[_Rewrite, Callable[[], dict[str, float]]]:
    """How a step rewords, and what that has cost."""
    match step:
        case SynonymsConfig():
            synonyms = Synonyms(wordnet_folder(step.wordnet, config_dir, setting))
            return _by_words(
                step, setting, lambda text, rng: replace_words(text, step.words, synonyms, rng)
            ), lambda: {}
        case RandomDeletionConfig():
            return _by_words(step, setting, lambda text, rng: delete_words(text, step.words, rng)), lambda: {}
        case ParaphraseConfig() | BackTranslationConfig():
            endpoint = ChatEndpoint(step.endpoint, cache_dir / ANSWERS, setting=f"{setting}.endpoint")
            question = _question(step, setting, config_dir) if isinstance(step, ParaphraseConfig) else ""

            def by_endpoint(records: Sequence[Record]) -> Iterator[tuple[Record, str | None]]:
                texts = [_text_of(record.prompt) for record in records]
                if isinstance(step, ParaphraseConfig):
                    yield from zip(records, reword(endpoint, question, texts, progress), strict=True)
                    return
                for language in step.through:
                    found = translate_there_and_back(endpoint, language, step.language, texts, progress)
                    yield from zip(records, found, strict=True)

            return by_endpoint, lambda: {
                "requests": endpoint.usage.requests,
                "cached": endpoint.usage.cached,
                "prompt_tokens": endpoint.usage.prompt_tokens,
                "completion_tokens": endpoint.usage.completion_tokens,
                "cost": endpoint.usage.cost,
            }


def _by_words(
    step: SynonymsConfig | RandomDeletionConfig, setting: str, change: Callable[[str, random.Random], str]
) -> _Rewrite:
    """Copies by a rule, each with a generator of its own, so that they depend on nothing but the record."""

    def rewrite(records: Sequence[Record]) -> Iterator[tuple[Record, str | None]]:
        for record in records:
            text = _text_of(record.prompt)
            for copy in range(step.copies):
                yield record, change(text, random.Random(_hash(f"{setting} {step.type} {copy}", record)))

    return rewrite


def _is_chosen(record: Record, share: float, number: int) -> bool:
    """Whether a record with a prompt falls into the share."""
    return bool(_text_of(record.prompt).strip()) and key_is_held_out(_hash(f"augment {number}", record), share)


def _hash(purpose: str, record: Record) -> str:
    return hashlib.sha256(f"{purpose} {split_key(record)}".encode()).hexdigest()


def _last_of_user(prompt: Sequence[Message]) -> int | None:
    return max((index for index, turn in enumerate(prompt) if turn.role == "user"), default=None)


def _text_of(prompt: Prompt) -> str:
    """What is reworded of a prompt: all of plain text, else the user's last turn; nothing where there is none."""
    if isinstance(prompt, str):
        return prompt
    last = _last_of_user(prompt)
    return "" if last is None else prompt[last].content


def _copy(record: Record, text: str, name: str) -> Record:
    prompt = record.prompt
    if isinstance(prompt, str):
        new: Prompt = text
    else:
        last = _last_of_user(prompt)
        new = tuple(
            turn.model_copy(update={"content": text}) if index == last else turn for index, turn in enumerate(prompt)
        )
    return record.model_copy(update={"prompt": new, "augmentation": name})
