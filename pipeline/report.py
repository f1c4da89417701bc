"""`report.html` of a run: one self-contained page, written from the files of the run's folder alone.

It loads nothing from anywhere, works without JavaScript, and is written for unfinished and failed runs too.
"""

import os
from html import escape
from pathlib import Path

from pipeline.report_curves import stage_curves
from pipeline.report_data import RunView, load_run
from pipeline.report_sections import (
    config_section,
    evaluation_table,
    failures,
    header,
    lineage_section,
    samples,
    stage_table,
    stage_title,
    tiles,
    verdict_box,
)
from pipeline.report_style import SCRIPT, STYLE
from pipeline.report_verdict import judge

# A second line of defence behind escaping: the page may neither load nor send anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        run_dir: `outputs/<run>`; only `run.json` has to be there.

    Returns:
        The page.

    Raises:
        ArtifactError: There is no readable `run.json`.
    """
    page = render_report(load_run(run_dir))
    path = run_dir / "report.html"
    unfinished = path.with_name(".report.html.tmp")
    # Model output may hold half a surrogate pair, which UTF-8 cannot.
    unfinished.write_text(page, encoding="utf-8", errors="replace")
    os.replace(unfinished, path)
    return path


def render_report(run: RunView) -> str:
    """The page as text."""
    sections = [
        ("curves", "Curves", _curves(run)),
        ("evaluation", "Evaluation", evaluation_table(run)),
        ("samples", "Samples", samples(run)),
        ("lineage", "Lineage", lineage_section(run)),
        ("stages", "Stages", stage_table(run)),
        ("config", "Configuration", config_section(run)),
    ]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{html}</section>' for name, title, html in sections)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(run.name)} - RLHF report</title><style>{STYLE}</style></head><body><main>"
        f"{header(run)}{failures(run)}{verdict_box(judge(run.evaluation))}{tiles(run)}<nav>{links}</nav>{body}"
        f"</main><script>{SCRIPT}</script></body></html>\n"
    )


def _curves(run: RunView) -> str:
    stages = [stage for stage in run.stages if stage.rows or stage.name in ("sft", "reward_model", "ppo")]
    if not stages:
        return '<p class="muted">No stage has metrics yet.</p>'
    return "".join(f"<h3>{stage_title(stage.name)}</h3>{stage_curves(stage)}" for stage in stages)
