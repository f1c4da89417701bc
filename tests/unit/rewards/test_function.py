"""A user's function as a reward: what it gives, and what it does to a stage when it misbehaves."""

import math
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data.errors import ConfigError, StageError
from rewards.composite_config import PythonRewardConfig
from rewards.contract import Episode
from rewards.function import PythonReward, function_digest, function_file

FILE = """
import math
from dataclasses import dataclass

@dataclass
class Weights:  # its module has to be found while the class is made
    each: "float" = 2.0

def length(prompts, responses):
    return [Weights().each * len(response) for response in responses]

def needs_prompt(prompts, responses):
    return [float(prompt.rpartition(" ")[2]) for prompt in prompts]

def picky(prompts, responses):
    if any("bad" in response for response in responses):
        raise KeyError("tone")
    return [0.0] * len(responses)

def never(prompts, responses):
    if len(responses) == 2:
        raise ValueError("together only")
    return [0.0] * len(responses)

def leaves(prompts, responses):
    raise SystemExit(3)

def against(prompts, responses, references):
    return [float(response == reference) for response, reference in zip(responses, references)]

number = 4
"""


def episodes(*texts: str) -> list[Episode]:
    return [Episode(f"Say: {n}", text, (1,), (2,), "Say:", True) for n, text in enumerate(texts)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def reward(file: Path, name: str, **settings: Any) -> PythonReward:
    return PythonReward(PythonRewardConfig(source=f"{file.name}:{name}", **settings), file.parent)


def digest(source: str, folder: Path | None) -> str:
    return function_digest(PythonRewardConfig(source=source), folder)


def giving(found: Any, file: Path) -> PythonReward:
    """A function that gives this, whatever it is asked."""
    made = reward(file, "length")
    made._function = lambda prompts, responses: found
    return made


def test_a_function_of_a_file_beside_the_configuration_judges_prompts_and_responses(file: Path) -> None:
    assert reward(file, "length")(episodes("ab", "", "abc")) == [4.0, 0.0, 6.0]
    assert reward(file, "needs_prompt")(episodes("a", "b")) == [0.0, 1.0]
    assert PythonReward(PythonRewardConfig(source=f"{file}:length"), None)(episodes("a")) == [2.0]


def test_a_function_that_asks_for_references_gets_them(file: Path) -> None:
    found = [
        replace(each, reference=reference) for each, reference in zip(episodes("4", "5"), ("4", None), strict=True)
    ]
    assert reward(file, "against")(found) == [1.0, 0.0]


def test_a_function_of_an_installed_module_judges(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.syspath_prepend(str(file.parent))
    made = PythonReward(PythonRewardConfig(source="own:length"), None)
    assert made(episodes("ab")) == [4.0]
    assert digest("own:length", None) == digest("own.py:length", file.parent)


@pytest.mark.parametrize(
    "found",
    [(1, 2.5), np.array([1, 2.5]), np.array([1, 2.5], dtype=np.float32), torch.tensor([1, 2.5]),
     [torch.tensor(1.0), np.float32(2.5)]],
)  # fmt: skip
def test_numbers_in_any_usual_container_are_taken(file: Path, found: Any) -> None:
    scores = giving(found, file)(episodes("a", "b"))
    assert scores == [1.0, 2.5] and all(type(score) is float for score in scores)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (None, "gave None (NoneType)"),
        (0.5, "gave 0.5 (float)"),
        ({"a": 1.0, "b": 2.0}, "gave {'a': 1.0, 'b': 2.0} (dict)"),
        (np.float64(0.5), "gave np.float64(0.5) (float64)"),
        ([1.0], "gave 1 scores"),
        ([1.0, 2.0, 3.0], "gave 3 scores"),
        (torch.zeros(2, 1), "gave [0.0] (list) for the response 'a' to the prompt 'Say: 0'"),
        ([1.0, math.nan], "gave nan (float) for the response 'b' to the prompt 'Say: 1'"),
        ([math.inf, 1.0], "gave inf (float) for the response 'a' to the prompt 'Say: 0'"),
        ([1.0, "2.0"], "gave '2.0' (str) for the response 'b'"),
        ([1.0, None], "gave None (NoneType) for the response 'b'"),
        ([1.0, True], "gave True (bool) for the response 'b'"),
        ([1.0, 10**400], f"gave 1{'0' * 79}... (int) for the response 'b'"),
    ],
)
def test_anything_but_one_finite_number_each_is_named(file: Path, found: Any, told: str) -> None:
    with pytest.raises(StageError) as caught:
        giving(found, file)(episodes("a", "b"))
    assert str(caught.value).startswith(f"ppo.rewards[python]: own.py:length {told}")
    assert str(caught.value).endswith(
        "; one finite number for each of 2 responses is needed: correct own.py:length (`source`)"
    )


def test_what_it_raises_is_told_with_its_line_and_the_first_prompt_that_it_fails_at(file: Path) -> None:
    line = FILE.splitlines().index('        raise KeyError("tone")') + 1
    with pytest.raises(StageError) as caught:
        reward(file, "picky")(episodes("good", "bad", "worse and bad"))
    assert str(caught.value) == (
        f"ppo.rewards[python]: own.py:picky raised KeyError: 'tone' ({file}:{line}), first at the prompt 'Say: 1'; "
        f"one number for each response is needed: correct the function (`source`)"
    )
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_fault_of_no_episode_alone_is_said_to_be_none(file: Path) -> None:
    with pytest.raises(StageError, match=r"raised ValueError: together only .* at no single one of 2 prompts"):
        reward(file, "never")(episodes("a", "b"))


def test_a_function_that_ends_the_process_ends_the_stage_only(file: Path) -> None:
    with pytest.raises(StageError, match=r"own\.py:leaves raised SystemExit: 3"):
        reward(file, "leaves")(episodes("a"))


def test_a_long_prompt_is_shortened(file: Path) -> None:
    made = reward(file, "picky")
    long = [Episode("word " * 400, "bad", (1,), (2,), "", True)]
    with pytest.raises(StageError, match=r"first at the prompt 'word word .{20,90}\.\.\.; one number") as caught:
        made(long)
    assert len(str(caught.value)) < 500


def test_a_function_that_hangs_is_given_up_and_the_stage_goes_on_to_say_so(file: Path) -> None:
    made, released = reward(file, "length", timeout_seconds=0.05), threading.Event()
    made._function = lambda prompts, responses: released.wait(60)
    with pytest.raises(
        StageError, match=r"own\.py:length did not come back within 0\.05 s for 1 responses; .*`timeout_se"
    ):
        made(episodes("a"))
    left = [thread for thread in threading.enumerate() if thread.name == "reward-function"]
    assert left and all(thread.daemon for thread in left), "a thread that is none would hold up the process's end"
    released.set()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.py:f", r"'nowhere\.py:f': no file at .*nowhere\.py or nowhere\.py; .*: correct the path"),
        ("own.py:missing", r"own\.py has no function 'missing'; `def missing\(prompts, responses\)`"),
        ("own.py:number", r"own\.py has no function 'number'"),
        ("broken.py:f", r"importing .*broken\.py raised ModuleNotFoundError: No module named 'nosuch' \(.*py:1\)"),
        ("leaving.py:f", r"importing .*leaving\.py raised SystemExit: 0"),
        ("no.such.module:f", r"there is no module 'no\.such\.module' in this environment; install it, or name a file"),
    ],
)  # fmt: skip
def test_a_function_that_cannot_be_loaded_is_the_users_fault(file: Path, name: str, told: str) -> None:
    (file.parent / "broken.py").write_text("import nosuch\n", encoding="utf-8")
    (file.parent / "leaving.py").write_text("raise SystemExit(0)\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=told):
        PythonReward(PythonRewardConfig(source=name), file.parent)


@pytest.mark.parametrize("name", ["own.py", "own:", ":f", "own.py:a-b", ""])
def test_a_name_without_file_or_function_is_refused(name: str) -> None:
    told = f"found {name!r}, must name a file or module and a function in it; write it as path/to/file.py:name"
    with pytest.raises(ValidationError, match=re.escape(told)):
        PythonRewardConfig(source=name)


def test_the_digest_is_of_the_bytes_and_imports_nothing(file: Path) -> None:
    before = digest("own.py:length", file.parent)
    file.write_text(FILE + "raise RuntimeError\n", encoding="utf-8")
    assert digest("own.py:length", file.parent) != before
    file.write_text(FILE, encoding="utf-8")
    assert digest("own.py:picky", file.parent) == before
    assert function_file(PythonRewardConfig(source="own.py:length"), file.parent) == file.resolve()
