"""The HTTP side of the labeling page: what it shows, and each click as it comes.

Everything but the page itself wants a token, in a header that no other site's page can set without being asked first;
the page has it from the fragment of its address, which browsers send to nobody. A `Host` that is not this machine's is
refused, so that no foreign name can be made to point here.
"""

import json
import secrets
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from data.errors import UserError
from stages.preferences.judgements import Judgement
from stages.preferences.labeling import ClickError, Labeling, Question

TOKEN_HEADER = "x-label-token"
_MAX_BODY_BYTES = 64 << 10
_PAGE = Path(__file__).with_name("page.html")
_NONCE = "@NONCE@"
_HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class LabelingPage:
    """The handlers. Calls that touch the disk run in threads, one at a time."""

    def __init__(
        self, labeling: Labeling, *, run: str, token: str, annotator: str | None, is_closed: Callable[[], bool]
    ) -> None:
        """Keep what is served.

        Args:
            labeling: Of the run.
            run: Name of the run.
            token: That requests have to show.
            annotator: The only one who labels here; None lets people say who they are.
            is_closed: Whether the run has taken its labels and gone on.
        """
        self._labeling = labeling
        self._run = run
        self._token = token
        self._annotator = annotator
        self._is_closed = is_closed
        self._agreement: tuple[int, float | None] = (-1, None)
        self._lock = threading.Lock()

    def app(self) -> Starlette:
        """The application."""
        return Starlette(
            routes=[
                Route("/", self._page, methods=["GET"]),
                Route("/api/start", self._handler(self._start), methods=["POST"]),
                Route("/api/next", self._handler(self._next), methods=["POST"]),
                Route("/api/click", self._handler(self._click), methods=["POST"]),
            ],
            middleware=[
                Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False)
            ],
        )

    async def _page(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            f"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        text = _PAGE.read_text(encoding="utf-8").replace(_NONCE, nonce)
        return HTMLResponse(text, headers={**_HEADERS, "content-security-policy": policy})

    def _handler(self, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            shown = request.headers.get(TOKEN_HEADER, "")
            if not secrets.compare_digest(shown.encode(), self._token.encode()):
                return _refusal(401, "this page was opened without its key: use the address that `rlhf label` printed")
            try:
                body = await _body(request)
                return JSONResponse(await run_in_threadpool(self._one_at_a_time, answer, body), headers=_HEADERS)
            except ClickError as error:
                return _refusal(400, str(error))
            except UserError as error:
                return _refusal(503, str(error))

        return handle

    def _one_at_a_time(
        self, answer: Callable[[dict[str, Any]], dict[str, Any]], body: dict[str, Any]
    ) -> dict[str, Any]:
        with self._lock:
            return answer(body)

    def _start(self, body: dict[str, Any]) -> dict[str, Any]:
        """Who may label here, for a page that has just been opened."""
        self._labeling.refresh()
        return {
            "run": self._run,
            "annotator": self._annotator,
            "annotators": self._labeling.job.annotators,
            "labels_per_prompt": self._labeling.job.labels_per_prompt,
        }

    def _next(self, body: dict[str, Any]) -> dict[str, Any]:
        self._labeling.refresh()
        annotator = self._who(body)
        return self._state(annotator, beyond=body.get("beyond") is True)

    def _click(self, body: dict[str, Any]) -> dict[str, Any]:
        labeling = self._labeling
        labeling.refresh()
        annotator = self._who(body)
        click_id = body.get("id")
        if not isinstance(click_id, str) or not 8 <= len(click_id) <= 100:
            raise ClickError("a click needs an id of 8 to 100 characters")
        if self._is_closed():
            raise ClickError(
                f"run {self._run} has taken its labels and gone on; what is clicked now would not count. "
                f"`rlhf label {self._run} --export FILE` writes the labels."
            )
        click_id = f"{annotator}/{click_id}"
        beyond = body.get("beyond") is True
        kind, data, question = body.get("kind"), body.get("data", {}), body.get("question")
        if kind == "undo":
            about = labeling.undo(annotator, click_id)
            return self._state(annotator, question=about or question, beyond=beyond)
        if kind == "shown" or not isinstance(kind, str) or not isinstance(question, str):
            raise ClickError("a click names its kind and its question")
        labeling.click(annotator, question, kind, data, click_id)  # type: ignore[arg-type]  # checked there
        judgement = labeling.judgements.of(annotator, question)
        is_final = judgement is not None and judgement.decision is not None and kind != "comment"
        return self._state(annotator, question=None if is_final else question, beyond=beyond)

    def _who(self, body: dict[str, Any]) -> str:
        name = self._labeling.check_annotator(body.get("annotator"))
        if self._annotator is not None and name != self._annotator:
            raise ClickError(f"this page was opened for {self._annotator} alone")
        return name

    def _state(self, annotator: str, *, question: Any = None, beyond: bool) -> dict[str, Any]:
        """What the page shows now: a question, and how far everything is."""
        labeling = self._labeling
        asked = labeling.questions.get(question) if isinstance(question, str) else None
        asked = asked or labeling.next_question(annotator, beyond=beyond)
        judgement = None
        if asked is not None:
            judgement = labeling.judgements.of(annotator, asked.identity)
            if judgement is None:
                judgement = self._show(annotator, asked)
        final = labeling.final()
        progress = labeling.progress()
        mine = [judgement for judgement in final if judgement.annotator == annotator]
        last = labeling.judgements.last_click(annotator)
        return {
            "question": None if asked is None or judgement is None else _question(asked, judgement),
            "progress": vars(progress),
            "mine": len(mine),
            "people": len({judgement.annotator for judgement in final}),
            "agreement": self._alpha(),
            "can_undo": last is not None,
            "closed": self._is_closed(),
        }

    def _show(self, annotator: str, question: Question) -> Judgement:
        """Fix, and record, the order in which somebody sees the responses."""
        order = {"order": self._labeling.order(annotator, question)}
        self._labeling.click(annotator, question.identity, "shown", order, f"{annotator}/shown/{question.identity}")
        judgement = self._labeling.judgements.of(annotator, question.identity)
        assert judgement is not None
        return judgement

    def _alpha(self) -> float | None:
        """Computed once for each state of the log."""
        number = self._labeling.judgements.last_number
        if self._agreement[0] != number:
            self._agreement = (number, self._labeling.agreement())
        return self._agreement[1]


def _question(question: Question, judgement: Judgement) -> dict[str, Any]:
    return {
        "identity": question.identity,
        "prompt": question.prompt,
        # As they stand on the page; `number` is that of the response in the log.
        "responses": [
            {"number": number, "text": question.responses[number], "rank": judgement.ranks[number]}
            for number in judgement.order
        ],
        "last": judgement.last,
        "decision": judgement.decision,
        "comment": judgement.comment,
    }


async def _body(request: Request) -> dict[str, Any]:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MAX_BODY_BYTES:
            raise ClickError(f"a request has at most {_MAX_BODY_BYTES} bytes")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ClickError("a request is a JSON object")
    return body


def _refusal(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status, headers=_HEADERS)
