"""Test the checklist's tests: for each of its lines, put a fault into the code and see that line's tests fail.

    python -m tests.mutation.faults [--line NN]... [--jobs N]

`faults.toml` lists the faults, picked by hand: a real mistake for each line, as a snippet of source and what takes
its place. The tests of line NN are those named `test_checklist_NN_...`; a name may carry several numbers.

Each fault runs in a forked child of one process that has imported torch, transformers, peft and trl, and none of our
packages. The child reads the changed source instead of the file, so that every importer sees it, and runs the line's
tests until the first failure. Only an assertion of a test counts: neither a module that cannot be collected, nor a
fixture that breaks, nor a missing name. The tests that noticed a fault are then run without any, and have to pass.

Exit codes: 0 every line has a test and a fault, and every fault is noticed; 1 otherwise. Lines whose test says
`not_applicable` need no fault.
"""

import argparse
import gc
import importlib
import importlib.machinery
import json
import os
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.forks import Forks

ROOT = Path(__file__).resolve().parents[2]
FAULTS = Path(__file__).with_name("faults.toml")
LINES = range(1, 56)
PACKAGES = ("pipeline", "stages", "rewards", "data")
TIMEOUT_SECONDS = 240.0

_WARM = (
    "torch", "torch.distributed", "torch.utils.checkpoint", "numpy", "safetensors.torch", "transformers", "peft", "trl",
    "transformers.models.auto.modeling_auto", "transformers.trainer", "transformers.generation.utils",
    "transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2", "tokenizers",
    "transformers.models.opt.modeling_opt", "trl.trainer.sft_trainer", "trl.trainer.reward_trainer",
    "accelerate", "datasets", "bitsandbytes", "pydantic", "yaml", "jaxtyping", "beartype", "psutil",
)  # fmt: skip
_NOT_A_FINDING = (ImportError, NameError, SyntaxError)


@dataclass(frozen=True)
class Fault:
    """One entry of `faults.toml`."""

    lines: tuple[int, ...]
    file: str
    before: str
    after: str
    what: str
    test: str = ""

    def mutated(self) -> bytes:
        """The file's source with the fault.

        Raises:
            ValueError: The snippet is not there exactly once, or the result is no Python or the same program.
        """
        where = f"faults.toml: {self.file}: {self.before.strip().splitlines()[0]!r}"
        if self.file.split("/")[0] not in PACKAGES:
            raise ValueError(f"{where}: faults go into {', '.join(PACKAGES)} only")
        source = (ROOT / self.file).read_text(encoding="utf-8")
        if (count := source.count(self.before)) != 1:
            raise ValueError(f"{where}: `before` is there {count} times; exactly once is needed")
        changed = source.replace(self.before, self.after)
        try:
            code = compile(changed, self.file, "exec")
        except SyntaxError as error:
            raise ValueError(f"{where}: with `after` in its place the file is no Python ({error})") from error
        if code == compile(source, self.file, "exec"):
            raise ValueError(f"{where}: `after` changes nothing")
        return changed.encode()


@dataclass
class Outcome:
    """What one line's tests made of one fault."""

    fault: Fault
    line: int
    verdict: str = "crashed"
    """`killed`, `survived`, `broken` (something else than a test failed), `timeout` or `crashed`."""
    test: str = ""
    detail: str = ""
    seconds: float = 0.0


@dataclass(eq=False)  # pytest keeps its plugins in a set
class Recorder:
    """A pytest plugin that keeps the first failure and what kind it is."""

    tests: list[str] = field(default_factory=list)
    verdict: str = "survived"
    test: str = ""
    detail: str = ""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Keep the names of all tests."""
        self.tests = [item.nodeid for item in session.items]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that cannot be collected is no finding."""
        if report.failed:
            self._fail("broken", report.nodeid, str(report.longrepr))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
        """Only an exception in the test's own call is one, and not every one."""
        report = yield
        if report.failed and call.excinfo is not None:
            is_finding = call.when == "call" and not issubclass(call.excinfo.type, _NOT_A_FINDING)
            reason = f"{call.when}: {call.excinfo.typename}: {call.excinfo.value}"
            self._fail("killed" if is_finding else "broken", item.nodeid, reason)
        return report

    def _fail(self, verdict: str, test: str, detail: str) -> None:
        if self.verdict == "survived":
            self.verdict, self.test, self.detail = verdict, test, detail.strip()


def load_faults() -> list[Fault]:
    """Read `faults.toml`."""
    entries = tomllib.loads(FAULTS.read_text(encoding="utf-8"))["fault"]
    return [Fault(**{**entry, "lines": tuple(entry["lines"])}) for entry in entries]


def numbers_of(name: str) -> tuple[int, ...]:
    """Checklist lines in the name of a test: `test_checklist_16_41_x` is of lines 16 and 41."""
    match = re.match(r"test_checklist((?:_\d\d)+)_", name)
    return tuple(int(number) for number in match[1].split("_")[1:]) if match else ()


def checklist_tests(root: Path = ROOT) -> dict[int, list[str]]:
    """Node ids of the test functions of each line, as the sources have them, the quick ones first."""
    found: dict[int, list[str]] = {line: [] for line in LINES}
    for path in sorted((root / "tests").rglob("test_*.py"), key=_slowness):
        for name in re.findall(r"^def (test_checklist_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            for number in numbers_of(name):
                found[number].append(f"{path.relative_to(root).as_posix()}::{name}")
    return found


def is_not_applicable(tests: Iterable[str]) -> bool:
    """Whether a line's tests say that it does not apply."""
    return any("_not_applicable_because_" in test for test in tests)


def _slowness(path: Path) -> tuple[int, str]:
    """Pure functions, then models, then whole stages, then everything with servers."""
    name = path.relative_to(ROOT).as_posix()
    ranks = ("/algorithms/", "/unit/rewards/", "/unit/data/", "/contract/", "/models/", "/unit/")
    return next((rank for rank, part in enumerate(ranks) if part in name), len(ranks)), name


def install(path: Path, source: bytes) -> None:
    """Give every import of a file this source, whatever loader asks and whatever bytecode is cached."""
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader
    original = loader.get_data

    def get_data(self: Any, name: str) -> bytes:
        asked = Path(name)
        if asked == path:
            return source
        if asked.suffix == ".pyc" and asked.parent.parent == path.parent and asked.name.split(".")[0] == path.stem:
            raise OSError("the cached bytecode is that of the file without the fault")
        return original(self, name)

    loader.get_data = get_data  # type: ignore[method-assign]


def run_tests(tests: Sequence[str], result: Path, fault: Fault | None = None) -> int:
    """In a child: run tests until the first failure, with the fault in place, and write what came of it."""
    import torch

    torch.set_num_threads(1)
    if fault is not None:
        install(ROOT / fault.file, fault.mutated())
    recorder = Recorder()
    options = ["-x", "-qq", "--no-header", "--no-summary", "--tb=no", "-p", "no:cacheprovider"]
    options += ["-p", "no:hypothesispytest"]  # it takes two seconds to say that no test was its own
    status = pytest.main([*options, *tests], plugins=[recorder])
    if not recorder.tests and recorder.verdict == "survived":
        recorder.verdict, recorder.detail = "broken", f"no test was run (pytest's exit status {int(status)})"
    result.write_text(json.dumps([recorder.verdict, recorder.test, recorder.detail]), encoding="utf-8")
    return 0


def judge(faults: list[Fault], tests: dict[int, list[str]], lines: Iterable[int], jobs: int) -> list[Outcome]:
    """Run every fault against the tests of each of its lines."""
    outcomes: list[Outcome] = []
    forks = Forks(jobs, timeout_seconds=TIMEOUT_SECONDS)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for fault in faults:
            for line in sorted(set(fault.lines) & set(lines)):
                chosen = [test for test in tests[line] if fault.test in test]
                outcome = Outcome(fault, line)
                outcomes.append(outcome)
                if not chosen:
                    outcome.verdict, outcome.detail = "survived", "the line has no such test"
                    continue
                result = Path(folder) / f"{len(outcomes)}.json"
                done = partial(_note, outcome, result, time.monotonic())
                forks.start(partial(run_tests, chosen, result, fault), done)
        forks.finish()
    return outcomes


def _note(outcome: Outcome, result: Path, started: float, status: int | None) -> None:
    outcome.seconds = time.monotonic() - started
    if status == 0:
        outcome.verdict, outcome.test, outcome.detail = json.loads(result.read_text(encoding="utf-8"))
    else:
        outcome.verdict = "timeout" if status is None else "crashed"
    mark = "" if outcome.verdict == "killed" else f": {outcome.detail.splitlines()[0] if outcome.detail else ''}"
    print(f"{outcome.line:02d} {outcome.verdict:8s} {outcome.seconds:5.1f} s  {outcome.fault.what}{mark}", flush=True)
    if outcome.verdict == "killed":
        print(f"            by {outcome.test}", flush=True)


def unharmed(outcomes: list[Outcome], jobs: int) -> str:
    """Run the tests that noticed something without any fault; the complaint if one fails all the same."""
    killers = sorted({outcome.test for outcome in outcomes if outcome.verdict == "killed"})
    shares = [share for share in (killers[number::jobs] for number in range(jobs)) if share]
    answers: list[int | None] = []
    forks = Forks(jobs, timeout_seconds=4 * TIMEOUT_SECONDS)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        results = [Path(folder) / f"{number}.json" for number in range(len(shares))]
        for share, result in zip(shares, results, strict=True):
            forks.start(partial(run_tests, share, result), answers.append)
        forks.finish()
        if any(answer != 0 for answer in answers):
            return f"the tests that noticed a fault could not be run without one (status {answers})"
        found = [json.loads(result.read_text(encoding="utf-8")) for result in results]
    failed = [f"{test} fails without any fault, so it says nothing: {detail}"
              for verdict, test, detail in found if verdict != "survived"]  # fmt: skip
    return failed[0] if failed else ""


def _threads() -> list[str]:
    """Names of this process's threads but for that of pyarrow's allocator, which knows about forks."""
    names = [(task / "comm").read_text(encoding="utf-8").strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if name != "jemalloc_bg_thd"]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--line", action="append", type=int, metavar="NN", help="a line of the checklist; default all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults at a time")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # before torch and numpy: a process with threads of theirs cannot be forked
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    started = time.monotonic()
    lines: list[int] = arguments.line or list(LINES)
    tests = checklist_tests()
    faults: list[Fault] = []
    complaints: list[str] = []
    for fault in load_faults():
        try:
            fault.mutated()
            faults.append(fault)
        except (ValueError, OSError) as error:
            complaints.append(str(error))
    for line in lines:
        if not tests[line]:
            complaints.append(f"line {line:02d} has no test: name one test_checklist_{line:02d}_...")
        elif not is_not_applicable(tests[line]) and not any(line in fault.lines for fault in faults):
            complaints.append(f"line {line:02d} has no fault: add one to faults.toml")
    for name in _WARM:
        importlib.import_module(name)
    gc.freeze()  # no child has to look through what is imported here
    ours = sorted(name for name in sys.modules if name.split(".")[0] in PACKAGES)
    assert not ours, f"imported before the fault could be put in: {ours}"
    assert len(_threads()) == 1, f"a process with threads cannot be forked: {_threads()}"
    outcomes = judge(faults, tests, lines, arguments.jobs)
    complaint = unharmed(outcomes, arguments.jobs)
    gc.unfreeze()
    complaints += [
        f"line {outcome.line:02d}: {outcome.verdict}: {outcome.fault.what} ({outcome.fault.file}) {outcome.detail}"
        for outcome in outcomes
        if outcome.verdict != "killed"
    ]
    complaints += [complaint] if complaint else []
    for text in complaints:
        print(f"FAILED {text}")
    killed = sum(outcome.verdict == "killed" for outcome in outcomes)
    covered = sum(any(o.line == line and o.verdict == "killed" for o in outcomes) for line in lines)
    spared = sum(is_not_applicable(tests[line]) for line in lines)
    print(
        f"{len(lines)} lines: {covered} with a fault that their tests notice, {spared} not applicable; "
        f"{killed} of {len(outcomes)} faults noticed; {time.monotonic() - started:.0f} s"
    )
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
