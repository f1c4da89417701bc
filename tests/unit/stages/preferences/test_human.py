"""People as a labeler: what they are asked, what is made of it, and the bytes in the artifact."""

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.contract import Episode
from stages.preferences.contract import Candidates, RecordingLabeler
from stages.preferences.human import HumanLabeler
from stages.preferences.labeling import Labeling
from stages.waiting import WaitingForPeople
from tests.labeling_run import ask, candidates, judge, labeler


def of(*texts: str, finished: tuple[bool, ...] | None = None, prompt: str = "p") -> Candidates:
    ends = finished or (True,) * len(texts)
    return Candidates(tuple(Episode("p", text, (1,), (2,), prompt, end) for text, end in zip(texts, ends, strict=True)))


def test_the_stage_waits_until_enough_is_judged(tmp_path: Path) -> None:
    human = labeler(tmp_path, count=4, min_prompts=2)
    assert isinstance(human, RecordingLabeler)
    for done in range(3):
        if done < 2:
            with pytest.raises(WaitingForPeople) as waiting:
                human(candidates(4))
            assert waiting.value.folder == tmp_path
            labeling = Labeling(tmp_path)
            assert (labeling.progress().done, labeling.progress().needed) == (done, 2)
            judge(labeling, "anna", list(labeling.questions.values())[done], [2, 1, 3, 4][: 4 if done != 1 else 3])
    opinions = human(candidates(4))
    assert opinions == [(-2.0, -1.0, -3.0, -4.0), (-2.0, -1.0, -3.0), (None,) * 3, (None,) * 4]


def test_people_are_not_asked_about_what_can_make_no_pair(tmp_path: Path) -> None:
    rows = [
        of("a", "cut off", "c", finished=(True, False, True)),
        of("a", " a ", "", "b", prompt="twice"),
        of("same", "same", prompt="one text"),
        of("cut", "off", prompt="none", finished=(False, False)),
    ]
    human = labeler(tmp_path)
    with pytest.raises(WaitingForPeople):
        human(rows)
    labeling = Labeling(tmp_path)
    by_prompt = {question.prompt: question for question in labeling.questions.values()}
    assert {prompt: question.responses for prompt, question in by_prompt.items()} == {
        "p": ["a", "c"], "twice": ["a", "b"],
    }  # fmt: skip
    judge(labeling, "anna", by_prompt["p"], [2, 1])
    judge(labeling, "anna", by_prompt["twice"], "all_bad")
    assert human(rows) == [(-2.0, None, -1.0), (None,) * 4, (None, None), (None, None)]


def test_nothing_to_ask_is_no_reason_to_wait(tmp_path: Path) -> None:
    human = labeler(tmp_path)
    assert human([of("same", "same")]) == [(None, None)]
    assert human.record(tmp_path)["human/labels"] == 0.0


def test_unfinished_responses_are_shown_where_they_make_pairs(tmp_path: Path) -> None:
    from stages.preferences.config import HumanLabelerConfig

    human = HumanLabeler(HumanLabelerConfig(), tmp_path, seed=0, only_finished=False, priority=None)
    with pytest.raises(WaitingForPeople):
        human([of("a", "b", finished=(False, False))])


def test_the_most_disputed_come_first_else_a_random_order_of_the_seed(tmp_path: Path) -> None:
    from stages.preferences.config import HumanLabelerConfig

    def order(name: str, seed: int, priority: list[float] | None) -> list[Any]:
        human = HumanLabeler(HumanLabelerConfig(), tmp_path / name, seed=seed, only_finished=True, priority=priority)
        with pytest.raises(WaitingForPeople):
            human([of("a", "b", prompt=str(number)) for number in range(8)])
        return [question.prompt for question in Labeling(tmp_path / name).questions.values()]

    assert order("disputed", 0, [0.1, 0.9, 0.5, 0.5, 0.0, 0.2, 0.3, 0.4]) == list("12376504")
    assert order("one", 0, None) == order("two", 0, None) != order("three", 1, None)
    assert sorted(order("one", 0, None)) == list("01234567") != order("one", 0, None)


def test_the_record_is_the_same_for_the_same_judgements(tmp_path: Path) -> None:
    """Whatever the order of the clicks, the times, and what was undone on the way."""
    first, second = (ask(tmp_path / name, 4) for name in ("one", "two"))
    plan = [("anna", 0, [1, 2, 2, 4], ""), ("ben", 0, [1, 2, 3, 4], "clear"), ("anna", 1, "skip", ""),
            ("anna", 2, "all_bad", ""), ("ben", 3, [4, 3, 2, 1], "")]  # fmt: skip
    for labeling, steps in ((first, plan), (second, plan[::-1])):
        questions = list(labeling.questions.values())
        if labeling is second:
            judge(labeling, "anna", questions[0], "all_bad")
            labeling.undo("anna", "undo-of-it")
        for who, number, ranks, comment in steps:
            judge(labeling, who, questions[number], ranks, comment)
    contents, figures = [], []
    for name in ("one", "two"):
        human = labeler(tmp_path / name, count=4)
        human(candidates(4))
        figures.append(human.record(tmp_path / name))
        contents.append((tmp_path / name / "labels.jsonl").read_bytes())
    assert contents[0] == contents[1] and figures[0] == figures[1]
    alpha = figures[0].pop("human/krippendorff_alpha")
    assert 0.5 < alpha < 1.0
    assert figures[0] == {
        "human/labels": 3.0, "human/skipped": 1.0, "human/all_bad": 1.0, "human/ties": 1.0, "human/annotators": 2.0,
    }  # fmt: skip
    rows = [json.loads(line) for line in contents[0].decode().splitlines()]
    assert [(row["annotator"], row["decision"]) for row in rows] == [
        ("anna", "rank"), ("ben", "rank"), ("anna", "skip"), ("anna", "all_bad"), ("ben", "rank"),
    ]  # fmt: skip
    assert rows[1]["comment"] == "clear" and rows[0]["ranks"] == [1, 2, 2, 4] and rows[2]["ranks"] is None
    assert not any("time" in row for row in rows)
