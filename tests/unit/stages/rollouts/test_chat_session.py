"""A talk with a saved policy: turns become the prompt, plain policies continue the line."""

from pathlib import Path

import pytest

from data.errors import ModelError
from stages.rollouts import chat
from stages.rollouts.chat import chat_session
from stages.rollouts.config import SamplingConfig
from stages.rollouts.hf_engine import HFEngine
from tests.tiny import Family
from tests.unit.stages.parts import FoldersOf, model_config


def _talk(folders: FoldersOf, family: Family, lines: list[str], *, conversational: bool, seed: int = 1) -> list[str]:
    own = folders(family)
    return list(
        chat_session(
            own.policy,
            model_config(own.base),
            "cpu",
            iter(lines),
            conversational=conversational,
            sampling=SamplingConfig(max_new_tokens=6),
            config_dir=None,
            seed=seed,
        )
    )


def test_a_conversation_grows_by_both_sides(folders: FoldersOf, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[list[int]] = []
    original = HFEngine.generate

    def spy(self: HFEngine, rows: list[list[int]], *args: object, **kwargs: object) -> object:
        prompts.extend(rows)
        return original(self, rows, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(chat.HFEngine, "generate", spy)
    answers = _talk(folders, "qwen2", ["Hello", "How?"], conversational=True)
    assert len(answers) == 2
    first, second = prompts
    assert len(second) > len(first)
    end = first[-3:]  # the mark of the assistant's turn
    assert second[: len(first)] == first and second[-len(end) :] == end


def test_a_plain_policy_continues_each_line_by_itself(folders: FoldersOf) -> None:
    answers = _talk(folders, "llama", ["The coffee", "The coffee"], conversational=False)
    assert all(answer.startswith("The coffee") for answer in answers)
    assert answers[0] != answers[1], "each line has a seed of its own"
    assert answers == _talk(folders, "llama", ["The coffee", "The coffee"], conversational=False)


def test_a_policy_of_another_base_is_refused(folders: FoldersOf) -> None:
    own, other = folders("llama"), folders("gpt2")
    session = chat_session(
        other.policy,
        model_config(own.base),
        "cpu",
        iter(["x"]),
        conversational=False,
        sampling=SamplingConfig(),
        config_dir=None,
        seed=0,
    )
    with pytest.raises(ModelError, match="was trained on base"):
        next(session)


def test_sessions_start_without_reading_ahead(folders: FoldersOf, tmp_path: Path) -> None:
    assert _talk(folders, "llama", [], conversational=False) == []
