"""Labels from and to files: our own JSON lines, and what all formats share.

One line a judgement:

    {"annotator": "anna", "question": "<identity>", "decision": "rank", "ranks": [2, 1, 3], "order": [1, 0, 2],
     "comment": "", "time": "2026-01-31T09:12:04.031+00:00", "prompt": "...", "responses": ["...", "...", "..."]}

`ranks` are by response, 1 is best and equal ones are ties; `decision` is `rank`, `skip` or `all_bad`. An import is
checked as a whole and taken as a whole.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from data.errors import DataError
from stages.preferences.judgements import Click, ClickKind, Decision, Judgement, fault_of
from stages.preferences.labeling import ClickError, Labeling, Question

Format = Literal["jsonl", "argilla", "label_studio"]
FORMATS: tuple[Format, ...] = get_args(Format)
MAX_BYTES = 1 << 30
_TOLD = 20


@dataclass(frozen=True)
class Row:
    """A judgement as a file has it; not checked yet.

    Attributes:
        where: File and line, or record.
        annotator: Who.
        question: Identity of the question.
        decision: One of `Decision`.
        ranks: By response; None unless the decision is `rank`.
        comment: Free text.
        order: Of the responses on the page; None where that is not known.
    """

    where: str
    annotator: Any
    question: Any
    decision: Any
    ranks: Any = None
    comment: Any = ""
    order: Any = None


class RowError(Exception):
    """A row that cannot be used; the text says why."""


def write_jsonl(labeling: Labeling, path: Path) -> int:
    """Write all final judgements, also of people whose labels do not count; returns how many."""
    judgements = labeling.judgements.final()
    times = {(click.annotator, click.question): click.time for click in labeling.store.clicks()}
    lines = []
    for judgement in judgements:
        question = labeling.questions[judgement.question]
        row = {
            "annotator": judgement.annotator,
            "question": judgement.question,
            "decision": judgement.decision,
            "ranks": list(judgement.ranks) if judgement.decision == "rank" else None,
            "order": list(judgement.order),
            "comment": judgement.comment,
            "time": times[judgement.annotator, judgement.question],
            "prompt": question.prompt,
            "responses": question.responses,
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return len(judgements)


def read_jsonl(path: Path, labeling: Labeling) -> Iterator[Row]:
    """The rows of such a file."""
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines: U+2028 may stand in a text
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = parse(line, where)
        if not isinstance(row, dict):
            raise DataError(f"{where}: found {type(row).__name__}, a JSON object a line is needed; correct the line")
        question = labeling.questions.get(str(row.get("question")))
        for key in ("prompt", "responses"):
            if question is not None and key in row and row[key] != getattr(question, key):
                raise DataError(
                    f"{where}: {key} is another than this run's question {question.identity[:12]} has; labels of the "
                    f"same responses are needed; remove the line, or import it where it belongs"
                )
        yield Row(
            where,
            row.get("annotator"),
            row.get("question"),
            row.get("decision"),
            row.get("ranks"),
            row.get("comment", ""),
            row.get("order"),
        )


def read_text(path: Path) -> str:
    """A file that a user names, if it is not too large.

    Raises:
        DataError: It cannot be read.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes; at most {MAX_BYTES} are read; split the file")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read ({reason}); a UTF-8 file of labels is needed; correct it") from error


def parse(text: str, where: str) -> Any:
    """JSON of a user.

    Raises:
        DataError: It is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no JSON ({error}); correct it, or export it again") from error


def take(labeling: Labeling, rows: Sequence[Row]) -> tuple[int, int]:
    """Save imported judgements, all of them or none.

    Returns:
        How many are new, and how many this run had already.

    Raises:
        DataError: Naming each row that cannot be used.
    """
    labeling.refresh()
    problems: list[str] = []
    clicks: list[tuple[Click, str]] = []
    seen: dict[tuple[str, str], str] = {}
    new = 0
    for row in rows:
        try:
            annotator, question, decision = _checked(labeling, row)
            key = (annotator, question.identity)
            if key in seen:
                raise RowError(f"{annotator} judges this question in {seen[key]} already; a person judges it once")
            seen[key] = row.where
            before = labeling.judgements.of(*key)
            if before is not None and before.decision is not None:
                if not _is_same(before, row, decision):
                    raise RowError(
                        f"{annotator} has judged this question otherwise in this run; remove the row, or undo that "
                        f"judgement on the page"
                    )
                continue
            clicks += _clicks(row, annotator, question, decision, is_shown=before is not None)
            new += 1
        except (RowError, ClickError) as error:
            problems.append(f"{row.where}: {error}")
    if problems:
        more = [f"and {len(problems) - _TOLD} more"] if len(problems) > _TOLD else []
        raise DataError("\n".join([*problems[:_TOLD], *more, "nothing was imported; correct these and import again"]))
    labeling.store.append_all(clicks)
    labeling.refresh()
    return new, len(rows) - new


def _checked(labeling: Labeling, row: Row) -> tuple[str, Question, Decision]:
    annotator = labeling.check_annotator(row.annotator)
    question = labeling.questions.get(row.question) if isinstance(row.question, str) else None
    if question is None:
        raise RowError(f"question {str(row.question)[:80]!r} is none of this run's {len(labeling.questions)}")
    size = len(question.responses)
    if row.decision not in get_args(Decision):
        raise RowError(f"decision {str(row.decision)[:40]!r} is none of {', '.join(get_args(Decision))}")
    if row.decision == "rank":
        if not isinstance(row.ranks, list) or len(row.ranks) != size:
            raise RowError(f"ranks must be a list of {size} numbers, one a response")
        for rank in row.ranks:
            if fault := fault_of("rank", {"responses": [0], "rank": rank}, size):
                raise RowError(f"{fault}, found {str(rank)[:40]!r}")
    for kind, data in (("comment", {"text": row.comment}), ("shown", {"order": row.order})):
        if data != {"order": None} and (fault := fault_of(kind, data, size)):
            raise RowError(f"{kind}: {fault}")
    return annotator, question, row.decision


def _is_same(judgement: Judgement, row: Row, decision: Decision) -> bool:
    if judgement.decision != decision or judgement.comment != row.comment:
        return False
    return decision != "rank" or list(judgement.ranks) == row.ranks


def _clicks(
    row: Row, annotator: str, question: Question, decision: Decision, *, is_shown: bool
) -> list[tuple[Click, str]]:
    """A judgement as the clicks that would have made it."""
    steps: list[tuple[ClickKind, dict[str, Any]]] = []
    if row.order is not None and not is_shown:
        steps.append(("shown", {"order": row.order}))
    if decision == "rank":
        for rank in sorted(set(row.ranks)):
            tied = [response for response, given in enumerate(row.ranks) if given == rank]
            steps.append(("rank" if len(tied) == 1 else "tie", {"responses": tied, "rank": rank}))
    if row.comment:
        steps.append(("comment", {"text": row.comment}))
    steps.append(("done" if decision == "rank" else decision, {}))
    batch = secrets.token_hex(8)
    return [
        (Click(annotator, question.identity, kind, data), f"{annotator}/import/{batch}/{number}")
        for number, (kind, data) in enumerate(steps)
    ]
