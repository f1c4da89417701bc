"""The cost of everything that is not training: what a run takes beside its stages' own work.

    python -m benchmarks.overhead [--config configs/quickstart.yaml] [--out FOLDER] [--set KEY=VALUE] [--skip-run]

First one run on an empty store, split by what `run.json` and the manifests record (`timings`); then, with a Prefect
server that is there already, the same run again, all from the store; then `rlhf --help` and `rlhf validate`. All are
fresh processes. The base has to be downloaded and converted before: run the configuration once, or `rlhf validate` it.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.commands import Finished, free_name, last_lines, measured_environment, read_json, rlhf
from benchmarks.conditions import condition_lines
from benchmarks.overhead_account import Account, account_table, read_account, repeats_table, rewriting_seconds
from pipeline.server import lease_server

_PACKAGES = ("torch", "transformers", "prefect", "wandb")
CACHED, HELP, VALIDATE = "cached run, Prefect server running", "`rlhf --help`", "`rlhf validate`"
GOALS = {CACHED: 5.0, HELP: 0.5, VALIDATE: 3.0}
OVERHEAD_PERCENT = 2.0


class CommandFailedError(Exception):
    """A measured command did not end well."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where a command failed."""
    options = _parse(arguments)
    print("\n".join([*condition_lines(_PACKAGES), f"configuration: {_command_text(options)}", ""]), flush=True)
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        out = options.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        try:
            if not options.skip_run:
                document["run"] = _report_run(options, out)
            document["repeats"] = _report_repeats(options, out)
        except CommandFailedError as error:
            print(error, file=sys.stderr)
            return 1
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def _report_run(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """One run on an empty store: print and return where its time went."""
    outputs = out / free_name(out, "fresh")
    finished = _run(options, out, outputs, "first", sampled=True)
    found = read_account(outputs / "first", spawned=finished.spawned, wall=finished.seconds)
    payloads = [path for path in (outputs / "store").iterdir() if path.name != "records"]
    size, seconds = rewriting_seconds(payloads, outputs)
    percent = 100 * found.overhead / found.own
    met = "met" if percent <= OVERHEAD_PERCENT else "not met"
    print(account_table(found))
    print(f"\nOverhead {percent:.2f} % of the stages' own work; goal at most {OVERHEAD_PERCENT:g} %: {met}.")
    print(f"The payloads, {size / 2**20:.1f} MiB, are written as a part of own work; again they take {seconds:.2f} s.")
    for kind, cpu in sorted(finished.cpu.items()):
        print(f"{kind}: {cpu:.1f} s of CPU time in processes beside the stages, which may slow them down.")
    print(flush=True)
    return {**asdict(found), "cpu": dict(finished.cpu), "rewriting": {"bytes": size, "seconds": seconds}}


def _report_repeats(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The cached run and the two short commands: print and return their times."""
    outputs = max(out.glob("fresh*"), key=lambda path: path.stat().st_mtime, default=out / "fresh")
    if not (outputs / "store").is_dir():
        _run(options, out, outputs, "first")
    times: dict[str, list[float]] = {CACHED: [], HELP: [], VALIDATE: []}
    accounts: list[Account] = []
    environment = measured_environment(out / "prefect")
    with _running_server(environment):
        for _ in range(options.repeats):
            name = free_name(outputs, "cached")
            finished = _run(options, out, outputs, name)
            _check_cached(outputs / name)
            found = read_account(outputs / name, spawned=finished.spawned, wall=finished.seconds)
            accounts.append(found)
            times[CACHED].append(found.without_server_start)
    alone_name = free_name(outputs, "cached-alone")
    finished = _run(options, out, outputs, alone_name)
    alone = read_account(outputs / alone_name, spawned=finished.spawned, wall=finished.seconds)
    for label, command in ((HELP, ["--help"]), (VALIDATE, ["validate", *_configuration(options, outputs)])):
        for _ in range(options.repeats):
            times[label].append(_checked(rlhf(command, out / "logs" / "command.log")).seconds)
    median = sorted(accounts, key=lambda entry: entry.wall)[len(accounts) // 2]
    split = ", ".join(f"{part} {seconds:.2f}" for part, seconds in median.parts.items())
    print(repeats_table(times, GOALS))
    print(f"\nThe median cached run, in seconds: {split}.")
    print(
        f"A cached run that starts and ends its own Prefect server: {alone.wall:.2f} s, of them "
        f"{alone.server_start:.2f} waiting for the server beside other preparations, {alone.server_stop:.2f} for its "
        f"end."
    )
    return {"seconds": times, "cached": [asdict(entry) for entry in accounts], "alone": asdict(alone)}


def _run(options: argparse.Namespace, out: Path, outputs: Path, name: str, *, sampled: bool = False) -> Finished:
    arguments = ["run", *_configuration(options, outputs), "--run", name]
    environment = measured_environment(out / "prefect")
    return _checked(rlhf(arguments, out / "logs" / f"{name}.log", environment=environment, sampled=sampled))


def _configuration(options: argparse.Namespace, outputs: Path) -> list[str]:
    overrides = [part for value in options.set for part in ("--set", value)]
    return [str(options.config), "--output-dir", str(outputs), *overrides]


def _checked(finished: Finished) -> Finished:
    if finished.code != 0:
        raise CommandFailedError(f"exit code {finished.code}; its last lines:\n{last_lines(finished.output)}")
    return finished


def _check_cached(run_dir: Path) -> None:
    statuses = {stage["name"]: stage["status"] for stage in read_json(run_dir / "run.json")["stages"]}
    executed = [name for name, status in statuses.items() if status != "cached"]
    if executed:
        raise CommandFailedError(f"{run_dir}: {', '.join(executed)} should have come from the store, and did not")


@contextmanager
def _running_server(environment: Mapping[str, str]) -> Iterator[None]:
    """Hold the shared server, so that runs attach to it."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        lease = lease_server()
        try:
            lease.wait_until_healthy()
            yield
        finally:
            lease.release()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _command_text(options: argparse.Namespace) -> str:
    return " ".join([f"configs/{options.config.name}", *(f"--set {value}" for value in options.set)])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description="The cost beside training.")
    parser.add_argument("--config", type=lambda text: Path(text).resolve(), default="configs/quickstart.yaml")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="passed on to each run")
    parser.add_argument("--out", type=lambda text: Path(text).resolve(), help="keep runs and logs here")
    parser.add_argument("--skip-run", action="store_true", help="only what follows, on the store that --out has")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each command")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
