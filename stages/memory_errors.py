"""What to do when memory runs out: which setting to lower, from what to what.

Knows sections as plain values and the texts of errors; imports neither torch nor a stage, so that the pipeline can ask
it about a process that the system has killed.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from data.errors import StageError

_TEXTS = (
    "out of memory",  # CUDA, cuDNN, bitsandbytes
    "can't allocate memory",  # torch on a CPU
    "cannot allocate memory",
    "std::bad_alloc",
    "alloc_failed",  # cuBLAS: CUBLAS_STATUS_ALLOC_FAILED
)
_ASKED_BYTES = re.compile(r"tried to allocate (\d+) bytes")
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ [KMG]iB)")
_CAPACITY = re.compile(r"total capacity of ([\d.]+ [KMG]iB) of which ([\d.]+ [KMG]iB) is free")
_MOST_REMEDIES = 3

Section = Mapping[str, Any]


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _TEXTS)


def memory_error_text(error: BaseException, stage: str, part: str, config: Section, model: Section, ranks: int) -> str:
    """The three parts of a message about memory that ran out: where, what was asked for, what to lower.

    Args:
        error: What was raised.
        stage: Name of the stage.
        part: What it was doing; of PPO a part of its step. Empty where that is not known.
        config: The stage's section, as plain values.
        model: The `model` section.
        ranks: Processes of the stage.
    """
    doing = f" in `{part}`" if part else ""
    return f"{stage}: out of memory{doing}{_found(str(error))}; {memory_advice(stage, part, config, model, ranks)}"


def memory_advice(stage: str, part: str, config: Section, model: Section, ranks: int) -> str:
    """Which settings need less memory, the one that costs least first. Arguments as for `memory_error_text`."""
    remedies = [*_stage_remedies(stage, part, config, ranks), *_model_remedies(stage, model)]
    return f"less memory or more of it is needed: {', or '.join(remedies[:_MOST_REMEDIES])}"


@contextmanager
def memory_errors_told(stage: str, part: str, config: Section, model: Section) -> Iterator[None]:
    """Turn an error about memory into one that says what to lower. Arguments as for `memory_error_text`.

    Raises:
        StageError: In place of the error.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_memory_error(error):
            raise
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        raise StageError(memory_error_text(error, stage, part, config, model, ranks)) from error


def _found(text: str) -> str:
    """What was asked for and what there was, as far as the error says."""
    if match := _ASKED_BYTES.search(text):
        return f" ({int(match[1]) / 2**20:.1f} MiB more were asked for)"
    if match := _ASKED.search(text):
        capacity = _CAPACITY.search(text)
        left = f", {capacity[2]} of {capacity[1]} were free" if capacity else ""
        return f" ({match[1]} more were asked for{left})"
    return ""


def _stage_remedies(stage: str, part: str, config: Section, ranks: int) -> Iterator[str]:
    match stage, part:
        case "ppo", "generate" | "sync":
            yield from _rollout_remedies(stage, config, "generate_batch_size", config.get("batch_size"))
        case "ppo", _:
            if config.get("share_first_pass") is True and config["minibatch_size"] != config["microbatch_size"]:
                yield "set `ppo.share_first_pass: false`"  # it keeps the graph of a whole minibatch
            if config.get("microbatch_tokens") is not None:
                yield from _halved("ppo.microbatch_tokens", config["microbatch_tokens"])
            yield from _smaller_microbatch(stage, config, "minibatch_size", ranks)
            yield from _recomputed(stage, config)
            yield from _halved("ppo.rollout.max_new_tokens", config.get("rollout", {}).get("max_new_tokens"))
        case "reward_model", "normalization":
            yield from _halved("reward_model.normalization.batch_size", config["normalization"]["batch_size"])
        case "sft" | "reward_model", _:
            yield from _smaller_microbatch(stage, config, "batch_size", ranks)
            yield from _recomputed(stage, config)
            yield from _halved(f"{stage}.max_length", config.get("max_length"))
        case "preferences" | "evaluation", _:
            yield from _rollout_remedies(stage, config, "batch_size", None)
        case _:
            yield "set `data.*.limit` or use smaller files"


def _rollout_remedies(stage: str, config: Section, batch_key: str, default_size: int | None) -> Iterator[str]:
    """Of generating: by transformers the size of a batch counts, by vLLM what was set aside for it."""
    rollout: Section = config.get("rollout", {})
    if rollout.get("engine") == "hf":
        yield from _halved(f"{stage}.{batch_key}", config.get(batch_key) or default_size)
    elif "vllm" in rollout:
        share, cache = rollout["vllm"]["gpu_memory_utilization"], rollout["vllm"]["kv_cache_gib"]
        yield f"lower `{stage}.rollout.vllm.gpu_memory_utilization` from {share:g} to {share * 0.75:.2g} (on a GPU)"
        yield f"lower `{stage}.rollout.vllm.kv_cache_gib` from {cache:g} to {cache / 2:g} (on a CPU)"
    yield from _halved(f"{stage}.rollout.max_new_tokens", rollout.get("max_new_tokens"))


def _smaller_microbatch(stage: str, config: Section, whole_key: str, ranks: int) -> Iterator[str]:
    """At most half of it, and such that the ranks' microbatches still make up the whole."""
    size, whole = config["microbatch_size"], config[whole_key]
    fitting = [value for value in range(1, size // 2 + 1) if whole % (value * ranks) == 0]
    if fitting:
        yield f"lower `{stage}.microbatch_size` from {size} to {fitting[-1]} (the result stays the same up to rounding)"


def _recomputed(stage: str, config: Section) -> Iterator[str]:
    if config.get("gradient_checkpointing") is False:
        yield f"set `{stage}.gradient_checkpointing: true` (a third more time)"


def _halved(key: str, value: int | None) -> Iterator[str]:
    if value is not None and value > 1:
        yield f"lower `{key}` from {value} to {value // 2}"


def _model_remedies(stage: str, model: Section) -> Iterator[str]:
    if stage == "data":
        return
    if model.get("dtype") == "float32":
        yield "set `model.dtype: bfloat16`"
    if model.get("quantization") == "none":
        yield "set `model.quantization: nf4`"
    yield "take a smaller `model.base`"
