"""From clicks to judgements: what each person thinks of each question now. Pure.

A click is never changed. An undo is a click of its own, which names the one that it takes back, so that what somebody
thought can be worked out for any moment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard, get_args

from stages.preferences.agreement import midranks, ordinal_alpha

ClickKind = Literal["shown", "rank", "tie", "skip", "all_bad", "done", "undo", "comment"]
CLICK_KINDS: tuple[ClickKind, ...] = get_args(ClickKind)
Decision = Literal["rank", "skip", "all_bad"]
MAX_COMMENT = 4000
MAX_NAME = 64
_UNDONE_BY_ONE = ("rank", "tie", "skip", "all_bad", "done")


@dataclass(frozen=True)
class Click:
    """One thing that somebody did.

    Attributes:
        annotator: Who.
        question: Identity of the question.
        kind: `shown`: the responses came up in an order; `rank`: responses got a rank; `tie`: one that another has
            already; `skip`: no judgement; `all_bad`: none is worth preferring; `done`: the ranks are final; `undo`;
            `comment`.
        data: `order` of `shown`; `responses` and `rank` of `rank` and `tie`; `undoes` of `undo`; `text` of `comment`.
        number: Its number in the log; clicks are in this order.
        time: When it was saved, ISO 8601.
    """

    annotator: str
    question: str
    kind: ClickKind
    data: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    time: str = ""


@dataclass(frozen=True)
class Judgement:
    """What one person thinks of one question.

    Attributes:
        annotator: Who.
        question: Identity of the question.
        decision: None while it is not final.
        ranks: By response, 1 is best, equal ones are ties, None has none yet.
        comment: Free text.
        order: The responses as they stood on the page, by their numbers.
        last: The response that got a rank last.
    """

    annotator: str
    question: str
    decision: Decision | None
    ranks: tuple[int | None, ...]
    comment: str = ""
    order: tuple[int, ...] = ()
    last: int | None = None

    @property
    def is_ranked(self) -> bool:
        """Whether every response has a rank."""
        return None not in self.ranks

    @property
    def midranks(self) -> tuple[float, ...]:
        """The ranks without gaps; only of a whole ranking."""
        return midranks([rank for rank in self.ranks if rank is not None])

    @property
    def has_tie(self) -> bool:
        """Whether two responses share a rank."""
        return len(set(self.ranks)) < len(self.ranks)


class Judgements:
    """All judgements that a log of clicks amounts to; takes further clicks as they come."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """Start with no click.

        Args:
            sizes: Number of responses of each question; clicks on other questions are left out.
        """
        self._sizes = sizes
        self._clicks: dict[tuple[str, str], list[Click]] = {}
        self._undoable: dict[str, list[Click]] = {}
        self._known: dict[tuple[str, str], Judgement] = {}
        self.last_number = 0

    def take(self, clicks: Sequence[Click]) -> None:
        """Add clicks that came after all others."""
        for click in clicks:
            self.last_number = max(self.last_number, click.number)
            if click.question not in self._sizes:
                continue
            key = (click.annotator, click.question)
            kept = self._clicks.setdefault(key, [])
            stack = self._undoable.setdefault(click.annotator, [])
            if click.kind == "undo":
                kept[:] = [other for other in kept if other.number != click.data["undoes"]]
                stack[:] = [other for other in stack if other.number != click.data["undoes"]]
            else:
                kept.append(click)
                if click.kind in _UNDONE_BY_ONE:
                    stack.append(click)
            self._known[key] = self._replay(key)

    def of(self, annotator: str, question: str) -> Judgement | None:
        """What somebody thinks of a question; None where he has never seen it."""
        return self._known.get((annotator, question))

    def last_click(self, annotator: str) -> Click | None:
        """What an undo of this person would take back."""
        stack = self._undoable.get(annotator)
        return stack[-1] if stack else None

    def final(self, annotators: Sequence[str] | None = None) -> list[Judgement]:
        """All that are decided, by question and name.

        Args:
            annotators: Only those of these people; None takes all.
        """
        return sorted(
            (
                judgement
                for judgement in self._known.values()
                if judgement.decision is not None and (annotators is None or judgement.annotator in annotators)
            ),
            key=lambda judgement: (judgement.question, judgement.annotator),
        )

    def _replay(self, key: tuple[str, str]) -> Judgement:
        annotator, question = key
        ranks: list[int | None] = [None] * self._sizes[question]
        decision: Decision | None = None
        comment, order, last = "", tuple(range(len(ranks))), None
        for click in self._clicks[key]:
            match click.kind:
                case "rank" | "tie":
                    for response in click.data["responses"]:
                        ranks[response], last = click.data["rank"], response
                    decision = None
                case "skip" | "all_bad":
                    decision = click.kind
                case "done":
                    decision = "rank"
                case "comment":
                    comment = click.data["text"]
                case "shown":
                    order = tuple(click.data["order"])
        return Judgement(annotator, question, decision, tuple(ranks), comment, order, last)


def opinion_of(judgements: Sequence[Judgement], size: int) -> tuple[float | None, ...]:
    """One number a response from all judgements on a question: the mean of the midranks, turned so that high is good.

    Args:
        judgements: Final ones on one question.
        size: Number of its responses.

    Returns:
        None for each response where nobody has ranked them.
    """
    rankings = [judgement.midranks for judgement in judgements if judgement.decision == "rank"]
    if not rankings:
        return (None,) * size
    return tuple(-sum(ranking[response] for ranking in rankings) / len(rankings) for response in range(size))


def agreement(judgements: Sequence[Judgement]) -> float | None:
    """Ordinal alpha of all rankings; each response to each question is a unit, its midranks are the values."""
    units: dict[tuple[str, int], list[float]] = {}
    for judgement in judgements:
        if judgement.decision == "rank":
            for response, rank in enumerate(judgement.midranks):
                units.setdefault((judgement.question, response), []).append(rank)
    return ordinal_alpha(units.values())


def fault_of(kind: str, data: Any, size: int) -> str | None:
    """What is wrong with a click, None for nothing.

    Args:
        kind: As it came.
        data: As it came.
        size: Number of the question's responses.
    """
    if kind not in CLICK_KINDS or kind == "undo":
        return f"kind {str(kind)[:40]!r} is none of {', '.join(name for name in CLICK_KINDS if name != 'undo')}"
    if not isinstance(data, Mapping):
        return "data is no mapping"
    match kind:
        case "rank" | "tie":
            responses, rank = data.get("responses"), data.get("rank")
            if not _are_numbers(responses) or not responses or not all(0 <= r < size for r in responses):
                return f"responses must be a list of numbers from 0 to {size - 1}"
            if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= size:
                return f"rank must be a whole number from 1 to {size}"
            wanted = {"responses", "rank"}
        case "comment":
            if not isinstance(data.get("text"), str) or len(data["text"]) > MAX_COMMENT:
                return f"text must be text of at most {MAX_COMMENT} characters"
            wanted = {"text"}
        case "shown":
            order = data.get("order")
            if not _are_numbers(order) or sorted(order) != list(range(size)):
                return f"order must hold each number from 0 to {size - 1} once"
            wanted = {"order"}
        case _:
            wanted = set()
    return f"data holds {', '.join(sorted(map(str, set(data) - wanted)))[:80]}" if set(data) - wanted else None


def name_fault(name: Any) -> str | None:
    """What is wrong with an annotator's name, None for nothing."""
    if not isinstance(name, str) or not name.strip() or name != name.strip():
        return "a name is text without blanks at its ends"
    if len(name) > MAX_NAME or not name.isprintable():
        return f"a name has at most {MAX_NAME} characters, all of which can be seen"
    return None


def _are_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(entry) is int for entry in value)
