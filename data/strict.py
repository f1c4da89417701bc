"""The base of every configuration section: frozen, unknown keys refused, no input or output in validators."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Strict, ValidationInfo, model_validator

_MOST_BYTES = 255
"""Of a file's name, on the file systems in use."""

LATER: Final[Mapping[str, str]] = {"contradictions": "later"}
"""Context of a validation that looks at each value alone: the caller then asks for `all_contradictions`."""


@dataclass(frozen=True)
class Contradiction:
    """Values that are right one by one and do not go together.

    Attributes:
        keys: All keys whose values it depends on, with dots, seen from the section that found it.
        text: What was found, what is needed, what to do.
    """

    keys: tuple[str, ...]
    text: str


class StrictModel(BaseModel):
    """A frozen pydantic model that refuses unknown keys and reads field docstrings as descriptions."""

    MOVED: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions: what is said of one that is used still."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


class Section(StrictModel):
    """A section whose values have to go together."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Those of this section and between sections in it; not those that a section in it finds itself."""
        yield from ()

    @model_validator(mode="after")
    def _agrees(self, info: ValidationInfo) -> Self:
        if info.context is LATER:
            return self
        if found := [contradiction.text for contradiction in self.contradictions()]:
            raise ValueError("\n".join(found))
        return self


def all_contradictions(section: BaseModel, *above: str) -> Iterator[tuple[tuple[str, ...], Contradiction]]:
    """The contradictions of a section and of all sections in it, each with the path of its section.

    Args:
        section: Validated with the context `LATER`.
        above: Path of the section.
    """
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from all_contradictions(value, *above, name)
        elif isinstance(value, list):
            for number, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from all_contradictions(item, *above, name, str(number))
        elif isinstance(value, dict):
            for key, inner in value.items():
                if isinstance(inner, BaseModel):
                    yield from all_contradictions(inner, *above, name, key)
    if isinstance(section, Section):
        for contradiction in section.contradictions():
            yield above, contradiction


def _has_words(text: str) -> str:
    if not text.strip():
        raise ValueError(f"found {text!r}, which is blank; text that can be seen is needed; write it out")
    return text


def _has_no_zero(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"found {text!r}, which holds a zero byte; text that can be printed is needed; take it out")
    return text


Printable = Annotated[str, AfterValidator(_has_no_zero)]
"""Text that the system takes as part of a path or an address."""

Text = Annotated[Printable, AfterValidator(_has_words)]
"""Text that is not blank: a name, a path, an address."""


def _has_short_names(path: str) -> str:
    longest = max(len(name.encode(errors="replace")) for name in path.split("/"))
    if longest > _MOST_BYTES:
        raise ValueError(
            f"found a name of {longest} bytes in the path; file systems take {_MOST_BYTES} at most; shorten it"
        )
    return path


ShortNames = Annotated[Printable, AfterValidator(_has_short_names)]
"""Text with a path in it."""

PathText = Annotated[ShortNames, AfterValidator(_has_words)]
"""Path of a file or folder, or what may be one."""

Flag = Annotated[bool, Strict()]
"""`true` or `false`; pydantic alone would take the texts `yes` and `on`, and 1, for `true`."""


def _names_variable(name: str) -> str:
    if not name.isidentifier() or not name.isascii():
        raise ValueError(
            f"found {len(name)} characters that are no name of an environment variable (not repeated here: they may "
            f"be what it holds); letters, digits and `_` are needed; write the name alone"
        )
    return name


EnvironmentName = Annotated[str, AfterValidator(_names_variable)]
"""Name of an environment variable."""


def differs(section: BaseModel, name: str) -> bool:
    """Whether a value is another than the default: defaults written out are no wish."""
    value: Any = getattr(section, name)
    return bool(value != type(section).model_fields[name].get_default(call_default_factory=True, validated_data={}))
