"""Tokens by content: taken where they fit, made again where anything differs, never trusted where damaged."""

from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import token_cache
from stages.models.config import ModelConfig
from stages.models.tokenizer import load_tokenizer
from stages.reward_model import tokenized
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.evaluation_pairs import TokenizedPair
from stages.sft import tokenized as sft_tokenized
from stages.token_cache import Arrays, cached_arrays, pack_rows, unpack_rows
from tests.unit.stages.parts import Executed, run_quietly

DIGEST = "a" * 64


@pytest.fixture
def tokenizer(sft_run: Executed) -> Any:
    """The base's, loaded anew: tests change it."""
    return load_tokenizer(sft_run.artifact.path, ModelConfig.model_validate(sft_run.spec.model))


def _asked(folder: Path, tokenizer: Any, digest: str = DIGEST, what: str = "x") -> bool:
    """Whether tokens were made; they are looked at, too."""
    made = []

    def make() -> Arrays:
        made.append(1)
        return pack_rows("ids", [[1, 2, 3], [], [4]])

    found = cached_arrays(folder, digest, tokenizer, what, make)
    assert unpack_rows("ids", found) == [array("i", [1, 2, 3]), array("i"), array("i", [4])]
    return bool(made)


def test_the_same_tokenizer_and_records_take_them_and_others_do_not(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _asked(tmp_path, tokenizer) and not _asked(tmp_path, tokenizer)
    assert _asked(tmp_path, tokenizer, digest="b" * 64) and _asked(tmp_path, tokenizer, what="y")
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert _asked(tmp_path, tokenizer) and not _asked(tmp_path, tokenizer)
    tokenizer.add_tokens(["<new>"])
    assert _asked(tmp_path, tokenizer)
    tokenizer.eos_token = "<new>"
    assert _asked(tmp_path, tokenizer) and not _asked(tmp_path, tokenizer)
    with monkeypatch.context() as patched:
        patched.setattr(token_cache.importlib.metadata, "version", lambda name: "0.0")
        assert _asked(tmp_path, tokenizer)
    other = tmp_path / "chat.py"
    other.write_text("", encoding="utf-8")
    monkeypatch.setattr(token_cache.chat, "__file__", str(other))
    assert _asked(tmp_path, tokenizer)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert _asked(tmp_path, tokenizer) and _asked(tmp_path, tokenizer), "what a slow one does is in no file"


def test_a_damaged_file_is_made_again_and_a_full_disk_stops_nothing(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert _asked(tmp_path, tokenizer)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    place = whole.index(array("i", [1, 2, 3, 4]).tobytes())
    for damaged in (whole[:-30], b"", whole[:place] + b"\x07" + whole[place + 1 :]):
        path.write_bytes(damaged)
        assert _asked(tmp_path, tokenizer) and "the tokens are made again" in caplog.text
        assert path.read_bytes() == whole

    def full(file: Any, **arrays: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert _asked(tmp_path, tokenizer, what="y") and "the tokens are not kept" in caplog.text
    assert list(tmp_path.iterdir()) == [path]


def test_pairs_come_back_as_they_were() -> None:
    pairs = [
        TokenizedPair(array("i", [1]), array("i", [2, 3]), array("i", [4]), None, 0.25, "hh", "r-1"),
        TokenizedPair(array("i"), array("i", [5]), array("i", [6]), -1.5, None, None, None),
    ]
    assert tokenized._from_arrays(tokenized._to_arrays(pairs)) == pairs
    assert tokenized._from_arrays(tokenized._to_arrays([])) == []


def test_another_training_on_the_same_records_encodes_nothing(
    sft_run: Executed, rm_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And computes what one that encodes does."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("encoded again")

    for run, module, names in (
        (sft_run, sft_tokenized, ("encode_demonstrations", "read_split")),
        (rm_run, tokenized, ("encode_episodes", "read_split")),
    ):
        assert any((run.spec.store_dir / "tokens").iterdir())
        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(module, name, never)
            again = run_quietly(replace(run.spec, stage_dir=tmp_path / run.spec.stage))
            assert again["artifact"]["digest"] == run.artifact.digest
            assert again["metrics"] == run.manifest["metrics"]


def test_the_longest_sequence_is_looked_at_after_the_cache(rm_run: Executed) -> None:
    model = ModelConfig.model_validate(rm_run.spec.model)
    tokenizer = load_tokenizer(rm_run.artifact.path, model)
    source, folder = rm_run.spec.inputs["dataset"], rm_run.spec.store_dir / "tokens"
    every, none = (
        tokenized.tokenized_split(source, "train", tokenizer, RewardModelConfig(max_length=length), folder)
        for length in (512, 4)
    )
    assert len(every[0]) == 100 and every[1] == 0 and none == ([], 100)
