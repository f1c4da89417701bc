"""Labels for and from Label Studio: tasks to import, and the JSON export (not JSON-MIN) of what was annotated.

The project needs the labeling configuration that is written beside the tasks. Responses go into buckets, one a rank, so
that ties can be said: two in one bucket. Judgements of this run go out as predictions, named by the annotator; an
annotation would need a user there.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.errors import DataError
from pipeline.labeling.exchange import Row, RowError, parse, read_text
from stages.preferences.judgements import Judgement
from stages.preferences.labeling import Labeling, Question

_RANKER, _LIST, _VERDICT, _COMMENT = "rank", "responses", "verdict", "comment"


def write_label_studio(labeling: Labeling, path: Path, run: str) -> int:
    """Write all questions as tasks, and the labeling configuration beside them; returns how many tasks."""
    width = max((len(question.responses) for question in labeling.questions.values()), default=0)
    by_question: dict[str, list[Judgement]] = {}
    for judgement in labeling.final():
        by_question.setdefault(judgement.question, []).append(judgement)
    tasks = [
        {
            "data": {
                "run": run,
                "question": question.identity,
                "prompt": _turns(question),
                "responses": [
                    {"id": f"response-{number + 1}", "title": f"Response {number + 1}", "body": text}
                    for number, text in enumerate(question.responses)
                ],
            },
            "predictions": [
                {"model_version": judgement.annotator, "result": _result(judgement)}
                for judgement in by_question.get(question.identity, [])
                if judgement.decision != "skip"
            ],
        }
        for question in labeling.questions.values()
    ]
    path.write_text(json.dumps(tasks, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")
    configuration_path(path).write_text(_configuration(width), encoding="utf-8", newline="\n")
    return len(tasks)


def configuration_path(path: Path) -> Path:
    """Where the labeling configuration of an export stands."""
    return path.with_name(f"{path.stem}.config.xml")


def read_label_studio(path: Path, labeling: Labeling) -> Iterator[Row]:
    """The annotations in an export; the annotator's name is the user's e-mail address, or his number."""
    tasks = parse(read_text(path), str(path))
    if not isinstance(tasks, list):
        raise DataError(f"{path}: found no list of tasks; Label Studio's JSON export is needed; export it as JSON")
    for number, task in enumerate(tasks, 1):
        where = f"{path}: task {number}"
        try:
            identity = task["data"]["question"]
            question = labeling.questions.get(str(identity))
            for annotation in task.get("annotations", []):
                user = annotation["completed_by"]
                name = str(user.get("email") or user["id"]) if isinstance(user, Mapping) else str(user)
                yield _row(where, name, identity, annotation, question)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f"{where}: no annotated task of this run ({type(error).__name__}: {error}); `data.question` and "
                f"`annotations`, each with `completed_by` and `result`, are needed; export the project as JSON"
            ) from error
        except RowError as error:
            raise DataError(f"{where}: {error}; correct it in Label Studio, or remove the task") from error


def _row(where: str, name: str, identity: Any, annotation: Mapping[str, Any], question: Question | None) -> Row:
    results = {result["from_name"]: result["value"] for result in annotation["result"]}
    comment = "\n".join(results[_COMMENT]["text"]) if _COMMENT in results else ""
    if annotation.get("was_cancelled"):
        return Row(where, name, identity, "skip", comment=comment)
    if _VERDICT in results and results[_VERDICT]["choices"] == ["all_bad"]:
        return Row(where, name, identity, "all_bad", comment=comment)
    if _RANKER not in results:
        raise RowError(f"an annotation of {name} has no ranking")
    ranks = _ranks(results[_RANKER]["ranker"], 0 if question is None else len(question.responses))
    return Row(where, name, identity, "rank", ranks, comment)


def _ranks(groups: Mapping[str, list[str]], size: int) -> list[int]:
    """From buckets, or from one ordered list, to one rank a response."""
    if set(groups) == {_RANKER}:  # a Ranker without buckets: the ids in their order
        levels = [[name] for name in groups[_RANKER]]
    else:
        left = groups.get("_", [])
        if left:
            raise RowError(f"{', '.join(map(str, left))[:80]} lies in no bucket")
        levels = [groups[f"rank-{rank}"] for rank in range(1, size + 1) if groups.get(f"rank-{rank}")]
    ranks: dict[str, int] = {}
    for rank, names in enumerate(levels, 1):
        ranks |= dict.fromkeys(names, rank)
    wanted = [f"response-{number + 1}" for number in range(size)]
    if sorted(ranks) != sorted(wanted):
        raise RowError(f"the ranking names {', '.join(sorted(map(str, ranks)))[:80]}, not {', '.join(wanted)}")
    return [ranks[name] for name in wanted]


def _result(judgement: Judgement) -> list[dict[str, Any]]:
    if judgement.decision == "all_bad":
        return [{"from_name": _VERDICT, "to_name": _LIST, "type": "choices", "value": {"choices": ["all_bad"]}}]
    levels = sorted({rank for rank in judgement.ranks if rank is not None})
    buckets = {
        f"rank-{place}": [f"response-{number + 1}" for number, rank in enumerate(judgement.ranks) if rank == level]
        for place, level in enumerate(levels, 1)
    }
    result: list[dict[str, Any]] = [
        {"from_name": _RANKER, "to_name": _LIST, "type": "ranker", "value": {"ranker": buckets}}
    ]
    if judgement.comment:
        text = {"text": [judgement.comment]}
        result.append({"from_name": _COMMENT, "to_name": _LIST, "type": "textarea", "value": text})
    return result


def _turns(question: Question) -> list[dict[str, str]]:
    """The prompt as Label Studio's `Paragraphs` want it."""
    if isinstance(question.prompt, str):
        return [{"author": "prompt", "text": question.prompt}]
    return [{"author": turn["role"], "text": turn["content"]} for turn in question.prompt]


def _configuration(width: int) -> str:
    buckets = "\n".join(
        f'    <Bucket name="rank-{rank}" title="Rank {rank}{" (best)" if rank == 1 else ""}"/>'
        for rank in range(1, width + 1)
    )
    return f"""<View>
  <Paragraphs name="prompt" value="$prompt" layout="dialogue" nameKey="author" textKey="text"/>
  <List name="{_LIST}" value="$responses" title="Responses: each into the bucket of its rank, ties into one"/>
  <Ranker name="{_RANKER}" toName="{_LIST}">
{buckets}
  </Ranker>
  <Choices name="{_VERDICT}" toName="{_LIST}" choice="single" required="false">
    <Choice value="all_bad" alias="all_bad"/>
  </Choices>
  <TextArea name="{_COMMENT}" toName="{_LIST}" placeholder="Comment" rows="2" maxSubmissions="1"/>
</View>
"""
