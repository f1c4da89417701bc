"""One frozen base under four adapters against separately loaded models: outputs in float32, bfloat16 and NF4.

Both sides get the same padded batch, so each layer is the same kernel on the same numbers in the same order: the
hidden states are equal bit for bit, in every precision. Only the head is applied to other blocks of rows here
(response tokens in chunks) than there (the whole batch), for which one rounding of a logit is allowed.
"""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from data.collators import PromptResponseBatch, collate_episodes, left_pad
from stages.algorithms.advantages import estimate_gae, shape_rewards
from stages.algorithms.kl import kl_k1
from stages.algorithms.ppo_loss import ppo_policy_loss, ppo_value_loss
from stages.models.scalar_head import ScoreHead, ScoreNormalization, ValueHead
from stages.models.score_model import SharedBaseScoreModel
from stages.models.tuning import score_weight
from tests.tiny import Family
from tests.unit.stages.models.separate import (
    CASES,
    Pair,
    Precision,
    load_pair,
    logits_of,
    logprobs_of,
    precise_config,
    response_states_of,
    states_of,
)
from tests.unit.stages.parts import FAMILIES, PAD, ROLES, FoldersOf, all_roles, random_rows, wider

PROMPTS = random_rows([5, 2, 8], seed=11)
RESPONSES = random_rows([4, 7, 1], seed=12)
TEMPERATURE = 0.7
NORMALIZATION = ScoreNormalization(shift=0.3, scale=2.0)
ROUNDING: dict[Precision, float] = {"float32": 1e-6, "bfloat16": 2.0**-8, "nf4": 2.0**-8}
"""Largest relative change of a number that is rounded up instead of down (float32: of a sum in another order)."""


def _batch() -> PromptResponseBatch:
    return collate_episodes(PROMPTS, RESPONSES, PAD)


@torch.no_grad()
def _logprobs(pair: Pair, role: str | None, batch: PromptResponseBatch) -> Tensor:
    with pair.shared.role(role):
        return pair.shared.response_logprobs(batch, temperature=TEMPERATURE)[0]


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_checklist_55_hidden_states_of_each_role_are_those_of_the_separate_model(
    family: Family, precision: Precision, pair_of: Any
) -> None:
    pair, batch = pair_of(family, precision), _batch()
    found = {}
    with torch.no_grad():
        for role in ROLES:
            with pair.shared.role(role):
                found[role] = pair.shared.hidden_states(batch.input_ids, batch.attention_mask)[batch.attention_mask]
            assert torch.equal(found[role], states_of(pair.of_role(role), batch)[batch.attention_mask]), role
    assert found["policy"].dtype == (torch.float32 if precision == "float32" else torch.bfloat16)
    assert not torch.equal(found["policy"], found["critic"]), "the control: the adapters differ"


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_checklist_55_logprobs_values_and_scores_are_those_of_separate_models(
    family: Family, precision: Precision, pair_of: Any
) -> None:
    pair, batch = pair_of(family, precision), _batch()
    weight = score_weight(pair.folders.reward)
    value_head, score_head = ValueHead.from_score_head(weight, NORMALIZATION), ScoreHead(weight, NORMALIZATION)
    judge = SharedBaseScoreModel(pair.shared, {"reward": [score_head]}, pad_token_id=PAD, batch_size=8)
    with torch.no_grad():
        expected, largest = logprobs_of(pair.policy, batch, temperature=TEMPERATURE)
        # log softmax: the logit and the log of the sum may both be off by one rounding.
        tolerance = 2 * ROUNDING[precision] * largest / TEMPERATURE
        for role in ("policy", "reference"):
            torch.testing.assert_close(_logprobs(pair, role, batch), expected, rtol=0, atol=tolerance)
            with pair.shared.role(role):
                trained = pair.shared.training_logprobs(batch, temperature=TEMPERATURE)
            torch.testing.assert_close(trained, expected, rtol=0, atol=tolerance)
        with pair.shared.role("critic"):
            values = value_head(pair.shared.response_hidden_states(batch)) * batch.response_mask
        states = response_states_of(pair.judge, batch).float()
        wanted = (states @ weight[0] - 0.3) / 2.0 * batch.response_mask
        torch.testing.assert_close(values, wanted, rtol=0, atol=1e-6)  # in float32 from equal states
        raw = logits_of(pair.judge, batch)[:, 0].float()
        last = [states_of(pair.judge, batch)[row, column] for row, column in enumerate(_last_columns(batch))]
    scores = torch.tensor(judge.score(PROMPTS, RESPONSES))
    # transformers keeps its head in the base's type: weight, states and result are rounded, each product by 2 ulp.
    products = torch.stack([(state.float() * weight[0]).abs().sum() for state in last])
    slack = 1e-6 + (0.0 if precision == "float32" else 1.0) * 2 * ROUNDING[precision] * products / 2.0
    assert ((scores - (raw - 0.3) / 2.0).abs() <= slack).all()
    exact = torch.stack([state.float() @ weight[0] for state in last])
    torch.testing.assert_close(scores, (exact - 0.3) / 2.0, rtol=0, atol=1e-6)


def _last_columns(batch: PromptResponseBatch) -> list[int]:
    return [batch.prompt_width + len(response) - 1 for response in RESPONSES]


@pytest.mark.parametrize("family", FAMILIES)
def test_checklist_03_left_padding_changes_no_logit(family: Family, pair_of: Any) -> None:
    """The same rows left-padded in one batch, and alone without padding through the separate model."""
    pair = pair_of(family, "float32")
    ids, mask = left_pad(PROMPTS, PAD)
    assert mask.sum(dim=1).tolist() == [5, 2, 8], "the control: two rows are padded"
    with torch.no_grad(), pair.shared.role("policy"):
        states = pair.shared.hidden_states(ids, mask)
        for row, real in enumerate(mask):
            expected = pair.policy(torch.tensor([PROMPTS[row]])).logits[0]
            found = pair.shared.peft_model.get_base_model().get_output_embeddings()(states[row, real])
            if (cap := pair.policy.config.get_text_config().to_dict().get("final_logit_softcapping")) is not None:
                found = torch.tanh(found / cap) * cap
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_checklist_01_04_padding_changes_neither_kl_nor_loss_and_costs_nothing(family: Family, pair_of: Any) -> None:
    pair, narrow = pair_of(family, "float32"), _batch()
    head = ValueHead.from_score_head(score_weight(pair.folders.reward), NORMALIZATION)

    def figures(batch: PromptResponseBatch) -> Tensor:
        """KL of each row, rewards, policy loss, value loss; whatever stands on padding."""
        mask, columns = batch.response_mask, torch.arange(batch.response_mask.shape[1])
        policy, reference = _logprobs(pair, "policy", batch), _logprobs(pair, None, batch)
        with torch.no_grad(), pair.shared.role("critic"):
            values = head(pair.shared.response_hidden_states(batch))
        kl = kl_k1(policy, reference)
        rewards = shape_rewards(torch.tensor([1.0, -0.5, 2.0]), kl, mask, kl_coef=0.3)
        advantages, returns = estimate_gae(rewards, values, mask, gamma=0.99, gae_lambda=0.9)
        old = policy - 0.1 * torch.sin(columns.float())
        policy_loss = ppo_policy_loss(
            policy, old, advantages, mask, clip_range=0.05, dual_clip=None, num_tokens=12, importance_weights=None
        )
        value_loss = ppo_value_loss(values, values + 0.3, returns, mask, value_clip_range=0.2, num_tokens=12)
        nothing = ppo_policy_loss(
            policy,
            policy,
            torch.where(mask, 0.0, 1e30),
            mask,
            clip_range=0.2,
            dual_clip=None,
            num_tokens=12,
            importance_weights=None,
        )
        assert nothing.loss.item() == 0.0
        losses = torch.stack(
            [loss for loss in (*policy_loss, *value_loss) if loss is not policy_loss.dual_clip_fraction]
        )
        return torch.cat([(kl * mask).sum(dim=1), rewards.sum(dim=1), losses])

    expected = figures(narrow)
    assert (expected.abs() > 1e-3).all(), "the control: there is something to change"
    for left, right, pad in ((0, 4, PAD), (6, 0, 17), (3, 5, 29)):
        torch.testing.assert_close(figures(wider(narrow, left, right, pad)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_checklist_25_the_first_kl_is_nil_and_the_reference_is_the_sft_artifact(
    family: Family, precision: Precision, pair_of: Any
) -> None:
    pair, batch = pair_of(family, precision), _batch()
    policy, reference = _logprobs(pair, "policy", batch), _logprobs(pair, "reference", batch)
    kl = kl_k1(policy, reference)
    assert not kl.any()
    assert kl.sum(dim=1).tolist() == [0.0, 0.0, 0.0]
    own, largest = logprobs_of(pair.policy, batch, temperature=TEMPERATURE)
    torch.testing.assert_close(reference, own, rtol=0, atol=2 * ROUNDING[precision] * largest / TEMPERATURE)
    from_base = kl_k1(policy, _logprobs(pair, None, batch)).abs().sum(dim=1)
    assert (from_base > 0.05).all(), "the control: without adapters it is another model"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "nf4"])
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_checklist_41_dropout_is_off_in_all_passes_of_all_roles(
    family: Family, precision: Precision, wide_folders: FoldersOf
) -> None:
    """Training mode, with activations recomputed, as PPO runs; the separate model in evaluation mode is expected."""
    folders, batch = wide_folders(family), _batch()
    saved = json.loads((folders.base / "config.json").read_text())
    rates = {"gpt2": ("attn_pdrop", "embd_pdrop", "resid_pdrop"), "opt": ("dropout",)}[family]
    assert [saved[name] for name in rates] == [0.1] * len(rates)
    separate = load_pair(folders, precision)
    expected = {role: _expected(separate, role, batch) for role in ROLES}
    separate.policy.train()
    with torch.no_grad():
        first, second = logits_of(separate.policy, batch), logits_of(separate.policy, batch)
    assert not torch.equal(first, second), "the control: this model drops out in training mode"

    shared = all_roles(folders, precise_config(folders.base, precision))
    shared.enable_gradient_checkpointing()
    assert all(module.training for module in shared.peft_model.get_base_model().modules())
    for role in ROLES:
        for recorded in (False, True):
            with shared.role(role), torch.set_grad_enabled(recorded):
                states = shared.hidden_states(batch.input_ids, batch.attention_mask)
                assert torch.equal(states[batch.attention_mask], expected[role]), (role, recorded)
                first = shared.training_logprobs(batch, temperature=TEMPERATURE)
                assert torch.equal(first, shared.training_logprobs(batch, temperature=TEMPERATURE))
    prompt, mask = batch.input_ids[:, : batch.prompt_width], batch.attention_mask[:, : batch.prompt_width]
    settings = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": PAD}
    with torch.no_grad(), shared.role("policy"):
        assert torch.equal(shared.generate(prompt, mask, **settings), shared.generate(prompt, mask, **settings))


@torch.no_grad()
def _expected(pair: Pair, role: str, batch: PromptResponseBatch) -> Tensor:
    return states_of(pair.of_role(role), batch)[batch.attention_mask]
