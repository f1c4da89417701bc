"""A stage's process dies with the process that started it, however that one ends (Linux).

    python -m stages.process MODULE ARGS...

asks the kernel for a SIGKILL at the parent's death and then becomes `python -m MODULE ARGS...`. The request
outlives `exec`, but not `fork`: a process that is started by a launcher asks again for itself.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends. Does nothing where the kernel cannot."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel had been asked
        sys.exit(1)


def source_root() -> Path:
    """The folder from which our packages are imported; a child finds them there wherever it is started."""
    return Path(__file__).resolve().parent.parent


if __name__ == "__main__":
    die_with_parent()
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
