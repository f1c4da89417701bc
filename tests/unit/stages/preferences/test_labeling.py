"""Who is asked what next, and how far it is."""

from pathlib import Path

import pytest

from data.errors import ArtifactError, ConfigError
from stages.preferences.labeling import ClickError, Job, Labeling, Question, labeling_progress, write_labeling
from tests.labeling_run import ask, judge


@pytest.fixture
def labeling(tmp_path: Path) -> Labeling:
    return ask(tmp_path / "labels", 6, labels_per_prompt=1)


def asked(labeling: Labeling, who: str, *, beyond: bool = False) -> int | None:
    """Number of the question that somebody is asked now."""
    question = labeling.next_question(who, beyond=beyond)
    return None if question is None else list(labeling.questions).index(question.identity)


def question(labeling: Labeling, number: int) -> Question:
    return list(labeling.questions.values())[number]


def test_people_get_different_questions_until_all_have_their_labels(labeling: Labeling) -> None:
    assert [asked(labeling, who) for who in ("anna", "ben", "chloe")] == [0, 1, 2]
    assert asked(labeling, "anna") == 0  # still hers
    judge(labeling, "anna", question(labeling, 0), [1, 2, 3, 4])
    judge(labeling, "ben", question(labeling, 1), "skip")
    judge(labeling, "chloe", question(labeling, 2), "all_bad")
    assert labeling.progress().done == 3
    assert [asked(labeling, who) for who in ("chloe", "anna", "ben")] == [3, 4, 5]
    for number in (3, 4, 5):
        judge(labeling, "anna", question(labeling, number), [1, 1, 1, 1])
    assert [asked(labeling, who) for who in ("anna", "ben", "dora")] == [None, None, None]
    assert asked(labeling, "ben", beyond=True) == 0  # for the agreement
    assert labeling_progress(labeling.folder).is_enough


def test_who_comes_last_gets_what_others_have_open(labeling: Labeling) -> None:
    for number in range(5):
        judge(labeling, "anna", question(labeling, number), "skip")
    assert asked(labeling, "anna") == 5
    assert asked(labeling, "ben") == 5


def test_what_is_begun_comes_first_and_is_kept_over_a_restart(labeling: Labeling) -> None:
    labeling.click("anna", question(labeling, 4).identity, "rank", {"responses": [2], "rank": 1}, "begun-one")
    again = Labeling(labeling.folder)
    assert asked(again, "anna") == 4
    judgement = again.judgements.of("anna", question(again, 4).identity)
    assert judgement is not None and judgement.ranks == (None, None, 1, None)


def test_several_labels_a_prompt(tmp_path: Path) -> None:
    labeling = ask(tmp_path, 2, labels_per_prompt=2, annotators=["anna", "ben"], min_share=0.5)
    assert labeling.progress().needed == 1
    judge(labeling, "anna", question(labeling, 0), [1, 2, 3, 4])
    assert asked(labeling, "anna") == 1 and not labeling.progress().is_enough
    judge(labeling, "eve", question(labeling, 0), [1, 2, 3, 4])  # nobody asked her
    assert not labeling.progress().is_enough and labeling.agreement() is None
    judge(labeling, "ben", question(labeling, 0), [1, 2, 3, 4])
    assert labeling.progress().is_enough and labeling.agreement() == 1.0
    with pytest.raises(ClickError, match="'eve' is not among the annotators of this run: anna, ben"):
        labeling.check_annotator("eve")


def test_the_order_of_responses_is_random_by_person_and_question_and_stays(labeling: Labeling) -> None:
    orders = {
        (who, number): tuple(labeling.order(who, question(labeling, number)))
        for who in ("anna", "ben", "chloe")
        for number in (0, 3, 4, 5)
    }
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders.values())
    assert len(set(orders.values())) > 5
    assert orders["anna", 0] == tuple(Labeling(labeling.folder).order("anna", question(labeling, 0)))


def test_an_undo_that_is_sent_again_takes_back_one_click(labeling: Labeling) -> None:
    first = question(labeling, 0)
    for number in (0, 1):
        labeling.click("anna", first.identity, "rank", {"responses": [number], "rank": number + 1}, f"click-{number}")
    assert labeling.undo("anna", "undo-one") == first.identity
    assert labeling.undo("anna", "undo-one") is None
    judgement = labeling.judgements.of("anna", first.identity)
    assert judgement is not None and judgement.ranks == (1, None, None, None)


def test_clicks_that_do_not_fit_are_refused(labeling: Labeling) -> None:
    first = question(labeling, 0)
    with pytest.raises(ClickError, match="this run does not ask that question"):
        labeling.click("anna", "nothing", "skip", {}, "a-click-id")
    with pytest.raises(ClickError, match="rank must be a whole number from 1 to 4"):
        labeling.click("anna", first.identity, "rank", {"responses": [0], "rank": 5}, "a-click-id")
    with pytest.raises(ClickError, match="a response has no rank yet"):
        labeling.click("anna", first.identity, "done", {}, "a-click-id")
    assert labeling.store.clicks() == []


def test_new_questions_are_taken_in_and_labels_stay(labeling: Labeling) -> None:
    judge(labeling, "anna", question(labeling, 0), "skip")
    kept = question(labeling, 0)
    write_labeling(labeling.folder, [kept, Question("new", "p", ["a", "b"])], Job(None, 1, 2, 0))
    labeling.refresh()
    assert list(labeling.questions) == [kept.identity, "new"]
    assert labeling.progress() == labeling_progress(labeling.folder)
    assert (labeling.progress().done, labeling.progress().total) == (1, 2)


def test_no_questions_yet_and_damaged_ones(tmp_path: Path, labeling: Labeling) -> None:
    with pytest.raises(ConfigError, match="there is nothing to label"):
        Labeling(tmp_path / "nowhere")
    (labeling.folder / "job.json").write_text('{"needed": 3', encoding="utf-8")
    with pytest.raises(ArtifactError, match="the questions cannot be read"):
        Labeling(labeling.folder)
