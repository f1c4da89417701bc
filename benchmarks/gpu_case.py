"""One case of `benchmarks.gpu`, in a process of its own.

    python -m benchmarks.gpu_case SHAPE none|nf4 hf|vllm|raw cuda|cpu FOLDER

FOLDER keeps base and adapters for the cases after it. Writes the rows of metrics.jsonl to FOLDER/result.json, or
with `raw` the tokens a second of vLLM alone on the prompts of one step: what engines print goes to the output.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_bases import SHAPES, make_base
from benchmarks.throughput_job import Job, run_ours

RESULT = "result.json"
_PROMPT_TOKENS = {"llama-8b": 128, "smollm2-135m": 128, "tiny": 16}
_RESPONSE_TOKENS = {"llama-8b": 128, "smollm2-135m": 128, "tiny": 8}
_BATCH = {"llama-8b": 32, "smollm2-135m": 64, "tiny": 8}
_MICROBATCH = {"llama-8b": 8, "smollm2-135m": 32, "tiny": 4}


def make_job(shape: str, quantization: str, engine: str, device: str, base: Path) -> Job:
    """The job of a case: two epochs of one minibatch, adapters on all blocks; the large base recomputes activations."""
    size, tokens = _BATCH[shape], _RESPONSE_TOKENS[shape]
    letters = "the quick brown fox jumps over the lazy dog and "
    prompts = [f"{number:04d} {letters * 20}"[: _PROMPT_TOKENS[shape]] for number in range(4 * size)]
    rollout: dict[str, Any] = {
        "engine": "hf" if engine == "raw" else engine,
        "max_new_tokens": tokens,
        "temperature": 0.7,
    }
    return Job(
        base=str(base),
        prompts=prompts,
        device=device,
        quantization=quantization,
        steps=3,
        batch_size=size,
        max_new_tokens=tokens,
        ppo={
            "microbatch_size": _MICROBATCH[shape],
            "max_prompt_tokens": 2 * _PROMPT_TOKENS[shape],
            "gradient_checkpointing": shape == "llama-8b",
            "rollout": rollout,
        },
    )


def raw_rate(job: Job) -> float:
    """Tokens a second of vLLM alone, without adapter, log-probabilities or trainer."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        job.base,
        dtype="bfloat16",
        enforce_eager=True,
        gpu_memory_utilization=0.35,  # as the stage's own engine
        max_model_len=4 * job.max_new_tokens,
        enable_prefix_caching=False,
    )
    parameters = SamplingParams(max_tokens=job.max_new_tokens, temperature=0.7, ignore_eos=True)
    prompts = job.prompts[: job.batch_size]
    llm.generate(prompts, parameters, use_tqdm=False)
    start = time.perf_counter()
    llm.generate(prompts, parameters, use_tqdm=False)
    return job.batch_size * job.max_new_tokens / (time.perf_counter() - start)


def main() -> None:
    """Run one case."""
    shape, quantization, engine, device, folder = sys.argv[1:6]
    base = Path(folder) / shape / "base"
    if not base.is_dir():
        make_base(SHAPES[shape], base, device=device)
    job = make_job(shape, quantization, engine, device, base)
    if engine == "raw":
        found: dict[str, Any] = {"raw_rate": raw_rate(job)}
    else:
        rows = run_ours(job, inputs_dir=Path(folder) / shape / "inputs")
        found = {"rows": rows, "batch_size": job.batch_size}
    (Path(folder) / RESULT).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
