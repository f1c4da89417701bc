"""Labels to files and back: our own lines, Argilla's records, Label Studio's tasks; and what is refused."""

import json
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.errors import DataError
from pipeline.cli import main
from pipeline.labeling.argilla import read_argilla, write_argilla
from pipeline.labeling.exchange import read_jsonl, take, write_jsonl
from pipeline.labeling.label_studio import read_label_studio, write_label_studio
from stages.preferences.judgements import Judgement
from stages.preferences.labeling import Labeling, Question
from tests.labeling_run import ask, judge, make_waiting_run


@pytest.fixture
def judged(tmp_path: Path) -> Labeling:
    """Five questions, with labels of all kinds."""
    labeling = ask(tmp_path / "judged", 5)
    questions = list(labeling.questions.values())
    judge(labeling, "anna", questions[0], [2, 1, 3, 4], "clear")
    judge(labeling, "ben", questions[0], [1, 1, 3, 3])
    judge(labeling, "anna", questions[1], "skip", "no Arabic \u0645")
    judge(labeling, "anna", questions[2], "all_bad")
    judge(labeling, "Chlo\u00e9", questions[3], [1, 1, 1, 1])
    return labeling


@pytest.fixture
def empty(tmp_path: Path) -> Labeling:
    """The same questions, and nobody has judged them."""
    return ask(tmp_path / "empty", 5)


def told(labeling: Labeling) -> list[tuple[Any, ...]]:
    labeling.refresh()
    return [
        (j.annotator, j.question, j.decision, j.midranks if j.decision == "rank" else None, j.comment)
        for j in labeling.judgements.final()
    ]


def question(labeling: Labeling, number: int) -> Question:
    return list(labeling.questions.values())[number]


def test_our_own_lines_go_out_and_come_back(judged: Labeling, empty: Labeling, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    assert write_jsonl(judged, path) == 5
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(row["responses"] and row["prompt"] and row["time"] for row in rows)
    assert take(empty, list(read_jsonl(path, empty))) == (5, 0)
    assert told(empty) == told(judged)
    assert empty.judgements.of("ben", question(empty, 0).identity) == judged.judgements.of(
        "ben", question(judged, 0).identity
    )
    before = empty.store.clicks()
    assert take(empty, list(read_jsonl(path, empty))) == (0, 5)
    assert empty.store.clicks() == before
    write_jsonl(empty, tmp_path / "again.jsonl")
    strip = [{**json.loads(line), "time": ""} for line in (tmp_path / "again.jsonl").read_text("utf-8").splitlines()]
    assert strip == [{**row, "time": ""} for row in rows]


def line(labeling: Labeling, number: int = 0, **change: Any) -> str:
    row = {
        "annotator": "anna",
        "question": question(labeling, number).identity,
        "decision": "rank",
        "ranks": [1, 2, 3, 4],
    }
    return json.dumps(row | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": "f" * 64}, "question 'ffff"),
        ({"question": None}, "question 'None' is none of this run's 5"),
        ({"annotator": "eve\n"}, "a name is text without blanks at its ends"),
        ({"annotator": 3}, "a name is text"),
        ({"decision": "best"}, "decision 'best' is none of rank, skip, all_bad"),
        ({"decision": None}, "decision 'None' is none of"),
        ({"ranks": [1, 2, 3]}, "ranks must be a list of 4 numbers, one a response"),
        ({"ranks": None}, "ranks must be a list of 4 numbers"),
        ({"ranks": [0, 1, 2, 3]}, "rank must be a whole number from 1 to 4, found '0'"),
        ({"ranks": [1, 2, 3, 5]}, "rank must be a whole number from 1 to 4, found '5'"),
        ({"ranks": [1, 2, 3, 1.5]}, "rank must be a whole number from 1 to 4, found '1.5'"),
        ({"order": [0, 1, 2]}, "shown: order must hold each number from 0 to 3 once"),
        ({"comment": 7}, "comment: text must be text"),
        ({"responses": ["other"]}, "responses is another than this run's question"),
        ({"prompt": "other"}, "prompt is another than this run's question"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_nothing_is_imported(
    empty: Labeling, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(f"{line(empty, 3)}\n\n{line(empty, **change)}\n", encoding="utf-8")
    with pytest.raises(DataError) as refused:
        take(empty, list(read_jsonl(path, empty)))
    assert f"{path}:3: " in str(refused.value) and said in str(refused.value)
    assert empty.store.clicks() == []


def test_all_faults_are_told_at_once(empty: Labeling, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(line(empty, 0, annotator="") + "\n" for _ in range(30)), encoding="utf-8")
    with pytest.raises(DataError) as refused:
        take(empty, list(read_jsonl(path, empty)))
    lines = str(refused.value).splitlines()
    assert len(lines) == 22 and lines[20] == "and 10 more" and lines[21].startswith("nothing was imported")


@pytest.mark.parametrize(("text", "said"), [("{", ":1: no JSON"), ("7\n", ":1: found int"), ("\xff", "no JSON")])
def test_what_is_no_json_line(empty: Labeling, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "labels.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        list(read_jsonl(tmp_path / "labels.jsonl", empty))
    (tmp_path / "labels.jsonl").write_bytes(b"\xff\xfe{")
    for path in (tmp_path / "labels.jsonl", tmp_path / "nowhere"):
        with pytest.raises(DataError, match="cannot be read .* a UTF-8 file of labels is needed"):
            list(read_jsonl(path, empty))


def test_two_judgements_of_one_person_and_another_one_than_is_there(judged: Labeling, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(f"{line(judged, 4)}\n{line(judged, 4)}\n{line(judged, 0)}\n", encoding="utf-8")
    with pytest.raises(DataError) as refused:
        take(judged, list(read_jsonl(path, judged)))
    assert f"{path}:2: anna judges this question in {path}:1 already" in str(refused.value)
    assert f"{path}:3: anna has judged this question otherwise in this run" in str(refused.value)


def test_names_that_do_not_count_are_refused(tmp_path: Path) -> None:
    labeling = ask(tmp_path / "named", 2, annotators=["anna"])
    (tmp_path / "labels.jsonl").write_text(line(labeling, annotator="eve") + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="'eve' is not among the annotators of this run: anna"):
        take(labeling, list(read_jsonl(tmp_path / "labels.jsonl", labeling)))


def ordered(judgement: Judgement) -> list[int]:
    """The responses, the best first."""
    return sorted(range(len(judgement.ranks)), key=lambda number: (judgement.ranks[number] or 0, number))


USER = {"anna": "6b1f8a3e-0000-4000-8000-000000000001", "ben": "6b1f8a3e-0000-4000-8000-000000000002",
        "Chlo\u00e9": "6b1f8a3e-0000-4000-8000-000000000003"}  # fmt: skip


def annotated_in_argilla(
    records: list[dict[str, Any]], judged: Labeling, *, with_ranks: bool
) -> Iterator[dict[str, Any]]:
    """What `dataset.records.to_json` gives when the same people have said the same there."""
    for record in records:
        responses: dict[str, list[dict[str, Any]]] = {"ranking": [], "verdict": [], "comment": []}
        for judgement in judged.judgements.final():
            if judgement.question != record["id"]:
                continue
            common = {"user_id": USER[judgement.annotator]}
            if judgement.decision == "skip":
                common["status"] = "discarded"
            if judgement.comment:
                responses["comment"].append({"value": judgement.comment, **common})
            if judgement.decision == "all_bad":
                responses["verdict"].append({"value": "all_bad", **common})
            if judgement.decision == "rank":
                value: list[Any] = [f"response-{number + 1}" for number in ordered(judgement)]
                absent = [name for name in record["fields"] if name.startswith("response") and name not in value]
                value += absent
                if with_ranks:
                    ranks = dict(enumerate(judgement.ranks))
                    value = [{"value": name, "rank": ranks.get(int(name[9:]) - 1, 5)} for name in value]
                responses["ranking"].append({"value": value, **common})
        yield {**record, "responses": responses, "_server_id": "x"}


def test_argilla_records_go_out_and_what_people_say_there_comes_back(
    judged: Labeling, empty: Labeling, tmp_path: Path
) -> None:
    path = tmp_path / "records.json"
    assert write_argilla(judged, path, "demo") == 5
    records = json.loads(path.read_text(encoding="utf-8"))
    assert set(records[0]) == {"id", "fields", "metadata", "suggestions", "responses", "vectors"}
    assert set(records[1]["fields"]) == {"prompt", "response-1", "response-2", "response-3", "response-4"}
    assert records[0]["fields"]["prompt"].startswith("system: You are")
    # The mean of (2, 1, 3, 4) and (1.5, 1.5, 3.5, 3.5): the second, the first, the third, the fourth.
    ranking = records[0]["suggestions"]["ranking"]
    assert ranking == {"value": [f"response-{n}" for n in (2, 1, 3, 4)], "score": None, "agent": "anna, ben"}
    assert records[1]["suggestions"] == records[4]["suggestions"] == {}
    path.write_text(json.dumps(list(annotated_in_argilla(records, judged, with_ranks=True))), encoding="utf-8")
    assert take(empty, list(read_argilla(path, empty))) == (5, 0)
    expected = [(USER[who], *rest) for who, *rest in told(judged)]
    assert sorted(told(empty), key=str) == sorted(expected, key=str)


def test_argillas_own_package_knows_no_ties(judged: Labeling, empty: Labeling, tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    write_argilla(judged, path, "demo")
    records = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(list(annotated_in_argilla(records, judged, with_ranks=False))), encoding="utf-8")
    assert take(empty, list(read_argilla(path, empty))) == (5, 0)
    found = empty.judgements.of(USER["ben"], question(empty, 0).identity)
    assert found is not None and found.ranks == (1, 2, 3, 4)


def annotated_in_label_studio(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Label Studio exports when people accept the predictions of this run as their own."""
    return [
        {
            "id": number,
            "data": task["data"],
            "annotations": [
                {
                    "completed_by": {"id": 7, "email": f"{prediction['model_version']}@lab"},
                    "was_cancelled": False,
                    "result": prediction["result"],
                }
                for prediction in task["predictions"]
            ],
        }
        for number, task in enumerate(tasks, 1)
    ]


def test_label_studios_tasks_go_out_and_annotations_come_back(
    judged: Labeling, empty: Labeling, tmp_path: Path
) -> None:
    path = tmp_path / "tasks.json"
    assert write_label_studio(judged, path, "demo") == 5
    tasks = json.loads(path.read_text(encoding="utf-8"))
    configuration = xml.etree.ElementTree.parse(tmp_path / "tasks.config.xml").getroot()
    names = {element.get("value", "").lstrip("$") for element in configuration if element.get("value", "")[:1] == "$"}
    assert names <= set(tasks[0]["data"])
    buckets = [bucket.get("name") for bucket in configuration.iter("Bucket")]
    assert buckets == ["rank-1", "rank-2", "rank-3", "rank-4"]
    assert [entry["author"] for entry in tasks[0]["data"]["prompt"]] == ["system", "user"]
    exported = annotated_in_label_studio(tasks)
    cancelled = {"completed_by": 3, "was_cancelled": True, "result": []}
    exported[1]["annotations"].append(cancelled)
    path.write_text(json.dumps(exported), encoding="utf-8")
    assert take(empty, list(read_label_studio(path, empty))) == (5, 0)
    expected = [(f"{who}@lab", *rest) for who, *rest in told(judged) if rest[1] != "skip"]
    expected.append(("3", question(judged, 1).identity, "skip", None, ""))
    assert sorted(told(empty), key=str) == sorted(expected, key=str)


def test_a_ranker_without_buckets_is_an_order(empty: Labeling, tmp_path: Path) -> None:
    order = ["response-3", "response-1", "response-4", "response-2"]
    result = {"from_name": "rank", "to_name": "responses", "type": "ranker", "value": {"ranker": {"rank": order}}}
    task = {"data": {"question": question(empty, 0).identity}, "annotations": [{"completed_by": 1, "result": [result]}]}
    (tmp_path / "tasks.json").write_text(json.dumps([task]), encoding="utf-8")
    take(empty, list(read_label_studio(tmp_path / "tasks.json", empty)))
    assert told(empty)[0][3] == (2.0, 4.0, 1.0, 3.0)


def change_task(task: dict[str, Any], how: str) -> None:
    ranker = task["annotations"][0]["result"][0]["value"]["ranker"]
    match how:
        case "no question":
            del task["data"]["question"]
        case "no annotator":
            del task["annotations"][0]["completed_by"]
        case "left out":
            ranker["_"] = ranker.pop("rank-1")
        case "twice":
            ranker["rank-2"] = ["response-1", "response-9"]
        case "no ranking":
            task["annotations"][0]["result"] = []


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no question", "task 1: no annotated task of this run \\(KeyError"),
        ("no annotator", "task 1: no annotated task of this run"),
        ("left out", "task 1: response-2 lies in no bucket"),
        ("twice", "task 1: the ranking names .*response-9"),
        ("no ranking", "task 1: an annotation of anna@lab has no ranking"),
    ],
)
def test_label_studios_tasks_at_fault(judged: Labeling, empty: Labeling, tmp_path: Path, how: str, said: str) -> None:
    path = tmp_path / "tasks.json"
    write_label_studio(judged, path, "demo")
    exported = annotated_in_label_studio(json.loads(path.read_text(encoding="utf-8")))
    change_task(exported[0], how)
    path.write_text(json.dumps(exported), encoding="utf-8")
    with pytest.raises(DataError, match=said):
        list(read_label_studio(path, empty))
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="found no list of tasks"):
        list(read_label_studio(path, empty))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["response-1", "response-2"], "record 1: the ranking names 2 of the 4 responses"),
        (["response-1", "x", "response-3", "response-4"], "record 1: 'x' is no response of this run"),
        (None, "record 1: question `ranking` has no ranking"),
        ([{"rank": 1}], r"record 1: no record of Argilla 2 \(KeyError"),
    ],
)
def test_argillas_records_at_fault(empty: Labeling, tmp_path: Path, value: Any, said: str) -> None:
    answer = {"user_id": "u", "value": value}
    record = {"id": question(empty, 0).identity, "responses": {"ranking": [answer]}}
    (tmp_path / "records.json").write_text(json.dumps([record]), encoding="utf-8")
    with pytest.raises(DataError, match=said):
        list(read_argilla(tmp_path / "records.json", empty))
    (tmp_path / "records.json").write_text('{"id": 1}', encoding="utf-8")
    with pytest.raises(DataError, match="found no list of records"):
        list(read_argilla(tmp_path / "records.json", empty))


def test_places_of_responses_that_a_question_lacks_leave_no_gap(empty: Labeling, tmp_path: Path) -> None:
    """The second question has three responses, a dataset of Argilla four for all."""
    value = [{"value": f"response-{number}", "rank": rank} for number, rank in ((4, 1), (2, 2), (3, 2), (1, 4))]
    record = {"id": question(empty, 1).identity, "responses": {"ranking": [{"user_id": "u", "value": value}]}}
    (tmp_path / "records.json").write_text(json.dumps([record]), encoding="utf-8")
    take(empty, list(read_argilla(tmp_path / "records.json", empty)))
    found = empty.judgements.of("u", question(empty, 1).identity)
    assert found is not None and found.ranks == (2, 1, 1)


def test_drafts_of_argilla_do_not_count(empty: Labeling, tmp_path: Path) -> None:
    answer = {"user_id": "u", "value": ["response-1"], "status": "draft"}
    record = {"id": question(empty, 0).identity, "responses": {"ranking": [answer]}}
    (tmp_path / "records.json").write_text(json.dumps([record]), encoding="utf-8")
    assert list(read_argilla(tmp_path / "records.json", empty)) == []


def test_the_command_exports_imports_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run, labeling = make_waiting_run(tmp_path / "outputs", "w", 5, annotators=["anna"])
    judge(labeling, "anna", question(labeling, 0), [1, 2, 3, 4])
    for chosen, said in (("jsonl", "1 judgements"), ("argilla", "5 records"), ("label_studio", "5 tasks")):
        assert main(["label", "w", "--export", f"{chosen}.json", "--format", chosen]) == 0
        assert said in capfd.readouterr().out
    assert main(["label", "w", "--import", "jsonl.json"]) == 0
    assert "0 judgements imported, 1 were there; 1 of 5 prompts judged" in capfd.readouterr().out
    for arguments, said in (
        (["--export", "jsonl.json"], "--export jsonl.json: there is such a file; it is not overwritten"),
        (["--export", "nowhere/x"], "the folder nowhere is not there; make it"),
        (["--annotator", "eve"], "--annotator 'eve': this run counts labels of anna alone"),
        (["--annotator", " "], "--annotator ' ': a name is text without blanks"),
        (["--import", "argilla.json"], "argilla.json:1: no JSON"),
    ):
        assert main(["label", "w", *arguments]) == 2
        assert said in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["label", "w", "--port", "70000"])
    assert "a port is a number from 1 to 65535" in capfd.readouterr().err
    run.update_stage("preferences", status="executed")
    assert main(["label", "w", "--import", "jsonl.json"]) == 2
    assert "run w: has taken its labels and gone on" in capfd.readouterr().err
    (labeling.folder / "job.json").unlink()
    assert main(["label", "w"]) == 2
    assert "there is nothing to label (yet)" in capfd.readouterr().err
