"""A dataset that a later stage cannot use is refused as soon as it is there."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from data.errors import DataError
from data.schema import Demonstration, Message, PreferencePair, PromptRecord, split_path, write_records
from pipeline.config import PipelineConfig
from pipeline.dataset_checks import check_dataset
from pipeline.loading import load_config
from tests.tiny import tiny_model_dir

LIMITS = (
    "sft.max_length", "reward_model.max_length", "reward_model.normalization.max_prompt_tokens",
    "ppo.max_prompt_tokens", "evaluation.max_prompt_tokens",
)  # fmt: skip
TEXT = "one two three four five"  # five tokens or more, whatever the tokenizer


@dataclass(frozen=True)
class Parts:
    """A dataset that is right for a configuration without preference collection."""

    folder: Path
    file: Path

    def config(self, *options: str) -> PipelineConfig:
        return load_config(self.file, list(options))

    def check(self, config: PipelineConfig) -> None:
        check_dataset(config, self.folder, self.file.parent, config.enabled_stages())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir("llama", tmp_path_factory.mktemp("dataset") / "base")


@pytest.fixture
def parts(base: Path, tmp_path: Path) -> Parts:
    prompts = [PromptRecord(prompt=f"{TEXT} {number}") for number in range(3)]
    pair = PreferencePair(prompt=TEXT, chosen=TEXT, rejected="no")
    write_records(split_path(tmp_path, "demonstrations", "train"), [Demonstration(prompt=TEXT, response=TEXT)])
    write_records(split_path(tmp_path, "preferences", "train"), [pair])
    for split in ("train", "held_out"):
        write_records(split_path(tmp_path, "prompts", split), prompts)  # type: ignore[arg-type]
    file = tmp_path / "c.yaml"
    file.write_text(
        f"model: {{base: {base}}}\n"
        "data: {demonstrations: {path: d.jsonl}, preferences: {path: p.jsonl}}\nlaunch: {device: cpu}\n",
        encoding="utf-8",
    )
    return Parts(tmp_path, file)


def test_a_dataset_that_fits_is_taken(parts: Parts) -> None:
    parts.check(parts.config())


@pytest.mark.parametrize("setting", LIMITS)
def test_rows_that_are_all_too_long_are_told_with_the_limit(setting: str, parts: Parts) -> None:
    stage = setting.split(".")[0]
    with pytest.raises(DataError) as caught:
        parts.check(parts.config(f"{setting}=2"))
    (said,) = str(caught.value).splitlines()
    least = 2 if stage == "evaluation" else 1
    assert said.startswith("data.") and f"0 have at most 2 tokens ({setting}); {stage} needs {least}; raise" in said


def test_all_stages_are_told_at_once_and_those_that_will_not_run_are_not(parts: Parts) -> None:
    config = parts.config(*(f"{setting}=2" for setting in LIMITS))
    with pytest.raises(DataError) as caught:
        parts.check(config)
    assert len(str(caught.value).splitlines()) == len(LIMITS)
    with pytest.raises(DataError) as caught:
        check_dataset(config, parts.folder, None, ("data", "sft"))
    assert str(caught.value) == (
        "data.demonstrations: of 1 rows to train on, 0 have at most 2 tokens (sft.max_length); sft needs 1; raise "
        "`sft.max_length`, or give shorter rows"
    )


@pytest.mark.parametrize("held_out", [0, 1])
def test_an_evaluation_needs_two_held_out_prompts(held_out: int, parts: Parts) -> None:
    rows = [PromptRecord(prompt="tea")] * held_out
    write_records(split_path(parts.folder, "prompts", "held_out"), rows)
    with pytest.raises(DataError) as caught:
        parts.check(parts.config())
    assert str(caught.value) == (
        f"data.prompts: of {held_out} rows held out, {held_out} have at most 512 tokens "
        "(evaluation.max_prompt_tokens); evaluation needs 2; raise `evaluation.max_prompt_tokens`, or raise `held_out` "
        "of the prompts' source"
    )
    parts.check(parts.config("evaluation=null"))


def test_turns_and_the_longer_side_of_a_pair_count(parts: Parts) -> None:
    turns = (Message(role="user", content=TEXT), Message(role="assistant", content=TEXT))
    prompts = [PromptRecord(prompt=(*turns, Message(role="user", content=f"{TEXT} {number}"))) for number in range(2)]
    write_records(split_path(parts.folder, "prompts", "held_out"), prompts)
    parts.check(parts.config("evaluation.max_prompt_tokens=512"))
    one_turn = parts.config("evaluation.max_prompt_tokens=40")  # one turn would fit
    with pytest.raises(DataError, match=r"held out, 0 have at most 40 tokens"):
        parts.check(one_turn)
    pair = PreferencePair(prompt="a", chosen="b", rejected=" ".join([TEXT] * 30))
    write_records(split_path(parts.folder, "preferences", "train"), [pair])
    with pytest.raises(DataError, match=r"0 have at most 50 tokens \(reward_model.max_length\)"):
        parts.check(parts.config("reward_model.max_length=50"))


def test_without_a_fast_tokenizer_rows_are_counted(base: Path, parts: Parts, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    for path in base.iterdir():
        if path.name != "tokenizer.json":
            (slow / path.name).symlink_to(path)
    options = (f"model.base={slow}", *(f"{setting}=2" for setting in LIMITS))
    parts.check(parts.config(*options))
    write_records(split_path(parts.folder, "prompts", "held_out"), [])
    with pytest.raises(DataError, match="of 0 rows held out"):
        parts.check(parts.config(*options))


def test_a_run_that_would_drop_most_rows_is_refused(parts: Parts) -> None:
    long = [Demonstration(prompt=TEXT, response=f"{TEXT} {number} " * 40) for number in range(2)]
    short = [Demonstration(prompt=TEXT, response="no")]
    write_records(split_path(parts.folder, "demonstrations", "train"), [*short, *long])
    options = ["sft.max_length=64"]
    with pytest.raises(
        DataError, match=r"data\.demonstrations: 67% of 3 rows looked at are longer than sft\.max_length"
    ):
        parts.check(parts.config(*options))
    parts.check(parts.config(*options, "data.checks.levels={truncation: warning}"))
    write_records(split_path(parts.folder, "demonstrations", "train"), [*short, *long[:1]])
    parts.check(parts.config(*options))


def test_a_reward_that_compares_needs_a_reference_for_each_prompt(parts: Parts) -> None:
    config = parts.config("ppo.rewards=[{type: learned}, {type: math, name: sums}]", "ppo.max_prompt_tokens=2")
    with pytest.raises(DataError) as caught:
        parts.check(config)
    first, second = str(caught.value).splitlines()
    assert "ppo.max_prompt_tokens" in first
    assert second.startswith("data.prompts: 3 of 3 prompts to train on have no `reference`; ppo.rewards[sums] needs")
    check_dataset(config, parts.folder, None, ("data", "sft"))
