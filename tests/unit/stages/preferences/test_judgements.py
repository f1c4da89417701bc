"""From clicks to judgements: undo, reopening, drafts; and which clicks are refused."""

from typing import Any

import pytest

from stages.preferences.judgements import Click, Judgement, Judgements, agreement, fault_of, name_fault, opinion_of

SIZES = {"q": 3, "r": 2}


class Log:
    """Numbers clicks as the store does."""

    def __init__(self) -> None:
        self.number = 0
        self.judgements = Judgements(SIZES)

    def __call__(self, kind: str, who: str = "anna", question: str = "q", **data: Any) -> int:
        self.number += 1
        self.judgements.take([Click(who, question, kind, data, self.number)])  # type: ignore[arg-type]
        return self.number

    def rank(self, *responses: int, question: str = "q", who: str = "anna") -> None:
        for place, response in enumerate(responses, 1):
            self("rank", who, question, responses=[response], rank=place)

    def now(self, who: str = "anna", question: str = "q") -> Judgement:
        judgement = self.judgements.of(who, question)
        assert judgement is not None
        return judgement


def test_ranks_come_one_by_one_and_are_final_when_done() -> None:
    log = Log()
    log("shown", order=[2, 0, 1])
    log("rank", responses=[1], rank=1)
    assert log.now().ranks == (None, 1, None) and not log.now().is_ranked and log.now().decision is None
    log("tie", responses=[2], rank=1)
    log("rank", responses=[0], rank=2)
    assert log.now().is_ranked and log.now().decision is None and log.judgements.final() == []
    log("comment", text="both are good")
    log("done")
    (final,) = log.judgements.final()
    assert (final.ranks, final.decision, final.comment, final.order) == ((2, 1, 1), "rank", "both are good", (2, 0, 1))
    assert final.midranks == (3.0, 1.5, 1.5) and final.has_tie


def test_undo_goes_back_over_questions_and_leaves_comments_and_others_alone() -> None:
    log = Log()
    log.rank(0, 1, 2)
    log("done")
    log("comment", text="hm")
    log("skip", "ben")
    log("skip", question="r")
    for question, expected in (("r", None), ("q", None)):
        last = log.judgements.last_click("anna")
        assert last is not None and last.question == question
        log("undo", question=question, undoes=last.number)
        assert log.now(question=question).decision is expected
    assert log.now().ranks == (1, 2, 3) and log.now().comment == "hm"  # the ranking is open again, not lost
    last = log.judgements.last_click("anna")
    assert last is not None
    log("undo", undoes=last.number)
    assert log.now().ranks == (1, 2, None)
    assert log.now("ben").decision == "skip"
    assert [judgement.annotator for judgement in log.judgements.final()] == ["ben"]


def test_a_rank_after_the_end_opens_it_again_and_an_undone_skip_keeps_the_ranks() -> None:
    log = Log()
    log.rank(0, 1, 2)
    log("done")
    log("rank", responses=[2], rank=1)
    assert log.now().decision is None and log.now().ranks == (1, 2, 1)
    number = log("skip")
    assert log.now().decision == "skip"
    log("undo", undoes=number)
    assert log.now().decision is None and log.now().ranks == (1, 2, 1)
    log("all_bad")
    assert log.now().decision == "all_bad"


def test_clicks_on_other_questions_are_left_out_and_names_can_be_chosen() -> None:
    log = Log()
    log("skip", question="of another run")
    log("skip", "ben")
    log("skip", "anna")
    assert [judgement.annotator for judgement in log.judgements.final()] == ["anna", "ben"]
    assert [judgement.annotator for judgement in log.judgements.final(["ben", "zoe"])] == ["ben"]
    assert log.judgements.last_click("zoe") is None


def ranked(*ranks: int, who: str = "anna", decision: Any = "rank", question: str = "q") -> Judgement:
    return Judgement(who, question, decision, ranks)


def test_opinions_are_mean_midranks_turned_around() -> None:
    assert opinion_of([ranked(1, 2, 3)], 3) == (-1.0, -2.0, -3.0)
    assert opinion_of([ranked(1, 1, 3)], 3) == (-1.5, -1.5, -3.0)
    # (1 + 2) / 2, (2 + 1) / 2, 3: the two contradict each other, and the pair is a tie.
    assert opinion_of([ranked(1, 2, 3), ranked(2, 1, 3, who="ben")], 3) == (-1.5, -1.5, -3.0)
    # Gaps in the numbers say nothing.
    assert opinion_of([ranked(1, 3, 3)], 3) == opinion_of([ranked(1, 2, 2)], 3)


def test_skipped_and_bad_are_no_opinion() -> None:
    nothing = [ranked(1, 2, 3, decision="skip"), ranked(1, 2, 3, decision="all_bad", who="ben")]
    assert opinion_of(nothing, 3) == opinion_of([], 3) == (None, None, None)
    assert opinion_of([*nothing, ranked(3, 2, 1, who="chloe")], 3) == (-3.0, -2.0, -1.0)


def test_agreement_of_rankings() -> None:
    same = [ranked(1, 2, 3, who=who) for who in ("anna", "ben", "chloe")]
    assert agreement(same) == 1.0
    assert agreement(same[:1]) is None
    assert agreement([*same[:1], ranked(1, 2, 3, who="ben", decision="skip")]) is None
    turned = agreement([ranked(1, 2, 3), ranked(3, 2, 1, who="ben")])
    assert turned is not None and turned < 0


@pytest.mark.parametrize(
    ("kind", "data", "fault"),
    [
        ("rank", {"responses": [0], "rank": 1}, None),
        ("tie", {"responses": [0, 2], "rank": 3}, None),
        ("skip", {}, None),
        ("comment", {"text": "x" * 4000}, None),
        ("shown", {"order": [1, 2, 0]}, None),
        ("undo", {"undoes": 1}, "kind 'undo' is none of"),
        ("vote", {}, "kind 'vote' is none of"),
        (["rank"], {}, "is none of"),
        ("rank", [], "data is no mapping"),
        ("rank", {"rank": 1}, "responses must be a list of numbers from 0 to 2"),
        ("rank", {"responses": [3], "rank": 1}, "responses must be"),
        ("rank", {"responses": [-1], "rank": 1}, "responses must be"),
        ("rank", {"responses": [True], "rank": 1}, "responses must be"),
        ("rank", {"responses": [], "rank": 1}, "responses must be"),
        ("rank", {"responses": [0], "rank": 0}, "rank must be a whole number from 1 to 3"),
        ("rank", {"responses": [0], "rank": 4}, "rank must be"),
        ("rank", {"responses": [0], "rank": 1.0}, "rank must be"),
        ("rank", {"responses": [0], "rank": True}, "rank must be"),
        ("comment", {"text": "x" * 4001}, "at most 4000"),
        ("comment", {"text": None}, "text must be"),
        ("shown", {"order": [0, 1, 1]}, "each number from 0 to 2 once"),
        ("skip", {"text": "no"}, "data holds text"),
    ],
)
def test_faults(kind: Any, data: Any, fault: str | None) -> None:
    found = fault_of(kind, data, 3)
    assert found is None if fault is None else found is not None and fault in found


def test_names() -> None:
    assert name_fault("Anna") is name_fault("Åsa Öberg") is name_fault("ليلى") is None
    for wrong in ("", "  ", " Anna", "a" * 65, "a\nb", "a\u202eb", None, 7):
        assert name_fault(wrong) is not None
