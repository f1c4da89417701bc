"""Generation by transformers on the trainer's weights: the recorded log-probabilities are the trainer's own."""

import math
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from data.collators import collate_episodes
from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from stages.rollouts.config import SamplingConfig
from stages.rollouts.contract import PolicyVersion, Rollout
from stages.rollouts.hf_engine import HFEngine, draw_by_inverse
from stages.seeds import row_seeds
from tests.tiny import Family
from tests.unit.stages.parts import FAMILIES, PAD, FoldersOf, all_roles, model_config, random_rows

PROMPTS = random_rows([5, 2, 8, 1, 3], seed=41)


@pytest.fixture(scope="module")
def shared(folders: FoldersOf) -> SharedBase:
    """Give a shared base that the tests leave as it is."""
    return all_roles(folders("llama"))


def _engine(shared: SharedBase, *, eos: int = 2, batch_size: int = 3, role: str = "policy") -> HFEngine:
    engine = HFEngine(shared, pad_token_id=PAD, eos_token_id=eos, batch_size=batch_size)
    engine.load_policy(role)
    return engine


def _trainer_logprobs(shared: SharedBase, rollouts: list[Rollout], temperature: float) -> list[list[float]]:
    batch = collate_episodes([r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts], PAD)
    with torch.no_grad(), shared.role("policy"):
        logprobs, _ = shared.response_logprobs(batch, temperature=temperature)
    return [row[: len(r.response_ids)].tolist() for row, r in zip(logprobs, rollouts, strict=True)]


def _assert_agree(shared: SharedBase, rollouts: list[Rollout], temperature: float) -> None:
    for found, expected in zip(rollouts, _trainer_logprobs(shared, rollouts, temperature), strict=True):
        assert len(found.logprobs) == len(found.response_ids) > 0
        assert found.logprobs == pytest.approx(expected, abs=1e-5)


def _eos_of(shared: SharedBase, sampling: SamplingConfig, *, position: int) -> int:
    """A token that the first response has at a position: as EOS it ends that response early."""
    return (
        _engine(shared, eos=319).generate(PROMPTS, sampling, seeds=row_seeds(7, len(PROMPTS)))[0].response_ids[position]
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_checklist_20_recorded_logprobs_are_the_trainers(
    temperature: float, family: Family, folders: FoldersOf
) -> None:
    shared = all_roles(folders(family))
    rollouts = _engine(shared).generate(
        PROMPTS, SamplingConfig(max_new_tokens=9, temperature=temperature), seeds=row_seeds(3, len(PROMPTS))
    )
    assert [rollout.prompt_ids for rollout in rollouts] == [tuple(prompt) for prompt in PROMPTS]
    _assert_agree(shared, rollouts, temperature)


def test_checklist_18_a_response_ends_at_its_first_eos(shared: SharedBase) -> None:
    sampling = SamplingConfig(max_new_tokens=6)
    eos = _eos_of(shared, sampling, position=2)
    rollouts = _engine(shared, eos=eos).generate(PROMPTS * 4, sampling, seeds=row_seeds(7, 4 * len(PROMPTS)))
    assert len(rollouts[0].response_ids) <= 3 and rollouts[0].finished
    assert {rollout.finished for rollout in rollouts} == {True, False}
    for rollout in rollouts:
        assert rollout.response_ids.count(eos) == int(rollout.finished)
        assert rollout.finished == (rollout.response_ids[-1] == eos)
        assert rollout.finished or len(rollout.response_ids) == 6
    _assert_agree(shared, rollouts, 1.0)


def test_the_last_token_may_be_the_eos(shared: SharedBase) -> None:
    eos = _eos_of(shared, SamplingConfig(max_new_tokens=3), position=2)
    rollout = _engine(shared, eos=eos).generate(
        PROMPTS, SamplingConfig(max_new_tokens=3), seeds=row_seeds(7, len(PROMPTS))
    )[0]
    assert len(rollout.response_ids) == 3 and rollout.finished


def test_a_seed_repeats_and_the_random_state_outside_is_left_alone(shared: SharedBase) -> None:
    engine, sampling = _engine(shared), SamplingConfig(max_new_tokens=8)
    state = torch.random.get_rng_state()
    first = engine.generate(PROMPTS, sampling, seeds=row_seeds(3, len(PROMPTS)))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert engine.generate(PROMPTS, sampling, seeds=row_seeds(3, len(PROMPTS))) == first
    other = engine.generate(PROMPTS, sampling, seeds=row_seeds(4, len(PROMPTS)))
    assert all(a.response_ids != b.response_ids for a, b in zip(first, other, strict=True))


def test_rows_of_the_same_prompt_differ_also_across_batches(shared: SharedBase) -> None:
    rollouts = _engine(shared, batch_size=2).generate(
        [PROMPTS[0]] * 6, SamplingConfig(max_new_tokens=8), seeds=row_seeds(3, 6)
    )
    assert len({rollout.response_ids for rollout in rollouts}) == 6


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_tokens_are_drawn_as_often_as_their_probability_says(shared: SharedBase, temperature: float) -> None:
    draws, ids = 3000, PROMPTS[2]
    engine = _engine(shared, batch_size=draws, eos=319)
    rollouts = engine.generate(
        [ids] * draws, SamplingConfig(max_new_tokens=1, temperature=temperature), seeds=row_seeds(5, draws)
    )
    with torch.no_grad(), shared.role("policy"):
        logits = shared.peft_model.get_base_model()(torch.tensor([ids])).logits[0, -1]
    expected = torch.softmax(logits / temperature, dim=-1)
    counts = torch.bincount(torch.tensor([r.response_ids[0] for r in rollouts]), minlength=len(expected))
    # Pearson's statistic over tokens expected at least 5 times has mean = its terms, variance = twice that.
    often = expected * draws >= 5
    statistic = ((counts - expected * draws).square() / (expected * draws))[often].sum().item()
    terms = int(often.sum())
    assert abs(statistic - terms) < 5 * math.sqrt(2 * terms)
    assert terms > 20


def test_settings_in_the_models_own_generation_config_do_not_reach_the_sampling(folders: FoldersOf) -> None:
    """Qwen2.5-Instruct ships repetition_penalty, top_k, top_p and temperature; the trainer knows none of them."""
    own, sampling = folders("llama"), SamplingConfig(max_new_tokens=12)
    model = model_config(own.base)
    expected = _engine(all_roles(own)).generate(PROMPTS, sampling, seeds=row_seeds(3, len(PROMPTS)))
    loaded = load_causal_lm(own.base, model, "cpu")
    loaded.generation_config = GenerationConfig(
        do_sample=True, repetition_penalty=1.8, top_k=2, top_p=0.3, min_p=0.2, typical_p=0.5, temperature=0.2,
        no_repeat_ngram_size=1, min_new_tokens=12, suppress_tokens=[20], max_length=4, eos_token_id=[2, 55],
    )  # fmt: skip
    shared = SharedBase(loaded, model)
    shared.add_adapter("policy", own.policy, trainable=True)
    found = _engine(shared).generate(PROMPTS, sampling, seeds=row_seeds(3, len(PROMPTS)))
    assert found == expected
    _assert_agree(shared, found, 1.0)


def test_generation_after_gradient_checkpointing_is_the_same(folders: FoldersOf) -> None:
    shared = all_roles(folders("llama"))
    expected = _engine(shared).generate(PROMPTS, SamplingConfig(max_new_tokens=8), seeds=row_seeds(3, len(PROMPTS)))
    shared.enable_gradient_checkpointing()
    found = _engine(shared).generate(PROMPTS, SamplingConfig(max_new_tokens=8), seeds=row_seeds(3, len(PROMPTS)))
    assert [r.response_ids for r in found] == [r.response_ids for r in expected]
    _assert_agree(shared, found, 1.0)
    assert shared.peft_model.get_base_model().training, "the recomputation of activations needs it"


def test_the_loaded_role_acts_and_versions_count(shared: SharedBase) -> None:
    engine = HFEngine(shared, pad_token_id=PAD, eos_token_id=2, batch_size=8)
    sampling = SamplingConfig(max_new_tokens=8)
    base = engine.generate(PROMPTS, sampling, seeds=row_seeds(3, len(PROMPTS)))
    assert engine.load_policy("policy") == PolicyVersion(1)
    policy = engine.generate(PROMPTS, sampling, seeds=row_seeds(3, len(PROMPTS)))
    assert engine.load_policy("reference") == PolicyVersion(2)
    assert engine.generate(PROMPTS, sampling, seeds=row_seeds(3, len(PROMPTS))) == policy
    assert base != policy
    engine.close()


def test_no_prompt_has_no_rollout(shared: SharedBase) -> None:
    assert _engine(shared).generate([], SamplingConfig(), seeds=row_seeds(0, 0)) == []


def test_the_base_needs_no_adapter_to_generate(folders: FoldersOf) -> None:
    base: Path = folders("gpt2").base
    bare = SharedBase(load_causal_lm(base, model_config(base), "cpu"), model_config(base))
    engine = HFEngine(bare, pad_token_id=PAD, eos_token_id=0, batch_size=8)
    assert len(engine.generate(PROMPTS, SamplingConfig(max_new_tokens=2), seeds=row_seeds(0, len(PROMPTS)))) == len(
        PROMPTS
    )


def test_a_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    probabilities = torch.tensor([[0.125, 0.0, 0.5, 0.375, 0.0]] * 5)
    draws = torch.tensor([0.0, 0.1249, 0.125, 0.6249, 0.625], dtype=torch.float64)
    assert draw_by_inverse(probabilities, draws).squeeze(1).tolist() == [0, 0, 2, 2, 3]


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_draws_by_blocks_are_those_of_one_running_sum(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    probabilities = torch.softmax(4 * torch.randn(500, size, generator=generator), dim=-1)
    draws = torch.rand(500, generator=generator, dtype=torch.float64)
    cumulative = probabilities.double().cumsum(dim=-1)
    expected = (cumulative <= draws.unsqueeze(1) * cumulative[:, -1:]).sum(dim=-1)
    assert torch.equal(draw_by_inverse(probabilities, draws).squeeze(1), expected)
    assert size == 1 or len(set(expected.tolist())) > 20


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    probabilities = torch.zeros(2, 700)
    probabilities[:, [3, 300, 301, 520]] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    edges = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    assert draw_by_inverse(probabilities, edges).squeeze(1).tolist() == [3, 520]
    # A sum in another order may end a little above or below: the draw stays on the last token that can be.
    assert draw_by_inverse(probabilities, torch.ones(2, dtype=torch.float64)).squeeze(1).tolist() == [520, 520]
