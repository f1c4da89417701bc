"""The process that compares answers: `python -P math_worker.py SECONDS`.

A line of JSON in, `[answer, reference]`; `1` or `0` out. The system's own timer ends the process where a comparison
takes longer, also within one multiplication of numbers with a million digits, which no Python handler would interrupt.
"""

import json
import logging
import resource
import signal
import sys
from typing import Any

READY = "ready"
"""Said before the first answer."""

_MEMORY_BYTES = 2 << 30


def is_equal(answer: str, reference: str) -> bool:
    """Whether an answer is mathematically equal to a reference.

    Args:
        answer: Text with the answer in it: a box of LaTeX, a formula, or a number.
        reference: The right one, also bare LaTeX without `$`.
    """
    from math_verify import parse, verify

    def parsed(text: str) -> Any:
        return parse(text, parsing_timeout=None)

    gold = parsed(reference) or parsed(f"${reference}$")
    return bool(gold) and bool(verify(gold, parsed(answer), timeout_seconds=None))


def main() -> None:
    """Answer line by line, until there are no more."""
    seconds = float(sys.argv[1])
    logging.disable(logging.WARNING)  # math-verify asks for the time limit that this process has already
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the stage
    is_equal("1", "1")  # imports what it needs, outside the limits
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            right = is_equal(*json.loads(line))
        except (Exception, RecursionError):  # of whatever kind: what cannot be read is no right answer
            right = False
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        print(int(right), file=answers, flush=True)


if __name__ == "__main__":
    main()
