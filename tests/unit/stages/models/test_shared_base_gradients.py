"""One frozen base under four adapters: whose gradients they are, in float32, bfloat16 and NF4.

The oracle is autograd on a separately loaded `PeftModel`. Recomputing activations and switching roles add no
operation and change no order, so they are held to equality bit for bit.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from data.collators import PromptResponseBatch, collate_episodes
from stages.models.scalar_head import ScoreNormalization, ValueHead
from stages.models.shared_base import SharedBase
from stages.models.tuning import score_weight
from tests.tiny import Family
from tests.unit.stages.models.separate import (
    CASES,
    GRADIENT_TOLERANCE,
    Pair,
    Precision,
    logprobs_of,
    lora_gradients,
    precise_config,
    relative_error,
    response_states_of,
    separate_parameters,
)
from tests.unit.stages.parts import PAD, FoldersOf, all_roles, random_rows

PROMPTS = random_rows([5, 2, 8], seed=21)
RESPONSES = random_rows([4, 7, 1], seed=22)
TEMPERATURE = 0.7
TRAINED, FROZEN = ("policy", "critic"), ("reference", "reward")


def _batch() -> PromptResponseBatch:
    return collate_episodes(PROMPTS, RESPONSES, PAD)


def _policy_loss(logprobs: Tensor) -> Tensor:
    """Advantages of both signs and all sizes, as PPO weighs the log-probabilities."""
    weights = torch.linspace(-1.0, 1.5, logprobs.numel()).view_as(logprobs)
    return (logprobs * weights).sum()


def _critic_loss(values: Tensor) -> Tensor:
    return (values - 0.5).square().sum()


def _loss(shared: SharedBase, role: str, head: ValueHead, batch: PromptResponseBatch) -> Tensor:
    """The loss of a role that is active."""
    if role == "policy":
        return _policy_loss(shared.training_logprobs(batch, temperature=TEMPERATURE))
    return _critic_loss(head(shared.response_hidden_states(batch))[batch.response_mask])


def _backward(shared: SharedBase, role: str, head: ValueHead, batch: PromptResponseBatch) -> None:
    with shared.role(role):
        torch.autograd.backward(_loss(shared, role, head, batch))


def _alone(shared: SharedBase, role: str, head: ValueHead, batch: PromptResponseBatch) -> list[Tensor]:
    _backward(shared, role, head, batch)
    return lora_gradients(shared.parameters(role))


def _value_head(pair: Pair) -> ValueHead:
    head = ValueHead.from_score_head(score_weight(pair.folders.reward), ScoreNormalization(shift=0.3, scale=2.0))
    return head.requires_grad_(False)


def _equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_checklist_55_gradients_are_those_of_separate_models(
    family: Family, precision: Precision, pair_of: Any
) -> None:
    pair, batch = pair_of(family, precision), _batch()
    head, tolerance = _value_head(pair), GRADIENT_TOLERANCE[precision]
    found = {role: _alone(pair.shared, role, head, batch) for role in TRAINED}
    torch.autograd.backward(_policy_loss(logprobs_of(pair.policy, batch, temperature=TEMPERATURE)[0]))
    values = (response_states_of(pair.judge, batch).float() @ score_weight(pair.folders.reward)[0] - 0.3) / 2.0
    torch.autograd.backward(_critic_loss(values[batch.response_mask]))
    for role in TRAINED:
        expected = lora_gradients(separate_parameters(pair.of_role(role)))
        for gradient, wanted in zip(found[role], expected, strict=True):
            assert gradient.dtype == wanted.dtype == torch.float32 and wanted.any()
            assert relative_error(gradient, wanted) < tolerance, role
    with pair.shared.role("critic"):  # the control: another adapter, and the tolerance tells
        logprobs = pair.shared.training_logprobs(batch, temperature=TEMPERATURE)
        torch.autograd.backward(_policy_loss(logprobs))
    other = lora_gradients(pair.shared.parameters("critic"))
    errors = [relative_error(gradient, wanted) for gradient, wanted in zip(other, found["policy"], strict=True)]
    assert min(errors) > 0.5


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_gradients_survive_checkpointing_and_interleaved_roles(
    family: Family, precision: Precision, pair_of: Any, wide_folders: FoldersOf
) -> None:
    folders, batch = wide_folders(family), _batch()
    head = _value_head(pair_of(family, precision))
    shared = all_roles(folders, precise_config(folders.base, precision))
    plain = {role: _alone(shared, role, head, batch) for role in TRAINED}
    for checkpointed in (False, True):
        if checkpointed:
            shared.enable_gradient_checkpointing()
            layers = [module for module in shared.peft_model.modules() if getattr(module, "gradient_checkpointing", 0)]
            assert layers and all(layer.training for layer in layers), "the control: activations are recomputed"
        for role in TRAINED:
            assert _equal(_alone(shared, role, head, batch), plain[role]), role
        for role in ("policy", "critic", "policy"):  # one after the other: x + x is 2 x exactly
            _backward(shared, role, head, batch)
        doubled = [2 * gradient for gradient in plain["policy"]]
        assert _equal(lora_gradients(shared.parameters("policy")), doubled)
        assert _equal(lora_gradients(shared.parameters("critic")), plain["critic"])
        with shared.role("policy"):  # one inside the other: the policy's backward runs after the critic's block
            loss = _loss(shared, "policy", head, batch)
            _backward(shared, "critic", head, batch)
            torch.autograd.backward(loss)
        assert _equal(lora_gradients(shared.parameters("policy")), plain["policy"])
        assert _equal(lora_gradients(shared.parameters("critic")), plain["critic"])


def test_a_backward_under_another_role_is_wrong_which_is_why_a_role_encloses_it(folders: FoldersOf) -> None:
    """The control of the test above: recomputed under the critic, the gradient is another, and nothing fails."""
    shared, batch = all_roles(folders("llama")), _batch()
    head = ValueHead.from_score_head(torch.zeros(1, shared.hidden_size), ScoreNormalization())
    right = _alone(shared, "policy", head, batch)
    shared.enable_gradient_checkpointing()
    with shared.role("policy"):
        loss = _loss(shared, "policy", head, batch)
    with shared.role("critic"):
        torch.autograd.backward(loss)
    wrong = lora_gradients(shared.parameters("policy"))
    assert max(relative_error(found, expected) for found, expected in zip(wrong, right, strict=True)) > 0.1


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("family", "precision"), CASES)
def test_checklist_38_no_gradient_leaves_its_role(
    family: Family, precision: Precision, checkpointed: bool, pair_of: Any, wide_folders: FoldersOf
) -> None:
    folders, batch = wide_folders(family), _batch()
    head = _value_head(pair_of(family, precision))
    shared = all_roles(folders, precise_config(folders.base, precision))
    if checkpointed:
        shared.enable_gradient_checkpointing()
    adapters = {role: shared.parameters(role) for role in (*TRAINED, *FROZEN)}
    base = [weight for name, weight in shared.peft_model.named_parameters() if "lora_" not in name]
    for role in TRAINED:
        _backward(shared, role, head, batch)
        gradients = lora_gradients(adapters[role])
        assert all(gradient.any() for gradient in gradients), role
        for other, parameters in adapters.items():
            assert all(parameter.grad is None for parameter in parameters), (role, other)
        assert all(weight.grad is None for weight in base)
    for role in FROZEN:
        with shared.role(role):
            loss = _critic_loss(head(shared.response_hidden_states(batch)))
            loss = loss + _policy_loss(shared.training_logprobs(batch, temperature=TEMPERATURE))
            # With checkpointing, PEFT records from the embedding's output on, so that there is a graph at all.
            assert loss.requires_grad == checkpointed
            if checkpointed:
                torch.autograd.backward(loss)
        assert all(weight.grad is None for weight in shared.peft_model.parameters()), role
        assert not any(parameter.requires_grad for parameter in adapters[role])
    assert not any(weight.requires_grad for weight in base)
    assert sum(len(parameters) for parameters in adapters.values()) + len(base) == len(
        list(shared.peft_model.parameters())
    ), "the control: every parameter was looked at"
