"""PPO on a reward that is no reward model: a function of the user's, and a server that goes away for a while."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.errors import ConfigError, StageError
from stages.ppo.config import PPOConfig
from stages.ppo.trainer import PPOTrainer
from stages.run import StageSpec
from tests.unit.stages.parts import Executed, run_quietly
from tests.unit.stages.ppo.trainers import learners, spy
from tests.unit.stages.test_resume import rows, scramble

FUNCTION = "def vowels(prompts, responses):\n    return [sum(c in 'aeiou' for c in text) / 4 for text in responses]\n"


def vowels(responses: list[str]) -> list[float]:
    return [sum(c in "aeiou" for c in text) / 4 for text in responses]


def judged_by(run: Executed, folder: Path, reward: dict[str, Any], **settings: Any) -> StageSpec:
    config = PPOConfig.model_validate(run.spec.config | {"rewards": [reward]} | settings).model_dump(mode="json")
    return replace(
        run.spec, config=config, stage_dir=folder / "night" / "ppo", store_dir=folder / "store", config_dir=folder
    )


class Judge(ThreadingHTTPServer):
    """Scores by vowels, unless it is down."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = 0
        self.down_after: int | None = None


class _Handler(BaseHTTPRequestHandler):
    server: Judge

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        down = self.server.down_after is not None and self.server.answers >= self.server.down_after
        self.server.answers += not down
        content = json.dumps({"scores": vowels(body["responses"])}).encode()
        self.send_response(503 if down else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def judge() -> Iterator[Judge]:
    server = Judge()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_reward_server_that_goes_away_ends_the_stage_and_a_resumed_one_gives_what_a_function_gives(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: Judge
) -> None:
    """The function is the undisturbed run: it gives the same numbers in the same process."""
    by_function = tmp_path / "function"
    by_function.mkdir()
    (by_function / "own.py").write_text(FUNCTION, encoding="utf-8")
    calls = spy(monkeypatch, PPOTrainer, "step")
    expected = judged_by(ppo_run, by_function, {"type": "python", "name": "vowels", "source": "own.py:vowels"})
    whole = run_quietly(expected)
    (trainer, _), _, _ = calls[0]
    assert learners(trainer).keys() == {"policy", "critic"}
    assert set(trainer.models.shared_base.peft_model.peft_config) == {"policy", "reference", "critic"}
    assert whole["notes"]["critic_initialisation"] == "SFT adapter, with a value head of zeros"
    assert whole["artifact"]["digest"] != ppo_run.artifact.digest

    monkeypatch.setattr("data.asking.time.sleep", lambda seconds: None)
    address = f"http://127.0.0.1:{judge.server_address[1]}/"
    remote = {"type": "remote", "name": "vowels", "address": address, "max_retries": 2}
    spec = judged_by(ppo_run, tmp_path / "server", remote)
    judge.down_after = 2
    with pytest.raises(StageError, match=r"answered 503 .* the last of 3 tries; .*The state after step 2 is kept in"):
        run_quietly(spec)
    assert rows(spec) == rows(expected)[:2]
    judge.down_after = None
    scramble()
    assert run_quietly(spec)["artifact"]["digest"] == whole["artifact"]["digest"]
    assert rows(spec) == rows(expected) and judge.answers == 3


def test_a_function_that_is_gone_is_the_users_fault(ppo_run: Executed, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ppo\.rewards\[python\]\.source='own\.py:f': no file at"):
        run_quietly(judged_by(ppo_run, tmp_path, {"type": "python", "source": "own.py:f"}))


@pytest.mark.parametrize(
    ("rewards", "is_like_it"),
    [
        (None, True),
        ([{"type": "learned"}], True),
        ([{"type": "learned", "weight": 2.0}], False),
        ([{"type": "learned", "normalize": "batch"}], False),
        ([{"type": "learned", "clip": [-1, 1]}], False),
        ([{"type": "learned", "threshold": {"at_least": 0}}], False),
        ([{"type": "learned", "path": "other"}], False),
        ([{"type": "learned"}, {"type": "length", "weight": 0.0}], False),
        ([{"type": "ensemble", "members": ["other"]}], True),
        ([{"type": "ensemble", "members": ["other", "third"], "with_own": False}], False),
        ([{"type": "python", "source": "own.py:f"}], False),
    ],
)  # fmt: skip
def test_the_critic_starts_from_the_reward_model_where_that_alone_judges(rewards: Any, is_like_it: bool) -> None:
    assert PPOConfig.model_validate({"rewards": rewards, "critic_init": "zero"}).is_scored_by_reward_model == is_like_it
    if is_like_it:
        PPOConfig.model_validate({"rewards": rewards, "critic_init": "reward_model"})
    else:
        with pytest.raises(
            ValidationError, match="critic_init=reward_model, but `rewards` gives scores in other units"
        ):
            PPOConfig.model_validate({"rewards": rewards, "critic_init": "reward_model"})
