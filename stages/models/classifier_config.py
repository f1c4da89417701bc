"""A ready reward model: a sequence classifier that nobody trains here. Imports pydantic only."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from data.strict import Contradiction, Flag, PathText, Section, Text
from stages.models.config import ModelConfig

CLASSIFIER_FILE = "classifier.json"
"""In the artifact of a ready reward model, which has no adapter."""

_OF_A_BASE = ("base", "revision", "dtype", "attention", "trust_remote_code", "chat_template")


class ClassifierConfig(Section):
    """A model that `AutoModelForSequenceClassification` loads, with a tokenizer of its own."""

    base: PathText
    """A hub id, or a local folder."""

    revision: Text | None = None
    """Commit or branch of the hub model."""

    dtype: Literal["bfloat16", "float32", "float16"] = "float32"
    """Type of the weights and of the computation."""

    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation of transformers. Some encoders know `eager` alone."""

    trust_remote_code: Flag = False
    """Run code that the model's repository brings. Off unless you have read that code."""

    chat_template: PathText | None = None
    """A Jinja file that replaces the tokenizer's chat template."""

    form: Literal["auto", "chat", "pair", "text"] = "auto"
    """How it reads an episode. `chat`: the conversation with the response as its last turn, by the chat template.
    `pair`: prompt and response as the two texts of a pair, as question and answer models are trained. `text`: one text.
    `auto` is `chat` where there is a template, else `text`."""

    label: int | Text | None = Field(default=None)
    """Which of several labels is the score, by number or name; its logit is taken. Not needed where there is one."""

    max_length: int | None = Field(default=None, ge=2)
    """Longest episode in tokens. Default: what the model knows positions for, and its tokenizer says."""

    def as_model(self) -> ModelConfig:
        """The section of a base with these files, for what looks at files alone."""
        return ModelConfig.model_validate({name: getattr(self, name) for name in _OF_A_BASE})

    def contradictions(self) -> Iterator[Contradiction]:
        """Values that no base can have at once."""
        yield from ModelConfig.model_construct(**{name: getattr(self, name) for name in _OF_A_BASE}).contradictions()
