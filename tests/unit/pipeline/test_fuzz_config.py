"""Whatever stands in a configuration, it is read or refused with a message, and in time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import ConfigError
from pipeline.config import PipelineConfig
from pipeline.loading import dump_config, load_config, read_yaml, resolve, validate_values
from pipeline.problems import all_keys
from rewards.composite_config import RewardConfig

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
bounded = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["auto", "hf", "vllm", "1e-5", "inf", "../x", "a:b", "http://h", "${X}", "!!int", "0x10", "~"]),
)  # fmt: skip
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)),
    max_leaves=12,
)


def paths(values: dict[str, Any], *above: str) -> list[tuple[str, ...]]:
    """All keys of a configuration, sections and values."""
    found = []
    for name, value in values.items():
        found.append((*above, name))
        found += paths(value, *above, name) if isinstance(value, dict) else []
    return found


WRITTEN = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in SHIPPED]
PLACES = [(number, path) for number, values in enumerate(WRITTEN) for path in paths(values)]
KEYS = paths(
    PipelineConfig.model_validate(WRITTEN[[path.stem for path in SHIPPED].index("quickstart")]).model_dump(mode="json")
)
assert ("ppo", "rollout", "server", "address") in KEYS


def outcome(act: Callable[[], PipelineConfig]) -> PipelineConfig | None:
    """A configuration that loads back equal, or None where it was refused with a message of one line a problem."""
    try:
        config = act()
    except ConfigError as error:
        message = str(error)
        assert 10 < len(message) < 20_000
        assert all(line.strip() for line in message.split("\n"))
        return None
    again = validate_values(yaml.safe_load(dump_config(config)), [], "again")
    assert again == config
    try:
        resolved = resolve(config)
    except ConfigError as error:  # an engine or a device that is not here
        assert str(error).strip()
    else:
        assert validate_values(yaml.safe_load(dump_config(resolved)), [], "of the run") == resolved
    return config


def changed(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy with another value at a path."""
    name, *rest = path
    if not rest:
        return {**values, name: value}
    inner = values.get(name)
    return {**values, name: changed(inner if isinstance(inner, dict) else {}, tuple(rest), value)}


@bounded
@given(place=st.sampled_from(PLACES), value=trees)
def test_any_value_at_any_key_of_a_shipped_configuration(place: tuple[int, tuple[str, ...]], value: Any) -> None:
    number, path = place
    outcome(lambda: validate_values(changed(WRITTEN[number], path, value), [], "c.yaml"))


@bounded
@given(path=st.sampled_from(KEYS), value=trees)
def test_any_value_at_any_key_that_there_is(path: tuple[str, ...], value: Any) -> None:
    outcome(lambda: validate_values(changed(WRITTEN[0], path, value), [], "c.yaml"))


plausible = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 130), st.floats(-0.5, 3),
    st.sampled_from(["auto", "hf", "vllm", "vllm_server", "cpu", "deepspeed", "accelerate", "nf4", "qlora", "rloo"]),
    st.sampled_from(["flash_attention_2", "float32", "original", "off", "reward_model", "text", "http://h", "org/x"]),
)  # fmt: skip


@bounded
@given(
    number=st.integers(0, len(WRITTEN) - 1), changes=st.lists(st.tuples(st.sampled_from(KEYS), plausible), max_size=5)
)
def test_values_that_could_be_meant_at_several_keys(number: int, changes: list[tuple[tuple[str, ...], Any]]) -> None:
    values = WRITTEN[number]
    for path, value in changes:
        values = changed(values, path, value)
    outcome(lambda: validate_values(values, [], "c.yaml"))


COMPONENTS = get_args(get_args(RewardConfig)[0])
component_keys = st.sampled_from(sorted({key for section in COMPONENTS for key in all_keys(section) if "." not in key}))
component_types = st.sampled_from(
    sorted({tag for section in COMPONENTS for tag in get_args(section.model_fields["type"].annotation)})
)


@bounded
@given(
    rewards=st.lists(
        st.tuples(component_types, st.dictionaries(component_keys, st.one_of(plausible, trees), max_size=4)), max_size=3
    )
)
def test_any_components_of_a_reward(rewards: list[tuple[str, dict[str, Any]]]) -> None:
    values = [{"type": kind, **settings} for kind, settings in rewards]
    outcome(lambda: validate_values(changed(WRITTEN[0], ("ppo", "rewards"), values), [], "c.yaml"))


@bounded
@given(values=st.dictionaries(st.sampled_from([*PipelineConfig.model_fields, "x"]), trees, max_size=6))
def test_any_sections(values: dict[str, Any]) -> None:
    outcome(lambda: validate_values(values, [], "c.yaml"))


@bounded
@given(path=st.sampled_from(KEYS), text=st.text(max_size=40))
def test_any_text_as_an_override(path: tuple[str, ...], text: str) -> None:
    outcome(lambda: load_config(SHIPPED[0], [f"{'.'.join(path)}={text}"]))


@bounded
@given(option=st.text(max_size=40))
def test_any_option(option: str) -> None:
    outcome(lambda: load_config(SHIPPED[0], [option]))


@bounded
@given(
    content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
)
def test_any_bytes_as_a_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    outcome(lambda: load_config(path))


@bounded
@given(
    number=st.integers(0, len(SHIPPED) - 1),
    at=st.floats(0, 1),
    length=st.integers(0, 30),
    inserted=st.sampled_from(
        [b"", b"\t", b": ", b"- ", b"{", b"&a ", b"*a", b"\0", b"\xff", b"'", b"!!x ", b"#", b"\n"]
    ),
)
def test_a_shipped_file_that_was_cut_or_mistyped(
    number: int, at: float, length: int, inserted: bytes, tmp_path: Path
) -> None:
    content = SHIPPED[number].read_bytes()
    start = int(at * len(content))
    path = tmp_path / "c.yaml"
    path.write_bytes(content[:start] + inserted + content[start + length :])
    outcome(lambda: load_config(path))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_load_back_equal(path: Path) -> None:
    assert outcome(lambda: load_config(path)) is not None
    assert isinstance(read_yaml(path), dict)
