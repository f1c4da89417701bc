"""What is an error about memory, and which setting its message says to lower, from what to what."""

import errno
from typing import Any

import pytest
import torch

from data.errors import StageError
from stages.memory_errors import is_memory_error, memory_advice, memory_error_text, memory_errors_told
from stages.ppo.config import PPOConfig
from stages.preferences.config import PreferencesConfig
from stages.reward_model.config import RewardModelConfig
from stages.sft.config import SFTConfig

FLOAT32 = {"dtype": "float32", "quantization": "none"}
SMALL = {"dtype": "bfloat16", "quantization": "nf4"}
NEEDED = "less memory or more of it is needed: "
SAME = " (the result stays the same up to rounding)"


def section(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = config.model_dump(mode="json")
    return values


def ppo(**settings: Any) -> dict[str, Any]:
    sizes = {"batch_size": 64, "minibatch_size": 32, "microbatch_size": 8, "rollout": {"engine": "hf"}}
    return section(PPOConfig.model_validate(sizes | settings))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                     "tried to allocate 1048576 bytes. Error code 12 (Cannot allocate memory)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)  # fmt: skip
def test_errors_about_memory(error: BaseException) -> None:
    assert is_memory_error(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("out of memory"),
        StageError("sft: out of memory"),
    ],
)
def test_errors_about_something_else(error: BaseException) -> None:
    assert not is_memory_error(error)


def test_what_a_cpu_and_a_gpu_say_of_sizes_is_told() -> None:
    def text(said: str) -> str:
        return memory_error_text(RuntimeError(said), "ppo", "update", ppo(), SMALL, 1)

    assert text("can't allocate memory: you tried to allocate 3145728 bytes. Error").startswith(
        "ppo: out of memory in `update` (3.0 MiB more were asked for); less memory"
    )
    assert text(
        "CUDA out of memory. Tried to allocate 2.31 GiB. GPU 0 has a total capacity of 139.80 GiB of which 1.12 GiB is"
        " free."
    ).startswith("ppo: out of memory in `update` (2.31 GiB more were asked for, 1.12 GiB of 139.80 GiB were free); ")
    assert text("std::bad_alloc").startswith("ppo: out of memory in `update`; less memory")
    assert memory_error_text(MemoryError(), "sft", "", section(SFTConfig()), SMALL, 1).startswith("sft: out of memory;")


@pytest.mark.parametrize(
    ("part", "settings", "first"),
    [
        ("update", {}, f"lower `ppo.microbatch_size` from 8 to 4{SAME}, or set `ppo.gradient_checkpointing: true`"),
        # 7 divides 28, 3 does not: the next one that leaves the arithmetic valid is 2.
        ("experience", {"batch_size": 28, "minibatch_size": 28, "microbatch_size": 7},
         f"lower `ppo.microbatch_size` from 7 to 2{SAME}"),
        ("score", {"microbatch_size": 1}, "set `ppo.gradient_checkpointing: true`"),
        ("update", {"microbatch_size": 1, "gradient_checkpointing": True},
         "lower `ppo.rollout.max_new_tokens` from 64 to 32, or "),
        ("update", {"microbatch_tokens": 4096}, "lower `ppo.microbatch_tokens` from 4096 to 2048, or lower `ppo.mic"),
        ("experience", {"share_first_pass": True}, "set `ppo.share_first_pass: false`, or lower `ppo.microbatch_size`"),
        ("update", {"share_first_pass": True, "microbatch_size": 32}, "lower `ppo.microbatch_size` from 32 to 16"),
        ("generate", {}, "lower `ppo.generate_batch_size` from 64 to 32, or lower `ppo.rollout.max_new_tokens`"),
        ("generate", {"generate_batch_size": 6}, "lower `ppo.generate_batch_size` from 6 to 3, or "),
        ("generate", {"generate_batch_size": 1}, "lower `ppo.rollout.max_new_tokens` from 64 to 32"),
        ("generate", {"rollout": {"engine": "vllm"}},
         "lower `ppo.rollout.vllm.gpu_memory_utilization` from 0.35 to 0.26 (on a GPU), or lower "
         "`ppo.rollout.vllm.kv_cache_gib` from 1 to 0.5 (on a CPU)"),
    ],
)  # fmt: skip
def test_a_step_of_ppo_is_told_what_to_lower(part: str, settings: dict[str, Any], first: str) -> None:
    assert memory_advice("ppo", part, ppo(**settings), SMALL, 1).startswith(NEEDED + first)


def test_what_is_advised_is_valid() -> None:
    """The configuration itself is the judge of the arithmetic, for every size."""
    for whole in range(2, 40):
        for size in (value for value in range(1, whole + 1) if whole % value == 0):
            text = memory_advice("ppo", "update", ppo(batch_size=whole, minibatch_size=whole, microbatch_size=size),
                                 SMALL, 1)  # fmt: skip
            assert (f"from {size} to " in text) == (size > 1)
            if size > 1:
                lower = int(text.partition(f"from {size} to ")[2].split()[0])
                assert lower <= size / 2
                ppo(batch_size=whole, minibatch_size=whole, microbatch_size=lower)


def test_several_ranks_share_the_microbatches() -> None:
    """12 examples on 2 ranks: 3 each twice, not 2 each thrice... 12 / (2 * 3) is whole, 12 / (2 * 2) is, too."""
    config = section(SFTConfig(batch_size=12, microbatch_size=6))
    assert f"from 6 to 3{SAME}" in memory_advice("sft", "training", config, SMALL, 2)
    config = section(SFTConfig(batch_size=20, microbatch_size=5))
    assert f"from 5 to 2{SAME}" in memory_advice("sft", "training", config, SMALL, 2)  # 20 = 2 * 2 * 5
    assert f"from 5 to 1{SAME}" in memory_advice("sft", "training", config, SMALL, 4)  # 20 is no multiple of 4 * 2


def test_the_other_stages_are_told_their_own_settings() -> None:
    reward_model, preferences = section(RewardModelConfig()), section(PreferencesConfig(rollout={"engine": "hf"}))
    assert memory_advice("reward_model", "normalization", reward_model, SMALL, 1) == (
        f"{NEEDED}lower `reward_model.normalization.batch_size` from 32 to 16, or take a smaller `model.base`"
    )
    assert memory_advice("preferences", "", preferences, FLOAT32, 1) == (
        f"{NEEDED}lower `preferences.batch_size` from 64 to 32, or lower `preferences.rollout.max_new_tokens` from 64 "
        f"to 32, or set `model.dtype: bfloat16`"
    )
    assert memory_advice("data", "", {}, {}, 1) == f"{NEEDED}set `data.*.limit` or use smaller files"


def test_the_model_is_the_last_resort() -> None:
    config = section(SFTConfig(microbatch_size=1, max_length=2, gradient_checkpointing=True))
    assert memory_advice("sft", "", config | {"max_length": 1}, FLOAT32, 1) == (
        f"{NEEDED}set `model.dtype: bfloat16`, or set `model.quantization: nf4`, or take a smaller `model.base`"
    )


def test_what_is_no_error_about_memory_comes_through() -> None:
    with pytest.raises(RuntimeError, match="singular"), memory_errors_told("sft", "", section(SFTConfig()), SMALL):
        raise RuntimeError("matrix is singular")
    with pytest.raises(StageError, match="sft: out of memory; "):
        with memory_errors_told("sft", "", section(SFTConfig()), SMALL):
            raise MemoryError
