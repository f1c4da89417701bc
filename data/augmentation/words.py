"""Other words in a text: some replaced, some left out. Code, addresses and numbers stay as they are."""

import random
import re
from collections.abc import Callable

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_TOKEN = re.compile(r"\S+")
_NO_WORD = re.compile(r"://|[@\d_\\=<>{}\[\]/]")
_WORD = re.compile(r"(?<![\w'’-])[^\W\d_]+(?![\w'’-])")
_WITH_SPACE = re.compile(r"(?<!\S)\S+[^\S\n]*")
_HIDDEN = "\0"
_SENTENCE_ENDS = ".!?:\n"

# Their first meaning in a dictionary is hardly ever the one that they have in a sentence.
_FUNCTION_WORDS = frozenset(
    "about above after again also although always another around because been before being below between both could "
    "does doing done down during each either else even ever every from give given going gone have having here however "
    "into just kind know less like likewise made make many maybe might more most much must need neither never next "
    "none once only other otherwise over please rather same shall should since some somebody someone something such "
    "take than that their them then there therefore these they thing this those though through thus together under "
    "until upon very want well were what when where whether which while whom whose will with within without would "
    "your".split()
)
_FEWEST_LETTERS = 4


def replace_words(text: str, share: float, synonyms: Callable[[str], tuple[str, ...]], rng: random.Random) -> str:
    """Replace some words by synonyms (Wei and Zou 2019, section 2).

    Args:
        text: A prompt.
        share: Of the words; one at least is replaced where any can be.
        synonyms: Of a word in small letters.
        rng: Chooses words and synonyms.

    Returns:
        The text, unchanged where no word has a synonym. A replacement begins with a capital where the word did; words
        with a capital inside a sentence are names and stay.
    """
    words = [match.span() for match in _WORD.finditer(_hidden(text))]
    found = {
        (start, end): options
        for start, end in words
        if (word := text[start:end]).lower() not in _FUNCTION_WORDS
        and len(word) >= _FEWEST_LETTERS
        and word[1:].islower()
        and (word[0].islower() or _begins_sentence(text, start))
        and (options := synonyms(word.lower()))
    }
    chosen = rng.sample(sorted(found), min(_count(len(words), share), len(found)))
    for start, end in sorted(chosen, reverse=True):
        new = rng.choice(found[start, end])
        text = text[:start] + (new[0].upper() + new[1:] if text[start].isupper() else new) + text[end:]
    return text


def delete_words(text: str, share: float, rng: random.Random) -> str:
    """Leave some words out, with what is written against them and the space after (Wei and Zou 2019, section 2).

    Args:
        text: A prompt.
        share: Of the words; one at least goes where there are two.
        rng: Chooses the words.

    Returns:
        The text, unchanged where it has fewer than two words, say because its language puts no spaces between them.
    """
    words = [match.span() for match in _WITH_SPACE.finditer(_hidden(text)) if _HIDDEN not in match[0]]
    if len(words) < 2:
        return text
    for start, end in sorted(rng.sample(words, min(_count(len(words), share), len(words) - 1)), reverse=True):
        text = text[:start] + text[end:]
    return text


def _count(num_words: int, share: float) -> int:
    return max(1, round(share * num_words))


def _hidden(text: str) -> str:
    """A text of the same length, with zeros for Markdown's code, addresses, and what has a digit or a sign in it."""
    text = _CODE.sub(lambda match: _HIDDEN * len(match[0]), text)
    return _TOKEN.sub(lambda match: _HIDDEN * len(match[0]) if _NO_WORD.search(match[0]) else match[0], text)


def _begins_sentence(text: str, start: int) -> bool:
    """Whether nothing but signs stands between a word and the beginning of its sentence."""
    while start > 0 and not text[start - 1].isalnum():
        start -= 1
        if text[start] in _SENTENCE_ENDS:
            return True
    return start == 0
