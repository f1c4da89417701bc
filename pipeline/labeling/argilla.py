"""Labels for and from Argilla 2: the list of records that `dataset.records.from_json` reads and `to_json` writes.

    dataset = rg.Dataset(name="preferences", settings=rg.Settings(
        fields=[rg.TextField("prompt"), *(rg.TextField(f"response-{n}", required=n < 3) for n in range(1, K + 1))],
        questions=[rg.RankingQuestion("ranking", values=[f"response-{n}" for n in range(1, K + 1)]),
                   rg.LabelQuestion("verdict", labels=["all_bad"], required=False),
                   rg.TextQuestion("comment", required=False)],
        metadata=[rg.TermsMetadataProperty("run")]))
    dataset.create(); dataset.records.from_json("labels.json")

Argilla's Python package gives a ranking as the values in their order, without the ranks, so that ties do not pass
through it; the server's own form, a list of `{"value": ..., "rank": ...}`, has them and is read, too. Judgements of
this run go out as suggestions: a response in Argilla needs the id of a user there.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.errors import DataError
from pipeline.labeling.exchange import Row, RowError, parse, read_text
from stages.preferences.judgements import Judgement, opinion_of
from stages.preferences.labeling import Labeling, Question

_ABSENT = "(there is no such response; put it last)"
_RANKING, _VERDICT, _COMMENT = "ranking", "verdict", "comment"


def write_argilla(labeling: Labeling, path: Path, run: str) -> int:
    """Write all questions, with what people made of them so far as suggestions; returns how many records."""
    width = max((len(question.responses) for question in labeling.questions.values()), default=0)
    by_question: dict[str, list[Judgement]] = {}
    for judgement in labeling.final():
        by_question.setdefault(judgement.question, []).append(judgement)
    records = [
        {
            "id": question.identity,
            "fields": {
                "prompt": _prompt_text(question),
                **{
                    f"response-{number}": text
                    for number, text in enumerate([*question.responses, *[_ABSENT] * width][:width], 1)
                },
            },
            "metadata": {"run": run},
            "suggestions": _suggestions(question, by_question.get(question.identity, []), width),
            "responses": {},
            "vectors": {},
        }
        for question in labeling.questions.values()
    ]
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")
    return len(records)


def read_argilla(path: Path, labeling: Labeling) -> Iterator[Row]:
    """The responses in such a file, one row for each user of a record; his id is the annotator's name."""
    records = parse(read_text(path), str(path))
    if not isinstance(records, list):
        raise DataError(f"{path}: found no list of records; a file of `dataset.records.to_json` is needed; export it")
    for number, record in enumerate(records, 1):
        where = f"{path}: record {number}"
        try:
            answers = record["responses"]
            users: dict[str, dict[str, Any]] = {}
            for question, given in answers.items():
                for answer in given:
                    if answer.get("status") == "draft":
                        continue
                    of_user = users.setdefault(str(answer["user_id"]), {})
                    of_user[question] = answer["value"]
                    of_user["status"] = answer.get("status")
            identity = record["id"]
            for user, said in users.items():
                yield _row(where, user, identity, said, labeling.questions.get(str(identity)))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{where}: no record of Argilla 2 ({type(error).__name__}: {error}); `id` and `responses` by question, "
                f"each with `value` and `user_id`, are needed; export it again with `dataset.records.to_json`"
            ) from error
        except RowError as error:
            raise DataError(f"{where}: {error}; correct it in Argilla, or remove the record") from error


def _row(where: str, user: str, identity: Any, said: Mapping[str, Any], question: Question | None) -> Row:
    comment = said.get(_COMMENT) or ""
    if said.get("status") == "discarded":
        return Row(where, user, identity, "skip", comment=comment)
    if said.get(_VERDICT) == "all_bad":
        return Row(where, user, identity, "all_bad", comment=comment)
    size = 0 if question is None else len(question.responses)
    return Row(where, user, identity, "rank", _ranks(said.get(_RANKING), size), comment)


def _ranks(value: Any, size: int) -> list[int]:
    """From either form of a ranking to one rank a response; places that stand for no response are left out."""
    if not isinstance(value, list):
        raise RowError(f"question `{_RANKING}` has no ranking")
    given: dict[int, int] = {}
    for place, entry in enumerate(value, 1):
        name, rank = (entry["value"], entry.get("rank")) if isinstance(entry, Mapping) else (entry, None)
        prefix, _, number = str(name).rpartition("-")
        if prefix != "response" or not number.isdecimal():
            raise RowError(f"{str(name)[:40]!r} is no response of this run; they are called response-1, response-2 ...")
        if 1 <= int(number) <= size:
            given[int(number) - 1] = place if rank is None else rank
    if sorted(given) != list(range(size)):
        raise RowError(f"the ranking names {len(given)} of the {size} responses")
    # Ranks from 1 without gaps: the ones left out may have stood between.
    levels = sorted(set(given.values()))
    return [levels.index(given[response]) + 1 for response in range(size)]


def _suggestions(question: Question, judgements: list[Judgement], width: int) -> dict[str, Any]:
    opinion = opinion_of(judgements, len(question.responses))
    judged = [(value, number) for number, value in enumerate(opinion) if value is not None]
    if not judged:
        return {}
    best_first = [number for _, number in sorted(judged, key=lambda pair: (-pair[0], pair[1]))]
    absent = range(len(question.responses), width)
    names = ", ".join(sorted({judgement.annotator for judgement in judgements}))
    return {_RANKING: {"value": [f"response-{n + 1}" for n in (*best_first, *absent)], "score": None, "agent": names}}


def _prompt_text(question: Question) -> str:
    if isinstance(question.prompt, str):
        return question.prompt
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in question.prompt)
