"""Memory of the four roles in a process of its own: a real base, real adapters, one real update.

Linux only: the peak of resident memory is set back through `/proc` before the update.

On a CPU transformers leaves bf16 weights where safetensors mapped them, in the file. Such pages are the file's
cache: the system may drop them, and several mappings of one file share them. `_own` copies them into the
process's own memory, as on a GPU, so that resident memory says what the weights need.
"""

import ctypes
import gc
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn

from benchmarks.memory_bytes import (
    ROLES,
    TRAINED_ROLES,
    LiveBytes,
    base_tensors,
    model_tensors,
    storage_bytes,
)
from benchmarks.memory_shape import Batch, UpdateBytes, optimizer_tensors, warm_optimizer
from data.collators import PromptResponseBatch, collate_episodes
from stages.algorithms.ppo_loss import ppo_policy_loss, ppo_value_loss
from stages.models.config import ModelConfig
from stages.models.loading import load_base_config, load_causal_lm, make_score_head
from stages.models.scalar_head import ScoreHead, ScoreNormalization, ValueHead
from stages.models.shared_base import SharedBase
from stages.models.tuning import attach_adapter, lora_config, save_adapter

Layout = Literal["shared", "separate"]

_RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs
_TOKENS = 256  # every vocabulary has that many


@dataclass(frozen=True)
class Case:
    """One process.

    Attributes:
        base: Folder of the base.
        adapter: Folder of a saved adapter; every role starts from it.
        model: The model section.
        layout: All roles on one base, or each on its own.
        checkpointing: Recompute activations in the backward.
        batch: The microbatch of the update.
    """

    base: Path
    adapter: Path
    model: ModelConfig
    layout: Layout
    checkpointing: bool
    batch: Batch


@dataclass(frozen=True)
class UpdateMeasurement:
    """What one update showed, in bytes.

    Attributes:
        gradients: After both backward passes.
        optimizer: State of AdamW.
        live: Storages that the update made.
        rss: The most resident memory during the update above that before it, the optimizer's state in place.
    """

    gradients: int
    optimizer: int
    live: UpdateBytes
    rss: int


@dataclass(frozen=True)
class Measurement:
    """What one process showed, in bytes.

    Attributes:
        base: Storages of one base.
        weights: Storages of everything that stays: bases, adapters, heads.
        rss_load: Resident memory with the roles in place, above that with everything imported and nothing loaded.
        update: One update.
    """

    base: int
    weights: int
    rss_load: int
    update: UpdateMeasurement


def save_fresh_adapter(base: Path | str, model: ModelConfig, folder: Path) -> None:
    """Save an adapter that changes nothing, for every role to start from."""
    loaded = load_causal_lm(base, model, "cpu")
    peft_model = attach_adapter(loaded, lora_config(model, loaded.config, "causal_lm"), seed=0)
    save_adapter(peft_model, "default", folder, base_spec=model.base)


def load_roles(base: Path | str, adapter: Path, model: ModelConfig, layout: Layout) -> dict[str, SharedBase]:
    """Each role and the base that it is on.

    Args:
        base: Folder of the base.
        adapter: Folder of the adapter that every role starts from.
        model: The model section.
        layout: `shared` gives one object four times.
    """
    one = _load_base(base, model) if layout == "shared" else None
    roles = {role: one or _load_base(base, model) for role in ROLES}
    for role, shared_base in roles.items():
        shared_base.add_adapter(role, adapter, trainable=role in TRAINED_ROLES)
    return roles


def make_heads(width: int) -> dict[str, nn.Module]:
    """Value head of the critic and score head of the reward model."""
    weight = make_score_head(width, seed=0).weight.detach()
    return {
        "critic": ValueHead.from_score_head(weight, ScoreNormalization()),
        "reward": ScoreHead(weight.clone(), ScoreNormalization()),
    }


def resident_tensors(roles: Mapping[str, SharedBase], heads: Mapping[str, nn.Module]) -> list[Tensor]:
    """Every tensor of the roles; those on a shared base come once for each role."""
    modules = [*(shared_base.peft_model for shared_base in roles.values()), *heads.values()]
    return [tensor for module in modules for tensor in model_tensors(module)]


def measure(case: Case) -> Measurement:
    """Load the roles and update once; to be called in a fresh process."""
    torch.set_num_threads(1)
    _import_all(case)
    rss_before = resident_bytes()
    roles = load_roles(case.base, case.adapter, case.model, case.layout)
    heads = make_heads(roles["critic"].hidden_size)
    weights = resident_tensors(roles, heads)
    rss_loaded = resident_bytes()
    update = measure_update(roles, heads["critic"], random_batch(case.batch), checkpointing=case.checkpointing)
    return Measurement(
        base=storage_bytes(base_tensors(roles["policy"].peft_model)),
        weights=storage_bytes(weights),
        rss_load=rss_loaded - rss_before,
        update=update,
    )


def measure_update(
    roles: Mapping[str, SharedBase], value_head: nn.Module, batch: PromptResponseBatch, *, checkpointing: bool
) -> UpdateMeasurement:
    """Update policy and critic on one microbatch, as `PPOTrainer` does it.

    Args:
        roles: Each role and the base that it is on.
        value_head: The critic's head.
        batch: The microbatch.
        checkpointing: Recompute activations in the backward.
    """
    trained = {role: roles[role].parameters(role) for role in TRAINED_ROLES}
    trained["critic"] += value_head.parameters()
    parameters = [parameter for group in trained.values() for parameter in group]
    if checkpointing:
        for shared_base in {id(roles[role]): roles[role] for role in TRAINED_ROLES}.values():
            shared_base.enable_gradient_checkpointing()
    optimizer = warm_optimizer(parameters)
    existing = [*optimizer_tensors(optimizer), *model_tensors(value_head), *batch[:4]]
    existing += [tensor for role in TRAINED_ROLES for tensor in model_tensors(roles[role].peft_model)]
    rss_start = resident_bytes()
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    with LiveBytes(existing) as live:
        kept = _backward(roles, value_head, batch, live)
        for group in trained.values():
            torch.nn.utils.clip_grad_norm_(group, 1.0)
        optimizer.step()
    return UpdateMeasurement(
        gradients=storage_bytes(parameter.grad for parameter in parameters if parameter.grad is not None),
        optimizer=storage_bytes(optimizer_tensors(optimizer)),
        live=UpdateBytes(kept, live.peak),
        rss=_peak_resident_bytes() - rss_start,
    )


def random_batch(batch: Batch) -> PromptResponseBatch:
    """Random tokens; one prompt is shorter, so that attention gets a mask, as with real prompts."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, _TOKENS, (batch.rows, batch.prompt_tokens), generator=generator).tolist()
    responses = torch.randint(0, _TOKENS, (batch.rows, batch.response_tokens), generator=generator).tolist()
    prompts[-1] = prompts[-1][: max(batch.prompt_tokens // 2, 1)]
    return collate_episodes(prompts, responses, 0)


def _backward(
    roles: Mapping[str, SharedBase], value_head: nn.Module, batch: PromptResponseBatch, live: LiveBytes
) -> int:
    """Both backward passes of a microbatch as `PPOTrainer` does them; what lived after the policy's forward."""
    mask = batch.response_mask
    zeros, num_tokens = torch.zeros(mask.shape), int(mask.sum())
    with roles["policy"].role("policy"):
        logprobs = roles["policy"].training_logprobs(batch, temperature=1.0)
        policy = ppo_policy_loss(
            logprobs,
            logprobs.detach(),
            torch.ones(mask.shape),
            mask,
            clip_range=0.2,
            dual_clip=None,
            num_tokens=num_tokens,
            importance_weights=None,
        )
        kept = live.current
        torch.autograd.backward(policy.loss)
        del policy, logprobs
    with roles["critic"].role("critic"):
        values = value_head(roles["critic"].response_hidden_states(batch))
        value = ppo_value_loss(values, zeros, zeros + 1.0, mask, value_clip_range=0.2, num_tokens=num_tokens)
        torch.autograd.backward(value.loss)
    return kept


def _load_base(base: Path | str, model: ModelConfig) -> SharedBase:
    return SharedBase(_own(load_causal_lm(base, model, "cpu")), model)


def _own(model: Any) -> Any:
    """Move mapped weights into the process's own memory; NF4 weights are there already."""
    for parameter in model.parameters():
        if not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.clone()
    return model


def _import_all(case: Case) -> None:
    """Import what loading imports, so that it counts as there before."""
    lora_config(case.model, load_base_config(case.base, case.model), "causal_lm")
    if case.model.quantization == "nf4":
        importlib.import_module("bitsandbytes")


def resident_bytes() -> int:
    """Resident memory of this process, without what the heap has free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def _peak_resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024
