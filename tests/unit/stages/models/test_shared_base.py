"""One frozen base under several adapters: equal to separate models, no gradient astray, padding without effect."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from data.collators import PromptResponseBatch, collate_episodes
from stages.models.loading import load_causal_lm
from stages.models.scalar_head import ScoreHead, ScoreNormalization, ValueHead
from stages.models.shared_base import SharedBase
from stages.models.tuning import score_weight
from tests.tiny import Family
from tests.unit.stages.parts import (
    FAMILIES,
    PAD,
    ROLES,
    Folders,
    FoldersOf,
    all_roles,
    model_config,
    random_rows,
    same,
    snapshot,
    wider,
)

PROMPTS = random_rows([5, 2, 8], seed=11)
RESPONSES = random_rows([4, 7, 1], seed=12)
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def shared_of(folders: FoldersOf) -> Any:
    """Give the shared base of a family, for tests that leave it as it is."""
    built: dict[Family, SharedBase] = {}

    def build(family: Family) -> SharedBase:
        if family not in built:
            built[family] = all_roles(folders(family))
        return built[family]

    return build


def _batch() -> PromptResponseBatch:
    return collate_episodes(PROMPTS, RESPONSES, PAD)


def _logprobs(shared: SharedBase, role: str | None, batch: PromptResponseBatch, temperature: float = 1.0) -> Tensor:
    with torch.no_grad(), shared.role(role):
        logprobs, _ = shared.response_logprobs(batch, temperature=temperature)
    return logprobs


def _values(shared: SharedBase, role: str, head: ValueHead, batch: PromptResponseBatch) -> Tensor:
    with torch.no_grad(), shared.role(role):
        return head(shared.response_hidden_states(batch)) * batch.response_mask


def _scores(shared: SharedBase, head: ScoreHead, batch: PromptResponseBatch) -> Tensor:
    with torch.no_grad(), shared.role("reward"):
        return head(shared.hidden_states(batch.input_ids, batch.attention_mask), batch.attention_mask)


def _losses(shared: SharedBase, batch: PromptResponseBatch) -> dict[str, Tensor]:
    """Backward through policy, critic and policy again; the gradients of all roles together."""
    head = ValueHead.from_score_head(torch.linspace(-1, 1, shared.hidden_size)[None], ScoreNormalization())
    for role in ("policy", "critic", "policy"):
        with shared.role(role):
            if role == "policy":
                logprobs = shared.training_logprobs(batch, temperature=0.8)
                loss = logprobs.square().sum()
            else:
                loss = (head(shared.response_hidden_states(batch)) * batch.response_mask).square().sum()
            torch.autograd.backward(loss)
    found = {}
    for role in ROLES:
        for number, parameter in enumerate(shared.parameters(role)):
            if parameter.grad is not None:
                found[f"{role}.{number}"] = parameter.grad.clone()
                parameter.grad = None
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_checklist_25_a_copied_policy_is_the_reference_exactly(family: Family, shared_of: Any) -> None:
    shared, batch = shared_of(family), _batch()
    policy, reference = _logprobs(shared, "policy", batch), _logprobs(shared, "reference", batch)
    assert torch.equal(policy, reference)
    assert (policy - reference).sum() == 0
    assert not torch.equal(reference, _logprobs(shared, None, batch)), "the control: the adapter does something"
    with torch.no_grad():
        with shared.role("critic"):
            critic = shared.response_hidden_states(batch)
        with shared.role("reward"):
            assert torch.equal(critic, shared.response_hidden_states(batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_checklist_26_no_role_is_the_base_bitwise(family: Family, shared_of: Any, folders: FoldersOf) -> None:
    shared, batch = shared_of(family), _batch()
    alone = load_causal_lm(folders(family).base, model_config(folders(family).base), "cpu")
    with torch.no_grad(), shared.role(None):
        own = shared.peft_model.get_base_model()(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
        expected = alone(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    assert torch.equal(own, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_checklist_38_a_role_gives_gradients_to_its_own_adapter_alone(family: Family, shared_of: Any) -> None:
    shared, batch = shared_of(family), _batch()
    for role, other in (("policy", "critic"), ("critic", "policy")):
        with shared.role(role):
            torch.autograd.backward(shared.response_hidden_states(batch)[batch.response_mask].square().sum())
        assert all(parameter.grad is not None for parameter in shared.parameters(role))
        assert any(bool(parameter.grad.any()) for parameter in shared.parameters(role))
        for name in {*ROLES, other} - {role}:
            assert all(parameter.grad is None for parameter in shared.parameters(name)), name
        assert all(weight.grad is None for key, weight in shared.peft_model.named_parameters() if "lora_" not in key)
        for parameter in shared.parameters(role):
            parameter.grad = None


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_with_checkpointing_equal_those_without(family: Family, folders: FoldersOf) -> None:
    shared, batch = all_roles(folders(family)), _batch()
    plain = _losses(shared, batch)
    shared.enable_gradient_checkpointing()
    checkpointed = _losses(shared, batch)
    assert {name.partition(".")[0] for name in plain} == {"policy", "critic"}
    assert plain.keys() == checkpointed.keys()
    layers = [module for module in shared.peft_model.modules() if getattr(module, "gradient_checkpointing", False)]
    assert layers and all(layer.training for layer in layers), "the control: activations are recomputed"
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-6)


def test_checklist_48_base_and_reference_are_unchanged_by_the_updates(folders: FoldersOf) -> None:
    shared, batch = all_roles(folders("llama")), _batch()
    head = ValueHead.from_score_head(torch.ones(1, shared.hidden_size), ScoreNormalization())
    frozen = [weight for weight in shared.peft_model.parameters() if not weight.requires_grad]
    before, moving = snapshot(frozen), snapshot(shared.parameters("policy") + shared.parameters("critic"))
    reference = _logprobs(shared, "reference", batch)
    optimizer = torch.optim.AdamW(
        [*shared.parameters("policy"), *shared.parameters("critic"), *head.parameters()], lr=0.01
    )
    for _ in range(3):
        with shared.role("policy"):
            torch.autograd.backward(-shared.training_logprobs(batch, temperature=1.0).sum())
        with shared.role("critic"):
            torch.autograd.backward(head(shared.response_hidden_states(batch)).square().sum())
        optimizer.step()
        optimizer.zero_grad()
    assert same(before, frozen)
    assert torch.equal(reference, _logprobs(shared, "reference", batch))
    now = shared.parameters("policy") + shared.parameters("critic")
    assert not any(torch.equal(old, new) for old, new in zip(moving, now, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_checklist_03_55_the_shared_base_equals_separate_models(
    family: Family, shared_of: Any, folders: FoldersOf
) -> None:
    """Left-padded in one batch here, one unpadded row at a time there."""
    own, shared, batch = folders(family), shared_of(family), _batch()
    weight, normalization = score_weight(own.reward), ScoreNormalization(shift=0.3, scale=2.0)
    logprobs = _logprobs(shared, "policy", batch, temperature=0.7)
    values = _values(shared, "critic", ValueHead.from_score_head(weight, normalization), batch)
    scores = _scores(shared, ScoreHead(weight, normalization), batch)
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(own.base), own.policy).eval()
    judge = AutoModelForSequenceClassification.from_pretrained(own.base, num_labels=1, pad_token_id=PAD)
    judge = PeftModel.from_pretrained(judge, own.reward).eval()
    trunk = judge.get_base_model()
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        ids = torch.tensor([prompt + response])
        columns = slice(len(prompt) - 1, -1)
        with torch.no_grad():
            distribution = torch.log_softmax(policy(ids).logits[0, columns] / 0.7, dim=-1)
            states = trunk.base_model(ids).last_hidden_state[0]
            raw = judge(ids).logits[0, 0]
        expected = distribution.gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(logprobs[row, : len(response)], expected, **TOLERANCE)
        expected = (states[columns] @ weight[0] - 0.3) / 2.0
        torch.testing.assert_close(values[row, : len(response)], expected, **TOLERANCE)
        torch.testing.assert_close(scores[row], (raw - 0.3) / 2.0, **TOLERANCE)
        assert not logprobs[row, len(response) :].any() and not values[row, len(response) :].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_checklist_04_more_padding_changes_nothing(family: Family, shared_of: Any, folders: FoldersOf) -> None:
    shared, narrow = shared_of(family), _batch()
    weight = score_weight(folders(family).reward)
    width = narrow.response_ids.shape[1]
    for left, right, pad in ((0, 4, PAD), (6, 0, 17), (3, 5, PAD)):
        wide = wider(narrow, left, right, pad)
        for found, expected in (
            (_logprobs(shared, "policy", wide)[:, :width], _logprobs(shared, "policy", narrow)),
            (
                _values(shared, "critic", ValueHead.from_score_head(weight, ScoreNormalization()), wide)[:, :width],
                _values(shared, "critic", ValueHead.from_score_head(weight, ScoreNormalization()), narrow),
            ),
            (
                _scores(shared, ScoreHead(weight, ScoreNormalization()), wide),
                _scores(shared, ScoreHead(weight, ScoreNormalization()), narrow),
            ),
        ):
            torch.testing.assert_close(found, expected, **TOLERANCE)


def test_checklist_17_the_temperature_divides_the_logits(shared_of: Any) -> None:
    shared, batch = shared_of("llama"), _batch()
    with torch.no_grad(), shared.role("policy"):
        found, entropy = shared.response_logprobs(batch, temperature=2.5)
        logits = shared.peft_model.get_base_model()(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    width = batch.response_ids.shape[1]
    row = 2  # the longest prompt: no left padding, so that plain positions are right
    distribution = torch.log_softmax(logits[row, -width - 1] / 2.5, dim=-1)
    torch.testing.assert_close(found[row, 0], distribution[RESPONSES[row][0]], **TOLERANCE)
    torch.testing.assert_close(entropy[row, 0], -(distribution.exp() * distribution).sum(), **TOLERANCE)
    assert not entropy[row, 1:].any()


def test_requires_grad_is_set_once_and_no_role_moves_it(folders: FoldersOf) -> None:
    shared = all_roles(folders("llama"))

    def flags() -> dict[str, set[bool]]:
        return {role: {weight.requires_grad for weight in shared.parameters(role)} for role in ROLES}

    expected = {"reference": {False}, "policy": {True}, "reward": {False}, "critic": {True}}
    assert flags() == expected
    for role in (*ROLES, None):
        with shared.role(role):
            assert flags() == expected
    assert flags() == expected
    assert not any(weight.requires_grad for key, weight in shared.peft_model.named_parameters() if "lora_" not in key)


def test_a_role_ends_where_it_began_also_on_an_exception(shared_of: Any) -> None:
    shared, batch = shared_of("llama"), _batch()
    expected = _logprobs(shared, "reward", batch)
    with shared.role("reward"):
        with pytest.raises(RuntimeError, match="stop"), shared.role("policy"):
            raise RuntimeError("stop")
        with torch.no_grad(), shared.role(None):
            pass
        with torch.no_grad():
            found, _ = shared.response_logprobs(batch, temperature=1.0)
    assert torch.equal(found, expected)


def test_an_unknown_role_is_named(shared_of: Any, folders: FoldersOf) -> None:
    with pytest.raises(ValueError, match=r"no adapter 'actor' on the shared base; it has \['critic', 'policy'"):
        with shared_of("llama").role("actor"):
            pass
    own: Folders = folders("llama")
    bare = SharedBase(load_causal_lm(own.base, model_config(own.base), "cpu"), model_config(own.base))
    with pytest.raises(ValueError, match=r"no adapter 'policy' on the shared base; it has \[\]"):
        with bare.role("policy"):
            pass
    with pytest.raises(ValueError, match="has no adapter yet"):
        bare.peft_model  # noqa: B018


def test_an_adapter_is_independent_of_the_one_it_was_copied_from(folders: FoldersOf) -> None:
    shared = all_roles(folders("gpt2"))
    reference = snapshot(shared.parameters("reference"))
    assert same(reference, shared.parameters("policy"))
    with torch.no_grad():
        for parameter in shared.parameters("policy"):
            parameter.add_(1.0)
    assert same(reference, shared.parameters("reference"))


def test_checklist_41_the_dropout_of_the_model_section_is_off(folders: FoldersOf, tmp_path: Path) -> None:
    own = folders("gpt2")
    model = model_config(own.base, dropout=0.5)
    shared = SharedBase(load_causal_lm(own.base, model, "cpu"), model)
    shared.add_adapter("policy", own.policy, trainable=True)
    shared.enable_gradient_checkpointing()
    assert shared.peft_model.training
    batch = _batch()
    assert torch.equal(_logprobs(shared, "policy", batch), _logprobs(shared, "policy", batch))
