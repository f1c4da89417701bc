"""Files whose structure is broken: JSON, JSON lines, tables, Parquet."""

from tests.bad_inputs.data_case import DataCase, demonstrations, preferences
from tests.bad_inputs.data_files import lines, pairs, parquet

_GOOD = lines(pairs(9))
_PAIR = b'{"prompt": "q", "chosen": "a", "rejected": "b"'


def _line(name: str, line: bytes, what: str, remedy: str = "repair or remove the line") -> DataCase:
    """JSON lines whose tenth line is broken."""
    return preferences(name, {"p.jsonl": _GOOD + line + b"\n"}, f"p.jsonl:10: broken JSON ({what}",
                       "one JSON object a line is needed", remedy)  # fmt: skip


def _list(name: str, content: bytes, line: int, what: str) -> DataCase:
    """A JSON list that is broken."""
    return preferences(name, {"p.json": content}, f"p.json:{line}: broken JSON ({what}", "a list of objects is needed",
                       "repair the file from that line on", path="p.json")  # fmt: skip


def _table(name: str, content: str, found: str, needed: str, remedy: str, suffix: str = "csv") -> DataCase:
    return preferences(name, {f"p.{suffix}": content.encode()}, f"p.{suffix}:{found}", needed, remedy,
                       path=f"p.{suffix}")  # fmt: skip


JSON_LINES = [
    _line("line_cut_off", _PAIR, "Expecting ',' delimiter at column 47"),
    _line("single_quotes", b"{'prompt': 'q'}", "Expecting property name enclosed in double quotes at column 2"),
    _line("two_objects_on_a_line", _PAIR + b"}" + _PAIR + b"}", "Extra data at column 48"),
    _line("not_a_number", _PAIR + b', "margin": NaN}', "NaN is no number of JSON", "write null or a number"),
    _line("infinity", _PAIR + b', "margin": -Infinity}', "-Infinity is no number of JSON", "write null or a number"),
    _line("key_twice", _PAIR + b', "chosen": "c"}', "the key `chosen` stands twice in one object",
          "keep one of the two"),
    _line("number_of_5000_digits", _PAIR + b', "margin": ' + b"9" * 5000 + b"}", "Exceeds the limit (4300 digits)",
          "shorten or remove the line"),
    _line("nested_without_end", _PAIR + b', "x": ' + b"[" * 200_000, "maximum recursion depth exceeded",
          "shorten or remove the line"),
    preferences("control_character", {"p.json": _PAIR + b', "x": "\x07"}\n'},
                "p.json:1: broken JSON (Invalid control character at", "one JSON object a line is needed",
                "repair or remove the line", path="p.json"),
    preferences("list_named_jsonl", {"p.jsonl": b'[\n{"prompt": "q"}\n]\n'}, "p.jsonl:1: broken JSON (Expecting value",
                "one JSON object a line is needed", "name it .json if it is one list"),
    preferences("list_on_a_line", {"p.jsonl": b'[{"prompt": "q"}]\n'}, "p.jsonl:1: a JSON list instead of an object",
                'rows of the form {"column": value} are needed', "convert the file"),
    preferences("text_on_a_line", {"p.jsonl": _GOOD + b'"q"\n'}, "p.jsonl:10: a JSON str instead of an object",
                'rows of the form {"column": value} are needed', "convert the file"),
    preferences("null_in_a_list", {"p.json": b"[null]"}, "p.json:1: a JSON NoneType instead of an object",
                'rows of the form {"column": value} are needed', "convert the file", path="p.json"),
    preferences("no_lines", {"p.jsonl": b""}, "p.jsonl: the file has no rows", "at least one is needed",
                "fill it or leave the source out"),
    preferences("blank_lines", {"p.jsonl": b"\n \n\t\n"}, "p.jsonl: the file has no rows", "at least one is needed",
                "fill it or leave the source out"),
    preferences("line_without_end", {"p.jsonl": b'{"prompt": "' + b"x" * (1 << 26)},
                "p.jsonl:1: the line is longer than 64 MiB", "one row a line is needed", "check where the file comes"),
    DataCase("broken_beyond_what_validate_reads", {"p.jsonl": lines(pairs(2100)) + b"{broken\n"},
             {"preferences": {"path": "p.jsonl"}}, "p.jsonl:2101: broken JSON (Expecting property name",
             "one JSON object a line is needed", "repair or remove the line", by="stage"),
]  # fmt: skip

JSON_LISTS = [
    _list("list_cut_off", b"[\n" + _PAIR + b"},\n", 3, "Expecting value"),
    _list("list_without_a_comma", b"[\n" + _PAIR + b"}\n{}]", 3, "Expecting ',' or ']'"),
    _list("list_with_a_comma_too_many", b"[\n" + _PAIR + b"},\n]", 3, "Expecting value"),
    _list("two_lists", b"[" + _PAIR + b"}]\n[{}]", 2, "Extra data"),
    _list("key_twice_in_a_list", b"[\n" + _PAIR + b"},\n" + _PAIR + b', "prompt": "s"}]', 3, "the key `prompt` stands"),
    _list("nan_in_a_list", b"[\n\n" + _PAIR + b', "margin": NaN}]', 3, "NaN is no number of JSON"),
    preferences("empty_list", {"p.json": b" [ ]\n"}, "p.json: the file has no rows", "at least one is needed",
                "fill it or leave the source out", path="p.json"),
    preferences("rows_below_a_key", {"p.json": b'{"data": [{"prompt": "q"}]}'},
                "p.json:1: data.preferences: no format of preferences fits the columns `data`", "needed are",
                "set `data.preferences.format`", path="p.json"),
]  # fmt: skip

TABLES = [
    _table("header_alone", "prompt,chosen,rejected\n", " the file has no rows", "at least one is needed", "fill it"),
    _table("row_too_long", "prompt,chosen,rejected\nq,a,b\nq, well,a,b\n", "3: 4 fields, but the header names 3",
           "as many fields as columns are needed", "quote fields that hold the delimiter"),
    _table("row_too_short", "prompt\tchosen\trejected\nq\ta\n", "2: 2 fields, but the header names 3 columns",
           "as many fields as columns are needed", "quote fields that hold the delimiter", "tsv"),
    _table("semicolons", "prompt;chosen;rejected\nq;a;b\n", "1: one column named `prompt;chosen;rejected`: its fields "
           "are parted by ';'", "',' is needed in a file of this type", "convert it"),
    _table("tabs_in_csv", "prompt\tchosen\trejected\nq\ta\tb\n", "1: one column named `prompt\\tchosen\\trejected`",
           "',' is needed in a file of this type", "rename a table parted by tabs to .tsv"),
    _table("commas_in_tsv", "prompt,chosen,rejected\nq,a,b\n", "1: one column named `prompt,chosen,rejected`",
           "'\\t' is needed in a file of this type", "convert it", "tsv"),
    _table("column_twice", "prompt,chosen,chosen\nq,a,b\n", "1: the header `prompt`, `chosen`, `chosen` names a column "
           "twice", "a first row with one name a column is needed", "repair the header"),
    _table("column_without_name", "prompt,chosen,\nq,a,b\n", "1: the header `prompt`, `chosen`, `` names a column "
           "twice or not at all", "a first row with one name a column is needed", "repair the header"),
    _table("quote_never_closed", 'prompt,chosen,rejected\nq,"a,b\nr,c,d\n', "2: broken table (unexpected end of data)",
           "fields with quotes, delimiters or newlines must be quoted", "repair the row"),
    _table("text_behind_a_quote", 'prompt,chosen,rejected\nq,"a" or so,b\n', "2: broken table (',' expected after",
           "fields with quotes", "repair the row"),
    _table("lines_of_old_macs", "prompt,chosen,rejected\rq,a,b\r", "1: broken table (new-line character seen in",
           "fields with quotes", "repair the row"),
    _table("json_named_csv", '{"prompt": "q", "chosen": "a", "rejected": "b"}\n', "1: JSON instead of a header",
           "a table with one name a column in its first row is needed", "rename the file to .jsonl or .json"),
    _table("table_without_header", "What is it?,Good,Bad\nWho?,A,B\n",
           "2: data.preferences: no format of preferences fits the columns `What is it?`, `Good`, `Bad`", "needed are",
           "set `data.preferences.format`"),
]  # fmt: skip

PARQUET = [
    preferences("parquet_cut_off", {"p.parquet": parquet(pairs(9))[:-20]}, "p.parquet: damaged Parquet file (",
                "a complete one is needed", "fetch or write it again", path="p.parquet"),
    preferences("parquet_of_text", {"p.parquet": _GOOD}, "p.parquet: damaged Parquet file (Parquet magic bytes not",
                "a complete one is needed", "fetch or write it again", path="p.parquet"),
    preferences("parquet_without_bytes", {"p.parquet": b""}, "p.parquet: the file has no rows",
                "at least one is needed", "fill it", path="p.parquet"),
    preferences("parquet_damaged_inside", {"p.parquet": parquet(pairs(9)).replace(b"good 1", b"good \xff")},
                "p.parquet: damaged Parquet file (", "a complete one is needed", "fetch or write it again",
                path="p.parquet"),
    preferences("parquet_of_structs", {"p.parquet": parquet([pairs(1)[0] | {"prompt": {"text": "q"}}])},
                "p.parquet: row 1: data.preferences: column `prompt` holds a dict", "a list of messages",
                "repair the row", path="p.parquet"),
    demonstrations("parquet_of_bytes", {"d.parquet": parquet([{"prompt": "q", "response": b"a"}])},
                   "d.parquet: row 1: data.demonstrations: column `response` holds a bytes (b'a')", "text is needed",
                   "convert the column", path="d.parquet"),
]  # fmt: skip

CASES: list[DataCase] = [*JSON_LINES, *JSON_LISTS, *TABLES, *PARQUET]
