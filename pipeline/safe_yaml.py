"""YAML as configurations use it: plain values, each key once, and no text that unfolds into more than it is."""

from collections.abc import Hashable
from typing import Any

import yaml

from data.errors import ConfigError

MAX_VALUES = 100_000
"""Values of one text with every alias unfolded. The longest shipped configuration has about a hundred."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML lets a repeated key win silently; here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping after looking for repeated keys."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, name: str, remedy: str) -> Any:
    """Read a text.

    Args:
        text: YAML.
        name: Where it stands, for messages.
        remedy: What to do about one that cannot be read.

    Raises:
        ConfigError: It is no YAML, holds a value that nothing can be made of, or unfolds without end.
    """
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{name}{line}: {error.problem or error.context}; {remedy}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}; {remedy}") from error
    except ValueError as error:  # a date that is none, a number of thousands of digits
        raise ConfigError(
            f"{name}: a value cannot be read ({error}); a plain number or text is needed; {remedy}"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply; a few levels are needed; {remedy}") from error
    try:
        size = _unfolded(value, {}, set())
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply; a few levels are needed; {remedy}") from error
    if size > MAX_VALUES:
        raise ConfigError(
            f"{name}: its aliases unfold to more than {MAX_VALUES} values; write out what is meant; {remedy}"
        )
    return value


def _unfolded(value: Any, known: dict[int, int], above: set[int]) -> int:
    """Number of values with each alias counted as often as it stands there; endless ones count as too many."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) in above:
        return MAX_VALUES + 1
    if id(value) not in known:
        inner = list(value.values()) if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_unfolded(entry, known, above | {id(value)}) for entry in inner)
    return known[id(value)]
