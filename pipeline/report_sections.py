"""The sections of the report as HTML. Every text from a file is escaped: model output is not trusted."""

from collections.abc import Mapping
from html import escape
from typing import Any

from pipeline.report_charts import interval_chart
from pipeline.report_data import RunView, StageView, elapsed_seconds, number, parse_time
from pipeline.report_lineage import lineage, lineage_graphs, lineage_list
from pipeline.report_verdict import Verdict

_SHORT = 10
_LEVELS = {"good": "OK", "warning": "Look", "bad": "Warning", "note": "Note"}
_TITLES = {
    "data": "Data",
    "sft": "Supervised fine-tuning",
    "preferences": "Preferences",
    "reward_model": "Reward model",
    "ppo": "PPO",
    "evaluation": "Evaluation",
}


def stage_title(name: str) -> str:
    """Name of a stage as a heading, escaped."""
    return escape(_TITLES.get(name, name))


def duration(seconds: float | None) -> str:
    """`1 h 05 min`, `3 min 20 s` or `12.3 s`."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def header(run: RunView) -> str:
    """Name, base model, date, status, hardware and time."""
    base = _base(run.config)
    own = _base(run.config.get("reward_model"))
    trusted = ", ".join(f"`{name}`" for name in run.record.get("trusts_code") or [])
    started = parse_time(run.record.get("started"))
    status = str(run.record.get("status") or "unknown")
    facts = [
        ("Base model", base or "unknown"),
        *([("Reward model's base", own)] if own else []),
        *([("Foreign code", f"run as the configuration says: {trusted}")] if trusted else []),
        ("Started", started.strftime("%Y-%m-%d %H:%M %Z") if started else "unknown"),
        ("Hardware", _hardware(run)),
        ("Total time", duration(elapsed_seconds(run))),
    ]
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return (
        f'<header><p class="eyebrow">RLHF run</p><h1>{escape(run.name)} '
        f'<span class="badge {escape(status)}">{escape(status)}</span></h1><dl class="facts">{items}</dl></header>'
    )


def _base(section: Any) -> str | None:
    """Base of the model section inside a section, or inside the whole configuration."""
    model = section.get("model") if isinstance(section, dict) else None
    base = model.get("base") if isinstance(model, dict) else None
    return str(base) if base else None


def _hardware(run: RunView) -> str:
    for stage in reversed(run.stages):
        found = stage.manifest.get("hardware")
        if isinstance(found, dict):
            names = {"cpus": "{} CPU cores", "device": "device {}"}
            return ", ".join(names.get(key, "{}").format(value) for key, value in found.items() if value is not None)
    return "unknown"


def failures(run: RunView) -> str:
    """Which stage failed, and what it said."""
    boxes = [
        f'<section class="verdict bad failure"><h2>Stage <code>{escape(stage.name)}</code> failed</h2>'
        f"<pre>{escape(stage.error or 'No message was recorded; see the log of the stage.')}</pre></section>"
        for stage in run.stages
        if stage.status == "failed"
    ]
    error = run.record.get("error")
    if not boxes and (error or run.record.get("status") == "failed"):
        text = str(error or "No message was recorded.")
        boxes.append(f'<section class="verdict bad failure"><h2>The run failed</h2><pre>{escape(text)}</pre></section>')
    return "".join(boxes)


def verdict_box(verdict: Verdict) -> str:
    """The verdict and its findings."""
    findings = "".join(
        f'<li><span class="tag {finding.level}">{_LEVELS[finding.level]}</span><span>{escape(finding.text)}</span></li>'
        for finding in verdict.findings
    )
    return (
        f'<section class="verdict {verdict.level}" id="verdict"><p class="eyebrow">Verdict</p>'
        f"<h2>{escape(verdict.headline)}</h2><ul>{findings}</ul></section>"
    )


def tiles(run: RunView) -> str:
    """The key figures, with their 95% intervals."""
    metrics = run.evaluation
    found = []
    for name, title in (("proxy", "Proxy gain"), ("gold", "Gold gain")):
        if (gain := number(metrics.get(f"{name}/gain"))) is not None:
            before, after = (_figure(metrics.get(f"{name}/{part}")) for part in ("before", "after"))
            interval = _interval(metrics, f"{name}/gain_low", f"{name}/gain_high", "{:.2f}")
            found.append((title, f"{gain:+.2f}", interval, f"{before} &rarr; {after}"))
    for name, title in (("win_rate", "Win rate of PPO"), ("gold_win_rate", "Win rate by gold")):
        if (mean := number(metrics.get(f"{name}/mean"))) is not None:
            found.append((title, f"{mean:.0%}", _interval(metrics, f"{name}/low", f"{name}/high", "{:.0%}"), "vs. SFT"))
    if (kl := number(metrics.get("kl/mean"))) is not None:
        found.append(("KL to SFT", f"{kl:.1f}", "", "nats per response"))
    if (length := number(metrics.get("response_length/after"))) is not None:
        earlier = number(metrics.get("response_length/before"))
        note = "tokens" if earlier is None else f"tokens ({earlier:.1f} before)"
        found.append(("Response length", f"{length:.1f}", "", note))
    stage = run.stage("reward_model")
    if stage is not None and (accuracy := number(stage.metrics.get("eval/accuracy"))) is not None:
        found.append(("RM accuracy", f"{accuracy:.0%}", "", "of held-out pairs"))
    if not found:
        return ""
    boxes = "".join(
        f'<div class="tile"><p class="name">{title}</p><p class="value">{value}</p>'
        f'<p class="interval">{interval}</p><p class="note">{note}</p></div>'
        for title, value, interval, note in found
    )
    return f'<section id="figures"><h2 class="hidden">Key figures</h2><div class="tiles">{boxes}</div></section>'


def evaluation_table(run: RunView) -> str:
    """Every figure of the evaluation, before and after."""
    metrics = run.evaluation
    rows = []
    for name, title in (("proxy", "Reward-model (proxy) score"), ("gold", "Gold score")):
        values = [number(metrics.get(f"{name}/{part}")) for part in ("gain", "gain_low", "gain_high")]
        if f"{name}/before" in metrics or values[0] is not None:
            # Each scorer has its own unit, so its own axis.
            chart = _whiskers(values, 0.0, 1.1 * max(abs(value or 0) for value in values))
            rows.append((title, metrics.get(f"{name}/before"), metrics.get(f"{name}/after"), _change(values), chart))
    for name, title in (
        ("response_length", "Response length (tokens)"),
        *((f"distinct_{n}", f"Distinct {n}-grams (share)") for n in (1, 2, 3)),
    ):
        before, after = (number(metrics.get(f"{name}/{part}")) for part in ("before", "after"))
        if before is not None or after is not None:
            change = f"{after - before:+.2f} ({after / before - 1:+.0%})" if before and after is not None else ""
            rows.append((title, before, after, change, ""))
    for name, title in (
        ("win_rate", "Win rate of PPO over SFT"),
        ("gold_win_rate", "Win rate by the gold scorer"),
    ):
        values = [number(metrics.get(f"{name}/{part}")) for part in ("mean", "low", "high")]
        mean, low, high = values
        if mean is not None:
            interval = f" [{low:.0%}, {high:.0%}]" if low is not None and high is not None else ""
            rows.append((title, None, None, f"{mean:.0%}{interval}", _whiskers(values, 0.5, 0.5)))
    if "kl/mean" in metrics:
        rows.append(("KL to the SFT policy (nats)", None, metrics["kl/mean"], "", ""))
    if not rows:
        return '<p class="muted">The run has no evaluation.</p>'
    body = "".join(
        f'<tr><th scope="row">{title}</th><td>{_figure(before)}</td><td>{_figure(after)}</td>'
        f"<td>{change}</td><td>{chart}</td></tr>"
        for title, before, after, change, chart in rows
    )
    return (
        '<div class="scroll"><table><thead><tr><th>Figure</th><th>SFT</th><th>PPO</th><th>Change [95%]</th>'
        f"<th>Interval</th></tr></thead><tbody>{body}</tbody></table></div>"
        '<p class="hint">Gains are mean paired differences per held-out prompt with bootstrap intervals over '
        "prompts. The thin line marks no effect (0, or a win rate of 50%).</p>"
    )


def _change(values: list[float | None]) -> str:
    gain, low, high = values
    if gain is None:
        return ""
    return f"{gain:+.2f}" + (f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else "")


def _whiskers(values: list[float | None], neutral: float, span: float) -> str:
    value, low, high = values
    if value is None or low is None or high is None or span <= 0:
        return ""
    return interval_chart(value, low, high, neutral, span)


def _figure(value: Any) -> str:
    found = number(value)
    return "&ndash;" if found is None else f"{found:.2f}"


def _interval(metrics: Mapping[str, Any], low: str, high: str, style: str) -> str:
    bounds = number(metrics.get(low)), number(metrics.get(high))
    if bounds[0] is None or bounds[1] is None:
        return ""
    return f"95%: {style.format(bounds[0])} to {style.format(bounds[1])}"


def samples(run: RunView) -> str:
    """Prompts with both responses side by side, the winner marked."""
    if not run.samples:
        return '<p class="muted">The run has no samples.</p>'
    return "".join(_sample(index, row) for index, row in enumerate(run.samples, start=1))


def _sample(index: int, row: dict[str, Any]) -> str:
    wins: dict[str, list[str]] = {"before": [], "after": []}
    chips: dict[str, list[str]] = {"before": [], "after": []}
    for scorer, title in (("proxy", "reward model"), ("gold", "gold")):
        scores = {side: number(row.get(f"{scorer}_{side}")) for side in ("before", "after")}
        before, after = scores["before"], scores["after"]
        if before is not None and after is not None and before != after:
            wins["after" if after > before else "before"].append(title)
        for side, score in scores.items():
            if score is not None:
                chips[side].append(f'<span class="chip">{title} <b>{score:+.2f}</b></span>')
    sides = []
    for side, title in (("before", "SFT"), ("after", "PPO")):
        won = f'<span class="won">higher: {" and ".join(wins[side])}</span>' if wins[side] else ""
        other = "after" if side == "before" else "before"
        mark = " winner" if len(wins[side]) > len(wins[other]) else ""
        sides.append(
            f'<div class="response{mark}"><p class="side"><b>{title}</b>{won}</p>'
            f'<div class="text" dir="auto">{escape(str(row.get(side, "")).strip())}</div>'
            f'<p class="chips">{"".join(chips[side])}</p></div>'
        )
    return (
        f'<article class="card sample"><p class="eyebrow">Prompt {index}</p>'
        f'<div class="text prompt" dir="auto">{escape(str(row.get("prompt", "")))}</div>'
        f'<div class="sides">{"".join(sides)}</div></article>'
    )


def lineage_section(run: RunView) -> str:
    """The graph of artifacts."""
    nodes, edges = lineage(run)
    if not nodes:
        return '<p class="muted">No artifact was made yet.</p>'
    return (
        f'<div class="card">{lineage_graphs(nodes, edges)}'
        '<p class="hint">An arrow leads from an artifact to what was made from it. Dashed: taken from the store '
        f"or from another run.</p><details><summary>Full digests</summary>{lineage_list(nodes, edges)}</details></div>"
    )


def stage_table(run: RunView) -> str:
    """Status, time, keys and package versions of each stage."""
    rows = "".join(
        f'<tr><th scope="row">{stage_title(stage.name)}</th>'
        f'<td><span class="badge {escape(stage.status)}">{escape(stage.status)}</span></td>'
        f"<td>{'' if stage.seconds is None else duration(stage.seconds)}</td>"
        f"<td>{_code(stage.fingerprint)}</td><td>{_code(stage.digest)}</td><td>{_packages(stage)}</td></tr>"
        for stage in run.stages
    )
    return (
        '<div class="scroll"><table><thead><tr><th>Stage</th><th>Status</th><th>Time</th><th>Fingerprint</th>'
        f"<th>Digest</th><th>Packages</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _code(digest: str) -> str:
    return f'<code title="{escape(digest)}">{escape(digest[:_SHORT])}</code>' if digest else ""


def _packages(stage: StageView) -> str:
    packages = stage.manifest.get("packages")
    if not isinstance(packages, dict) or not packages:
        return ""
    listed = "<br>".join(escape(f"{name} {version}") for name, version in packages.items())
    return f"<details><summary>{len(packages)} versions</summary><code>{listed}</code></details>"


def config_section(run: RunView) -> str:
    """The resolved configuration, folded away."""
    if not run.config_text:
        return '<p class="muted">The run has no <code>config.yaml</code>.</p>'
    return f"<details><summary>config.yaml, resolved</summary><pre>{escape(run.config_text)}</pre></details>"
