"""Questions to a language model: the user's own text of one, and its fields filled in."""

import re
from collections.abc import Mapping
from pathlib import Path

from data.errors import ConfigError
from data.schema import Message

_MOST_BYTES = 1 << 20
_FIELD = re.compile(r"\{(\w+)\}")


def read_template(name: str | None, default: str, fields: tuple[str, ...], config_dir: Path | None, key: str) -> str:
    """The text of a question.

    Args:
        name: File of the user's own; None takes the default.
        default: Taken where there is none.
        fields: Names in braces that it needs.
        config_dir: Folder of the configuration, for relative paths.
        key: The setting, for messages.

    Raises:
        ConfigError: The file cannot be read, or lacks a field.
    """
    if name is None:
        return default
    given = Path(name).expanduser()
    candidates = [given] if given.is_absolute() else [folder / given for folder in (config_dir, Path()) if folder]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise ConfigError(
            f"{key}={name!r}: no file at {' or '.join(dict.fromkeys(map(str, candidates)))}; a text file with "
            f"{_listed(fields)} is needed: correct the path, or leave it out for the question of the package"
        )
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{key}: {path} cannot be read ({error}); a text file in UTF-8 is needed: correct it"
        ) from error
    if missing := [field for field in fields if f"{{{field}}}" not in text]:
        raise ConfigError(
            f"{key}: {path} lacks {_listed(missing)}; the question has to show all of {_listed(fields)}: add it"
        )
    return text


def _listed(fields: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"{{{field}}}" for field in fields)


def ask_about(template: str, values: Mapping[str, str]) -> tuple[Message, ...]:
    """A question as one turn. Fields are filled once: braces in a reply stay what they are.

    Args:
        template: With fields in braces.
        values: What takes their place.
    """
    text = _FIELD.sub(lambda match: values.get(match[1], match[0]), template)
    return (Message(role="user", content=text),)
