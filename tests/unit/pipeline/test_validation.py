"""Every value of a configuration by itself, and what is said of several at once."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from data.errors import ConfigError
from pipeline import loading
from pipeline.config import PipelineConfig
from pipeline.loading import dump_config, load_config, resolve, validate_values
from pipeline.safe_yaml import parse_yaml
from pipeline.validation import Origin

VALUES: dict[str, Any] = {
    "model": {"base": "some/model", "tuning": {"layers": {"last": 2}}},
    "data": {"demonstrations": {"path": "d"}, "prompts": {"hub": "org/x"}},
    "preferences": {"labeler": {"type": "simulated"}},
    "reward_model": {"model": {"base": "org/judge"}},
    "ppo": {"kl_controller": {"type": "adaptive", "target": 6}, "rewards": [{"type": "ensemble", "members": ["x"]}]},
    "evaluation": {"gold": {"type": "character_share", "characters": "aeiou"}},
}
REWARDS: list[dict[str, Any]] = [
    {"type": "python", "source": "own.py:f"},
    {"type": "remote", "address": "http://h/", "token_env": "TOKEN", "health": "/health"},
    {"type": "learned", "path": "p", "threshold": {"at_least": 0.5}},
    {"type": "length"},
    {"type": "regex", "pattern": "x", "name": "x"},
    {"type": "format", "template": {"type": "count", "of": "lines", "minimum": 1}},
    {"type": "repetition"},
    {"type": "exact_match", "extract": "(x)"},
    {"type": "math"},
    {"type": "sentiment", "clip": [-1, 1]},
    {"type": "toxicity", "words": "w.txt"},
    {"type": "character_share", "characters": "aeiou"},
    {"type": "judge", "endpoint": {"address": "http://h/v1", "model": "m", "token_env": "TOKEN"}, "template": "q.txt"},
]


def fields(section: BaseModel, *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path and the type of every value."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from fields(value, *above, name)
        elif isinstance(value, list) and isinstance(value[0] if value else None, BaseModel):
            for number, item in enumerate(value):
                yield from fields(item, *above, name, str(number))
        else:
            yield (*above, name), field.annotation


def put(values: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    if isinstance(values, list):
        before, after = values[: int(name)], values[int(name) + 1 :]
        return [*before, put(values[int(name)], tuple(rest), value), *after]
    return {**values, name: put(values.get(name) or {}, tuple(rest), value) if rest else value}


def all_fields() -> list[tuple[dict[str, Any], tuple[str, ...], Any]]:
    values = put(VALUES, ("ppo", "rewards"), [*VALUES["ppo"]["rewards"], *REWARDS])
    return [(values, path, kind) for path, kind in fields(validate_values(values, [], "c.yaml"))]


FIELDS = all_fields()
NUMBERS = [(values, path) for values, path, kind in FIELDS if float in (kind, *get_args(kind))]
FLAGS = [(values, path) for values, path, kind in FIELDS if "bool" in str(kind)]


def said(values: dict[str, Any], *options: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        validate_values(values, options, "c.yaml")
    return str(error.value).split("\n")


def test_the_fields_are_found() -> None:
    assert len(FIELDS) > 140 and len(NUMBERS) > 50 and len(FLAGS) > 12


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), "nan", "1e999"])
def test_no_number_is_other_than_finite(value: Any) -> None:
    for values, path in NUMBERS:
        lines = said(put(values, path, value))
        assert lines[0].startswith(f"c.yaml: {'.'.join(path)}: found ") and "must be" in lines[0], path
        assert len(lines) == 1, lines


@pytest.mark.parametrize("value", ["yes", "on", "true", "1", 1, 0, 1.0])
def test_nothing_but_true_and_false_is_a_flag(value: Any) -> None:
    for values, path in FLAGS:
        assert "must be true or false" in said(put(values, path, value))[0], path


def test_no_value_is_blank_or_holds_a_zero_byte() -> None:
    blanks = 0
    for values, path, kind in FIELDS:
        # Spaces can be what is counted.
        if re.search(r"^(?!dict|list|typing.Union).*\bstr\b", str(kind)) and path[-1] != "characters":
            blanks += 1
            for value in ("", "  ", "\t\n"):
                assert said(put(values, path, value)), path
            assert said(put(values, path, "a\0b")), path
    assert blanks > 25


@pytest.mark.parametrize("wrong", [["x"], {"x": 1}, "x\0"])
def test_a_value_at_fault_makes_one_line_and_no_contradiction_with_what_stands_in_its_place(wrong: Any) -> None:
    for values, path, kind in FIELDS:
        if {kind, *get_args(kind)} & {int, float, bool} or str(kind).startswith("typing.Literal"):
            lines = said(put(values, path, wrong))
            assert len(lines) == 1 and lines[0].startswith(f"c.yaml: {'.'.join(path[:-1])}"), (path, lines)


def test_contradictions_are_told_beside_values_at_fault_that_have_no_part_in_them() -> None:
    lines = said(VALUES, "ppo.gamma=7", "ppo.batch_size=100", "sft.batch_size=9", "data.prompts.revision=5")
    assert [line.split(": ")[1].split("=")[0] for line in lines] == [
        "data.prompts.revision", "ppo.gamma", "ppo", "sft.batch_size",
    ]  # fmt: skip
    assert len(said(VALUES, "ppo.batch_size=100", "ppo.minibatch_size=x")) == 1
    assert len(said(VALUES, "ppo.batch_size=100", "ppo.minibatch_size=true")) == 1
    assert len(said({}, "ppo.batch_size=100")) == 3
    assert len(said(VALUES | {5: 6}, "ppo.batch_size=100")) == 2


def test_the_origin_of_a_value_is_the_last_option_that_sets_all_of_it_and_those_that_change_it() -> None:
    options = ["a.b=1", "a={}", "a.b.c=2", "a.b.d=3", "x.y=4"]
    origin = Origin("c.yaml", options)
    assert origin(("a", "b")) == "--set a={} --set a.b.c=2 --set a.b.d=3"
    assert origin(("a", "b", "c")) == "--set a.b.c=2"
    assert origin(("x",), ("a", "e")) == "--set a={} --set x.y=4"
    assert origin(("x", "z")) == origin() == "c.yaml"


def test_what_yaml_1_1_takes_for_something_else() -> None:
    taken = {
        text: parse_yaml(text, "c", "r") for text in ("yes", "off", "NO", "1:30", "1:30.5", "2026-01-01", "=", "0b1")
    }
    assert taken == {text: text for text in taken}
    assert parse_yaml("010", "c", "r") == "010"
    others = {
        "true": True,
        "False": False,
        "10": 10,
        "-1_000": -1000,
        "0x1F": 31,
        "1.5": 1.5,
        ".5": 0.5,
        "1.0e-5": 1e-5,
    }
    others |= {"-.inf": float("-inf"), "null": None, "~": None}
    for text, value in others.items():
        found = parse_yaml(text, "c", "r")
        assert found == value and type(found) is type(value), text


@pytest.mark.parametrize("text", ["yes", "off", "010", "1:30", "1.e5", "+.5", "1e5", "0b1", "0o7", "=", "2026-01-01"])
def test_text_is_text_when_it_comes_back(text: str) -> None:
    config = validate_values(VALUES | {"tracking": {"project": text}}, [], "c.yaml")
    assert parse_yaml(dump_config(config), "c", "r")["tracking"]["project"] == text


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loading, "gpu_is_visible", lambda: False)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"model": {"base": "b"}, "data": {"preferences": {"path": "x"}}}), encoding="utf-8")
    return path


def test_off_is_a_kind_of_importance_sampling(written: Path) -> None:
    config = load_config(written, ["ppo.rollout.importance_sampling=off"])
    assert config.ppo is not None and config.ppo.rollout.importance_sampling == "off"


def test_settings_of_vllm_are_left_where_auto_finds_none_and_the_result_loads_back(written: Path) -> None:
    resolved = resolve(load_config(written, ["ppo.rollout.vllm.gpu_memory_utilization=0.5"]))
    assert resolved.ppo is not None and resolved.ppo.rollout.engine == "hf"
    written.write_text(dump_config(resolved), encoding="utf-8")
    assert load_config(written) == resolved


def test_what_auto_becomes_contradicts_nothing(written: Path) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(load_config(written, ["model.attention=flash_attention_2"]))
    assert str(error.value) == (
        "model.attention=flash_attention_2 needs a GPU, but launch.device=cpu; use `model.attention: auto`, or "
        "`launch.device: cuda`"
    )


def test_a_section_alone_refuses_contradictions_too() -> None:
    with pytest.raises(ValueError, match=r"launch\.checkpoints[\s\S]*both null"):
        PipelineConfig.model_validate(VALUES | {"launch": {"checkpoints": {"every_minutes": None}}})
