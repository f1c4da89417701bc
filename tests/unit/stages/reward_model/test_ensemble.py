"""Reward models of several members: what is trained, saved, loaded, measured, and taken up again."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from data.chat import encode_episode
from data.errors import ModelError
from data.schema import PreferencePair, read_split
from rewards.contract import Episode
from stages.metrics import read_metrics
from stages.models.adapters import check_reward_model
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm, make_score_head
from stages.models.reward_loading import as_reward, load_score_model
from stages.models.reward_members import HEADS_FILE, member_folder, num_members
from stages.models.scalar_head import ScoreNormalization
from stages.models.score_heads import load_heads
from stages.models.shared_base import SharedBase
from stages.models.tokenizer import load_tokenizer
from stages.models.tuning import adapter_state, score_weight
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.members import compare_members
from tests.unit.stages.parts import Executed, executed, stage_spec

Kind = str


def _loaded(run: Executed) -> tuple[Any, Any]:
    model = ModelConfig.model_validate(run.spec.model)
    tokenizer = load_tokenizer(run.artifact.path, model)
    shared = SharedBase(load_causal_lm(model.base, model, "cpu"), model)
    shared.add_adapter("policy", run.spec.inputs["policy"].path, trainable=False)
    scorer = load_score_model(
        run.artifact.path,
        model,
        shared,
        pad_token_id=tokenizer.pad_token_id,
        batch_size=5,
        device="cpu",
        config_dir=None,
    )
    return scorer, tokenizer


def _sides(run: Executed, tokenizer: Any, count: int = 6) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Prompts and responses of held-out pairs: chosen, rejected, chosen, rejected."""
    pairs: list[PreferencePair] = read_split(run.spec.inputs["dataset"].path, "preferences", "held_out")[:count]
    both = [encode_episode(tokenizer, pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    return [prompt for prompt, _ in both], [response for _, response in both]


def _peft_scores(folder: Path, base: str, prompts: list[Sequence[int]], responses: list[Sequence[int]]) -> list[float]:
    """An independent reading: transformers and PEFT, one sequence at a time."""
    judge = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0, dtype=torch.float32)
    judge = PeftModel.from_pretrained(judge, folder).eval()
    with torch.no_grad():
        return [float(judge(torch.tensor([[*p, *r]])).logits[0, 0]) for p, r in zip(prompts, responses, strict=True)]


def test_each_adapter_loads_with_peft_and_the_score_is_the_mean(ensembles: dict[Kind, Executed]) -> None:
    run = ensembles["adapters"]
    scorer, tokenizer = _loaded(run)
    prompts, responses = _sides(run, tokenizer)
    found = scorer.score_members(prompts, responses)
    assert len(found) == scorer.num_members == num_members(run.artifact.path) == 3
    for number, scores in enumerate(found, start=1):
        folder = member_folder(run.artifact.path, number)
        own = ScoreNormalization.load(folder)
        raw = _peft_scores(folder, run.spec.model["base"], prompts, responses)
        assert scores == pytest.approx([(score - own.shift) / own.scale for score in raw], abs=1e-4)
    assert scorer.score(prompts, responses) == [fmean(each) for each in zip(*found, strict=True)]
    assert max(map(pstdev, zip(*found, strict=True))) > 1e-3, "trained apart, they do not agree to the last bit"


def test_peft_reads_the_mean_of_the_heads(ensembles: dict[Kind, Executed]) -> None:
    run = ensembles["heads"]
    scorer, tokenizer = _loaded(run)
    prompts, responses = _sides(run, tokenizer)
    found = scorer.score_members(prompts, responses)
    assert len(found) == 3 and score_weight(run.artifact.path).shape == (1, 32)
    own = ScoreNormalization.load(run.artifact.path)
    raw = _peft_scores(run.artifact.path, run.spec.model["base"], prompts, responses)
    mean = [(score - own.shift) / own.scale for score in raw]
    assert scorer.score(prompts, responses) == pytest.approx(mean, abs=1e-4)
    heads = load_heads(run.artifact.path)
    assert max(map(pstdev, zip(*found, strict=True))) > 1e-3
    assert all(not torch.equal(heads[0].weight, other.weight) for other in heads[1:])


def test_the_first_adapter_is_the_one_that_is_trained_without_an_ensemble(
    rm_run: Executed, ensembles: dict[Kind, Executed]
) -> None:
    """And the others are not: another head, another order of the pairs."""
    alone, members = adapter_state(rm_run.artifact.path), ensembles["adapters"].artifact.path
    first = adapter_state(members)
    assert alone.keys() == first.keys() and all(torch.equal(alone[key], first[key]) for key in alone)
    for number in (2, 3):
        other = adapter_state(member_folder(members, number))
        assert all(not torch.equal(alone[key], other[key]) for key in alone if "lora_B" in key or "score" in key)


def test_each_member_has_mean_zero_on_the_responses_of_the_policy(
    rm_run: Executed, ensembles: dict[Kind, Executed]
) -> None:
    """The shift of the first adapter is that of the model trained alone, and all are of the same responses."""
    folder = ensembles["adapters"].artifact.path
    own = [ScoreNormalization.load(member_folder(folder, number)) for number in (1, 2, 3)]
    assert own[0] == ScoreNormalization.load(rm_run.artifact.path)
    assert len({each.shift for each in own}) == 3 and {each.num_responses for each in own} == {24}
    mean = ScoreNormalization.load(ensembles["heads"].artifact.path)
    heads = load_heads(ensembles["heads"].artifact.path)
    assert mean.shift == pytest.approx(fmean(head.normalization.shift for head in heads), abs=1e-12)


@pytest.mark.parametrize("kind", ["adapters", "heads"])
def test_the_ensemble_is_measured_by_its_mean(ensembles: dict[Kind, Executed], kind: Kind) -> None:
    run = ensembles[kind]
    scorer, tokenizer = _loaded(run)
    prompts, responses = _sides(run, tokenizer, 28)
    found = scorer.score_members(prompts, responses)
    leads = [[a - b for a, b in zip(each[::2], each[1::2], strict=True)] for each in found]
    accuracies = [fmean(lead > 0 for lead in member) for member in leads]
    metrics = run.manifest["metrics"]
    assert metrics["ensemble/members"] == 3
    assert metrics["ensemble/accuracy_mean"] == pytest.approx(fmean(accuracies))
    assert run.manifest["notes"]["member_accuracies"] == pytest.approx(accuracies)
    spread = [pstdev(each) for each in zip(*leads, strict=True)]
    assert metrics["ensemble/disagreement"] == pytest.approx(fmean(spread), abs=1e-4)
    assert metrics["eval/margin"] == pytest.approx(fmean(map(fmean, leads)), abs=1e-4)
    assert metrics["eval/accuracy"] > 0.95


def test_members_by_hand() -> None:
    chosen, rejected = [[2.0, 0.0, 1.0], [4.0, 0.0, 0.0]], [[1.0, 1.0, 1.0], [1.0, 0.0, 2.0]]
    # leads: 1 and 3; -1 and 0; 0 and -2
    metrics, notes = compare_members(chosen, rejected)
    assert notes == {"member_accuracies": [pytest.approx(0.5), pytest.approx(0.5)]}
    assert metrics["ensemble/accuracy_std"] == 0.0
    assert metrics["ensemble/disagreement"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert metrics["ensemble/disagreement_right"] == 1.0 and metrics["ensemble/disagreement_wrong"] == 0.75


def test_the_steps_of_all_members_are_one_curve(ensembles: dict[Kind, Executed]) -> None:
    written = read_metrics(ensembles["adapters"].spec.stage_dir / "metrics.jsonl")
    trained = [row for row in written if "train/learning_rate" in row]
    assert [row["step"] for row in trained] == list(range(1, 76)), "25 steps a member"
    firsts = [trained[at]["train/loss"] for at in (0, 25, 50)]
    assert min(firsts) > 0.5 and trained[-1]["train/loss"] < 0.4


def test_members_of_a_part_of_an_epoch_follow_each_other(rm_run: Executed, tmp_path: Path) -> None:
    """A twentieth of 25 steps is two of the trainer's, so that the second member begins with step 3."""
    settings = rm_run.spec.config | {"ensemble": {"members": 2}, "epochs": 0.05}
    config = RewardModelConfig.model_validate(settings)
    model = ModelConfig.model_validate(rm_run.spec.model)
    run = executed(stage_spec("reward_model", config, model, rm_run.spec.inputs, tmp_path))
    written = read_metrics(run.spec.stage_dir / "metrics.jsonl")
    assert [row["step"] for row in written if "train/learning_rate" in row] == [1, 2, 3, 4]


def test_rewards_by_member_are_those_of_the_score_model(ensembles: dict[Kind, Executed]) -> None:
    scorer, tokenizer = _loaded(ensembles["heads"])
    prompts, responses = _sides(ensembles["heads"], tokenizer, 2)
    episodes = [Episode("", "", tuple(p), tuple(r), "", True) for p, r in zip(prompts, responses, strict=True)]
    reward = as_reward(scorer)
    assert reward.num_members == 3 and reward.by_member(episodes) == scorer.score_members(prompts, responses)
    assert reward(episodes) == scorer.score(prompts, responses)


def test_several_rows_of_a_head_begin_with_that_of_one() -> None:
    one, three = make_score_head(37, seed=5).weight, make_score_head(37, seed=5, num_scores=3).weight
    assert torch.equal(one[0], three[0]) and len({tuple(row.tolist()) for row in three}) == 3


def test_damaged_members_are_named(ensembles: dict[Kind, Executed], tmp_path: Path) -> None:
    model = ModelConfig.model_validate(ensembles["heads"].spec.model)
    cases: list[tuple[Kind, Callable[[Path], object], str]] = [
        ("adapters", lambda folder: shutil.rmtree(folder / "members/2"), "members: holds 3. The members of an"),
        ("adapters", lambda folder: (folder / "members/3/adapter_config.json").unlink(), "members/3/adapter_config"),
        ("heads", _cut_heads, r"shift \(2,\), weight \(3, 32\)"),
    ]
    for kind, damage, message in cases:
        folder = tmp_path / f"{kind}-{len(message)}"
        shutil.copytree(ensembles[kind].artifact.path, folder)
        check_reward_model(folder, model, config_dir=None)
        damage(folder)
        with pytest.raises(ModelError, match=message):
            check_reward_model(folder, model, config_dir=None)


def _cut_heads(folder: Path) -> None:
    tensors = load_file(folder / HEADS_FILE)
    save_file(tensors | {"shift": tensors["shift"][:2].clone()}, folder / HEADS_FILE)
