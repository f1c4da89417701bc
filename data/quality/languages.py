"""Which languages the records are in, by `py3langid` (Lui and Baldwin 2012, "langid.py", retrained)."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence

_MAX_CHARS = 500
_MIN_LETTERS = 12


def languages_of(texts: Sequence[str], sample: int) -> Counter[str]:
    """Count the languages of a sample of texts.

    Args:
        texts: One a record.
        sample: At most so many are looked at, chosen by a hash of the text.

    Returns:
        Number of texts by ISO 639-1 code; `unclear` where a text has fewer than twelve letters, too few to tell (in
        scripts that write a word by one or two characters, fewer than four).
    """
    chosen = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())[:sample]
    return Counter(_language(text[:_MAX_CHARS]) for text in chosen)


def _language(text: str) -> str:
    from py3langid import classify  # late: it reads its model

    letters = [character for character in text if character.isalpha()]
    weight = sum(3 if unicodedata.east_asian_width(letter) == "W" else 1 for letter in letters)
    return str(classify(text)[0]) if weight >= _MIN_LETTERS else "unclear"
