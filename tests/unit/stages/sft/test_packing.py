"""Packed rows: what passes, what is learned, and that the examples of a row do not see each other."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.metrics import read_metrics
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.tuning import adapter_state
from stages.sft import stage as sft_stage
from stages.sft.config import SFTConfig
from stages.sft.packing import decide_packing, packed_collator, packing_problem
from tests.tiny import Family
from tests.unit.stages.parts import Executed, FoldersOf, executed, model_config, stage_spec

MASKED: tuple[Family, ...] = ("llama", "mistral", "gpt2", "qwen2", "gemma2", "gpt_neox")


def _again(run: Executed, outputs: Path, **settings: Any) -> Executed:
    config = SFTConfig.model_validate(run.spec.config | settings)
    model = ModelConfig.model_validate(run.spec.model)
    return executed(stage_spec("sft", config, model, run.spec.inputs, outputs))


def test_examples_stand_end_to_end_and_no_first_token_is_learned() -> None:
    examples = [
        {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]},
        {"input_ids": [8, 9], "completion_mask": [1, 1]},
    ]
    batch = packed_collator(pad_token_id=0)(examples)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]], "7 does not foretell 8"
    assert "attention_mask" not in batch


@pytest.mark.parametrize("family", MASKED)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_row_gives_the_logits_of_each_example_alone(
    folders: FoldersOf, family: Family, attention: str
) -> None:
    """Within rounding; and bit for bit the same whatever stands before."""
    section = model_config(folders(family).base).model_dump() | {"attention": attention}
    model = load_causal_lm(folders(family).base, ModelConfig.model_validate(section), "cpu")
    found = decide_packing(model)
    assert found.is_used and found.by == "mask" and attention in found.reason
    rows = [[40, 41, 42, 43, 44], [50, 51, 52], [60, 61, 62, 63]]

    def logits(examples: Sequence[Sequence[int]]) -> torch.Tensor:
        batch = packed_collator(0)([{"input_ids": list(ids)} for ids in examples])
        del batch["labels"]
        with torch.no_grad():
            result: torch.Tensor = model(**batch, use_cache=False).logits[0]
        return result

    packed = logits(rows)
    alone = torch.cat([model(torch.tensor([ids])).logits[0] for ids in rows])
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)
    other = logits([[70, 71, 72, 73, 74], *rows[1:]])
    assert torch.equal(packed[5:], other[5:]) and not torch.equal(packed[:5], other[:5])


def _fake(logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
    """A model whose logits are a function of token ids and position ids."""

    class Fake:
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=100, _attn_implementation="sdpa"))
        device = "cpu"

        def __call__(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> Any:
            found = logits(input_ids[0].float(), position_ids[0].float())
            return SimpleNamespace(logits=found[None, :, None])

    return Fake()


def _sums(tokens: torch.Tensor, starts: Iterator[int]) -> torch.Tensor:
    """Running sums, which begin anew at each start."""
    bounds = [*starts, len(tokens)]
    return torch.cat([tokens[a:b].cumsum(0) for a, b in zip(bounds, bounds[1:], strict=False)])


def test_models_that_mix_examples_or_count_on_are_found() -> None:
    def apart(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return _sums(tokens, (n for n, position in enumerate(positions) if position == 0)) + positions

    def mixing(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return tokens.cumsum(0) + positions

    def counting_on(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return apart(tokens, positions) + 100 * torch.arange(len(tokens))

    def refusing(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        raise TypeError("forward() got an unexpected keyword argument 'cu_seq_lens_q'")

    assert packing_problem(_fake(apart)) is None
    assert packing_problem(_fake(mixing)) == (
        "what stands before an example in its row changes what the model makes of it"
    )
    assert packing_problem(_fake(counting_on)) == ("the model does not count positions anew for each example of a row")
    assert str(packing_problem(_fake(refusing))).startswith("the model takes no packed rows (TypeError: forward() got")


@pytest.fixture(scope="module")
def packed(sft_run: Executed, tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """The run of `sft_run` on packed rows."""
    return _again(sft_run, tmp_path_factory.mktemp("packed"), packing=True)


def test_the_training_is_that_of_padded_rows(sft_run: Executed, packed: Executed) -> None:
    """Same examples in each step, same loss, same gradient; same validation; nearly the same adapter."""
    pairs = list(zip(*(read_metrics(run.spec.stage_dir / "metrics.jsonl") for run in (sft_run, packed)), strict=True))
    for padded_row, row in pairs:
        assert padded_row.keys() == row.keys()
        for name in set(row) - {"seconds"}:
            assert row[name] == pytest.approx(padded_row[name], rel=2e-3, abs=1e-5), name
    assert len(pairs) > 10
    first, second = adapter_state(sft_run.artifact.path), adapter_state(packed.artifact.path)
    assert all(torch.allclose(first[key], second[key], atol=2e-3) for key in first)
    assert packed.manifest["metrics"]["data/padding_share"] == 0.0 < sft_run.manifest["metrics"]["data/padding_share"]
    assert packed.manifest["notes"]["packing"]["by"] == "mask" and "packing" not in sft_run.manifest["notes"]


def test_one_row_passes_for_each_microbatch(
    sft_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    widths: dict[str, list[tuple[int, ...]]] = {"train": [], "eval": []}
    original = sft_stage.SFTTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        widths["train" if model.training else "eval"].append(tuple(inputs["input_ids"].shape))
        assert ("attention_mask" in inputs) == (not model.training)
        return original(self, model, inputs, *arguments, **options)

    monkeypatch.setattr(sft_stage.SFTTrainer, "compute_loss", spy)
    _again(sft_run, tmp_path, packing=True, max_steps=2)
    assert {shape[0] for shape in widths["train"]} == {1} and len(widths["train"]) == 4
    assert max(shape[0] for shape in widths["eval"]) == 5, "the validation is on padded rows"
    assert "sft.packing: no FlashAttention (attention is sdpa): a mask keeps" in caplog.text


def test_a_model_that_mixes_examples_is_trained_on_padded_rows(
    sft_run: Executed, folders: FoldersOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """OPT's mask knows nothing of position ids in transformers 5.19: the adapter is that without packing."""
    model = model_config(folders("opt").base)
    settings = sft_run.spec.config | {"max_steps": 2}
    found = {}
    for packing in (False, True):
        config = SFTConfig.model_validate(settings | {"packing": packing})
        spec = stage_spec("sft", config, model, sft_run.spec.inputs, tmp_path / str(packing))
        found[packing] = executed(spec)
    assert found[True].artifact.digest == found[False].artifact.digest
    notes = found[True].manifest["notes"]["packing"]
    assert notes["is_used"] is False and notes["reason"].startswith("rows are padded: what stands before an example")
    assert "sft.packing: rows are padded" in caplog.text
