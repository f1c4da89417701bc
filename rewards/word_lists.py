"""Words and phrases that a response should not hold.

A list finds what it names and nothing else: it knows neither irony nor quotation. Those that come with the package are
short and in English; name a file for anything that matters.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import regex

from data.errors import ConfigError
from rewards.contract import Episode
from rewards.rule_config import WordListRewardConfig

_FOLDER = Path(__file__).with_name("words")
_MOST_BYTES = 1 << 20
_MOST_WORDS = 20_000
# A word ends where its letters end, but not in scripts that write without spaces.
_LETTER = r"[[\p{L}\p{M}\p{N}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"


class WordListReward:
    """-1 where a response holds a word of the list, else 0."""

    def __init__(self, config: WordListRewardConfig, config_dir: Path | None) -> None:
        """Read the list.

        Raises:
            ConfigError: It cannot be read, or is empty or too long.
        """
        words = sorted(read_words(words_file(config, config_dir), f"{config.setting}.words"), key=len, reverse=True)
        alternatives = "|".join(regex.escape(word, literal_spaces=True).replace(" ", r"\s+") for word in words)
        self._pattern = regex.compile(f"(?<!{_LETTER})(?:{alternatives})(?!{_LETTER})", regex.VERSION1)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """-1 or 0 an episode."""
        found = [self._pattern.search(folded(episode.response_text)) for episode in episodes]
        return [0.0 if match is None else -1.0 for match in found]


def words_file(config: WordListRewardConfig, config_dir: Path | None) -> Path:
    """The file of a list.

    Raises:
        ConfigError: There is none.
    """
    if config.words is None:
        return _FOLDER / f"{config.type}.en.txt"
    given = Path(config.words).expanduser()
    candidates = [given] if given.is_absolute() else [folder / given for folder in (config_dir, Path()) if folder]
    for path in candidates:
        if path.is_file():
            return path
    tried = " or ".join(dict.fromkeys(map(str, candidates)))
    raise ConfigError(
        f"{config.setting}.words={config.words!r}: no file at {tried}; a text file with a word or phrase a line is "
        f"needed: correct the path, or leave it out for the list of the package"
    )


def read_words(path: Path, setting: str) -> list[str]:
    """The words and phrases of a file, folded, each once.

    Args:
        path: UTF-8, one a line; `#` begins a comment.
        setting: Its key, for messages.

    Raises:
        ConfigError: The file cannot be read, or is empty or too long.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{setting}: {path} cannot be read ({error}); a text file in UTF-8 is needed: correct it"
        ) from error
    words = list(dict.fromkeys(word for line in lines if (word := folded(line.partition("#")[0]).strip())))
    if len(content) > _MOST_BYTES or len(words) > _MOST_WORDS:
        raise ConfigError(
            f"{setting}: {path} has more than {_MOST_WORDS} words or {_MOST_BYTES >> 20} MiB; a short list is needed: "
            f"shorten it, or use `{{type: python, ...}}`"
        )
    if not words:
        raise ConfigError(f"{setting}: {path} names no word; at least one is needed: write a word or phrase a line")
    return words


def folded(text: str) -> str:
    """Text as it is compared: compatible forms of characters and upper and lower case unified, apostrophes straight."""
    return unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
