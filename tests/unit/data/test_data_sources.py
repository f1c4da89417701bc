"""Files, folders, globs, samples and hub data sets as sources of rows."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.config import SourceConfig
from data.errors import DataError
from data.sources import read_rows, source_digest, source_files


def write(path: Path, *values: int) -> Path:
    """A JSON lines file of numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"n": value}) + "\n" for value in values))
    return path


def numbers(source: SourceConfig, config_dir: Path | None = None) -> list[int]:
    """What a source of numbers holds."""
    return [row.values["n"] for row in read_rows(source, config_dir, name="data.prompts")]


def test_folder_is_read_recursively_and_sorted(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", 2)
    write(tmp_path / "a.jsonl", 1)
    write(tmp_path / "sub" / "c.jsonl", 3)
    write(tmp_path / ".git" / "d.jsonl", 4)
    (tmp_path / "README.md").write_text("no data")
    assert numbers(SourceConfig(path=str(tmp_path))) == [1, 2, 3]


def test_glob_and_limit(tmp_path: Path) -> None:
    write(tmp_path / "x" / "train.jsonl", 1, 2)
    write(tmp_path / "y" / "train.jsonl", 3, 4)
    write(tmp_path / "y" / "test.jsonl", 5)
    assert numbers(SourceConfig(path=f"{tmp_path}/**/train.jsonl")) == [1, 2, 3, 4]
    assert numbers(SourceConfig(path=f"{tmp_path}/*/train.jsonl", limit=3)) == [1, 2, 3]


def test_limit_reads_no_further(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 1, 2)
    path.write_text(path.read_text() + "{broken\n")
    assert numbers(SourceConfig(path=str(path), limit=2)) == [1, 2]


def test_relative_paths_are_looked_up_beside_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_dir = tmp_path / "configs"
    write(config_dir / "a.jsonl", 1)
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    assert numbers(SourceConfig(path="a.jsonl"), config_dir) == [1]
    assert numbers(SourceConfig(path="*.jsonl"), config_dir) == [1]
    write(working / "a.jsonl", 2)
    assert numbers(SourceConfig(path="a.jsonl"), config_dir) == [2]
    assert numbers(SourceConfig(path="*.jsonl"), config_dir) == [2]


def test_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].jsonl", 1)
    assert numbers(SourceConfig(path=str(path))) == [1]


def test_shipped_samples() -> None:
    rows = list(read_rows(SourceConfig(path="samples:openings.jsonl", limit=1), None, name="data.prompts"))
    assert set(rows[0].values) >= {"prompt"}
    assert rows[0].origin.endswith("openings.jsonl:1")
    assert source_files(SourceConfig(path="samples:openings"), None) == source_files(
        SourceConfig(path="samples:openings.jsonl"), None
    )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gone.jsonl", "data.prompts: there is no such file or folder in "),
        ("*.gone", "*.gone: data.prompts: no file matches this glob"),
        ("empty", "data.prompts: the folder holds no data file; files with .jsonl"),
        ("samples:gone", "data.prompts: no such sample is shipped; one of these is needed: demonstrations"),
        ("samples:../config.py", "samples:../config.py: data.prompts: no such sample"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        numbers(SourceConfig(path=path))
    assert expected in str(error.value)
    assert "correct `data.prompts.path`" in str(error.value)


def test_digest_covers_bytes_and_names_but_not_the_place(tmp_path: Path) -> None:
    def digest(folder: str) -> str:
        return source_digest(SourceConfig(path=str(tmp_path / folder)), None)

    for folder in ("one", "two"):
        write(tmp_path / folder / "a.jsonl", 1)
        write(tmp_path / folder / "b" / "c.jsonl", 2)
    assert digest("one") == digest("two")
    assert source_digest(SourceConfig(path=f"{tmp_path}/one/**/*.jsonl"), None) == digest("one")
    write(tmp_path / "two" / "b" / "c.jsonl", 3)
    changed = digest("two")
    assert changed != digest("one")
    write(tmp_path / "two" / "b" / "c.jsonl", 2)
    assert digest("two") == digest("one")
    (tmp_path / "two" / "a.jsonl").rename(tmp_path / "two" / "z.jsonl")
    assert digest("two") not in (digest("one"), changed)


def fake_datasets(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    """Put a stand-in for `datasets` in place: nothing here may reach the network."""
    errors = SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))
    module = SimpleNamespace(load_dataset=load, get_dataset_config_names=lambda *_, **__: ["main"], exceptions=errors)
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def load(path: str, **options: Any) -> list[dict[str, int]]:
        calls.append({"path": path, **options})
        return [{"n": 1}, {"n": 2}]

    fake_datasets(monkeypatch, load)
    source = SourceConfig(hub="a/b", config="main", split="test", revision="abc", limit=1)
    rows = list(read_rows(source, None, name="data.prompts"))
    assert [(row.values, row.origin) for row in rows] == [({"n": 1}, "a/b[test]: row 1")]
    assert calls == [{"path": "a/b", "split": "test", "revision": "abc", "streaming": False, "name": "main"}]
    list(read_rows(SourceConfig(hub="a/b", config="harmless-base"), None, name="data.prompts"))
    assert calls[1].pop("streaming") is False
    assert calls[1] == {"path": "a/b", "split": "train", "revision": None, "data_dir": "harmless-base"}
    assert source_files(source, None) == []


def test_a_streamed_data_set_is_read_no_further_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def stream() -> Iterator[dict[str, int]]:
        for number in range(1, 1000):
            taken.append(number)
            yield {"n": number}

    fake_datasets(monkeypatch, lambda path, **options: stream() if options["streaming"] else None)
    assert numbers(SourceConfig(hub="a/b", streaming=True, limit=3)) == [1, 2, 3]
    assert taken == [1, 2, 3]


@pytest.mark.parametrize("kind", [ConnectionError, ValueError, FileNotFoundError])
def test_hub_failure_is_an_error_of_the_user(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def load(path: str, **options: Any) -> None:
        raise kind("no such thing")

    fake_datasets(monkeypatch, load)
    with pytest.raises(DataError, match=r"a/b\[train\]: data.prompts: .*no such thing.*; .*; correct"):
        numbers(SourceConfig(hub="a/b"))


def test_hub_digest_covers_id_config_split_and_revision() -> None:
    sources = [
        SourceConfig(hub="a/b"),
        SourceConfig(hub="a/c"),
        SourceConfig(hub="a/b", config="x"),
        SourceConfig(hub="a/b", split="test"),
        SourceConfig(hub="a/b", revision="abc"),
    ]
    assert len({source_digest(source, None) for source in sources}) == len(sources)
    assert source_digest(SourceConfig(hub="a/b", limit=3), None) == source_digest(sources[0], None)
