"""Functions of the tests on several processes of one gloo group. Importable without pytest.

    run_on_ranks("tests.unit.stages.on_ranks:collectives", folder, size=2, number=3)

starts `size` processes, which meet through a file, call the function with their `Ranks` and the keyword arguments,
and write down what it returns. What goes in and out has to be JSON; NaN and infinities pass.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

SECONDS = 300.0
"""Longest a group may take; DeepSpeed compiles an operator at first."""


def run_on_ranks(function: str, folder: Path, *, size: int, **arguments: Any) -> list[Any]:
    """Call a function on all ranks of a group.

    Args:
        function: `module:name`.
        folder: Where to meet; made if need be, and to be used once.
        size: Number of processes.
        arguments: Given to the function on every rank.

    Returns:
        What each rank returned, in their order.

    Raises:
        RuntimeError: A rank failed or took too long; the others are ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(size),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH")))),
    }
    processes = []
    for rank in range(size):
        with (folder / f"{rank}.log").open("wb") as log:
            command = [sys.executable, "-m", "tests.ranks", function, str(folder), json.dumps(arguments)]
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT))
    try:
        _wait(processes, folder)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]


def _wait(processes: "list[subprocess.Popen[bytes]]", folder: Path) -> None:
    """Until all are done, or one has failed: the others would wait for it."""
    deadline = time.monotonic() + SECONDS
    codes: list[int | None] = [None] * len(processes)
    while not all(code == 0 for code in codes):
        codes = [process.poll() for process in processes]
        bad = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if bad or time.monotonic() > deadline:
            rank = bad[0] if bad else codes.index(None)
            log = (folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace")[-6000:]
            what = f"ended with {codes[rank]}" if bad else f"takes more than {SECONDS:.0f} seconds"
            raise RuntimeError(f"rank {rank} {what}:\n{log}")
        time.sleep(0.05)


def main() -> None:
    """One rank: `python -m tests.ranks MODULE:NAME FOLDER ARGUMENTS`."""
    import torch
    import torch.distributed as dist

    from stages.ranks import Ranks

    function, folder, arguments = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    store = f"file://{folder.resolve()}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    try:
        module, name = function.split(":")
        found = getattr(importlib.import_module(module), name)(Ranks(rank, size), **arguments)
        (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
