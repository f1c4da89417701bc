"""The page's HTTP side: who may ask, what is saved, and what comes back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline.labeling.app import LabelingPage
from stages.preferences.labeling import Labeling
from tests.labeling_run import HOSTILE, ask, judge

TOKEN = "the-key"


class Page:
    """A person at the page."""

    def __init__(self, labeling: Labeling, annotator: str | None = None) -> None:
        self.closed = False
        page = LabelingPage(labeling, run="demo", token=TOKEN, annotator=annotator, is_closed=lambda: self.closed)
        self.client = TestClient(page.app(), base_url="http://127.0.0.1:8000", headers={"x-label-token": TOKEN})
        self.number = 0

    def next(self, who: str = "anna", **more: Any) -> dict[str, Any]:
        return self.ok("/api/next", {"annotator": who, **more})

    def click(self, kind: str, who: str = "anna", **body: Any) -> dict[str, Any]:
        self.number += 1
        return self.ok("/api/click", {"annotator": who, "kind": kind, "id": f"click-{self.number:04}", **body})

    def ok(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content

    def refused(self, body: dict[str, Any], path: str = "/api/click") -> tuple[int, str]:
        answer = self.client.post(path, json=body)
        return answer.status_code, answer.json()["error"]


@pytest.fixture
def labeling(tmp_path: Path) -> Labeling:
    return ask(tmp_path / "labels", 5, labels_per_prompt=2)


@pytest.fixture
def page(labeling: Labeling) -> Page:
    return Page(labeling)


def ranks(view: dict[str, Any]) -> list[int | None]:
    return [response["rank"] for response in view["question"]["responses"]]


def test_a_ranking_from_the_first_click_to_the_next_question(page: Page, labeling: Labeling) -> None:
    start = page.ok("/api/start", {})
    assert start == {"run": "demo", "annotator": None, "annotators": None, "labels_per_prompt": 2}
    view = page.next()
    question = view["question"]
    assert question["prompt"][1]["role"] == "user" and ranks(view) == [None] * 4 and not view["can_undo"]
    order = [response["number"] for response in question["responses"]]
    assert order == labeling.order("anna", labeling.questions[question["identity"]])
    for place, number in enumerate(order, 1):
        view = page.click("rank", question=question["identity"], data={"responses": [number], "rank": place})
        assert ranks(view)[:place] == list(range(1, place + 1)) and view["question"]["last"] == number
        # Saved before the answer: a new server knows it.
        assert ranks(Page(Labeling(labeling.folder)).next()) == ranks(view)
    view = page.click("comment", question=question["identity"], data={"text": "clear"})
    assert view["question"]["comment"] == "clear" and view["mine"] == 0
    view = page.click("done", question=question["identity"])
    assert view["question"]["identity"] != question["identity"] and view["mine"] == 1 and ranks(view) == [None] * 3
    view = page.click("undo", question=view["question"]["identity"])
    assert view["question"]["identity"] == question["identity"] and view["mine"] == 0
    assert ranks(view) == [1, 2, 3, 4] and view["question"]["comment"] == "clear"
    shown = [click for click in labeling.store.clicks() if click.kind == "shown"]
    assert len(shown) == 2 and shown[0].data["order"] == order


def test_progress_agreement_and_the_end(page: Page, labeling: Labeling) -> None:
    assert page.next()["progress"] == {"done": 0, "needed": 5, "total": 5}
    assert page.next()["agreement"] is None
    for who in ("anna", "ben"):
        for question in labeling.questions.values():
            judge(labeling, who, question, list(range(1, len(question.responses) + 1)))
    view = page.next()
    assert view["question"] is None and view["progress"]["done"] == 5
    assert (view["people"], view["agreement"], view["mine"]) == (2, 1.0, 5)
    assert page.next("chloe")["question"] is None
    assert page.next("chloe", beyond=True)["question"] is not None
    view = page.click("undo", question="")
    assert view["question"] is not None and view["mine"] == 4


def test_without_the_key_nothing_is_told_or_saved(page: Page, labeling: Labeling) -> None:
    body = {"annotator": "anna", "kind": "skip", "question": next(iter(labeling.questions)), "id": "click-1234"}
    for path in ("/api/start", "/api/next", "/api/click"):
        for headers in ({"x-label-token": ""}, {"x-label-token": "the-kez"}, {"x-label-token": "\u00e9".encode()}):
            answer = page.client.post(path, json=body, headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == 401 and "use the address that" in answer.json()["error"]
        assert page.client.get(path).status_code == 405
    bare = TestClient(page.client.app, base_url="http://127.0.0.1:8000")
    assert bare.post("/api/next", json=body).status_code == 401
    text = bare.get("/").text  # the page itself holds nothing of the run
    assert "sourdough" not in text and "demo" not in text and TOKEN not in text
    assert labeling.store.clicks() == []


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "192.168.1.5:8000", ""])
def test_a_foreign_host_is_refused(page: Page, host: str) -> None:
    for path in ("/", "/api/start"):
        answer = page.client.request("GET" if path == "/" else "POST", path, headers={"host": host})
        assert answer.status_code == 400
    assert page.client.get("/", headers={"host": "localhost:9000"}).status_code == 200  # through a tunnel


def test_the_page_may_load_and_be_framed_by_nobody(page: Page) -> None:
    first, second = page.client.get("/"), page.client.get("/")
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert policy != second.headers["content-security-policy"]  # the nonce is for one page
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert first.text.count(f'nonce="{nonce}"') == 2 and "@NONCE@" not in first.text
    assert not any(word in first.text for word in ("http://", "https://", "innerHTML", "insertAdjacentHTML", "eval("))
    assert first.headers["x-content-type-options"] == "nosniff" and first.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in first.headers


def test_text_of_a_model_is_handed_over_as_text(page: Page, labeling: Labeling) -> None:
    question = next(q for q in labeling.questions.values() if HOSTILE in q.responses)
    for other in labeling.questions.values():
        if other is not question:
            judge(labeling, "anna", other, "skip")
    answer = page.client.post("/api/next", json={"annotator": "anna"})
    assert answer.headers["content-type"] == "application/json"
    assert HOSTILE in [response["text"] for response in answer.json()["question"]["responses"]]


def test_a_click_that_is_sent_again_counts_once(page: Page, labeling: Labeling) -> None:
    identity = page.next()["question"]["identity"]
    body = {"annotator": "anna", "kind": "skip", "question": identity, "id": "click-once"}
    first, again = page.ok("/api/click", body), page.ok("/api/click", body)
    assert first == again and first["mine"] == 1
    undo = {"annotator": "anna", "kind": "undo", "question": identity, "id": "undo-once"}
    assert page.ok("/api/click", undo)["mine"] == page.ok("/api/click", undo)["mine"] == 0
    # Another person's click of the same id is another click.
    assert page.ok("/api/click", {**body, "annotator": "ben"})["mine"] == 1


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"annotator": ""}, "a name is text without blanks"),
        ({"annotator": "a" * 65}, "at most 64 characters"),
        ({"annotator": ["anna"]}, "a name is text"),
        ({"question": "another"}, "this run does not ask that question"),
        ({"question": 7}, "a click names its kind and its question"),
        ({"kind": "shown", "data": {"order": [0, 1, 2, 3]}}, "a click names its kind"),
        ({"kind": "vote"}, "kind 'vote' is none of"),
        ({"kind": "done"}, "a response has no rank yet"),
        ({"data": {"responses": [9], "rank": 1}, "kind": "rank"}, "numbers from 0 to 3"),
        ({"data": "x"}, "data is no mapping"),
        ({"id": "short"}, "an id of 8 to 100 characters"),
        ({"id": "x" * 101}, "an id of 8 to 100"),
        ({"id": None}, "an id of 8 to 100"),
    ],
)
def test_clicks_that_cannot_be_taken(page: Page, labeling: Labeling, change: dict[str, Any], said: str) -> None:
    body = {"annotator": "anna", "kind": "skip", "question": next(iter(labeling.questions)), "id": "click-1234"}
    status, error = page.refused(body | change)
    assert status == 400 and said in error
    assert labeling.store.clicks() == []


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 60_000])
def test_requests_that_are_no_requests(page: Page, content: bytes) -> None:
    answer = page.client.post("/api/next", content=content)
    assert (answer.status_code, answer.json()["error"]) == (400, "a request is a JSON object")


def test_a_request_without_end_is_cut_off(page: Page) -> None:
    answer = page.client.post("/api/next", content=json.dumps({"annotator": "x" * 70_000}).encode())
    assert answer.status_code == 400 and "at most 65536 bytes" in answer.json()["error"]


def test_a_page_for_one_person_and_a_list_of_names(labeling: Labeling, tmp_path: Path) -> None:
    page = Page(labeling, annotator="anna")
    assert page.ok("/api/start", {})["annotator"] == "anna"
    assert page.refused({"annotator": "ben"}, "/api/next") == (400, "this page was opened for anna alone")
    named = Page(ask(tmp_path / "named", 2, annotators=["anna", "ben"]))
    assert named.ok("/api/start", {})["annotators"] == ["anna", "ben"]
    assert "'eve' is not among the annotators" in named.refused({"annotator": "eve"}, "/api/next")[1]


def test_a_run_that_has_gone_on_takes_no_more(page: Page, labeling: Labeling) -> None:
    identity = page.next()["question"]["identity"]
    page.closed = True
    assert page.next()["closed"]
    before = labeling.store.clicks()
    status, error = page.refused({"annotator": "anna", "kind": "skip", "question": identity, "id": "click-late"})
    assert status == 400 and "run demo has taken its labels and gone on" in error
    assert labeling.store.clicks() == before


def test_a_disk_that_does_not_take_the_click_says_so(page: Page, labeling: Labeling) -> None:
    identity = page.next()["question"]["identity"]
    labeling.store.path.write_bytes(b"x" * 5000)
    status, error = page.refused({"annotator": "anna", "kind": "skip", "question": identity, "id": "click-full"})
    assert status == 503 and "the labels cannot be read or written" in error
