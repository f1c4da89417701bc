"""Opinions of a planted judge: wins, ties, figures and the record, by arithmetic."""

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.contract import Episode
from stages.contract import StageContext
from stages.metrics import MetricsWriter
from stages.preferences.config import JudgeLabelerConfig
from stages.preferences.contract import Candidates, RecordingLabeler
from stages.preferences.judge_labeler import JUDGEMENTS, JudgeLabeler
from tests.unit.data.test_endpoint import Model, served
from tests.unit.rewards.test_judge import longer_wins


def candidates(*texts: str, prompt: str = "q", unfinished: tuple[int, ...] = ()) -> Candidates:
    """Responses to a prompt."""
    return Candidates(
        tuple(Episode(prompt, text, (1,), (2,), prompt, row not in unfinished) for row, text in enumerate(texts))
    )


def labeler(model: Model, folder: Path, *, seed: int = 0, **settings: Any) -> JudgeLabeler:
    """Of the stand-in."""
    folder.mkdir(parents=True, exist_ok=True)
    context = StageContext(
        payload_dir=folder, scratch_dir=folder, stage_dir=folder, seed=seed, device="cpu",
        metrics=MetricsWriter(folder / "metrics.jsonl"), report_progress=lambda done, total, what: None,
    )  # fmt: skip
    judge = {"endpoint": {"address": model.address, "model": "m", "price_per_million_prompt_tokens": 1.0}}
    config = JudgeLabelerConfig.model_validate({"type": "judge", "judge": judge} | settings)
    return JudgeLabeler(config, context, only_finished=True)


def test_opinions_are_shares_of_won_comparisons(tmp_path: Path) -> None:
    rule = {"type": "character_share", "characters": "a"}
    with served(longer_wins) as model:
        made = labeler(model, tmp_path, agreement_with=rule)
        # aaa beats bb and dd, which tie; the last one was cut off and is not asked about.
        opinions = made([candidates("bb", "aaa", "dd", "cut off", unfinished=(3,)), candidates("same", "same")])
        assert opinions == [(0.25, 1.0, 0.25, None), (None, None)]
        assert isinstance(made, RecordingLabeler)
        figures = made.record(tmp_path)
        assert len(model.requests) == 6
    assert figures["judge/comparisons"] == 3 and figures["judge/unparsed"] == 0
    assert figures["judge/ties"] == figures["judge/position_bias"] == pytest.approx(1 / 3)
    assert figures["judge/order_agreement"] == pytest.approx(2 / 3)
    assert figures["judge/agreement"] == 1.0, "the rule prefers aaa, too"
    assert (figures["judge/requests"], figures["judge/cached"], figures["judge/prompt_tokens"]) == (6, 0, 600)
    assert figures["judge/cost"] == pytest.approx(600e-6)
    rows = [json.loads(line) for line in (tmp_path / JUDGEMENTS).read_text().splitlines()]
    assert [(row["pair"], row["forward"], row["backward"]) for row in rows] == [
        ([0, 1], "second", "second"), ([0, 2], "first", "second"), ([1, 2], "first", "first")
    ]  # fmt: skip


def test_a_stage_that_was_killed_asks_nothing_twice_and_writes_the_same(tmp_path: Path) -> None:
    given = [candidates("bb", "aaa", "d"), candidates("x", "yy", prompt="p")]
    with served(longer_wins) as model:
        records = []
        for _ in range(2):
            made = labeler(model, tmp_path)
            opinions = made(given)
            figures = made.record(tmp_path)
            records.append((opinions, (tmp_path / JUDGEMENTS).read_bytes(), figures["judge/comparisons"]))
        assert records[0] == records[1] and len(model.requests) == 8
        assert (figures["judge/requests"], figures["judge/cached"], figures["judge/cost"]) == (0, 8, 0.0)


def test_fewer_comparisons_are_chosen_by_seed_and_responses(tmp_path: Path) -> None:
    given = [candidates("a", "bb", "ccc", "dddd", prompt=f"q{number}") for number in range(6)]
    with served(longer_wins) as model:

        def chosen(seed: int, folder: str) -> list[tuple[str, tuple[int, ...]]]:
            made = labeler(model, tmp_path / folder, seed=seed, comparisons_per_prompt=2)
            opinions = made(given)
            assert all(sum(value is None for value in opinion) <= 1 for opinion in opinions)
            made.record(tmp_path / folder)
            lines = (tmp_path / folder / JUDGEMENTS).read_text().splitlines()
            return [(row["question"], tuple(row["pair"])) for row in map(json.loads, lines)]

        first = chosen(0, "a")
        assert len(first) == 12 and chosen(0, "b") == first != chosen(1, "c")


def test_answers_that_say_nothing_give_no_opinion(tmp_path: Path) -> None:
    with served(longer_wins) as model:
        made = labeler(model, tmp_path)
        assert made([candidates("never mumble", "a")]) == [(None, None)]
        figures = made.record(tmp_path)
    assert (figures["judge/comparisons"], figures["judge/unparsed"], figures["judge/ties"]) == (1, 1, 0)
