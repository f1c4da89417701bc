"""Rows that are not what the configuration says: columns, types, formats, sizes and splits."""

from typing import Any

from tests.bad_inputs.data_case import DataCase, demonstrations, preferences, prompts
from tests.bad_inputs.data_files import Rows, demos, pairs, turn


def _added(**values: Any) -> dict[str, bytes | Rows]:
    """Good pairs and a row of other values."""
    return {"p.jsonl": [*pairs(30), values]}


COLUMNS = [
    demonstrations("columns_of_no_format", {"d.jsonl": [{"question": "q", "answer": "a"}]},
                   "d.jsonl:1: data.demonstrations: no format of demonstrations fits the columns `question`, `answer`",
                   "needed are instruction and output (instruction); prompt and response (prompt_response)",
                   "rename columns with `data.demonstrations.columns: {needed: present}`"),
    demonstrations("columns_misspelt", {"d.jsonl": [{"Prompt": "q", "respones": "a"}]},
                   "no format of demonstrations fits the columns `Prompt`, `respones`", "needed are",
                   "rename columns with `data.demonstrations.columns: {prompt: Prompt, response: respones}`"),
    preferences("demonstrations_as_preferences", {"p.jsonl": demos(3)}, "no format of preferences fits the columns "
                "`prompt`, `response`", "needed are chosen and rejected (preference)", "rename columns"),
    preferences("pairs_without_prompts", {"p.jsonl": [{"chosen": "a", "rejected": "b"}]},
                "no format of preferences fits the columns `chosen`, `rejected`",
                "`chosen` and `rejected` need a `prompt`, unless they hold whole conversations", "rename columns"),
    prompts("texts_as_prompts", {"q.jsonl": [{"text": "a"}]}, "no format of prompts fits the columns `text`",
            "needed are prompt (prompt)", "rename columns"),
    demonstrations("rows_without_columns", {"d.jsonl": b"{}\n"}, "no format of demonstrations fits the columns none",
                   "needed are", "rename columns"),
    preferences("column_missing_in_a_row", _added(prompt="q", chosen="a"),
                "p.jsonl:31: data.preferences: column `rejected` is missing, the row has `prompt`, `chosen`",
                "format `preference` needs it", "repair the row"),
    preferences("column_misspelt_in_a_row", _added(prompt="q", chosen="a", rejcted="b"),
                "p.jsonl:31: data.preferences: column `rejected` is missing", "format `preference` needs it",
                "name the column that holds it: `data.preferences.columns: {rejected: rejcted}`"),
    preferences("formats_mixed_in_a_file", _added(messages=[turn("user", "q")]),
                "p.jsonl:31: data.preferences: column `chosen` is missing, the row has `messages`",
                "format `preference` needs it", "repair the row"),
    demonstrations("formats_mixed_across_files",
                   {"d/a.jsonl": demos(3), "d/b.jsonl": [{"instruction": "q", "output": "a"}]},
                   "b.jsonl:1: data.demonstrations: column `prompt` is missing, the row has `instruction`, `output`",
                   "format `prompt_response` needs it", "repair the row", path="d"),
    demonstrations("description_beside_the_data", {"d/dataset_info.json": [{"license": "x"}], "d/t.jsonl": demos(3)},
                   "dataset_info.json:1: data.demonstrations: no format of demonstrations fits the columns `license`",
                   "needed are", "rename columns", path="d"),
    preferences("renamed_column_is_missing", {"p.jsonl": pairs(3)},
                "p.jsonl:1: data.preferences: column `query` is missing, the row has `prompt`, `chosen`, `rejected`",
                "`data.preferences.columns` needs it", "correct `data.preferences.columns` or the row",
                columns={"prompt": "query"}),
    preferences("renamed_column_is_misspelt", {"p.jsonl": pairs(3)}, "column `promt` is missing, the row has",
                "`data.preferences.columns` needs it", "(did you mean `prompt`?)", columns={"prompt": "promt"}),
    preferences("format_of_another_kind", {"p.jsonl": pairs(3)},
                "data.preferences: rows of format `instruction` hold no preferences", "preference, hh, sharegpt,",
                "change `data.preferences.format`", format="instruction"),
    preferences("ranks_for_fewer_responses", {"p.jsonl": [{"prompt": "q", "responses": ["a", "b"], "ranks": [1]}]},
                "p.jsonl:1: data.preferences: 1 `ranks` for 2 `responses`", "one for each is needed", "repair the row"),
    preferences("scores_that_are_words", {"p.jsonl": [{"prompt": "q", "responses": ["a"], "scores": ["good"]}]},
                "column `scores` holds a str ('good')", "finite numbers are needed", "repair the row"),
    preferences("responses_that_are_no_list", {"p.jsonl": [{"prompt": "q", "responses": 3, "scores": [1]}]},
                "column `responses` holds a int (3)", "a list of texts is needed", "convert the column"),
    preferences("label_of_another_kind", {"p.jsonl": [{"prompt": "q", "response": "a", "label": "positive"}]},
                "column `label` holds a str ('positive')", "true or false (also 1 or 0, 1 or -1) is needed",
                "convert the column"),
    demonstrations("history_without_answers",
                   {"d.jsonl": [{"instruction": "q", "output": "a", "history": [["only a question"]]}]},
                   "column `history` holds a list of 1 where a turn is", "pairs [question, answer] of texts is needed",
                   "repair the row, or rename the column away"),
    preferences("thousand_columns", {"p.jsonl": [{f"column_{n}": n for n in range(1000)}]},
                "`column_11` and 988 more", "needed are", "rename columns"),
    preferences("escape_sequence_in_a_column", {"p.jsonl": [{"\x1b[31mprompt": "q"}]},
                "fits the columns `\\x1b[31mprompt`", "needed are", "rename columns"),
]  # fmt: skip

VALUES = [
    demonstrations("number_as_response", {"d.jsonl": [*demos(9), {"prompt": "q", "response": 42}]},
                   "d.jsonl:10: data.demonstrations: column `response` holds a int (42)", "text is needed",
                   "convert the column, or set `data.demonstrations.format`"),
    demonstrations("truth_as_response", {"d.jsonl": [{"prompt": "q", "response": True}]}, "`response` holds a bool",
                   "text is needed", "convert the column"),
    demonstrations("list_as_output", {"d.jsonl": [{"instruction": "q", "output": ["a", "b"]}]},
                   "column `output` holds a list of 2", "text is needed", "convert the column"),
    demonstrations("object_as_text", {"d.jsonl": [{"text": {"en": "a"}}]}, "column `text` holds a dict of 1",
                   "text is needed", "convert the column"),
    preferences("number_as_prompt", _added(prompt=3, chosen="a", rejected="b"), "p.jsonl:31: data.preferences: column "
                "`prompt` holds a int", "a list of messages", "repair the row"),
    preferences("margin_of_words", _added(prompt="q", chosen="a", rejected="b", margin="much"),
                "p.jsonl:31: data.preferences: column `margin` holds a str ('much')", "a finite number is needed",
                "correct it or leave it empty"),
    preferences("margin_without_end", _added(prompt="q", chosen="a", rejected="b", margin="inf"),
                "column `margin` holds a str ('inf')", "a finite number is needed", "correct it or leave it empty"),
    preferences("margin_over_all_numbers", _added(prompt="q", chosen="a", rejected="b", margin=10**400),
                "column `margin` holds a int (1000", "a finite number is needed", "correct it or leave it empty"),
    preferences("margin_of_truth", _added(prompt="q", chosen="a", rejected="b", margin=True),
                "column `margin` holds a bool (True)", "a finite number is needed", "correct it or leave it empty"),
    preferences("margin_of_a_list", _added(prompt="q", chosen="a", rejected="b", margin=[1]),
                "column `margin` holds a list of 1", "a finite number is needed", "correct it or leave it empty"),
]  # fmt: skip


def _stage(name: str, files: dict[str, bytes | Rows], data: Any, found: str, needed: str, remedy: str) -> DataCase:
    return DataCase(name, files, data, found, needed, remedy, by="stage")


SPLITS = [
    _stage("one_pair", {"p.jsonl": pairs(1)}, {"preferences": {"path": "p.jsonl"}},
           "data.preferences: all rows share one prompt, and `held_out: 0.1` asks for a part to be held out",
           "two prompts or more are needed", "set `data.preferences.held_out: 0` to train without validation"),
    _stage("one_demonstration", {"d.jsonl": demos(1)}, {"demonstrations": {"path": "d.jsonl", "held_out": 0.5}},
           "data.demonstrations: all rows share one prompt, and `held_out: 0.5`", "two prompts or more are needed",
           "add rows"),
    _stage("pairs_of_one_prompt", {"p.jsonl": [pair | {"prompt": "q"} for pair in pairs(9)]},
           {"preferences": {"path": "p.jsonl"}}, "data.preferences: all rows share one prompt",
           "two prompts or more are needed", "add rows"),
    _stage("limit_of_one_row", {"p.jsonl": pairs(9)}, {"preferences": {"path": "p.jsonl", "limit": 1}},
           "data.preferences: all rows share one prompt", "two prompts or more are needed", "add rows"),
    _stage("trained_prompts_are_all_held_out_elsewhere", {"p.jsonl": pairs(40), "q.jsonl": [{"prompt": "q3"}]},
           {"preferences": {"path": "p.jsonl", "held_out": 0.97}, "prompts": {"path": "q.jsonl", "held_out": 0}},
           "data.prompts: nothing is left to train on: 1 of 1 records have a prompt that another source holds out",
           "prompts outside the held-out ones are needed", "give more data, or the same `held_out` share"),
]  # fmt: skip

SETTINGS = [
    preferences("limit_of_zero", {"p.jsonl": pairs(9)}, "data.preferences.limit: found 0", "must be at least 1",
                "correct it", limit=0),
    preferences("everything_held_out", {"p.jsonl": pairs(9)}, "data.preferences.held_out: found 1.0",
                "must be less than 1", "correct it", held_out=1.0),
    DataCase("path_and_hub", {"p.jsonl": pairs(9)}, {"preferences": {"path": "p.jsonl", "hub": "a/b"}},
             "data.preferences: ", "give exactly one of `path`", "and `mix`"),
    DataCase("hub_id_with_spaces", {}, {"preferences": {"hub": "my data"}}, "`hub: my data` is no id like `owner/name`",
             "set `path`", "for files on this machine"),
    DataCase("hub_id_that_is_a_path", {}, {"preferences": {"hub": "./data/pairs"}},
             "`hub: ./data/pairs` is no id like `owner/name`", "set `path`", "for files on this machine"),
    DataCase("nothing_held_out_for_the_evaluation", {"p.jsonl": pairs(9)},
             {"preferences": {"path": "p.jsonl", "held_out": 0}}, "data.preferences.held_out: 0 holds no prompt out",
             "`evaluation` needs two or more", "raise it, or set `evaluation: null`", 
             sections={"evaluation": {}, "ppo": {}, "reward_model": {}}),
    DataCase("share_over_one", {"p.jsonl": pairs(9)}, {"preferences": {"path": "p.jsonl"}, "max_skipped_share": 5},
             "data.max_skipped_share: found 5", "must be at most 1", "correct it"),
]  # fmt: skip

CASES: list[DataCase] = [*COLUMNS, *VALUES, *SPLITS, *SETTINGS]
