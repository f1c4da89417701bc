"""A reward model on a benchmark: the scores of transformers' own model, one sequence at a time."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data.errors import DataError
from data.schema import PreferencePair
from stages.reward_model.benchmark import score_benchmark
from tests.tiny import tiny_model_dir
from tests.unit.stages.parts import PAD, model_config, save_random_adapter

PAIRS = [
    PreferencePair(prompt="One:", chosen=" a long answer of many words", rejected=" b", source="x"),
    PreferencePair(prompt="Two, which is longer:", chosen=" c", rejected=" another answer", source="y"),
    PreferencePair(prompt="Three " * 40, chosen=" d", rejected=" e", source="y"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a base and of a reward model on it."""
    base = tiny_model_dir("llama", tmp_path_factory.mktemp("base"))
    folder = tmp_path_factory.mktemp("reward")
    save_random_adapter(folder, base, "seq_cls", seed=3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD)  # as the stage leaves it
    tokenizer.save_pretrained(folder)
    return base, folder


def test_scores_are_those_of_transformers(folders: tuple[Path, Path]) -> None:
    base, folder = folders
    told: list[tuple[int, int]] = []
    found = score_benchmark(
        folder, model_config(base), PAIRS, device="cpu", batch_size=3, progress=lambda *done: told.append(done)
    )
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=PAD)
    model = PeftModel.from_pretrained(model, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def score(prompt: str, response: str) -> float:
        ids = [*tokenizer.encode(prompt), *tokenizer.encode(response, add_special_tokens=False), tokenizer.eos_token_id]
        with torch.no_grad():
            return float(model(torch.tensor([ids])).logits[0, 0])

    expected = [score(pair.prompt, pair.chosen) - score(pair.prompt, pair.rejected) for pair in PAIRS]  # type: ignore[arg-type]
    torch.testing.assert_close(found.differences, expected, rtol=1e-4, atol=1e-5)
    assert len({round(value, 3) for value in expected}) == 3, "the model tells them apart"
    assert (found.rows, found.dropped, told[-1]) == ([0, 1, 2], 0, (3, 3))
    assert found.lengths[0] > 0 > found.lengths[1]


def test_pairs_that_are_too_long_are_dropped_and_counted(folders: tuple[Path, Path]) -> None:
    base, folder = folders
    whole = score_benchmark(folder, model_config(base), PAIRS, device="cpu", batch_size=8)
    found = score_benchmark(folder, model_config(base), PAIRS, device="cpu", batch_size=8, max_length=40)
    assert (found.rows, found.dropped) == ([0, 1], 1) and found.longest <= 40 < whole.longest
    assert found.differences == pytest.approx(whole.differences[:2], abs=1e-6)
    with pytest.raises(DataError, match=r"all 3 pairs of the benchmark are longer than 2 tokens; .* raise --max-len"):
        score_benchmark(folder, model_config(base), PAIRS, device="cpu", batch_size=8, max_length=2)
