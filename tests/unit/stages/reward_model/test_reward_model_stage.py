"""The reward-model stage on planted pairs: what is learned, saved, measured and normalised."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from data.chat import encode_episode, encode_prompt
from data.errors import DataError
from data.schema import PreferencePair, read_split
from rewards.learned import LearnedReward
from stages.metrics import read_metrics
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.scalar_head import ScoreHead, ScoreNormalization
from stages.models.score_model import SharedBaseScoreModel
from stages.models.shared_base import SharedBase
from stages.models.tokenizer import load_tokenizer
from stages.models.tuning import adapter_state, score_weight
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.examples import pair_dataset
from stages.reward_model.normalization import measure_normalizations
from stages.reward_model.tokenized import tokenize_pairs
from stages.reward_model.trainer import WeightedPairCollator
from stages.rollouts.config import SamplingConfig
from stages.rollouts.hf_engine import HFEngine
from stages.seeds import row_seeds
from tests.unit.stages.parts import Executed, executed, stage_spec


def _loaded(run: Executed, normalization: ScoreNormalization) -> tuple[SharedBase, SharedBaseScoreModel, Any]:
    model = ModelConfig.model_validate(run.spec.model)
    tokenizer = load_tokenizer(run.artifact.path, model)
    shared = SharedBase(load_causal_lm(model.base, model, "cpu"), model)
    shared.add_adapter("policy", run.spec.inputs["policy"].path, trainable=False)
    shared.add_adapter("reward", run.artifact.path, trainable=False)
    head = ScoreHead(score_weight(run.artifact.path), normalization)
    scorer = SharedBaseScoreModel(shared, {"reward": [head]}, pad_token_id=tokenizer.pad_token_id, batch_size=16)
    return shared, scorer, tokenizer


def test_checklist_14_planted_pairs_are_learned_in_one_epoch(rm_run: Executed) -> None:
    metrics = rm_run.manifest["metrics"]
    assert metrics["eval/accuracy"] > 0.95
    assert metrics["eval/pairs"] == 28 and metrics["data/train"] == 100
    assert metrics["eval/length_baseline_accuracy"] == 0.5
    assert metrics["eval/accuracy_longer_chosen"] > 0.9 and metrics["eval/accuracy_shorter_chosen"] > 0.9
    assert 0 <= metrics["eval/expected_calibration_error"] < 0.3
    assert metrics["eval/margin"] > 0 and metrics["eval/loss"] < 0.6
    reliability = rm_run.manifest["notes"]["reliability"]
    assert sum(row["count"] for row in reliability) == 56  # every pair in both orders


def test_checklist_15_one_epoch_and_the_learning_rate_ends_at_zero(rm_run: Executed) -> None:
    rows = [row for row in read_metrics(rm_run.spec.stage_dir / "metrics.jsonl") if "train/learning_rate" in row]
    rates = [row["train/learning_rate"] for row in rows]
    assert len(rates) == 25  # 100 pairs in batches of 4
    assert max(rates) <= 0.01 and rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] <= 0.01 / 20  # the rate of the last step; one more would be 0
    assert rows[0]["train/loss"] > 0.6 and rows[-1]["train/loss"] < 0.4
    assert any("eval/loss" in row for row in read_metrics(rm_run.spec.stage_dir / "metrics.jsonl"))


def test_checklist_11_the_artifact_loads_with_peft_and_gives_the_same_raw_scores(rm_run: Executed) -> None:
    _, scorer, tokenizer = _loaded(rm_run, ScoreNormalization())
    base = rm_run.spec.model["base"]
    judge = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
    )
    judge = PeftModel.from_pretrained(judge, rm_run.artifact.path).eval()
    prompts, responses = [], []
    for pair in read_split(rm_run.spec.inputs["dataset"].path, "preferences", "held_out")[:6]:
        for text in (pair.chosen, pair.rejected):
            prompt, response = encode_episode(tokenizer, pair.prompt, text)
            prompts.append(prompt)
            responses.append(response)
    with torch.no_grad():
        expected = [float(judge(torch.tensor([p + r])).logits[0, 0]) for p, r in zip(prompts, responses, strict=True)]
    assert scorer.score(prompts, responses) == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.5


def test_checklist_08_the_saved_head_has_no_bias(rm_run: Executed) -> None:
    heads = {key: value for key, value in adapter_state(rm_run.artifact.path).items() if "lora_" not in key}
    assert {key: tuple(value.shape) for key, value in heads.items()} == {"base_model.model.score.weight": (1, 32)}


@pytest.mark.parametrize("unit_variance", [False, True])
def test_checklist_12_normalised_scores_have_mean_zero_on_those_responses(
    rm_run: Executed, unit_variance: bool
) -> None:
    """The stage's own figure for the shift; for the deviation the function that measures it."""
    shared, raw, tokenizer = _loaded(rm_run, ScoreNormalization())
    engine = HFEngine(shared, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, batch_size=10)
    engine.load_policy("policy")
    records = read_split(rm_run.spec.inputs["dataset"].path, "prompts", "train")
    prompts = [record.prompt for record in records]
    config = RewardModelConfig.model_validate(rm_run.spec.config).normalization
    config = config.model_copy(update={"unit_variance": unit_variance})
    (found,) = measure_normalizations(config, LearnedReward(raw), engine, tokenizer, prompts, seed=rm_run.spec.seed)
    saved = ScoreNormalization.load(rm_run.artifact.path)
    assert found.num_responses == saved.num_responses == 24
    assert found.shift == pytest.approx(saved.shift, abs=1e-5)
    assert rm_run.manifest["metrics"]["normalization/shift"] == saved.shift != 0.0
    assert saved.scale == rm_run.manifest["metrics"]["normalization/scale"] == 1.0
    reward = LearnedReward(raw)
    with pytest.raises(DataError, match=r"longer than 1 tokens, which the base's 7 positions leave beside a response"):
        measure_normalizations(config, reward, engine, tokenizer, prompts, seed=0, positions=7)
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts[:24]]
    rollouts = engine.generate(encoded, SamplingConfig(max_new_tokens=6), seeds=row_seeds(rm_run.spec.seed, 24))
    _, normalised, _ = _loaded(rm_run, found)
    scores = torch.tensor(normalised.score([r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]))
    assert scores.mean().item() == pytest.approx(0.0, abs=1e-4)
    if unit_variance:
        assert scores.std(correction=0).item() == pytest.approx(1.0, abs=1e-3)


def test_checklist_06_long_pairs_and_prompts_are_dropped_or_named(rm_run: Executed, tmp_path: Path) -> None:
    model = ModelConfig.model_validate(rm_run.spec.model)
    for settings, message in (
        ({"max_length": 4}, r"reward_model: all 100 pairs are longer than reward_model.max_length=4 tokens"),
        (
            {"max_steps": 1, "normalization": {"max_prompt_tokens": 1}},
            r"all 100 prompts are longer than reward_model.normalization.max_prompt_tokens=1",
        ),
    ):
        config = RewardModelConfig.model_validate(rm_run.spec.config | settings)
        with pytest.raises(DataError, match=message):
            executed(stage_spec("reward_model", config, model, rm_run.spec.inputs, tmp_path))


def test_weights_reach_the_loss_with_a_mean_of_one(rm_run: Executed) -> None:
    tokenizer = load_tokenizer(rm_run.artifact.path, ModelConfig.model_validate(rm_run.spec.model))
    pairs = [PreferencePair(prompt="Anna:", chosen=" a", rejected=" b", weight=weight) for weight in (None, 0.25, 0.25)]
    tokenized = tokenize_pairs(pairs, tokenizer, is_apart=False)
    rows = pair_dataset(tokenized)
    assert list(rows["weight"]) == [2.0, 0.5, 0.5]
    assert "weight" not in pair_dataset(tokenized[:1]).column_names
    collator = WeightedPairCollator(pad_token_id=0)
    assert collator([rows[0], rows[1]])["weight"].tolist() == [2.0, 0.5]
    assert "weight" not in collator([{"chosen_ids": [1], "rejected_ids": [2]}])


def test_margins_reach_the_trainer_only_where_there_are_any(rm_run: Executed) -> None:
    tokenizer = load_tokenizer(rm_run.artifact.path, ModelConfig.model_validate(rm_run.spec.model))
    pairs = [PreferencePair(prompt="Anna:", chosen=" a", rejected=" b", margin=margin) for margin in (None, 0.5, None)]
    tokenized = tokenize_pairs(pairs, tokenizer, is_apart=False)
    rows = pair_dataset(tokenized)
    assert list(rows["margin"]) == [0.0, 0.5, 0.0]
    assert "margin" not in pair_dataset(tokenized[:1]).column_names
    prompt, chosen = encode_episode(tokenizer, "Anna:", " a")
    assert rows[0]["chosen_ids"] == prompt + chosen and chosen[-1] == tokenizer.eos_token_id
