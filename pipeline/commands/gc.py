"""`rlhf gc [--remove]`: list what no run uses, and remove it if asked to."""

import argparse
from pathlib import Path

from pipeline.console import table
from pipeline.garbage import Garbage, find_garbage, no_run_at_work, remove
from pipeline.runs import list_runs


def gc(options: argparse.Namespace) -> int:
    """Dry unless `--remove` is given."""
    output_dir = Path(options.output_dir).expanduser().resolve()
    if not options.remove:
        _print(find_garbage(output_dir), output_dir)
        return 0
    if not output_dir.is_dir():
        print(f"{output_dir}: there is no such folder, and nothing to remove")
        return 0
    with no_run_at_work(output_dir):
        found = find_garbage(output_dir)
        remove(found)
    print(f"{output_dir}: removed {len(found)} unused files and folders, {_mib(found)}")
    return 0


def _print(found: list[Garbage], output_dir: Path) -> None:
    if not found:
        print(f"{output_dir}: all is used by the {len(list_runs(output_dir))} runs there")
        return
    rows = [(entry.kind, f"{entry.size / 2**20:.1f} MiB", str(entry.path.relative_to(output_dir))) for entry in found]
    print("\n".join(table(("unused", "size", "path"), rows)))
    print(f"\n{len(found)} unused, {_mib(found)}; nothing was removed: `rlhf gc --remove` does")


def _mib(found: list[Garbage]) -> str:
    return f"{sum(entry.size for entry in found) / 2**20:.1f} MiB"
