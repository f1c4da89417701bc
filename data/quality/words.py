"""Words and their sequences, in any script."""

import re
from collections.abc import Sequence

from data.schema import Demonstration, PreferencePair, Prompt, Record

# Chinese, Japanese and Korean are written without spaces: there a character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|\w+")


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def ngrams(words: Sequence[str], size: int) -> set[str]:
    """Sequences of so many words; all words as one where there are fewer, none where there are none."""
    if not words:
        return set()
    return {" ".join(words[start : start + size]) for start in range(max(len(words) - size + 1, 1))}


def prompt_text(prompt: Prompt) -> str:
    """What a prompt says, system text left out: many prompts share it."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn.content for turn in prompt if turn.role != "system")


def record_texts(record: Record) -> tuple[str, ...]:
    """All texts of a record: the prompt, then its responses."""
    prompt = prompt_text(record.prompt)
    match record:
        case Demonstration():
            return prompt, record.response
        case PreferencePair():
            return prompt, record.chosen, record.rejected
        case _:
            return (prompt,)
