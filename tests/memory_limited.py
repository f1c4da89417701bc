"""A stage under a limit of memory that holds from its first update on.

    python -m tests.memory_limited MIB SPEC.json

is `python -m stages.run SPEC.json`, with so many MiB left when PPO's second update begins.
"""

import resource
import sys
from typing import Any

import psutil
import torch

import stages.run
from stages.ppo.update import Update

LIMITED_UPDATE = 2


def leave(mib: int) -> list[torch.Tensor]:
    """Let the system give no more, and take what the allocator still has; returns what holds it."""
    limit = psutil.Process().memory_info().vms + mib * 2**20
    reserve = torch.empty(mib * 2**20, dtype=torch.uint8)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    held, size = [], 64 * 2**20
    while size >= 64 * 2**10:
        try:
            held.append(torch.empty(size, dtype=torch.uint8))
        except RuntimeError:
            size //= 2
    del reserve
    return held


def main() -> int:
    """Limit, then run the stage as it is."""
    mib = int(sys.argv.pop(1))
    original, calls = Update.__call__, [0]
    held: list[torch.Tensor] = []

    def limited(self: Update, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == LIMITED_UPDATE:
            held.extend(leave(mib))
        return original(self, *args, **kwargs)

    Update.__call__ = limited  # type: ignore[method-assign]
    return stages.run.main()


if __name__ == "__main__":
    sys.exit(main())
