"""Waiting for people: what is said, when it ends, and that everything is kept."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pipeline.waiting
from data.errors import StageError
from pipeline.config import PipelineConfig
from pipeline.console import Console
from pipeline.execution import _going_on
from pipeline.session import RunPlan, Session
from pipeline.waiting import wait_for_labels
from stages.preferences.labeling import Labeling
from tests.labeling_run import judge, make_waiting_run


class Waiting:
    """A run that waits, and what it says."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.run, self.labeling = make_waiting_run(folder, "w", 4, min_prompts=2)
        self.run.update_stage("preferences", status="running")
        values = {
            "model": {"base": "some/model"},
            "data": {"demonstrations": {"path": "d.jsonl"}},
            "preferences": {"labeler": {"type": "human", "min_prompts": 2, **settings}},
        }
        config = PipelineConfig.model_validate(values)
        tracker: Any = None
        self.session = Session(config, None, self.run, RunPlan(), Console(), tracker)
        self.log: list[str] = []
        self.progress: list[tuple[int, int]] = []
        self.paused: list[str] = []

    def __call__(self, on_progress: Callable[[int], None] = lambda done: None) -> None:
        def progress(done: int, needed: int, what: str) -> None:
            assert what == f"waiting for labels; rlhf label w{self.run.output_dir_option}"
            assert (self.run.stage("preferences") or {})["status"] == "waiting"
            self.progress.append((done, needed))
            on_progress(done)

        @contextmanager
        def pausing(reason: str) -> Iterator[None]:
            self.paused.append(reason)
            try:
                yield
            finally:
                self.paused.append("over")

        wait_for_labels(self.session, "preferences", self.labeling.folder, self.log.append, progress, pausing)

    def judge(self, number: int) -> None:
        other = Labeling(self.labeling.folder)  # as a page in another process would
        judge(other, "anna", list(other.questions.values())[number], "skip")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.waiting, "_POLL_SECONDS", 0.01)


def test_it_goes_on_when_enough_is_judged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    waiting = Waiting(tmp_path)
    waiting(on_progress=waiting.judge)
    assert waiting.progress == [(0, 2), (1, 2)]  # told when it changes, and not each second
    command = f"rlhf label w --output-dir {tmp_path}"
    assert waiting.paused == [f"waiting for labels: 0 of 2 prompts; {command}", "over"]
    assert waiting.log == ["waiting for labels: 0 of 2 prompts; no model is in memory", "2 of 2 prompts are judged"]
    assert (waiting.run.stage("preferences") or {})["status"] == "running"
    assert f"preferences: waiting for labels: 0 of 2 prompts; `{command}` serves the page" in capfd.readouterr().err


def test_it_ends_after_the_time_that_was_given(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path, timeout_hours=1e-6)
    waiting.judge(0)
    with pytest.raises(StageError, match=r"1 of 2 prompts are judged after preferences\.labeler\.timeout_hours=1e-06, "
                       r".*the labels are kept.*`rlhf resume w --output-dir .*` goes on"):  # fmt: skip
        waiting()
    assert waiting.paused[-1] == "over"


def test_ctrl_c_keeps_the_labels_and_says_how_to_go_on(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)

    def interrupt(done: int) -> None:
        waiting.judge(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        waiting(on_progress=interrupt)
    assert waiting.paused[-1] == "over"
    waiting.run.finish("cancelled")
    assert (waiting.run.stage("preferences") or {})["status"] == "failed"
    assert _going_on(waiting.run) == f"`rlhf resume w --output-dir {tmp_path}` goes on in preferences, with all labels"
    assert Labeling(waiting.labeling.folder).progress().done == 1


def test_it_says_how_far_it_is_when_that_changes_and_not_at_each_look(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    later = threading.Timer(0.2, lambda: [waiting.judge(number) for number in (0, 1)])
    later.start()  # after some twenty looks
    waiting()
    later.join()
    assert waiting.progress in ([(0, 2)], [(0, 2), (1, 2)])
