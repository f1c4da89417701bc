"""Synonyms from a database in WordNet's own form (wndb(5)), which the tests write."""

from pathlib import Path

import pytest

from data.augmentation.wordnet import Synonyms, wordnet_folder
from data.errors import ConfigError

# Synsets: (lemmas), with the times that each lemma was tagged with this meaning.
SYNSETS = [
    {"auto": 2, "automobile": 0, "car": 71, "motorcar": 0},
    {"car": 3, "gondola": 0},
    {"motorcar": 0, "engine": 1},
    {"bank": 20, "riverside": 0},
    {"bank": 19, "depository": 0},
    {"bank": 2, "tier": 0},
    {"lift": 0, "elevator": 0},
    {"lift": 0, "upgrade": 0},
    {"gelid": 0, "ice_cold": 0, "ice-cold": 0, "Arctic": 0, "frosty": 0},
]


def write_wordnet(folder: Path, synsets: list[dict[str, int]]) -> Path:
    """A database of nouns."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets: list[int] = []
    lines = b"  1 A header line, as the files have them.\n"
    for number, lemmas in enumerate(synsets):
        offsets.append(len(lines))
        words = " ".join(f"{lemma} {number:x}" for lemma in lemmas)
        lines += f"{offsets[-1]:08d} 03 n {len(lemmas):02x} {words} 000 | a thing\n".encode()
    senses: dict[str, list[int]] = {}
    for number, lemmas in enumerate(synsets):
        for lemma in lemmas:
            senses.setdefault(lemma.lower(), []).append(number)
    index = "".join(
        f"{lemma} n {len(found)} 0 {len(found)} 0 {' '.join(f'{offsets[each]:08d}' for each in found)}  \n"
        for lemma, found in sorted(senses.items())
    )
    (folder / "data.noun").write_bytes(lines)
    (folder / "index.noun").write_text("  1 A header line.\n" + index, encoding="utf-8")
    counts = sorted(
        f"{lemma.lower()}%1:03:{number:02d}:: 1 {count}"
        for number, lemmas in enumerate(synsets)
        for lemma, count in lemmas.items()
        if count
    )
    (folder / "cntlist.rev").write_text("".join(f"{line}\n" for line in counts), encoding="utf-8")
    for part in ("verb", "adj", "adv"):
        for file in ("data", "index"):
            (folder / f"{file}.{part}").write_text("  1 A header line.\n", encoding="utf-8")
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"{part}.exc").write_text("", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("car", ("auto", "automobile")),
        ("bank", ()),
        ("lift", ()),
        ("gelid", ("frosty",)),
        ("cars", ()),
        ("unknown", ()),
    ],
    ids=["main_meaning", "no_main_meaning", "never_tagged", "no_names_and_several_words", "inflected", "unknown"],
)
def test_synonyms_of_the_meaning_that_a_word_mostly_has(word: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    assert Synonyms(write_wordnet(tmp_path, SYNSETS))(word) == expected


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        wordnet_folder("words", tmp_path, "data.augmentation.0")
    assert str(error.value).startswith(f"data.augmentation.0: no database of WordNet in {Path('words')}; its files")
    folder = write_wordnet(tmp_path / "words", SYNSETS)
    assert wordnet_folder("words", tmp_path, "x") == folder
    (folder / "data.adv").unlink()
    with pytest.raises(ConfigError, match="install Debian's package `wordnet-base`"):
        wordnet_folder("words", tmp_path, "x")
