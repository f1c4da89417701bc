"""`python -m pipeline`, the same as `rlhf`."""

import gc
import sys

from pipeline import cli


def main() -> int:
    """Run a command in a process that ends with it, and return the exit code."""
    try:
        return cli.main()
    finally:
        # Python searches all that is left for cycles before it ends: 0.4 s of Prefect's classes, which nobody needs.
        # After training it may: some of torch's compiled parts (triton's) print a page about leaks where it does not.
        if "torch" not in sys.modules:
            gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
