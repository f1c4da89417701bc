"""What pydantic found wrong in a configuration, as sentences: where and what, what is needed, what to do."""

import difflib
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

# Kind of pydantic error -> the values that the field takes.
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "a mapping",
    "model": "a section (key: value lines)",
    "model_attributes": "a section (key: value lines)",
    "finite_number": "a finite number",
}
_SHORT = reprlib.Repr()  # of what is long or deep, no more than a message can show
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200

_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "too_short": ("min_length", "of length at least"),
    "too_long": ("max_length", "of length at most"),
    "string_too_short": ("min_length", "of length at least"),
    "string_too_long": ("max_length", "of length at most"),
}


Path = Sequence[str]
Source = Callable[..., str]
"""From the paths of keys, where their values were written: the file, or `--set` options."""


def describe_errors(error: ValidationError, model: type[BaseModel], source: Source) -> list[str]:
    """Turn every error of a validation into one line.

    Args:
        error: What pydantic raised.
        model: The class that was validated.
        source: Where a value was written.
    """
    found: dict[tuple[str, ...], str] = {}
    for problem in error.errors(include_url=False):
        owner, keys, name = _locate(model, problem["loc"])
        path, said = tuple(keys), _explain(problem, model, owner, keys, name)
        # A key that may be of two types has two complaints: the first one, with what else it may be.
        found[path] = _either(found[path], said) if path in found else said
    return [
        f"{source(path)}: " + (f"{'.'.join(path)}: " if path else "") + said
        for path, said in found.items()
        # Of what may be a word or a list, a complaint on an entry of the list says more than that it is not the word.
        if not any(len(other) > len(path) > 0 and other[: len(path)] == path for other in found)
    ]


def failing_paths(error: ValidationError, model: type[BaseModel]) -> list[Path]:
    """The keys at fault, as the user writes them."""
    return [_locate(model, problem["loc"])[1] for problem in error.errors(include_url=False)]


def truth_as_number(
    written: Mapping[str, Any], validated: BaseModel, source: Source, *above: str
) -> dict[tuple[str, ...], str]:
    """By its path, a line for each true or false where a number is needed: pydantic takes them for 1 and 0.

    Args:
        written: The values of a section.
        validated: What became of them.
        source: As for `describe_errors`.
        above: Path of the section.
    """
    lines: dict[tuple[str, ...], str] = {}
    for name, value in written.items():
        path, became = (*above, str(name)), getattr(validated, str(name), None)
        if isinstance(value, Mapping) and isinstance(became, BaseModel):
            lines |= truth_as_number(value, became, source, *path)
        elif isinstance(value, list) and isinstance(became, list):
            for number, (inner, section) in enumerate(zip(value, became, strict=True)):
                if isinstance(inner, Mapping) and isinstance(section, BaseModel):
                    lines |= truth_as_number(inner, section, source, *path, str(number))
        elif isinstance(value, bool) and not isinstance(became, bool) and became is not None:
            remedy = _way_out(type(validated), str(name))
            lines[path] = f"{source(path)}: {'.'.join(path)}: found {_show(value)}, must be a number; {remedy}"
    return lines


def _either(first: str, other: str) -> str:
    """Two complaints on one value as one."""
    head, marker, rest = first.partition(", must be ")
    also = other.partition(", must be ")[2].split(";")[0].split(". ")[0]
    wanted, mark, remedy = rest.partition(";" if ";" in rest else ". ")
    if not marker or not also or also in wanted:
        return first
    return f"{head}{marker}{wanted} or {also}{mark}{remedy}"


def _explain(
    problem: Mapping[str, Any],
    root: type[BaseModel],
    owner: type[BaseModel] | None,
    path: Sequence[str],
    name: str,
) -> str:
    kind: str = problem["type"]
    context: Mapping[str, Any] = problem.get("ctx", {})
    found = _show(problem["input"])
    if kind == "extra_forbidden":
        moved = getattr(owner, "MOVED", {}).get(path[-1])
        return moved or f"unknown key. {_suggest(root, owner, path)}"
    if kind == "missing":
        return f"missing. It is required{_purpose(owner, name)}; add `{'.'.join(path)}`"
    if kind == "value_error":
        return str(context["error"])
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"found {found}, must be {words} {_bound(context[key])}; {_way_out(owner, name)}"
    if kind in ("literal_error", "union_tag_invalid"):
        allowed = context.get("expected") or context["expected_tags"]
        return f"found {_tag_of(problem, found)}, must be {allowed}. {_near_value(problem, owner, name, context)}"
    if kind == "union_tag_not_found":
        key = context["discriminator"].strip("'")
        choices = "' or '".join(_tags_of(owner, name))
        return f"found {found}, needs the key '{key}', which says what is meant; add `{key}` with '{choices}'"
    wanted = _KINDS.get(kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float"))
    if wanted is not None:
        return f"found {found}, must be {wanted}; {_way_out(owner, name)}"
    return f"found {found}: {problem['msg']}; {_way_out(owner, name)}"


def _locate(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[type[BaseModel] | None, list[str], str]:
    """The section a location lies in, its path as the user writes it, and its last key.

    Pydantic adds the chosen variant of a union to the location; the user's path has no such element.
    """
    path: list[str] = []
    sections: list[type[BaseModel]] = [model]
    owner: type[BaseModel] | None = model
    for place in loc:
        element = str(place)
        holder = next((section for section in sections if element in section.model_fields), None)
        if holder is not None:
            owner = holder
            sections = list(_sections(holder.model_fields[element].annotation))
            path.append(element)
            continue
        if path and isinstance(place, int) and sections:  # an entry of a list of sections
            path.append(element)
            continue
        variants = [section for section in sections if element in _tags(section)]
        if path and variants:
            sections = variants
            owner = variants[0]
            continue
        if path and _is_annotation_name(element):
            continue
        owner = sections[0] if sections else owner
        sections = []
        path.append(element)
    return owner, path, next((element for element in reversed(path) if not element.isdigit()), "")


def _is_annotation_name(element: str) -> bool:
    """Whether it names a member of an untagged union, as in `literal['all-linear']` or `list[str]`."""
    return element.startswith(("literal[", "list[", "function-", "nullable", "str", "dict[", "bool"))


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The model classes in a field's type, also as entries of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated, list):
        for part in get_args(annotation):
            yield from _sections(part)


def _tags(section: type[BaseModel]) -> set[str]:
    """The values of a variant's `type` or `method`."""
    return {
        str(value)
        for name in ("type", "method")
        if name in section.model_fields
        for value in get_args(section.model_fields[name].annotation)
    }


def _tags_of(owner: type[BaseModel] | None, name: str) -> list[str]:
    """The values of `type` that a field's variants have."""
    field = owner.model_fields.get(name) if owner is not None else None
    return [] if field is None else sorted({tag for part in _sections(field.annotation) for tag in _tags(part)})


def _suggest(root: type[BaseModel], owner: type[BaseModel] | None, path: Sequence[str]) -> str:
    allowed = list(owner.model_fields) if owner is not None else []
    prefix = ".".join(path[:-1])
    near = difflib.get_close_matches(path[-1], allowed, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {prefix + '.' if prefix else ''}{near[0]}?"
    if ".".join(element for element in path if not element.isdigit()) in all_keys(root):
        return f"Another type of {prefix} has it. Allowed here: {', '.join(allowed)}"
    elsewhere = [dotted for dotted in all_keys(root) if dotted.split(".")[-1] == path[-1]]
    elsewhere = [dotted for dotted in elsewhere if dotted.split(".")[0] == path[0]] or elsewhere
    if elsewhere:
        return f"Did you mean {' or '.join(elsewhere[:4])}?"
    return f"Allowed here: {', '.join(allowed)}" if allowed else "Remove it"


def all_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The keys of a section and of those in it, with dots."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in _sections(field.annotation):
            yield from all_keys(inner, f"{prefix}{name}.")


def _purpose(owner: type[BaseModel] | None, name: str) -> str:
    field = owner.model_fields.get(name) if owner is not None else None
    if field is None or not field.description:
        return ""
    return f" ({' '.join(field.description.split()).rstrip('.')})"


def _way_out(owner: type[BaseModel] | None, name: str) -> str:
    """What to do: the default, where there is one, as an example of a value that works."""
    field = owner.model_fields.get(name) if owner is not None else None
    if field is None or field.is_required():
        return "correct it"
    if isinstance(field.default, BaseModel) or field.default_factory is not None:
        return "correct it, or leave it out for the default"
    return f"correct it, or leave it out for the default {_show(field.default)}"


def _tag_of(problem: Mapping[str, Any], found: str) -> str:
    context = problem.get("ctx", {})
    if "discriminator" in context:
        return f"{context['discriminator'].strip(chr(39))} {context.get('tag', '')!r}"
    return found


def _near_value(
    problem: Mapping[str, Any], owner: type[BaseModel] | None, name: str, context: Mapping[str, Any]
) -> str:
    value = str(context.get("tag", problem["input"]))
    field = owner.model_fields.get(name) if owner is not None else None
    choices = list(_literals(field.annotation)) if field is not None else []
    if "expected_tags" in context:
        choices = [choice.strip(" '\"") for choice in context["expected_tags"].split(",")]
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else "Use one of them"


def _literals(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for part in get_args(annotation):
            yield from _literals(part)


def _show(value: Any) -> str:
    """A value as it stood in the YAML, cut to a readable length."""
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_plain(value) else None
    text = text if text is not None else _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _bound(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)
