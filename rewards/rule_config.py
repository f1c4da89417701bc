"""Rules on the text of a response, as components of a reward. Imports pydantic only."""

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from data.strict import Contradiction, Flag, PathText, Section, StrictModel, Text
from rewards.component_config import ComponentConfig
from rewards.config import CharacterShareRewardConfig, SentimentFields

MAX_PATTERN_CHARACTERS = 10_000

Pattern = Annotated[Text, Field(max_length=MAX_PATTERN_CHARACTERS)]
"""A regular expression of the package `regex`."""

Unit = Literal["tokens", "words", "characters"]
"""Tokens are the policy's, EOS included; words stand between white space; characters are Unicode's code points."""


class CharacterShareComponentConfig(CharacterShareRewardConfig, ComponentConfig):
    """Share of the response's characters that are in a set, in [0, 1]."""


class SentimentRewardConfig(SentimentFields, ComponentConfig):
    """Sentiment of English text in [-1, 1], the compound score of VADER (Hutto and Gilbert 2014)."""

    type: Literal["sentiment"] = "sentiment"


class LengthRewardConfig(ComponentConfig):
    """How long the response is; with bounds, minus its distance to them."""

    type: Literal["length"] = "length"

    unit: Unit = "tokens"
    """What is counted."""

    minimum: int | None = Field(default=None, ge=0)
    """A shorter response gets minus what is missing."""

    maximum: int | None = Field(default=None, ge=0)
    """A longer response gets minus what is too much."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Bounds the wrong way round."""
        yield from super().contradictions()
        yield from _wrong_way_round(self.minimum, self.maximum)


class RepetitionRewardConfig(ComponentConfig):
    """Minus the share of n-grams that stand in the response before: 0 where nothing is repeated, -1 at most."""

    type: Literal["repetition"] = "repetition"

    unit: Unit = "tokens"
    """Of what an n-gram is made. `words` say nothing of languages written without spaces."""

    ngram: int = Field(default=3, ge=1, le=100)
    """Its length. A response with fewer units repeats nothing."""


class RegexRewardConfig(ComponentConfig):
    """1 where the response matches a regular expression, else 0; or how often it does."""

    type: Literal["regex"] = "regex"

    pattern: Pattern
    """In the syntax of the package `regex`; flags stand in it: `(?i)`, `(?s)`."""

    match: Literal["search", "full", "count"] = "search"
    """`search` looks anywhere, `full` wants the whole response, `count` counts matches that do not overlap."""

    timeout_seconds: float = Field(default=1.0, gt=0)
    """How long one response may take; a pattern that takes longer ends the stage."""


def _names_element(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
        raise ValueError(
            f"found {name[:80]!r}, must be the name of an element, without brackets; write it as answer for "
            f"<answer>...</answer>"
        )
    return name


ElementName = Annotated[str, AfterValidator(_names_element)]


class JsonTemplateConfig(StrictModel):
    """The whole response is one JSON value."""

    type: Literal["json"] = "json"

    keys: list[Text] = Field(default_factory=list, max_length=1000)
    """It has to be an object with these keys; none asks for nothing more."""


class TagsTemplateConfig(Section):
    """The response is these elements in this order, each once, and nothing but white space beside them."""

    type: Literal["tags"] = "tags"

    names: list[ElementName] = Field(min_length=1, max_length=100)
    """`[think, answer]` for `<think>...</think><answer>...</answer>`."""

    def contradictions(self) -> Iterator[Contradiction]:
        """A name twice."""
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            yield Contradiction(
                ("names",), f"names has {', '.join(twice)} more than once, but each element stands once; name each once"
            )


class CountTemplateConfig(Section):
    """The response has so many sentences, bullets, lines or paragraphs."""

    type: Literal["count"] = "count"

    of: Literal["sentences", "bullets", "lines", "paragraphs"]
    """What is counted: sentences by their full stops, bullets by `-`, `*`, `1.` at the start of a line."""

    minimum: int | None = Field(default=None, ge=0)
    """At least so many."""

    maximum: int | None = Field(default=None, ge=0)
    """At most so many."""

    def contradictions(self) -> Iterator[Contradiction]:
        """No bound, or bounds the wrong way round."""
        if self.minimum is None and self.maximum is None:
            yield Contradiction(
                ("minimum", "maximum"), "minimum and maximum are both null, so that every response fits; give one"
            )
        yield from _wrong_way_round(self.minimum, self.maximum)


class FormatRewardConfig(ComponentConfig):
    """1 where the response fits a template, else 0."""

    type: Literal["format"] = "format"

    template: Annotated[JsonTemplateConfig | TagsTemplateConfig | CountTemplateConfig, Field(discriminator="type")]


class ExtractFields(StrictModel):
    """Where in the response the answer is."""

    extract: Pattern | None = None
    """A regular expression with one group: the last match's is the answer, and no match is a wrong one. Default: the
    whole response."""

    timeout_seconds: float = Field(default=5.0, gt=0)
    """How long one response may take."""


class ExactMatchRewardConfig(ExtractFields, ComponentConfig):
    """1 where the answer is the prompt's `reference`, else 0. Unicode's variants of a character (NFKC) are equal."""

    needs_reference: ClassVar[bool] = True

    type: Literal["exact_match"] = "exact_match"

    ignore_case: Flag = True
    """Upper and lower case are equal."""

    ignore_punctuation: Flag = False
    """Punctuation is left out on both sides."""


class MathRewardConfig(ExtractFields, ComponentConfig):
    """1 where the answer is mathematically equal to the prompt's `reference` (package `math-verify`), else 0."""

    needs_reference: ClassVar[bool] = True

    type: Literal["math"] = "math"


class WordListRewardConfig(ComponentConfig):
    """-1 where the response holds a word or phrase of a list, else 0."""

    type: Literal["toxicity", "refusal"]

    words: PathText | None = None
    """A text file of your own, with a word or phrase a line; `#` begins a comment. Default: a short list in English.
    Relative paths are looked up beside the configuration file, then in the working directory."""


def _wrong_way_round(minimum: int | None, maximum: int | None) -> Iterator[Contradiction]:
    if minimum is not None and maximum is not None and minimum > maximum:
        yield Contradiction(
            ("minimum", "maximum"), f"minimum={minimum} is above maximum={maximum}; nothing is between; swap them"
        )
