"""The stages with a reward model of another family than the policy's: trained, normalised, used by PPO and evaluation.

The policy is the Llama of the other stage tests. Expected scores come from transformers and PEFT on the saved
artifact, a row at a time, with tokens put together by hand.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data.chat import encode_prompt
from data.errors import ModelError
from data.schema import Message, PreferencePair, read_split
from stages.evaluation.config import EvaluationConfig
from stages.metrics import read_metrics
from stages.models import reward_loading
from stages.models.adapters import adapter_config
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.reward_members import member_folders
from stages.models.scalar_head import ScoreNormalization
from stages.models.separate_score_model import SeparateScoreModel
from stages.models.shared_base import SharedBase
from stages.models.tokenizer import load_tokenizer
from stages.models.tuning import adapter_state
from stages.ppo import stage as ppo_stage
from stages.ppo.config import PPOConfig
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.tokenized import tokenize_pairs
from stages.rollouts.config import SamplingConfig
from stages.rollouts.contract import Rollout
from stages.rollouts.hf_engine import HFEngine
from stages.run import StageSpec
from stages.seeds import derive_seed, row_seeds
from tests.tiny import Family
from tests.unit.stages.parts import Executed, FoldersOf, executed, stage_spec
from tests.unit.stages.ppo.trainers import spy

MAX_NEW_TOKENS = 9
"""Some responses of the planted policy end within it, some do not."""
FAMILIES: tuple[Family, ...] = ("gpt2", "qwen2")


class Chain(NamedTuple):
    """The stages from the reward model on."""

    base: Path
    reward_model: Executed
    ppo: Executed
    evaluation: Executed


def _own(**tuning: Any) -> dict[str, Any]:
    return {"base": "./base", "dtype": "float32", "tuning": {"rank": 8, "alpha": 16.0} | tuning}


def _reward_model(
    sft_run: Executed, outputs: Path, config_dir: Path, own: dict[str, Any], **settings: Any
) -> StageSpec:
    """Its base by a path beside the configuration file, its tuning not the policy's."""
    config = RewardModelConfig.model_validate(
        {
            "model": own,
            "learning_rate": 0.01,
            "batch_size": 4,
            "microbatch_size": 4,
            "normalization": {"num_prompts": 24, "batch_size": 10, "sampling": {"max_new_tokens": MAX_NEW_TOKENS}},
        }
        | settings
    )
    model = ModelConfig.model_validate(sft_run.spec.model)
    inputs = {"dataset": sft_run.spec.inputs["dataset"], "policy": sft_run.artifact}
    return stage_spec("reward_model", config, model, inputs, outputs, config_dir=config_dir)


@pytest.fixture(scope="module", params=FAMILIES)
def chain(
    request: pytest.FixtureRequest, sft_run: Executed, folders: FoldersOf, tmp_path_factory: pytest.TempPathFactory
) -> Chain:
    """Run the stages on a reward model of the family."""
    base, outputs = folders(request.param).base, tmp_path_factory.mktemp(request.param)
    model = ModelConfig.model_validate(sft_run.spec.model)
    trained = executed(_reward_model(sft_run, outputs, base.parent, _own()))
    rollout = {"engine": "hf", "max_new_tokens": MAX_NEW_TOKENS}
    sizes = {"steps": 3, "batch_size": 8, "minibatch_size": 4, "microbatch_size": 2, "learning_rate": 0.01}
    inputs = {**trained.spec.inputs, "reward_model": trained.artifact}
    ppo_config = PPOConfig.model_validate({**sizes, "rollout": rollout})
    ppo = executed(stage_spec("ppo", ppo_config, model, inputs, outputs, config_dir=base.parent))
    compared = {**inputs, "reference": inputs["policy"], "policy": ppo.artifact}
    config = EvaluationConfig.model_validate(
        {"num_prompts": 10, "batch_size": 4, "bootstrap_samples": 200, "rollout": rollout}
    )
    evaluation = executed(stage_spec("evaluation", config, model, compared, outputs, config_dir=base.parent))
    return Chain(base, trained, ppo, evaluation)


def _by_hand(chain: Chain, texts: Sequence[tuple[str, str, bool]]) -> list[float]:
    """Raw scores of prompts with responses, EOS where they ended."""
    folder = chain.reward_model.artifact.path
    return _raw_scores(folder, folder, chain.base, texts)


def _raw_scores(
    folder: Path, tokenizer_folder: Path, base: Path, texts: Sequence[tuple[str, str, bool]]
) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    judge = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
    )
    judge = PeftModel.from_pretrained(judge, folder).eval()
    scores = []
    for prompt, response, ended in texts:
        ids = [*tokenizer(prompt).input_ids, *tokenizer(response).input_ids, *[tokenizer.eos_token_id] * ended]
        with torch.no_grad():
            scores.append(float(judge(torch.tensor([ids])).logits[0, 0]))
    return scores


def _responses(run: Executed, role: str, split: str, count: int, seed: int) -> list[tuple[str, str, bool]]:
    """What a policy that the run was given answers: prompt, response, whether it ended."""
    folder, model = run.spec.inputs[role].path, ModelConfig.model_validate(run.spec.model)
    tokenizer = load_tokenizer(folder, model)
    shared = SharedBase(load_causal_lm(model.base, model, "cpu"), model)
    shared.add_adapter("policy", folder, trainable=False)
    engine = HFEngine(shared, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, batch_size=99)
    engine.load_policy("policy")
    records = read_split(run.spec.inputs["dataset"].path, "prompts", split)[:count]
    encoded = [encode_prompt(tokenizer, record.prompt) for record in records]
    rollouts = engine.generate(
        encoded, SamplingConfig(max_new_tokens=MAX_NEW_TOKENS), seeds=row_seeds(seed, len(encoded))
    )
    return [
        (record.prompt, tokenizer.decode(rollout.response_ids, skip_special_tokens=True), rollout.finished)
        for record, rollout in zip(records, rollouts, strict=True)
    ]


def test_checklist_14_planted_pairs_are_learned_on_the_other_base(chain: Chain) -> None:
    metrics = chain.reward_model.manifest["metrics"]
    assert metrics["eval/accuracy"] > 0.95
    assert metrics["eval/pairs"] == 28 and metrics["data/train"] == 100


def test_the_artifact_says_what_it_is_on(chain: Chain) -> None:
    folder = chain.reward_model.artifact.path
    assert json.loads((folder / "base_model.json").read_text()) == chain.reward_model.spec.config["model"]
    saved = adapter_config(folder)
    assert (saved["base_model_name_or_path"], saved["r"]) == ("./base", 8)
    own, policys = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(chain.base)
    assert own("The coffee here is great.").input_ids == policys("The coffee here is great.").input_ids
    assert own.pad_token_id not in (None, own.eos_token_id)
    pad = chain.reward_model.manifest["notes"]["pad_token"]
    assert pad["token_id"] == own.pad_token_id and pad["reason"]
    assert str(chain.base) not in "".join(path.read_text() for path in folder.glob("*.json"))


def test_checklist_12_scores_are_normalised_on_responses_of_the_sft_policy(chain: Chain) -> None:
    run = chain.reward_model
    responses = _responses(run, "policy", "train", 24, seed=run.spec.seed)
    assert {ended for _, _, ended in responses} == {True, False}
    saved = ScoreNormalization.load(run.artifact.path)
    raw = _by_hand(chain, responses)
    assert saved.num_responses == 24 and saved.scale == 1.0
    assert saved.shift == pytest.approx(sum(raw) / 24, abs=1e-4)
    assert run.manifest["metrics"]["normalization/shift"] == saved.shift != 0.0


def test_evaluation_scores_the_text_of_both_policies(chain: Chain) -> None:
    run = chain.evaluation
    samples = [json.loads(line) for line in (run.artifact.path / "samples.jsonl").read_text().splitlines()]
    shift = ScoreNormalization.load(chain.reward_model.artifact.path).shift
    for role, side in (("reference", "before"), ("policy", "after")):
        responses = _responses(run, role, "held_out", 10, seed=derive_seed(run.spec.seed, "evaluation", 0))
        assert [(sample["prompt"], sample[side]) for sample in samples] == [text[:2] for text in responses]
        expected = [score - shift for score in _by_hand(chain, responses)]
        assert [sample[f"proxy_{side}"] for sample in samples] == pytest.approx(expected, abs=1e-4)
    assert run.manifest["metrics"]["proxy/gain"] == pytest.approx(
        sum(sample["proxy_after"] - sample["proxy_before"] for sample in samples) / 10
    )


def test_checklist_37_ppo_starts_its_critic_from_sft_with_values_of_zero(chain: Chain, sft_run: Executed) -> None:
    assert chain.ppo.manifest["notes"]["critic_initialisation"].startswith("SFT adapter, with a value head of zeros")
    rows = read_metrics(chain.ppo.spec.stage_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[0]["objective/kl"] == 0.0
    before, after = adapter_state(sft_run.artifact.path), adapter_state(chain.ppo.artifact.path)
    assert not any(torch.equal(before[key], after[key]) for key in before)

    model = ModelConfig.model_validate(sft_run.spec.model)
    shared = SharedBase(load_causal_lm(model.base, model, "cpu"), model)
    shared.add_adapter("reference", sft_run.artifact.path, trainable=False)
    head, _ = ppo_stage._start_critic(PPOConfig(), shared, chain.reward_model.artifact.path)
    pairs = zip(shared.parameters("critic"), shared.parameters("reference"), strict=True)
    assert all(torch.equal(own, start) and own.requires_grad for own, start in pairs)
    values = head(torch.randn(2, 3, shared.hidden_size))
    assert torch.equal(values, torch.zeros(2, 3)) and head.linear.weight.requires_grad


def test_ppo_is_rewarded_by_the_text_of_its_episodes(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean score of the first step, from the rollouts as they left the engine."""
    seen: list[Rollout] = []
    generate = HFEngine.generate

    def watch(self: HFEngine, *arguments: Any, **settings: Any) -> list[Rollout]:
        rollouts = generate(self, *arguments, **settings)
        seen.extend(rollouts)
        return rollouts

    monkeypatch.setattr(HFEngine, "generate", watch)
    spec = chain.ppo.spec
    config = PPOConfig.model_validate(spec.config | {"steps": 1})
    model = ModelConfig.model_validate(spec.model)
    executed(stage_spec("ppo", config, model, spec.inputs, tmp_path, config_dir=spec.config_dir))
    (row,) = read_metrics(tmp_path / "run" / "ppo" / "metrics.jsonl")
    tokenizer = load_tokenizer(spec.inputs["policy"].path, model)

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    episodes = [(text(one.prompt_ids), text(one.response_ids), one.finished) for one in seen]
    shift = ScoreNormalization.load(chain.reward_model.artifact.path).shift
    expected = sum(_by_hand(chain, episodes)) / len(episodes) - shift
    assert len(episodes) == 8
    assert row["objective/scores"] == pytest.approx(expected, abs=1e-4)


def test_checklist_47_the_same_stage_twice_gives_one_digest(chain: Chain, sft_run: Executed, tmp_path: Path) -> None:
    again = executed(_reward_model(sft_run, tmp_path, chain.base.parent, _own()))
    assert again.artifact.digest == chain.reward_model.artifact.digest


def test_pairs_take_the_form_in_which_responses_will_be_scored(sft_run: Executed, folders: FoldersOf) -> None:
    """Of a conversation, white space before the answer is dropped; of plain text, it is the response's own."""
    base = folders("qwen2").base
    tokenizer = load_tokenizer(base, ModelConfig(base=str(base)))
    talk = (Message(role="user", content="Hi"),)
    pairs = [
        PreferencePair(prompt=talk, chosen=" a", rejected="b"),
        PreferencePair(prompt="Anna:", chosen=" a", rejected="b"),
    ]
    turn, plain = tokenize_pairs(pairs, tokenizer, is_apart=True)
    end = tokenizer.eos_token_id
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert list(turn.prompt_ids) == tokenizer(rendered).input_ids
    assert list(turn.chosen_ids) == [*tokenizer("a").input_ids, end]
    assert list(turn.rejected_ids) == [*tokenizer("b").input_ids, end]
    assert list(plain.chosen_ids) == [*tokenizer(" a").input_ids, end]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"base": "./nowhere"}, r"^reward_model\.model\.base='\./nowhere': no folder at .*Correct the path"),
        ({"base": "./policy"}, r"^reward_model\.model\.base='\./policy' .*holds a PEFT adapter, no model"),
        (_own(target_modules=["q_proj"]), r"^reward_model\.model\.tuning\.target_modules names 'q_proj', but a gpt2"),
        (_own(layers={"last": 9}), r"^reward_model\.model\.tuning\.layers\.last=9, but '\./base' has 2 blocks"),
    ],
)
def test_a_base_that_cannot_be_used_is_named_as_the_reward_models(
    sft_run: Executed, folders: FoldersOf, tmp_path: Path, own: dict[str, Any], message: str
) -> None:
    spec = _reward_model(sft_run, tmp_path, folders("gpt2").base.parent, own)
    with pytest.raises(ModelError, match=message):
        executed(spec)


def test_the_members_of_an_ensemble_share_the_other_base(
    sft_run: Executed, folders: FoldersOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = folders("gpt2").base
    ensemble = {"members": 2}
    run = executed(_reward_model(sft_run, tmp_path, base.parent, _own(), ensemble=ensemble, max_steps=2))
    assert run.manifest["metrics"]["ensemble/members"] == 2
    model = ModelConfig.model_validate(sft_run.spec.model)
    shared = SharedBase(load_causal_lm(model.base, model, "cpu"), model)
    loads = spy(monkeypatch, reward_loading, "load_causal_lm")
    scorer = reward_loading.load_score_model(
        run.artifact.path, model, shared, pad_token_id=3, batch_size=2, device="cpu", config_dir=base.parent
    )
    assert len(loads) == 1 and isinstance(scorer, SeparateScoreModel)
    found = scorer.score_texts_by_member(["Anna:"], [" a view"], [True])
    for (score,), folder in zip(found, member_folders(run.artifact.path), strict=True):
        own = ScoreNormalization.load(folder)
        (raw,) = _raw_scores(folder, run.artifact.path, base, [("Anna:", " a view", True)])
        assert score == pytest.approx((raw - own.shift) / own.scale, abs=1e-4)
    assert scorer.score_texts(["Anna:"], [" a view"], [True]) == [sum(score for (score,) in found) / 2]
