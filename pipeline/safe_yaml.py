"""YAML as configurations use it: plain values, each key once, and no text that unfolds into more than it is."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from data.errors import ConfigError

MAX_VALUES = 100_000
"""Values of one text with every alias unfolded. The longest shipped configuration has about a hundred."""


_YAML_1_1 = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "timestamp", "value")}


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML lets a repeated key win silently; here it is an error.

    Of the values that YAML 1.1 has and 1.2 has no more, none is taken: `off` is a name (of no importance sampling,
    say) and not false, `1:30` is no 90, `010` no 8.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _YAML_1_1]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

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


# Parts of PyYAML's own patterns: so its dumper quotes every text that one of these would take for a number.
for _name, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    (
        "float",
        r"([-+]?[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _UniqueKeyLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_first))


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
