"""Every format in every kind of file: rows as data sets write them come back as the records that they mean.

The texts are Chinese, Arabic and Hebrew (from right to left), Hindi, and emoji of several code points.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data.config import SourceConfig
from data.formats import parse_sources
from data.records import ranking_id
from data.schema import Demonstration, Kind, Message, PreferencePair, PromptRecord, Record, read_records, write_records
from data.sources import read_rows

ASK = "怎么做麻婆豆腐？\n请分步骤说明。"
GOOD = "1. 豆腐切块，焯水。\n2. 下豆瓣酱炒香 \U0001f336\ufe0f\n3. 勾芡出锅。"
BAD = "لا أعرف — אולי מחר \U0001f937\U0001f3fd\u200d\u2640\ufe0f"
EARLIER, REPLY = "नमस्ते, आप कैसे हैं?", 'I\'m fine, "thanks"!\u2028 \tAnd you?'
RULES = "Answer in the user's language; keep to the facts."


def said(*turns: tuple[str, str]) -> tuple[Message, ...]:
    """Messages."""
    return tuple(Message.model_validate({"role": role, "content": content}) for role, content in turns)


def role(name: str, content: str) -> dict[str, str]:
    """A turn as OpenAI writes it."""
    return {"role": name, "content": content}


def share(speaker: str, value: str) -> dict[str, str]:
    """A turn as ShareGPT writes it."""
    return {"from": speaker, "value": value}


TALK = said(("user", EARLIER), ("assistant", REPLY), ("user", ASK))
TOOLS = said(("user", ASK), ("assistant", '{"name": "search", "arguments": {"q": "豆腐"}}'), ("tool", '["豆腐"]'))
HH = f"\n\nHuman: {EARLIER}\n\nAssistant: {REPLY}\n\nHuman: {ASK}\n\nAssistant: "

FORMATS: dict[str, tuple[Kind, list[dict[str, Any]], list[Record]]] = {
    "instruction": (
        "demonstrations",
        [{"instruction": "Translate.", "input": ASK, "output": GOOD, "system": RULES, "history": [[EARLIER, REPLY]]}],
        [Demonstration(
            prompt=said(("system", RULES), ("user", EARLIER), ("assistant", REPLY), ("user", f"Translate.\n\n{ASK}")),
            response=GOOD,
        )],
    ),
    "prompt_response": (
        "demonstrations", [{"prompt": ASK, "response": GOOD}], [Demonstration(prompt=ASK, response=GOOD)],
    ),
    "text": ("demonstrations", [{"text": ASK + GOOD}], [Demonstration(prompt="", response=ASK + GOOD)]),
    "messages": (
        "demonstrations",
        [{"messages": [role("user", ASK), role("assistant", TOOLS[1].content), role("tool", TOOLS[2].content),
                       role("assistant", GOOD)]}],
        [Demonstration(prompt=TOOLS, response=GOOD)],
    ),
    "sharegpt": (
        "demonstrations",
        [{"conversations": [share("human", ASK), share("function_call", TOOLS[1].content),
                            share("observation", TOOLS[2].content), share("gpt", GOOD)], "system": RULES}],
        [Demonstration(prompt=(*said(("system", RULES)), *TOOLS), response=GOOD)],
    ),
    "sharegpt_pair": (
        "preferences",
        [{"conversations": [share("human", EARLIER), share("gpt", REPLY), share("human", ASK)],
          "chosen": share("gpt", GOOD), "rejected": share("gpt", BAD)}],
        [PreferencePair(prompt=TALK, chosen=GOOD, rejected=BAD)],
    ),
    "preference": (
        "preferences",
        [{"prompt": ASK, "chosen": GOOD, "rejected": BAD, "margin": 1.5}],
        [PreferencePair(prompt=ASK, chosen=GOOD, rejected=BAD, margin=1.5)],
    ),
    "preference_messages": (
        "preferences",
        [{"chosen": [role("user", ASK), role("assistant", GOOD)],
          "rejected": [role("user", ASK), role("assistant", BAD)]}],
        [PreferencePair(prompt=said(("user", ASK)), chosen=GOOD, rejected=BAD)],
    ),
    "hh": (
        "preferences",
        [{"chosen": HH + GOOD, "rejected": HH + BAD}],
        [PreferencePair(prompt=TALK, chosen=GOOD, rejected=BAD)],
    ),
    "ranking_by_scores": (
        "preferences",
        [{"prompt": ASK, "responses": [BAD, GOOD, REPLY], "scores": [1.0, 4.5, 1.0]}],
        [
            PreferencePair(
                prompt=ASK,
                chosen=GOOD,
                rejected=text,
                weight=0.5,
                ranking=ranking_id(ASK, [GOOD, REPLY, BAD], [9.0, -1.0, -1.0]),
            )
            for text in (BAD, REPLY)
        ],
    ),
    "ranking_by_ranks": (
        "preferences",
        [{"prompt": [role("user", ASK)], "responses": [BAD, GOOD], "ranks": [2, 1]}],
        [PreferencePair(prompt=said(("user", ASK)), chosen=GOOD, rejected=BAD)],
    ),
    "labeled": (
        "preferences",
        [{"prompt": ASK, "response": GOOD, "label": True}, {"prompt": ASK, "response": BAD, "label": False}],
        [PreferencePair(prompt=ASK, chosen=GOOD, rejected=BAD)],
    ),
    "prompt": ("prompts", [{"prompt": ASK}], [PromptRecord(prompt=ASK)]),
}  # fmt: skip


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _escaped(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def _table(delimiter: str) -> Callable[[list[dict[str, Any]]], bytes]:
    def write(rows: list[dict[str, Any]]) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    return write


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), content)
    return content.getvalue()


def _arrow(open_writer: Any) -> Callable[[list[dict[str, Any]]], bytes]:
    def write(rows: list[dict[str, Any]]) -> bytes:
        content, table = io.BytesIO(), pyarrow.Table.from_pylist(rows)
        with open_writer(content, table.schema) as writer:
            writer.write_table(table)
        return content.getvalue()

    return write


def _zstd(rows: list[dict[str, Any]]) -> bytes:
    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(_lines(rows))
    return bytes(packed.getvalue())


FILES: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "rows.jsonl": _lines,
    "rows.ndjson": _lines,
    "rows.json": _escaped,
    "rows.parquet": _parquet,
    "file.arrow": _arrow(pyarrow.ipc.new_file),
    "stream.arrow": _arrow(pyarrow.ipc.new_stream),
    "rows.jsonl.gz": lambda rows: gzip.compress(_lines(rows)),
    "rows.jsonl.zst": _zstd,
    "rows.csv": _table(","),
    "rows.tsv": _table("\t"),
}
FLAT = {"prompt_response", "text", "preference", "hh", "prompt"}


@pytest.mark.parametrize(
    ("form", "file"),
    [(form, file) for form in FORMATS for file in FILES if form in FLAT or not file.endswith(("csv", "tsv"))],
)
def test_rows_come_back_as_the_records_that_they_mean(form: str, file: str, tmp_path: Path) -> None:
    kind, rows, expected = FORMATS[form]
    path = tmp_path / file
    path.write_bytes(FILES[file](rows))
    source = SourceConfig(path=str(path))
    read = read_rows(source, None, name=f"data.{kind}")
    (parsed,) = parse_sources([(f"data.{kind}", source, read)], kind, quarantine=tmp_path / "quarantine.jsonl")
    assert parsed.records == expected and not parsed.quarantine
    write_records(tmp_path / "records.jsonl", parsed.records)
    assert read_records(tmp_path / "records.jsonl", kind) == expected


@pytest.mark.parametrize("form", FORMATS)
def test_prompts_and_demonstrations_are_read_from_what_holds_more(form: str, tmp_path: Path) -> None:
    kind, rows, records = FORMATS[form]
    first = records[0]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(_lines(rows))
    source = SourceConfig(path=str(path))

    def read(wanted: Kind) -> list[Record]:
        found = parse_sources([("x", source, read_rows(source, None, name="x"))], wanted, quarantine=tmp_path / "q")
        return list(found[0].records)

    if form != "text":
        assert read("prompts") == [PromptRecord(prompt=first.prompt)]
    if isinstance(first, PreferencePair):
        assert read("demonstrations") == [Demonstration(prompt=first.prompt, response=first.chosen)]


def test_a_table_holds_lists_as_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(_table(",")([{"prompt": ASK, "responses": json.dumps([BAD, GOOD]), "scores": "[1, 2]"}]))
    source = SourceConfig(path=str(path))
    (parsed,) = parse_sources([("x", source, read_rows(source, None, name="x"))], "preferences", quarantine=tmp_path)
    assert parsed.records == [PreferencePair(prompt=ASK, chosen=GOOD, rejected=BAD)]
