"""`rlhf report RUN`: write the run's page."""

import argparse
from pathlib import Path

from pipeline.runs import open_run


def report(options: argparse.Namespace) -> int:
    """Write `report.html` and print where it is."""
    run = open_run(Path(options.output_dir).expanduser().resolve(), options.run)
    from pipeline.report import write_report

    print(write_report(run.path))
    return 0
