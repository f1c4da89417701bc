"""English synonyms from WordNet (Fellbaum 1998), read by NLTK from a folder on this machine."""

import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from data.config import absolute_path
from data.errors import ConfigError

FILES = ("index.noun", "data.noun", "index.verb", "data.verb", "index.adj", "data.adj", "index.adv", "data.adv")
"""Of the database."""

_SYSTEM_FOLDERS = ("/usr/share/wordnet", "/usr/local/share/wordnet", "/opt/homebrew/opt/wordnet/dict")
_NUM_LEXNAMES = 45


def wordnet_folder(name: str | None, config_dir: Path | None, setting: str) -> Path:
    """Find WordNet's database.

    Args:
        name: The folder, if the user names one.
        config_dir: Folder of the configuration file, for relative paths.
        setting: The step's key in the configuration, for messages.

    Raises:
        ConfigError: It is not there.
    """
    given = [absolute_path(name, config_dir)] if name is not None else []
    for folder in given or [*_nltk_folders(), *map(Path, _SYSTEM_FOLDERS)]:
        if all((folder / file).is_file() for file in FILES):
            return folder
    where = f"in {given[0]}" if given else "on this machine"
    raise ConfigError(
        f"{setting}: no database of WordNet {where}; its files `index.noun`, `data.noun` and so on are needed: install "
        f"Debian's package `wordnet-base`, or run `python -m nltk.downloader wordnet` and unpack it, or name the "
        f"folder by `wordnet`"
    )


def _nltk_folders() -> list[Path]:
    """Where NLTK's downloader puts it."""
    return [Path.home() / "nltk_data/corpora/wordnet", Path("/usr/share/nltk_data/corpora/wordnet")]


class Synonyms:
    """Synonyms of words in their most frequent meaning."""

    def __init__(self, folder: Path) -> None:
        """Open the database."""
        self._reader = _reader(folder)
        self._find = cache(self._found)

    def __call__(self, word: str) -> tuple[str, ...]:
        """Words that mean the same where this one stands alone.

        Only words in their base form, so that endings stay right, and only those of which one meaning makes up half of
        all uses or more in WordNet's tagged texts: of others nobody knows which is meant. The same holds of the
        synonym, which has to mostly mean this, too.

        Args:
            word: In small letters.

        Returns:
            Single words in WordNet's order; none where nothing is known.
        """
        return self._find(word)

    def _found(self, word: str) -> tuple[str, ...]:
        synset = self._main_meaning(word)
        if synset is None:
            return ()
        names = [lemma.name() for lemma in synset.lemmas()]
        return tuple(
            name
            for name in names
            if name != word and name.isalpha() and name.islower() and self._main_meaning(name) == synset
        )

    def _main_meaning(self, word: str) -> Any:
        """The synset that a word is mostly used for; None where there is no such one."""
        uses = [
            (lemma.count(), synset)
            for synset in self._reader.synsets(word)
            for lemma in synset.lemmas()
            if lemma.name() == word
        ]
        most, synset = max(uses, key=lambda use: use[0], default=(0, None))
        is_main = len(uses) == 1 or (most > 0 and 2 * most >= sum(count for count, _ in uses))
        return synset if is_main else None


@cache
def _reader(folder: Path) -> Any:
    import nltk.data  # late: a second, and only those who ask for synonyms wait for it
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):  # type: ignore[misc]
        """Of the database alone: what NLTK's download has beside it serves other languages and is not used here."""

        def open(self, file: str) -> Any:
            if file == "lexnames" and not (folder / file).is_file():  # Debian's package leaves it out
                return io.StringIO("".join(f"{number:02d}\tname{number}\t1\n" for number in range(_NUM_LEXNAMES)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """No numbers of other versions of WordNet, which only those languages need."""

    if str(folder) not in nltk.data.path:  # NLTK reads below these folders alone
        nltk.data.path.append(str(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The multilingual functions")
        return Reader(str(folder), None)
