"""Work on many texts in as many processes as there are cores: what is done in Python alone gains nothing by threads.

Not `multiprocessing`: its processes import the caller's main module, which runs a script without a guard twice, and
they outlive a caller that is killed. These read from a pipe, which ends with the caller.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import IO, Any, TypeVar

from data.errors import StageError

Result = TypeVar("Result")

FEWEST_TEXTS = 20_000
"""Fewer texts are not worth processes of their own, which take a second or two to start."""

_CHUNK_TEXTS = 5_000
_MOST_PROCESSES = 8


def map_chunks(
    function: Callable[[Sequence[str]], Result], texts: Sequence[str], *, fewest: int = FEWEST_TEXTS
) -> Iterator[Result]:
    """Apply a function to the texts, chunk after chunk.

    Args:
        function: Importable by its name, or an object that can be pickled; each process gets it once.
        texts: In any number.
        fewest: Fewer texts are looked through in this process.

    Yields:
        Its result for each chunk, in order; the chunks are the same however many processes there are.

    Raises:
        StageError: A process died, most often of memory, or the function raised.
    """
    chunks = [texts[start : start + _CHUNK_TEXTS] for start in range(0, len(texts), _CHUNK_TEXTS)]
    count = min(len(os.sched_getaffinity(0)), len(chunks), _MOST_PROCESSES)
    if len(texts) < fewest or count < 2:
        yield from map(function, chunks)
        return
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def apply(chunk: Sequence[str]) -> Result:
        worker = idle.get()
        try:
            result: Result = _ask(worker, chunk)
        finally:
            idle.put(worker)  # a dead one too: the next chunk fails on it instead of waiting for ever
        return result

    with ExitStack() as processes:
        for _ in range(count):
            idle.put(processes.enter_context(_worker(function)))
        # Left before the processes: closing their pipes ends them.
        with ThreadPoolExecutor(count) as threads:
            yield from threads.map(apply, chunks)


def _worker(function: Callable[..., Any]) -> "subprocess.Popen[bytes]":
    code = f"import sys; sys.path[:] = {sys.path!r}; from data.parallel import serve; serve()"
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin is not None
    with suppress(OSError):  # a process that died is told of where it is asked
        pickle.dump(function, worker.stdin)
    return worker


def _ask(worker: "subprocess.Popen[bytes]", chunk: Sequence[str]) -> Any:
    assert worker.stdin is not None and worker.stdout is not None
    try:
        pickle.dump(list(chunk), worker.stdin)
        worker.stdin.flush()
        result, problem = pickle.load(worker.stdout)  # our own process wrote it
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise StageError(
            f"data: a process that looks through the texts died ({type(error).__name__}, exit code {worker.poll()}); "
            f"half a GiB of memory for each core is needed; end other programs, or run on fewer cores (`taskset -c 0`)"
        ) from error
    if problem is not None:
        raise StageError(f"data: looking through the texts failed: {problem}; please report this with the rows")
    return result


def serve() -> None:
    """Answer on standard output what is asked on standard input, until that ends: a function, then its arguments."""
    answers: IO[bytes] = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        function = pickle.load(sys.stdin.buffer)
        while True:
            chunk = pickle.load(sys.stdin.buffer)
            try:
                answer: tuple[Any, str | None] = function(chunk), None
            except Exception as error:  # told by the caller, with what it knows
                answer = None, f"{type(error).__name__}: {error}"
            pickle.dump(answer, answers)
            answers.flush()
    except EOFError:
        return
