"""The stage with people: it samples once, waits without models, and makes the pairs that they prefer."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from data.schema import read_split
from stages.models.config import ModelConfig
from stages.preferences import sampling
from stages.preferences.config import PreferencesConfig
from stages.preferences.labeling import LABELING, Labeling
from stages.run import StageSpec
from stages.waiting import WaitingForPeople
from tests.labeling_run import judge
from tests.unit.stages.parts import Executed, executed, run_quietly, stage_spec


def spec_of(run: Executed, outputs: Path, **settings: Any) -> StageSpec:
    values = {**run.spec.config, "labeler": {"type": "human", "min_share": 0.5}, **settings}
    config = PreferencesConfig.model_validate(values)
    return stage_spec("preferences", config, ModelConfig.model_validate(run.spec.model), run.spec.inputs, outputs)


def wait(spec: StageSpec) -> Labeling:
    with pytest.raises(WaitingForPeople) as waiting:
        run_quietly(spec)
    assert waiting.value.folder == spec.stage_dir / LABELING
    return Labeling(waiting.value.folder)


def modules() -> int:
    """How many parts of models are alive in this process."""
    gc.collect()
    return sum(isinstance(entry, torch.nn.Module) for entry in gc.get_objects())


def label(labeling: Labeling, who: str, count: int) -> None:
    """The shorter a response, the better."""
    for question in list(labeling.questions.values())[:count]:
        by_length = sorted(range(len(question.responses)), key=lambda n: (len(question.responses[n]), n))
        judge(labeling, who, question, [by_length.index(n) + 1 for n in range(len(by_length))])


def test_people_judge_the_kept_responses(
    preferences_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(preferences_run, tmp_path)
    before = modules()
    labeling = wait(spec)
    assert modules() == before  # people take days, in which no model is to stay
    asked = {question.identity: question for question in labeling.questions.values()}
    assert 10 < len(asked) <= 17 and labeling.progress().needed == -(-len(asked) // 2)
    assert list((tmp_path / "store").glob("*")) == []  # no half of an artifact
    monkeypatch.setattr(sampling, "sample", None)  # from here on no response may be sampled
    label(labeling, "anna", labeling.progress().needed - 1)
    assert {q.identity: q for q in wait(spec).questions.values()} == asked
    label(labeling, "ben", labeling.progress().needed)
    run = executed(spec)
    metrics = run.manifest["metrics"]
    assert metrics["human/annotators"] == 2 and metrics["human/krippendorff_alpha"] == 1.0
    assert metrics["human/labels"] == 2 * labeling.progress().needed - 1
    pairs = [pair for split in ("train", "held_out") for pair in read_split(run.artifact.path, "preferences", split)]  # type: ignore[call-overload]
    assert pairs and all(len(pair.chosen) <= len(pair.rejected) for pair in pairs)
    assert len({pair.prompt for pair in pairs}) <= labeling.progress().needed
    assert (run.artifact.path / "labels.jsonl").read_text(encoding="utf-8").count("\n") == metrics["human/labels"]
    assert executed(spec).artifact.digest == run.artifact.digest


def test_people_see_what_a_simulated_labeler_sees(preferences_run: Executed, tmp_path: Path) -> None:
    """The same seed, the same responses: the pairs of the simulated labeler are among what is asked."""
    labeling = wait(spec_of(preferences_run, tmp_path))
    responses = {(q.prompt, text) for q in labeling.questions.values() for text in q.responses}
    pairs = read_split(preferences_run.artifact.path, "preferences", "train")
    assert {(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)} <= responses


def test_other_settings_of_the_sampling_sample_anew_and_keep_the_labels(
    preferences_run: Executed, tmp_path: Path
) -> None:
    labeling = wait(spec_of(preferences_run, tmp_path))
    label(labeling, "anna", 3)
    rollout = preferences_run.spec.config["rollout"] | {"max_new_tokens": 7}
    assert len(wait(spec_of(preferences_run, tmp_path, rollout=rollout)).store.clicks()) == len(labeling.store.clicks())
    back = wait(spec_of(preferences_run, tmp_path, pairs_per_prompt=1))
    assert back.progress().done == 3  # the same responses again, and their labels


@pytest.mark.parametrize("which", ["two", "ensemble"])
def test_what_reward_models_dispute_comes_first(
    preferences_run: Executed,
    rm_run: Executed,
    ensembles: dict[str, Executed],
    folders: Any,
    tmp_path: Path,
    which: str,
) -> None:
    """A trained one and a random one, or three in one; the order on the page is that of their disagreement."""
    from statistics import fmean, pstdev

    members = [str(rm_run.artifact.path), str(folders("llama").reward)]
    if which == "ensemble":
        members = [str(ensembles["adapters"].artifact.path)]
    selection = {"type": "ensemble_disagreement", "reward_models": members}
    model = ModelConfig.model_validate(preferences_run.spec.model)
    spec = spec_of(preferences_run, tmp_path, selection=selection)
    labeling = wait(spec)
    config = PreferencesConfig.model_validate(spec.config)
    from stages.preferences.sampled import kept_sampled, sampling_key

    key = sampling_key(
        {
            "config": config.model_dump(mode="json", exclude={"labeler", "only_finished", "pairs_per_prompt"}),
            "model": model.model_dump(mode="json"),
            "inputs": {role: artifact.digest for role, artifact in spec.inputs.items()},
            "seed": spec.seed,
        }
    )
    kept = kept_sampled(spec.stage_dir / LABELING / "sampled", key)
    assert kept is not None and kept.disagreements is not None
    scores = _scores(members, model, kept.candidates["train"])
    for row, pairs in enumerate(kept.disagreements["train"]):
        differences = [
            [member[row][first] - member[row][second] for member in scores]
            for first, second in ((0, 1), (0, 2), (1, 2))
        ]
        assert pairs == pytest.approx([pstdev(values) for values in differences], abs=1e-5)
    by_prompt = {
        each.prompt: fmean(pairs)
        for split in ("train", "held_out")
        for each, pairs in zip(kept.candidates[split], kept.disagreements[split], strict=True)  # type: ignore[index]
    }
    order = [by_prompt[question.prompt] for question in labeling.questions.values()]  # type: ignore[index]
    assert order == sorted(order, reverse=True) and len(set(order)) > 5


def _scores(members: list[str], model: ModelConfig, candidates: Any) -> list[list[list[float]]]:
    """Each member alone on a base of its own, one response at a time."""
    from stages.models.loading import load_causal_lm
    from stages.models.reward_loading import as_reward, load_score_model
    from stages.models.shared_base import SharedBase

    found = []
    for member in members:
        shared = SharedBase(load_causal_lm(Path(model.base), model, "cpu"), model)
        judge_one = as_reward(
            load_score_model(Path(member), model, shared, pad_token_id=3, batch_size=1, device="cpu", config_dir=None)
        )
        by_episode = [[judge_one.by_member([episode]) for episode in each.episodes] for each in candidates]
        found += [[[scores[own][0] for scores in row] for row in by_episode] for own in range(judge_one.num_members)]
    return found


def test_the_responses_of_another_policy(preferences_run: Executed, folders: Any, tmp_path: Path) -> None:
    own = wait(spec_of(preferences_run, tmp_path / "sft"))
    other = wait(spec_of(preferences_run, tmp_path / "other", policy=str(folders("llama").policy)))
    prompts = {str(question.prompt) for question in own.questions.values()}
    assert {str(question.prompt) for question in other.questions.values()} & prompts
    assert set(own.questions).isdisjoint(other.questions)
