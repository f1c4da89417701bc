"""From values as they were written to a `PipelineConfig`, or to all that is wrong with them, one line a problem."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from data.errors import ConfigError
from data.strict import LATER, all_contradictions
from pipeline.config import PipelineConfig
from pipeline.problems import Path, Source, describe_errors, failing_paths, truth_as_number

_STAND_INS: Mapping[str, Any] = {"model": {"base": "-"}, "data": {"preferences": {"path": "-"}}}
"""Sections that there have to be, while those beside one at fault are looked at."""


class Origin:
    """Where a value was written: in the file, or by a `--set` option."""

    def __init__(self, name: str, overrides: Sequence[str]) -> None:
        """Take the file's name and the options in their order."""
        self._name = name
        self._options = [(option, tuple(option.partition("=")[0].strip().split("."))) for option in overrides]

    def __call__(self, *keys: Path) -> str:
        """The options that set one of the keys, or something in one; the file, where none did."""
        involved = {number for key in keys for number in self._setting(tuple(key))}
        return " ".join(f"--set {self._options[number][0]}" for number in sorted(involved)) or self._name

    def _setting(self, key: tuple[str, ...]) -> list[int]:
        """Numbers of the options that a key's value is made of: back to the last that set all of it."""
        found: list[int] = []
        for number, (_, path) in reversed(list(enumerate(self._options))):
            if path == key[: len(path)]:
                return [*found, number]
            if key == path[: len(key)]:
                found.append(number)
        return found


def validated(written: Mapping[str, Any], origin: Source) -> PipelineConfig:
    """Validate values.

    Args:
        written: Of the whole configuration.
        origin: Where a key's value was written, for messages.

    Raises:
        ConfigError: With all problems: values at fault, and contradictions between those that are not.
    """
    lines: list[str] = []
    wrong: set[tuple[str, ...]] = set()
    config = None
    values = dict(written)
    while config is None:
        try:
            config = PipelineConfig.model_validate(values, context=LATER)
        except ValidationError as error:
            # Without what is at fault, the rest is looked at, too. What is missing takes its section along.
            lines = lines or describe_errors(error, PipelineConfig, origin)
            paths = failing_paths(error, PipelineConfig)
            values, removed = _without(values, paths)
            if removed <= wrong:
                raise ConfigError("\n".join(lines)) from error
            wrong |= removed
            values |= {name: stand_in for name, stand_in in _STAND_INS.items() if name not in values}
    truths = truth_as_number(values, config, origin)
    wrong |= set(truths)
    lines += truths.values()
    for above, contradiction in all_contradictions(config):
        keys = [(*above, *key.split(".")) for key in contradiction.keys]
        if not any(_overlap(key, fault) for key in keys for fault in wrong):
            section = f"{'.'.join(above)}: " if above else ""
            lines.append(f"{origin(*keys)}: {section}{contradiction.text}")
    if lines:
        raise ConfigError("\n".join(lines))
    return config


def _overlap(key: Path, other: Path) -> bool:
    """Whether one of the two lies in the other."""
    shorter = min(len(key), len(other))
    return tuple(key[:shorter]) == tuple(other[:shorter])


def _without(values: Mapping[str, Any], paths: Sequence[Path]) -> tuple[dict[str, Any], set[tuple[str, ...]]]:
    """A copy without what stands at these paths, or without the section where nothing does; and what was removed."""
    result = dict(values)
    removed: set[tuple[str, ...]] = set()
    for path in paths:
        if not any(_overlap(path, gone) for gone in removed):
            removed.add(tuple(path[: _remove(result, path)]))
    return result, removed


def _remove(section: dict[Any, Any], path: Path) -> int:
    """Remove what stands at a path, as far as it goes down in mappings; returns how many of its names that takes."""
    name = next((name for name in section if str(name) == path[0]), None)
    inner = section.get(name)
    if len(path) > 1 and isinstance(inner, Mapping) and any(str(each) == path[1] for each in inner):
        section[name] = inner = dict(inner)
        return 1 + _remove(inner, path[1:])
    section.pop(name, None)
    return 1
