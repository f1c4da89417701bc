"""Test the tests: break each pure module in small ways, and fail if its unit tests stay green.

    python -m tests.mutation.mutants [--module PATH]... [--jobs N]

The mutants are generated from the syntax tree, none is picked by hand: every operator, constant, comparison,
branch, operand, keyword, argument order and call is changed, dropped or swapped (see `operators.py`).
Left alone are docstrings, type annotations, imports and what is inside a `raise`, whose text tests match.

Each mutant runs in a forked child of one process that has imported torch and collected the tests, so it
costs the tests and not the imports: the child puts the mutated code objects into the module's functions and
runs the module's own test file until the first failure. A mutant that outlives the time limit is killed.

Survivors have to be listed in `equivalent.toml` with the reason why no test could tell them from the
original. An entry that no survivor matches is an error too. Exit codes: 0 all killed or listed, 1 otherwise.
"""

import argparse
import ast
import contextlib
import dataclasses
import importlib
import io
import os
import sys
import time
import tomllib
import types
from functools import partial
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from tests.mutation.forks import Forks
from tests.mutation.operators import describe, mutable_nodes, mutations_of, replace_node

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
TIMEOUT_SECONDS = 20.0
KILLED, SURVIVED = 0, 1


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    file: str
    line_number: int
    line: str
    """The source line where the changed expression starts, stripped."""
    mutation: str
    """`before => after`, as unparsed expressions."""
    tree: ast.Module = dataclasses.field(compare=False, repr=False)

    @property
    def key(self) -> tuple[str, str, str]:
        """What an entry of `equivalent.toml` has to name."""
        return self.file, self.line, self.mutation


def generate(file: str) -> list[Mutant]:
    """Make all mutants of a module, without those that unparse to the same source."""
    source = (ROOT / file).read_text(encoding="ascii")
    lines, tree = source.splitlines(), ast.parse(source)
    original = ast.unparse(tree)
    mutants, seen = [], {original}
    for node, path in mutable_nodes(tree):
        for replacement in mutations_of(node):
            mutated = replace_node(tree, path, replacement)
            text = ast.unparse(mutated)
            if text in seen:
                continue
            seen.add(text)
            number = getattr(node, "lineno", 1)
            mutation = f"{describe(node)} => {describe(replacement)}"
            mutants.append(Mutant(file, number, lines[number - 1].strip(), mutation, ast.parse(text)))
    return mutants


def test_file_of(file: str) -> str:
    """Mirror a module's path: `a/b.py` is tested by `tests/unit/a/test_b.py`."""
    path = Path(file)
    return str(Path("tests/unit") / path.parent / f"test_{path.name}")


def put_into(module: types.ModuleType, tree: ast.Module) -> None:
    """Run the mutated source in the module, and give its code to the functions that tests imported."""
    functions = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__
    }
    exec(compile(tree, f"<mutant of {module.__name__}>", "exec"), vars(module))
    for name, function in functions.items():
        mutated = vars(module)[name]
        function.__code__ = mutated.__code__
        function.__defaults__ = mutated.__defaults__
        function.__kwdefaults__ = mutated.__kwdefaults__
        setattr(module, name, function)


def run_items(items: list[pytest.Item]) -> bool:
    """Run collected tests until the first failure; True if all pass."""
    for item in items:
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=None)):
            return False
    return True


class MutationRun:
    """A pytest plugin that runs the collected tests once for each mutant instead of once."""

    def __init__(self, file: str, jobs: int) -> None:
        self.file = file
        self.mutants = generate(file)
        self.forks = Forks(jobs, timeout_seconds=TIMEOUT_SECONDS)
        self.original_passes = False
        self.survivors: list[Mutant] = []
        self.timeouts = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the original here, so that the children inherit all lazy imports, then fork for each mutant."""
        module = importlib.import_module(self.file.removesuffix(".py").replace("/", "."))
        self.original_passes = run_items(session.items)
        if self.original_passes:
            for mutant in self.mutants:
                self.forks.start(partial(_fate, mutant, module, session.items), partial(self._note, mutant))
            self.forks.finish()
        return True

    def _note(self, mutant: Mutant, status: int | None) -> None:
        if status is None:
            self.timeouts += 1
        elif status == SURVIVED:
            self.survivors.append(mutant)


def _fate(mutant: Mutant, module: types.ModuleType, items: list[pytest.Item]) -> int:
    """In the child: whether the tests notice."""
    put_into(module, mutant.tree)
    return SURVIVED if run_items(items) else KILLED


def pure_modules() -> list[str]:
    """The modules that must have no surviving mutant."""
    algorithms = sorted((ROOT / "stages/algorithms").glob("*.py"))
    files = [str(path.relative_to(ROOT)) for path in algorithms if path.name != "__init__.py"]
    return [*files, "rewards/bradley_terry.py", "rewards/plackett_luce.py"]


def load_equivalents(files: list[str]) -> dict[tuple[str, str, str], str]:
    """Read the listed equivalents of these modules: what they are, and why."""
    entries = tomllib.loads(EQUIVALENT.read_text(encoding="ascii")).get("equivalent", [])
    return {
        (entry["file"], entry["line"], entry["mutation"]): entry["reason"]
        for entry in entries
        if entry["file"] in files
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.mutants", description=__doc__.split("\n")[0])
    parser.add_argument("--module", action="append", metavar="PATH", help="a module; all pure modules by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that uses CUDA cannot be forked
    import torch

    torch.set_num_threads(1)  # two processes with two threads each would only be in each other's way
    files: list[str] = arguments.module or pure_modules()
    equivalents = load_equivalents(files)
    survivors: list[Mutant] = []
    num_mutants, started, healthy = 0, time.monotonic(), True
    for file in files:
        run, module_started = MutationRun(file, arguments.jobs), time.monotonic()
        options = [
            "-qq",
            "--no-header",
            "--no-summary",
            "--tb=no",
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=",
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            pytest.main([*options, test_file_of(file)], plugins=[run])
        if not run.original_passes:
            print(f"{file}: its tests fail without any mutation; fix them first: pytest {test_file_of(file)}")
            healthy = False
            continue
        num_mutants += len(run.mutants)
        survivors += run.survivors
        print(
            f"{file}: {len(run.mutants)} mutants, {len(run.mutants) - len(run.survivors)} killed "
            f"({run.timeouts} by the time limit), {time.monotonic() - module_started:.0f} s"
        )
    unlisted = [mutant for mutant in survivors if mutant.key not in equivalents]
    stale = set(equivalents) - {mutant.key for mutant in survivors}
    for mutant in sorted(unlisted, key=lambda mutant: (mutant.file, mutant.line_number)):
        print(f"SURVIVED {mutant.file}:{mutant.line_number}\n    {mutant.line}\n    {mutant.mutation}")
    for file, line, mutation in sorted(stale):
        print(f"STALE entry of equivalent.toml, no survivor matches: {file}\n    {line}\n    {mutation}")
    score = 100 * (num_mutants - len(unlisted)) / max(num_mutants, 1)
    print(
        f"{num_mutants} mutants: {num_mutants - len(survivors)} killed, {len(survivors) - len(unlisted)} "
        f"equivalent, {len(unlisted)} survived; score {score:.1f} %; {time.monotonic() - started:.0f} s"
    )
    return 0 if healthy and not unlisted and not stale else 1


if __name__ == "__main__":
    sys.exit(main())
