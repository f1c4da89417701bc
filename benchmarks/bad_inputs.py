"""How long `rlhf validate` takes to refuse what is wrong: a fresh process for each case of tests/bad_inputs.

    python -m benchmarks.bad_inputs [--sample N] [--seed 0] [--json FILE]

Configurations, data and models that `validate` finds; what only a stage can find starts the stage, whose imports take
longer than five seconds on some machines. The goal is five seconds from the start of the process to its end.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.commands import REPOSITORY
from benchmarks.conditions import condition_lines, markdown_table
from tests.bad_inputs import cases_adapters, test_config, test_data, test_models
from tests.tiny import tiny_model_dir
from tests.unit.stages.parts import save_random_adapter

GOAL_SECONDS = 5.0
_PACKAGES = ("pydantic", "torch")


@dataclass(frozen=True)
class Measured:
    """One case.

    Attributes:
        kind: Table that it is of.
        name: Its name.
        code: Exit code.
        seconds: From the start of the process to its end.
    """

    kind: str
    name: str
    code: int
    seconds: float


@dataclass(frozen=True)
class Prepared:
    """A case whose files are in a folder.

    Attributes:
        kind: Table that it is of.
        name: Its name.
        folder: Working folder with `c.yaml`.
        options: Beside `validate c.yaml`.
    """

    kind: str
    name: str
    folder: Path
    options: tuple[str, ...] = ()


def prepared(root: Path) -> Iterator[Prepared]:
    """All cases, each in a folder of its own."""
    right = root / "right"
    tiny_model_dir("llama", right / "base")
    save_random_adapter(right / "member", right / "base", "seq_cls", seed=1)
    adapter = right / "member" / "adapter_config.json"
    values = {**json.loads(adapter.read_text(encoding="utf-8")), "base_model_name_or_path": "./base"}
    adapter.write_text(json.dumps(values), encoding="utf-8")
    rows = [{"prompt": f"The tea {number}", "response": " was warm."} for number in range(40)]
    pairs = [{"prompt": row["prompt"], "chosen": " was warm.", "rejected": " was cold."} for row in rows]
    for name, lines in (("d.jsonl", rows), ("p.jsonl", pairs)):
        (right / name).write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    for number, setting in enumerate(test_config.CASES):
        folder = _copy(right, root / f"config-{number}", test_config.RIGHT)
        options = tuple(part for option in setting.options for part in ("--set", option))
        yield Prepared("configuration", setting.name, folder, options)
    for number, data in enumerate(case for case in test_data.CASES if case.by == "validate"):
        folder = root / f"data-{number}"
        folder.mkdir()
        shutil.copytree(right / "base", folder / "base")
        data.build(folder)
        config = {"model": {"base": "./base"}, "data": data.data, "launch": {"device": "cpu"}, "sft": {}, "ppo": None}
        config |= {"evaluation": None, "reward_model": None, **data.sections}
        (folder / "c.yaml").write_text(json.dumps(config), encoding="utf-8")
        yield Prepared("data", data.name, folder)
    for number, model in enumerate(case for case in test_models.CASES if case.by == "validate"):
        members = {"rewards": [{"type": "ensemble", "members": ["./member"]}]} if model in cases_adapters.CASES else {}
        config = {**test_config.RIGHT, "model": test_models.MODEL | dict(model.model), "ppo": members}
        folder = _copy(right, root / f"model-{number}", config)
        model.damage(folder)
        yield Prepared("model", model.name, folder)


def _copy(right: Path, folder: Path, config: object) -> Path:
    shutil.copytree(right, folder)
    (folder / "c.yaml").write_text(json.dumps(config), encoding="utf-8")
    return folder


def measured(case: Prepared) -> Measured:
    """Run `validate` on a case."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "validate", "c.yaml", *case.options], cwd=case.folder, env=environment,
        capture_output=True, check=False,
    )  # fmt: skip
    return Measured(case.kind, case.name, done.returncode, time.perf_counter() - start)


def table(results: Sequence[Measured]) -> str:
    """As Markdown, a line for each kind."""
    rows = []
    for kind in dict.fromkeys(result.kind for result in results):
        own = sorted(result.seconds for result in results if result.kind == kind)
        at_95 = own[min(len(own) - 1, int(0.95 * len(own)))]
        rows.append((kind, str(len(own)), f"{median(own):.2f}", f"{at_95:.2f}", f"{own[-1]:.2f}"))
    return markdown_table(("cases", "number", "s, median", "s, 95 %", "s, longest"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where a case took longer than the goal or ended with another code than 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bad_inputs", description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many cases, drawn at random; default all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args(arguments)
    print("\n".join([*condition_lines(_PACKAGES), ""]))
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as name:
        cases = list(prepared(Path(name)))
        if options.sample is not None:
            cases = random.Random(options.seed).sample(cases, min(options.sample, len(cases)))
        results = []
        for number, case in enumerate(cases):
            results.append(measured(case))
            print(f"\r{number + 1}/{len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(table(results))
    late = [result for result in results if result.seconds > GOAL_SECONDS or result.code != 2]
    for result in late:
        print(f"{result.kind} {result.name}: code {result.code}, {result.seconds:.1f} s")
    print(f"\ngoal: code 2 within {GOAL_SECONDS:g} s: {'met' if not late else 'not met'}")
    if options.json is not None:
        lines = json.dumps([asdict(result) for result in results], indent=2)
        options.json.write_text(lines + "\n", encoding="utf-8")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
