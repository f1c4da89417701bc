"""Checks of a tokenizer by its files, without transformers: broken, of another model, with a template that is no Jinja.

A tokenizer in another form than tokenizer.json is left to transformers, which converts it (`stages.models.tokenizer`).
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from data.errors import ModelError
from stages.models.folders import read_json

_TEMPLATE_FILE = "chat_template.jinja"
_TEMPLATE_KEY = "chat_template"


def check_tokenizer_files(folder: Path, rows: int | None, where: str, *, own_template: bool) -> None:
    """Refuse a tokenizer that cannot be read, or that has tokens without a row of the embedding.

    Args:
        folder: A model's folder.
        rows: Of the embedding, where they are known.
        where: Begins the message.
        own_template: Whether the folder's own chat template will be used.

    Raises:
        ModelError: See above; also for a chat template with a syntax error.
    """
    config = _tokenizer_config(folder, where)
    if own_template:
        _check_templates(folder, config, where)
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    from tokenizers import Tokenizer  # late: `rlhf --help` needs it not

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelError(
            f"{where}: tokenizer.json cannot be read ({error}). The file that belongs to the model is needed. Copy or "
            "download it again; if a newer version of `tokenizers` wrote it, upgrade that package."
        ) from error
    if rows is None:
        return
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    unused = (special | {_text(config.get("pad_token"))}) - {
        _text(config.get(key)) for key in ("eos_token", "bos_token")
    }
    problem = vocabulary_problem(tokenizer.get_vocab(with_added_tokens=True), rows, unused)
    if problem is not None:
        raise ModelError(f"{where}: {problem}")


def vocabulary_problem(vocabulary: Mapping[str, int], rows: int, unused: Collection[str | None]) -> str | None:
    """What to say of tokens that the embedding has no row for; None where there are none.

    Args:
        vocabulary: Ids by token.
        rows: Of the embedding.
        unused: Tokens that may be without a row: special ones that no text holds (a token for images, say) and a
            declared pad, which is replaced (`stages.models.tokenizer.choose_pad_token`).
    """
    beyond = {token: number for token, number in vocabulary.items() if number >= rows and token not in unused}
    if not beyond:
        return None
    first = min(beyond, key=lambda token: beyond[token])
    return (
        f"the tokenizer has {len(beyond)} tokens that the embedding of {rows} rows has no row for, {first!r} with the "
        f"id {beyond[first]} first. Tokenizer and weights of one model are needed. Take the tokenizer that belongs to "
        "these weights."
    )


def check_template_file(path: Path, where: str) -> None:
    """Refuse a chat template that is no text or no Jinja.

    Args:
        path: The file.
        where: Begins the message.

    Raises:
        ModelError: Naming the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{where}: {path} cannot be read ({error}). A Jinja template in UTF-8 is needed. Save it so."
        ) from error
    _check_template(text, f"{where}: {path}")


def _check_templates(folder: Path, config: Mapping[str, Any], where: str) -> None:
    if (folder / _TEMPLATE_FILE).is_file():
        check_template_file(folder / _TEMPLATE_FILE, where)
        return
    templates = config.get(_TEMPLATE_KEY)
    if isinstance(templates, str):
        _check_template(templates, f"{where}: {_TEMPLATE_KEY} in tokenizer_config.json")


def _check_template(text: str, where: str) -> None:
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    class Generation(Extension):
        """The tag of transformers around what the assistant says."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            """Read what is inside."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        Environment(extensions=[Generation, loopcontrols], autoescape=False).parse(text)
    except TemplateSyntaxError as error:
        raise ModelError(
            f"{where}, line {error.lineno}: the chat template is no Jinja ({error.message}). A template that writes "
            "`messages` is needed. Correct it, or give another one by `model.chat_template`."
        ) from error


def _tokenizer_config(folder: Path, where: str) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    config = read_json(path, where)
    if not isinstance(config, dict):
        raise ModelError(
            f"{where}: tokenizer_config.json holds a {type(config).__name__}. The settings of the tokenizer by name "
            "are needed. Copy or download it again."
        )
    return config


def _text(token: Any) -> str | None:
    """A token as tokenizer_config.json has it: its text, or settings with it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
