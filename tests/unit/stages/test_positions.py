"""Sequences that are longer than the base knows positions for, refused before anything is trained on them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.errors import ConfigError
from data.schema import Demonstration, PreferencePair, Record, write_records
from stages.artifacts import combine_digests, file_digests
from stages.contract import DatasetArtifact
from stages.positions import check_examples, check_prompts, known_positions
from stages.run import run_stage
from tests.unit.stages.parts import Executed


def test_examples_have_to_fit() -> None:
    check_examples("sft", [3, 8], 8)
    check_examples("sft", [900], None)
    check_examples("sft", [], 8)
    with pytest.raises(ConfigError) as error:
        check_examples("sft", [3, 9, 4], 8)
    assert str(error.value) == (
        "sft: the longest example has 9 tokens, but the base knows 8 positions; each example has to fit; set "
        "`sft.max_length: 8`, which drops longer ones, or take another base"
    )


@pytest.mark.parametrize(
    ("new_tokens", "remedy"),
    [
        (6, "set `ppo.max_prompt_tokens: 2`, which drops longer prompts, or lower"),
        (8, "lower"),
        (80, "lower"),
    ],
)
def test_a_prompt_leaves_room_for_the_response(new_tokens: int, remedy: str) -> None:
    prompts = [(1,), (1, 2, 3)]
    with pytest.raises(ConfigError) as error:
        check_prompts("ppo", prompts, new_tokens, 8)
    assert str(error.value) == (
        f"ppo: the longest prompt has 3 tokens, a response up to {new_tokens}, but the base knows 8 positions; the two "
        f"have to fit together; {remedy} `ppo.rollout.max_new_tokens`"
    )
    check_prompts("ppo", prompts, new_tokens, 3 + new_tokens)
    check_prompts("ppo", prompts, new_tokens, None)


def test_what_a_base_knows_is_said_by_its_configuration() -> None:
    for known in (256, None):
        text = SimpleNamespace() if known is None else SimpleNamespace(max_position_embeddings=known)
        assert known_positions(SimpleNamespace(get_text_config=lambda text=text: text)) == known


@pytest.mark.parametrize(
    ("run", "records", "example"),
    [
        ("sft_run", "demonstrations", Demonstration(prompt="The staff:", response=" kind" * 400)),
        ("rm_run", "preferences", PreferencePair(prompt="The staff:", chosen=" kind" * 400, rejected=" rude")),
        ("rm_run", "preferences", PreferencePair(prompt="The staff:", chosen=" kind", rejected=" rude" * 400)),
    ],
)
def test_a_stage_refuses_an_example_beyond_the_positions_of_its_base(
    run: str, records: str, example: Record, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    done: Executed = request.getfixturevalue(run)
    for split in ("train", "held_out"):
        write_records(tmp_path / "data" / records / f"{split}.jsonl", [example])
    data = DatasetArtifact(tmp_path / "data", combine_digests(file_digests(tmp_path / "data")))
    with pytest.raises(ConfigError, match=r"the longest example has \d+ tokens, but the base knows 256 positions"):
        again(done, tmp_path, dict(done.spec.inputs) | {"dataset": data}, max_length=9999)


@pytest.mark.parametrize("run", ["preferences_run", "ppo_run", "evaluation_run"])
def test_a_stage_refuses_responses_that_leave_a_prompt_no_position(
    run: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    done: Executed = request.getfixturevalue(run)
    with pytest.raises(
        ConfigError, match=r"a response up to 255, but the base knows 256 positions; the two have to fit"
    ):
        again(done, tmp_path, done.spec.inputs, rollout=dict(done.spec.config["rollout"]) | {"max_new_tokens": 255})


def again(done: Executed, folder: Path, inputs: Any, **settings: Any) -> None:
    """Execute a stage with other settings; it trains nothing."""
    spec = done.spec
    config = dict(spec.config) | settings
    changed = replace(spec, config=config, inputs=inputs, stage_dir=folder / "stage", store_dir=folder / "store")
    run_stage(changed, lambda done, total, what: None)
