"""What fuzzing the readers found, and what a user's broken files showed beside it."""

import datetime
import decimal
import io
import os
from pathlib import Path
from typing import Any

import pytest

from data.config import SourceConfig
from data.errors import DataError
from data.files import open_data_file
from data.formats import parse_demonstrations, parse_preferences
from data.readers import read_file
from data.rows import Row
from data.shown import described, nearest, shown, shown_list
from data.sources import read_rows, source_digest, source_files


def chat(*turns: Any) -> Row:
    """A row of messages."""
    return Row({"messages": list(turns)}, "f.jsonl:1")


@pytest.mark.parametrize("role", [[], {}, [["user"]], 1, None])
def test_a_role_that_is_no_text_is_an_error_of_the_data(role: Any) -> None:
    # Found by fuzzing: an unhashable role ended in a TypeError.
    with pytest.raises(DataError, match=r"column `messages` holds the role .* at 0; a list of messages"):
        parse_demonstrations([chat({"role": role, "content": "a"})], name="data.demonstrations")


def test_text_that_is_not_utf_8_inside_parquet_is_an_error_of_the_data(tmp_path: Path) -> None:
    # Found by fuzzing: one flipped bit ended in a UnicodeDecodeError.
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist([{"prompt": "seek me"}])
    pyarrow.parquet.write_table(table, buffer, compression="none", use_dictionary=False)
    path = tmp_path / "a.parquet"
    path.write_bytes(buffer.getvalue().replace(b"seek me", b"seek \xe0e"))
    with pytest.raises(DataError, match=r"a\.parquet: damaged Parquet file \(.*\); a complete one is needed; fetch"):
        list(read_file(path))


def test_parquet_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"the columns `prompt`, `prompt` have a name twice; one name a column"):
        list(read_file(tmp_path / "a.parquet"))


@pytest.mark.parametrize("margin", [10**400, True, [1], "nan"])
def test_a_margin_that_is_no_number_is_an_error_of_the_data(margin: Any) -> None:
    row = Row({"prompt": "q", "chosen": "a", "rejected": "b", "margin": margin}, "f.jsonl:1")
    with pytest.raises(DataError, match="column `margin` holds .*; a finite number is needed; correct it"):
        parse_preferences([row], name="data.preferences")


def test_a_file_whose_name_is_no_text_is_read_and_has_a_digest(tmp_path: Path) -> None:
    # Its label holds halves of characters, which an encoder refuses.
    path = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"prompt": "q"}\n')
    source = SourceConfig(path=str(tmp_path))
    assert [row.values for row in read_rows(source, None, name="data.prompts")] == [{"prompt": "q"}]
    assert len(source_digest(source, None)) == 64
    os.rename(path, os.fsencode(tmp_path) + b"/caf\xe8.jsonl")
    assert source_digest(source, None) != source_digest(SourceConfig(path="samples:openings"), None)


def test_place_is_below_the_folder_and_origin_is_the_whole_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jsonl").write_text('\n{"prompt": "q"}\n')
    (row,) = read_rows(SourceConfig(path=str(tmp_path)), None, name="data.prompts")
    assert (row.place, row.origin) == ("sub/a.jsonl:2", f"{tmp_path}/sub/a.jsonl:2")


def test_links_to_files_are_read_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.jsonl").write_text('{"n": 1}\n')
    here = tmp_path / "here"
    here.mkdir()
    (here / "a.jsonl").symlink_to("../there/a.jsonl")
    (here / "b").symlink_to("../there")
    expected = [here / "a.jsonl"]
    assert source_files(SourceConfig(path=str(here)), None) == expected
    assert source_files(SourceConfig(path=f"{here}/**/*.jsonl"), None) == expected
    assert source_files(SourceConfig(path=f"{here}/b/*.jsonl"), None) == [here / "b" / "a.jsonl"]


def test_glob_leaves_hidden_files_out_unless_it_names_them(tmp_path: Path) -> None:
    for name in ("a.jsonl", ".b.jsonl"):
        (tmp_path / name).write_text('{"n": 1}\n')
    assert [path.name for path in source_files(SourceConfig(path=f"{tmp_path}/*.jsonl"), None)] == ["a.jsonl"]
    assert [path.name for path in source_files(SourceConfig(path=f"{tmp_path}/.*.jsonl"), None)] == [".b.jsonl"]


def test_much_repetition_is_no_bomb(tmp_path: Path) -> None:
    import gzip

    # 40 MiB of one short row pack some 300 times as the last bytes are read; half noise brings it to what text does.
    noise = os.urandom(1 << 19).hex()
    content = "".join(f'{{"prompt": "{noise[at : at + 64]}{"x" * 2000}"}}\n' for at in range(0, 1 << 20, 64)).encode()
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(content, mtime=0))
    with open_data_file(path) as file:
        assert file.read() == content


def test_values_are_shown_on_one_printable_line() -> None:
    assert shown("a\n\x1b[31m\ud83d") == "a\\n\\x1b[31m\\ud83d"
    assert shown("x" * 99) == "x" * 37 + "..."
    assert shown_list([]) == "none" and shown_list(["a", "b"]) == "`a`, `b`"
    assert shown_list(str(n) for n in range(14)).endswith("`11` and 2 more")
    assert described({"a": [1] * 10**5}) == "a dict of 1"
    assert described(decimal.Decimal("1.5")) == "a Decimal (Decimal('1.5'))"
    assert described(datetime.date(2026, 1, 2)) == "a date (datetime.date(2026, 1, 2))"


def test_nearest_name() -> None:
    assert nearest("response", {"respones": 1, "prompt": 2}) == "respones"
    assert nearest("prompt", {"Prompt": 1}) == "Prompt"
    assert nearest("prompt", {"question": 1}) == ""
