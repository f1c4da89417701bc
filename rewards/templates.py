"""Whether a response has a form: JSON, elements in an order, so many sentences.

Forms that a program can check, as in Zhou et al. 2023 (IFEval, https://arxiv.org/abs/2311.07911) and the format reward
of DeepSeek-AI 2025 (https://arxiv.org/abs/2501.12948).
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from rewards.contract import Episode
from rewards.rule_config import (
    CountTemplateConfig,
    FormatRewardConfig,
    JsonTemplateConfig,
    TagsTemplateConfig,
)

# Full stops end a sentence before white space or at the end, but those of Chinese and Japanese anywhere.
_SENTENCE_END = re.compile(
    r"[.!?\u2026]+[\"'\u201d\u2019)\]]*(?=\s|$)|[\u3002\uff01\uff1f]+[\u201d\u2019\u300d\u300f\uff09]*"
)
_BULLET = re.compile(r"\s*(?:[-*+\u2022]|\d{1,3}[.)])\s+\S")


class FormatReward:
    """1 where a response fits a template, else 0."""

    def __init__(self, config: FormatRewardConfig) -> None:
        """Keep the template."""
        self._template = config.template

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """1 or 0 an episode."""
        return [float(fits(episode.response_text, self._template)) for episode in episodes]


def fits(text: str, template: JsonTemplateConfig | TagsTemplateConfig | CountTemplateConfig) -> bool:
    """Whether a text has the form of a template."""
    match template:
        case JsonTemplateConfig():
            return _is_json(text, template.keys)
        case TagsTemplateConfig():
            return _has_elements(text, template.names)
        case CountTemplateConfig():
            count = count_of(text, template.of)
            low, high = template.minimum, template.maximum
            return (low is None or count >= low) and (high is None or count <= high)


def count_of(text: str, what: str) -> int:
    """How many sentences, bullets, lines or paragraphs a text has.

    A text that ends without a full stop ends its last sentence; abbreviations count as ends of sentences. Empty lines
    are none.
    """
    match what:
        case "sentences":
            return sum(1 for part in _SENTENCE_END.split(text) if part.strip())
        case "bullets":
            return sum(1 for line in text.split("\n") if _BULLET.match(line))
        case "lines":
            return sum(1 for line in text.split("\n") if line.strip())
        case _:
            return sum(1 for part in re.split(r"\n[^\S\n]*\n", text) if part.strip())


def _is_json(text: str, keys: Sequence[str]) -> bool:
    try:
        value: Any = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # a number of 5000 digits is a ValueError, too
        return False
    return not keys or (isinstance(value, dict) and all(key in value for key in keys))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _has_elements(text: str, tags: Sequence[str]) -> bool:
    """Step by step, without a pattern that could wander."""
    rest = text.strip()
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1 or not rest.startswith(opening):
            return False
        _, found, rest = rest.partition(closing)
        if not found:
            return False
        rest = rest.lstrip()
    return not rest
