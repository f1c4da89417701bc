"""Rows that a later stage cannot use: told as soon as there is a dataset, before anything is trained.

They are too few, too long, or without the answer that a reward compares with.

A token count here is of the texts alone, a little less than what a stage sees with its chat template. So a run that is
refused would have failed for sure; each stage still counts for itself.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data.errors import DataError
from data.quality.config import ChecksConfig
from data.quality.findings import level_of
from data.schema import Kind, PreferencePair, Prompt, Split, read_split
from pipeline.config import PipelineConfig
from rewards.references import check_references
from stages.contract import StageName
from stages.models.config import ModelConfig
from stages.models.sources import tokenizer_file

_SAMPLE_ROWS = 512

TokenCount = Callable[[str], int]


@dataclass(frozen=True)
class _Need:
    """What a stage needs of the dataset.

    Attributes:
        stage: The stage.
        setting: Dotted name of its limit.
        max_tokens: The limit.
        kind: Of the records.
        split: Of the records.
        least: So many of them have to fit.
        remedy: What else helps than raising the limit.
    """

    stage: StageName
    setting: str
    max_tokens: int
    kind: Kind
    split: Split
    least: int = 1
    remedy: str = "give shorter rows"


def check_dataset(
    config: PipelineConfig, dataset: Path, config_dir: Path | None, stages: Collection[StageName]
) -> None:
    """Check that each stage will find rows that fit.

    Args:
        config: The resolved configuration.
        dataset: Folder of the dataset's artifact.
        config_dir: Folder of the configuration file.
        stages: The stages that this run will execute or take from the store.

    Raises:
        DataError: With one line for each stage that will not.
    """
    count = _token_count(config.model, config_dir)
    own = config.own_reward_base
    own_count = count if own is None else _token_count(own, config_dir)
    problems = []
    for need in _needs(config):
        if need.stage not in stages:
            continue
        counted = own_count if need.setting == "reward_model.max_length" else count
        texts = list(_texts(dataset, need.kind, need.split))
        fitting = (each for each in texts if counted is None or _fits(each, need.max_tokens, counted))
        found = sum(1 for _ in islice(fitting, need.least))
        if found < need.least:
            side = {"train": "to train on", "held_out": "held out"}[need.split]
            problems.append(
                f"data.{need.kind}: of {len(texts)} rows {side}, {found} have at most {need.max_tokens} tokens "
                f"({need.setting}); {need.stage} needs {need.least}; raise `{need.setting}`, or {need.remedy}"
            )
        elif counted is not None:
            problems += _truncation(need, texts, counted, config.data.checks)
    if config.ppo is not None and "ppo" in stages:
        try:
            check_references(config.ppo.reward_components, read_split(dataset, "prompts", "train"))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))


def _truncation(need: _Need, texts: Sequence[tuple[str, ...]], count: TokenCount, checks: ChecksConfig) -> list[str]:
    """The finding `truncation` where it is an error, on a sample of the rows; the stages count all of them."""
    sample = texts[:: max(len(texts) // _SAMPLE_ROWS, 1)]
    share = sum(not _fits(each, need.max_tokens, count) for each in sample) / len(sample)
    if level_of("truncation", share, checks) != "error":
        return []
    return [
        f"data.{need.kind}: {share:.0%} of {len(sample)} rows looked at are longer than {need.setting}="
        f"{need.max_tokens} tokens, and {need.stage} would drop them; rows that fit are needed; raise "
        f"`{need.setting}`, or go on with `data.checks.levels: {{truncation: warning}}`"
    ]


def _needs(config: PipelineConfig) -> Iterator[_Need]:
    if config.sft is not None:
        yield _Need("sft", "sft.max_length", config.sft.max_length, "demonstrations", "train")
    if config.preferences is not None:
        limit = config.preferences.max_prompt_tokens
        yield _Need("preferences", "preferences.max_prompt_tokens", limit, "prompts", "train")
    if config.reward_model is not None:
        if config.preferences is None and config.reward_model.pretrained is None:
            limit = config.reward_model.max_length
            yield _Need("reward_model", "reward_model.max_length", limit, "preferences", "train")
        limit = config.reward_model.normalization.max_prompt_tokens
        yield _Need("reward_model", "reward_model.normalization.max_prompt_tokens", limit, "prompts", "train")
    if config.ppo is not None:
        yield _Need("ppo", "ppo.max_prompt_tokens", config.ppo.max_prompt_tokens, "prompts", "train")
    if config.evaluation is not None:
        limit = config.evaluation.max_prompt_tokens
        remedy = "raise `held_out` of the prompts' source"
        yield _Need("evaluation", "evaluation.max_prompt_tokens", limit, "prompts", "held_out", 2, remedy)


def _texts(dataset: Path, kind: Kind, split: Split) -> Iterator[tuple[str, ...]]:
    """The texts of each record that have to fit together; of a pair those of the longer side."""
    for record in read_split(dataset, kind, split):
        prompt = _prompt_texts(record.prompt)
        if isinstance(record, PreferencePair):
            yield (*prompt, max(record.chosen, record.rejected, key=len))
        else:
            yield (*prompt, getattr(record, "response", ""))


def _prompt_texts(prompt: Prompt) -> Iterable[str]:
    return (prompt,) if isinstance(prompt, str) else tuple(turn.content for turn in prompt)


def _fits(texts: tuple[str, ...], max_tokens: int, count: TokenCount) -> bool:
    return sum(map(count, texts)) <= max_tokens


def _token_count(model: ModelConfig, config_dir: Path | None) -> TokenCount | None:
    """Counts the tokens of a text; None where the base's tokenizer is not on this machine in the fast form."""
    path = tokenizer_file(model, config_dir)
    if path is None:
        return None
    from tokenizers import Tokenizer  # late: only a run needs it

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
