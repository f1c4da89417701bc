"""The page of `rlhf data check`: one self-contained file that loads nothing and works without JavaScript."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pipeline.data_check import DataCheck, Sample
from pipeline.report_charts import histogram_chart
from pipeline.report_style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
.lengths{margin-top:14px}
.column{fill:var(--s0)}.column:hover{fill:var(--s1)}
.finding{display:grid;grid-template-columns:84px 1fr;gap:12px;align-items:baseline;padding:10px 0;
border-bottom:1px solid var(--line)}.finding:last-child{border-bottom:0}.finding p{margin:0;overflow-wrap:anywhere}
.tag.error{background:var(--bad-bg);color:var(--bad)}.tag.info{background:var(--note-bg);color:var(--note)}
.piece{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;border-left:4px solid var(--line);
padding:6px 12px;margin:6px 0;max-height:22em;overflow:auto}
.piece.context{color:var(--muted)}
.piece.learned,.piece.chosen{border-color:var(--good);background:var(--good-bg)}
.piece.rejected{border-color:var(--bad);background:var(--bad-bg)}
.piece .role{display:block;font-size:.75rem;font-weight:600;color:var(--muted);unicode-bidi:isolate}
"""
_ROLES = {
    "context": "read, not in the loss",
    "learned": "in the loss",
    "chosen": "chosen: its score, at the last token, is to be the higher one",
    "rejected": "rejected: its score, at the last token, is to be the lower one",
}


def render_page(found: DataCheck) -> str:
    """The page as text."""
    kinds = found.quality["kinds"]
    sections = [
        ("findings", "Findings", _findings(found.findings)),
        *((kind, kind.capitalize(), _kind(kind, report, found)) for kind, report in kinds.items()),
    ]
    if found.truncation:
        sections.append(("truncation", "What does not fit", _truncation(found.truncation)))
    sections.append(("samples", "As the model will see it", _samples(found.samples)))
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{escape(title)}</h2>{html}</section>' for name, title, html in sections)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(found.name)} - data check</title><style>{STYLE}{_STYLE}</style></head><body><main>"
        f'<p class="eyebrow">Data check</p><h1>{escape(found.name)}</h1>{_tiles(kinds)}<nav>{links}</nav>{body}'
        "</main></body></html>\n"
    )


def _tiles(kinds: Mapping[str, Any]) -> str:
    tiles = []
    for kind, report in kinds.items():
        skipped = sum(report["skipped"].values())
        tiles.append(
            f'<div class="tile"><p class="name">{escape(kind)} to train on</p><p class="value">{report["train"]:,}</p>'
            f'<p class="note">{report["held_out"]:,} held out, {skipped:,} of {report["rows"]:,} rows skipped</p></div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _findings(findings: Sequence[Mapping[str, Any]]) -> str:
    if not findings:
        return '<p class="muted">Nothing found.</p>'
    rows = []
    for finding in findings:
        level = escape(finding["level"])
        examples = "".join(f"<li>{escape(text)}</li>" for text in finding["examples"])
        details = f"<details><summary>examples</summary><ul>{examples}</ul></details>" if examples else ""
        rows.append(
            f'<div class="finding"><span class="tag {level}">{level}</span>'
            f"<div><p>{escape(finding['text'])}</p>{details}</div></div>"
        )
    return f'<div class="card">{"".join(rows)}</div>'


def _kind(kind: str, report: Mapping[str, Any], found: DataCheck) -> str:
    counted = {name: vars(each) for name, each in found.lengths.get(kind, {}).items()}
    unit, lengths = ("tokens", counted) if counted else (found.quality["unit"], report["lengths"])
    charts = "".join(
        f'<figure class="card"><figcaption>{escape(name)}</figcaption>'
        f"{histogram_chart(each['edges'], each['counts'], unit, f'{kind}: {unit} of {name}')}</figure>"
        for name, each in lengths.items()
        if each["count"]
    )
    percents = list(next(iter(lengths.values()))["percentiles"]) if lengths else []
    table = _table(
        [unit, "mean", *(f"{percent} %" for percent in percents)],
        [
            [name, f"{each['mean']:.1f}", *(f"{each['percentiles'][percent]:,}" for percent in percents)]
            for name, each in lengths.items()
        ],
    )
    facts = {
        "languages, of a sample": _counts(report["languages"]) or "none",
        "skipped rows": _counts(report["skipped"]) or "none",
        "near duplicates": f"{report['near_duplicates']:,}",
        "personal data, records": _counts(report["personal_data"]) or "none found",
    }
    if bias := report["bias"]:
        facts["chosen is the longer response"] = (
            f"{bias['longer_chosen']:.1%} of {bias['pairs']:,} pairs ({bias['low']:.1%} to {bias['high']:.1%})"
        )
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items())
    return f'<dl class="facts card">{listed}</dl><h3>Lengths</h3>{table}<div class="charts lengths">{charts}</div>'


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _truncation(rows: Sequence[Mapping[str, Any]]) -> str:
    return _table(
        ["stage", "setting", "limit", "rows", "dropped", "share"],
        [
            [
                row["stage"],
                row["setting"],
                f"{row['max_tokens']:,}",
                f"{row['rows']:,}",
                f"{row['dropped']:,}",
                f"{row['dropped'] / max(row['rows'], 1):.1%}",
            ]
            for row in rows
        ],
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return '<p class="muted">There are no rows.</p>'
    parts = []
    for sample in samples:
        pieces = []
        for number, (role, text) in enumerate(sample.parts):
            count = f", {sample.tokens[number]:,} tokens" if sample.tokens else ""
            pieces.append(
                f'<div class="piece {escape(role)}" dir="auto"><span class="role">{escape(_ROLES[role])}{count}</span>'
                f"{escape(text)}</div>"
            )
        parts.append(f'<div class="card sample"><p class="side">{escape(sample.kind)}</p>{"".join(pieces)}</div>')
    return "".join(parts)
