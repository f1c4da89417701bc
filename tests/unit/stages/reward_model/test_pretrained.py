"""A ready reward model through the stages: measured, normalised, and used by PPO, evaluation and benchmarks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data.schema import PreferencePair, read_split
from pipeline.reward_checks import reward_model_digest
from rewards.composite_config import LearnedRewardConfig
from stages.evaluation.config import EvaluationConfig
from stages.metrics import read_metrics
from stages.models.adapters import check_reward_model
from stages.models.config import ModelConfig
from stages.models.scalar_head import ScoreNormalization
from stages.models.sources import adapter_folder
from stages.ppo.config import PPOConfig
from stages.reward_model.benchmark import score_benchmark
from stages.reward_model.config import RewardModelConfig
from tests.unit.stages.models.test_classifier import by_transformers, save_encoder
from tests.unit.stages.parts import Executed, executed, stage_spec

NORMALIZATION = {"num_prompts": 12, "batch_size": 5, "sampling": {"max_new_tokens": 6}}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier of two labels."""
    return save_encoder(tmp_path_factory.mktemp("judge"), labels=2)


@pytest.fixture(scope="module")
def measured(sft_run: Executed, judge: Path, tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """The stage with that classifier, named by a path beside the configuration file."""
    config = RewardModelConfig.model_validate(
        {"pretrained": {"base": f"./{judge.name}", "label": "kind_1"}, "normalization": NORMALIZATION}
    )
    inputs = {"dataset": sft_run.spec.inputs["dataset"], "policy": sft_run.artifact}
    model = ModelConfig.model_validate(sft_run.spec.model)
    outputs = tmp_path_factory.mktemp("outputs")
    return executed(stage_spec("reward_model", config, model, inputs, outputs, config_dir=judge.parent))


def test_held_out_pairs_are_scored_by_it(measured: Executed, judge: Path) -> None:
    pairs = read_split(measured.spec.inputs["dataset"].path, "preferences", "held_out")
    chosen, rejected = (
        torch.tensor(by_transformers(judge, [(f"{pair.prompt}{getattr(pair, side)}",) for pair in pairs], 1))
        for side in ("chosen", "rejected")
    )
    metrics = measured.manifest["metrics"]
    assert metrics["eval/accuracy"] == pytest.approx(float((chosen > rejected).float().mean()))
    assert metrics["eval/margin"] == pytest.approx(float((chosen - rejected).mean()), abs=1e-4)
    assert metrics["eval/pairs"] == metrics["data/held_out"] == len(pairs) and metrics["data/dropped"] == 0
    assert "data/train" not in metrics and measured.manifest["notes"]["accuracy_by"]
    found = score_benchmark(
        measured.artifact.path,
        ModelConfig.model_validate(measured.spec.model),
        pairs[:3],
        device="cpu",
        batch_size=4,
        config_dir=judge.parent,
    )
    scale = ScoreNormalization.load(measured.artifact.path).scale
    torch.testing.assert_close(torch.tensor(found.differences), (chosen - rejected)[:3] / scale, rtol=0, atol=1e-4)


def test_the_artifact_names_the_model_and_holds_no_weights(measured: Executed) -> None:
    folder = measured.artifact.path
    assert sorted(path.name for path in folder.iterdir()) == ["classifier.json", "score_normalization.json"]
    values = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    assert values["label"] == "kind_1" and values["base"].startswith("./")
    assert ScoreNormalization.load(folder).num_responses == 12


def test_ppo_and_evaluation_are_scored_by_it(measured: Executed, judge: Path, tmp_path: Path) -> None:
    model = ModelConfig.model_validate(measured.spec.model)
    rollout = {"engine": "hf", "max_new_tokens": 6}
    sizes = {"steps": 2, "batch_size": 8, "minibatch_size": 4, "microbatch_size": 4}
    inputs: dict[str, Any] = {**measured.spec.inputs, "reward_model": measured.artifact}
    ppo = executed(
        stage_spec(
            "ppo",
            PPOConfig.model_validate({**sizes, "rollout": rollout}),
            model,
            inputs,
            tmp_path,
            config_dir=judge.parent,
        )
    )
    steps = [row for row in read_metrics(ppo.spec.stage_dir / "metrics.jsonl") if "objective/scores" in row]
    assert len(steps) == 2 and all(abs(row["objective/scores"]) < 3 for row in steps)
    compared = {**inputs, "reference": inputs["policy"], "policy": ppo.artifact}
    config = EvaluationConfig.model_validate(
        {"num_prompts": 6, "batch_size": 4, "bootstrap_samples": 100, "rollout": rollout}
    )
    evaluation = executed(stage_spec("evaluation", config, model, compared, tmp_path, config_dir=judge.parent))
    rows = [
        json.loads(line)
        for line in (evaluation.artifact.path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    normalization = ScoreNormalization.load(measured.artifact.path)
    expected = by_transformers(judge, [(row["prompt"] + row["after"],) for row in rows], 1)
    for row, raw in zip(rows, expected, strict=True):
        assert row["proxy_after"] == pytest.approx((raw - normalization.shift) / normalization.scale, abs=1e-4)


def test_pairs_that_it_cannot_read_are_dropped(sft_run: Executed, judge: Path, tmp_path: Path) -> None:
    pairs = read_split(sft_run.spec.inputs["dataset"].path, "preferences", "held_out")
    longest = sorted(_length(pair) for pair in pairs)
    limit = longest[-1] - 1
    config = RewardModelConfig.model_validate(
        {"pretrained": {"base": str(judge), "label": 0, "max_length": limit}, "normalization": NORMALIZATION}
    )
    inputs = {"dataset": sft_run.spec.inputs["dataset"], "policy": sft_run.artifact}
    spec = stage_spec("reward_model", config, ModelConfig.model_validate(sft_run.spec.model), inputs, tmp_path)
    metrics = executed(spec).manifest["metrics"]
    dropped = sum(length > limit for length in longest)
    assert (metrics["data/held_out"], metrics["data/dropped"]) == (len(pairs) - dropped, dropped) and dropped > 0


def _length(pair: PreferencePair) -> int:
    """A token a byte, and two special ones."""
    return 2 + max(len(f"{pair.prompt}{text}".encode()) for text in (pair.chosen, pair.rejected))


def test_it_can_be_named_by_its_folder(measured: Executed, judge: Path, tmp_path: Path) -> None:
    """As a component of another run's PPO; the digest in its fingerprint is that of the weights, too."""
    shutil.copytree(judge, tmp_path / judge.name)
    named = [reward_model_digest(measured.artifact.path, folder) for folder in (judge.parent, tmp_path)]
    assert named[0] == named[1], "wherever the model lies"
    (tmp_path / judge.name / "model.safetensors").write_bytes(
        save_encoder(tmp_path / "other", labels=3).joinpath("model.safetensors").read_bytes()
    )
    assert reward_model_digest(measured.artifact.path, tmp_path) != named[0]
    config = LearnedRewardConfig(path=str(measured.artifact.path))
    check_reward_model(
        adapter_folder(str(config.path), None, "ppo.rewards[learned].path"),
        ModelConfig.model_validate(measured.spec.model),
        config_dir=judge.parent,
    )
    rollout = {"engine": "hf", "max_new_tokens": 6}
    sizes = {"steps": 1, "batch_size": 4, "minibatch_size": 4, "microbatch_size": 4}
    rewards = [{"type": "learned", "path": str(measured.artifact.path)}]
    ppo = executed(
        stage_spec(
            "ppo",
            PPOConfig.model_validate({**sizes, "rollout": rollout, "rewards": rewards}),
            ModelConfig.model_validate(measured.spec.model),
            {**measured.spec.inputs, "reward_model": measured.artifact},
            tmp_path / "out",
            config_dir=judge.parent,
        )
    )
    assert -5 < ppo.manifest["metrics"]["objective/scores"] < 5
