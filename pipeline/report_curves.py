"""Which curves each stage shows, and how they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pipeline.report_charts import Point, Reference, Series, format_number, line_chart, reliability_chart
from pipeline.report_data import StageView, number

_MAX_MORE = 60
_MOST_LINES = 6


@dataclass(frozen=True)
class Curve:
    """One chart: its title, the metrics in it with their labels, and what a reader should know."""

    title: str
    keys: tuple[tuple[str, str], ...]
    unit: str
    hint: str
    reference: Reference | None = None


_LEARNING_RATE = Curve("Learning rate", (("train/learning_rate", "learning rate"),), "learning rate", "")
_GRADIENT = Curve("Gradient norm", (("train/grad_norm", "norm"),), "norm", "Before clipping.")

CURVES: dict[str, tuple[Curve, ...]] = {
    "sft": (
        Curve("Loss", (("train/loss", "train"), ("eval/loss", "validation")), "nats per token",
              "Validation turning up while training falls is overfitting."),
        Curve("Token accuracy", (("train/mean_token_accuracy", "train"), ("eval/mean_token_accuracy", "validation")),
              "share of tokens", "Share of response tokens that are the most likely one."),
        _LEARNING_RATE,
        _GRADIENT,
    ),
    "reward_model": (
        Curve("Loss", (("train/loss", "train"), ("eval/loss", "held out")), "nats per pair",
              "Bradley-Terry loss; ln 2 is knowing nothing.", Reference(0.6931, "coin flip (ln 2)")),
        Curve("Accuracy", (("train/accuracy", "train"), ("eval/accuracy", "held out")), "share of pairs",
              "How often the chosen response gets the higher score.", Reference(0.5, "coin flip")),
        Curve("Margin", (("train/margin", "train"), ("eval/margin", "held out")), "score difference",
              "Chosen minus rejected."),
        _LEARNING_RATE,
        _GRADIENT,
    ),
    "ppo": (
        Curve("Score", (("objective/scores", "score"), ("objective/rewards", "after KL penalty")),
              "score", "Mean over the rollouts; what PPO maximises."),
        Curve("KL to the SFT policy", (("objective/kl", "KL"),), "nats per response",
              "How far the policy has moved.", Reference(15.0, "15 nats")),
        Curve("KL coefficient", (("objective/kl_coef", "coefficient"),), "coefficient", "Price of one nat of KL."),
        Curve("Entropy", (("policy/entropy", "entropy"), ("objective/entropy", "entropy of rollouts")), "nats",
              "Falls to zero when the policy always says the same."),
        Curve("Clip fraction", (("policy/clip_fraction", "policy"), ("value/clip_fraction", "value")),
              "share of tokens", "Above 0.3 the updates are too large."),
        Curve("Size of an update", (("policy/approx_kl", "approx. KL"),), "nats per token",
              "KL between the policy before and after a step."),
        Curve("Value loss", (("value/loss", "loss"),), "squared error", "Of the critic."),
        Curve("Explained variance", (("value/explained_variance", "explained variance"),), "share of variance",
              "How much of the returns the critic foresees; 1 is all, 0 nothing.", Reference(0.0, "nothing foreseen")),
        Curve("Response length", (("rollout/response_length", "length"),), "tokens", ""),
        Curve("Truncated responses", (("rollout/truncated_fraction", "truncated"),), "share of responses",
              "Cut off by the length limit before their end."),
        Curve("Engine against trainer",
              (("rollout/logprob_delta_rms", "sampled tokens"), ("sync/gap_rms", "probe after a sync")), "nats (RMS)",
              "Difference between the log-probabilities of rollout engine and trainer."),
    ),
}  # fmt: skip


def stage_curves(stage: StageView) -> str:
    """All charts of a stage, the known ones first, the remaining metrics folded away."""
    charts = [chart for curve in CURVES.get(stage.name, ()) if (chart := _chart(curve, stage.rows))]
    if stage.name == "reward_model":
        charts += _reliability(stage.manifest)
    parts = _parts_of_the_score(stage.rows)
    charts += [chart for curve in parts if (chart := _chart(curve, stage.rows))]
    times = _time_split(stage.rows)
    known = {key for curve in (*CURVES.get(stage.name, ()), *parts) for key, _ in curve.keys}
    rest = [key for key in _names(stage.rows) if key not in known and not (times and _is_time(key))]
    values = {key: [value for _, value in _points(stage.rows, key) if value is not None] for key in rest}
    more = [
        _chart(Curve(key, ((key, key),), key.rpartition("/")[2], ""), stage.rows)
        for key in rest
        if len(values[key]) > 1
    ]
    figures = _figures({key: found[0] for key, found in values.items() if len(found) == 1})
    if not charts and not more and not figures:
        return '<p class="muted">No metrics were recorded.</p>'
    table = _accuracy_table(stage.manifest) if stage.name == "reward_model" else ""
    html = f'<div class="charts">{"".join(charts or more)}</div>{table}{times}{figures}'
    if charts and more:
        html += (
            f"<details><summary>{len(more)} more curves</summary>"
            f'<div class="charts">{"".join(more[:_MAX_MORE])}</div></details>'
        )
    return html


def _parts_of_the_score(rows: Sequence[dict[str, Any]]) -> list[Curve]:
    """What each component adds, where there are several; and the multipliers of thresholds."""
    parts, multipliers = _by_component(rows, "reward", "weighted_mean"), _by_component(rows, "constraint", "multiplier")
    curves = []
    if len(parts) > 1:
        curves.append(Curve("Parts of the score", parts, "score", "By component, as weighed."))
    if multipliers:
        curves.append(Curve("Multipliers", multipliers, "score per unit", "Of thresholds; 0 where one is kept."))
    return curves


def _by_component(rows: Sequence[dict[str, Any]], group: str, figure: str) -> tuple[tuple[str, str], ...]:
    """The metrics `group/<component>/figure`, as many as a chart can show, with the components' names."""
    names = (name.split("/") for name in _names(rows))
    components = [parts[1] for parts in names if len(parts) == 3 and (parts[0], parts[2]) == (group, figure)]
    return tuple((f"{group}/{component}/{figure}", component) for component in components[:_MOST_LINES])


def _figures(values: dict[str, float]) -> str:
    """What was measured once, e.g. by the data stage: a point is no curve."""
    if not values:
        return ""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{format_number(value)}</dd></div>" for name, value in values.items()
    )
    return f'<dl class="card facts">{items}</dl>'


def _chart(curve: Curve, rows: Sequence[dict[str, Any]]) -> str:
    series = []
    for key, label in curve.keys:
        points = _points(rows, key)
        if any(value is not None for _, value in points):
            series.append(Series(label, points))
    if not series:
        return ""
    drawn = line_chart(series, x_label="step", y_label=curve.unit, title=curve.title, reference=curve.reference)
    return _figure(curve.title, drawn, curve.hint)


def _figure(title: str, drawn: str, hint: str) -> str:
    note = f'<p class="hint">{escape(hint)}</p>' if hint else ""
    return f'<figure class="card"><figcaption>{escape(title)}</figcaption>{drawn}{note}</figure>'


def _points(rows: Sequence[dict[str, Any]], key: str) -> list[Point]:
    """Values by step. A row that lacks the key says nothing of it; one with null breaks the line."""
    found: dict[float, float | None] = {}
    for row in rows:
        step = number(row.get("step"))
        if step is not None and key in row:
            found[step] = number(row[key])
    return sorted(found.items())


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(key for row in rows for key in row if key not in ("step", "seconds"))
    return [name for name in names if isinstance(name, str)]


def _is_time(key: str) -> bool:
    return key.startswith("time/") and key.endswith("_seconds")


def _time_split(rows: Sequence[dict[str, Any]]) -> str:
    """One bar: where the time of the steps went."""
    totals: dict[str, float] = {}
    for row in rows:
        for key in row:
            if _is_time(key) and (value := number(row[key])) is not None:
                totals[key] = totals.get(key, 0.0) + value
    # The step as a whole, where it is logged, is no part of itself.
    whole = totals.pop("time/step_seconds", 0.0)
    parts = {key.removeprefix("time/").removesuffix("_seconds"): value for key, value in totals.items() if value > 0}
    if not parts:
        return ""
    rest = whole - sum(parts.values())
    if rest > 0.01 * whole:
        parts["other"] = rest
    total = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    bar = "".join(
        f'<span class="part s{index % 6}" style="flex:{value / total:.4f}"></span>'
        for index, (_, value) in enumerate(ordered)
    )
    legend = "".join(
        f'<span class="entry"><span class="key block s{index % 6}"></span>{escape(name)} '
        f'<b>{value / total:.0%}</b> <span class="at">{value:.1f} s</span></span>'
        for index, (name, value) in enumerate(ordered)
    )
    return _figure(
        "Where the time went",
        f'<div class="bar" aria-hidden="true">{bar}</div><p class="readout">{legend}</p>',
        "",
    )


def _reliability(manifest: dict[str, Any]) -> list[str]:
    """The reward model's calibration as it is, and by its temperature."""
    metrics = manifest.get("metrics") or {}
    temperature = number(metrics.get("eval/temperature"))
    figures = []
    for suffix, title, hint in (
        ("", "Calibration", "Below the diagonal the reward model is too sure of itself."),
        ("_calibrated", "Calibration by temperature", "Scores divided by a temperature fitted on the other half."),
    ):
        bins = _bins((manifest.get("notes") or {}).get(f"reliability{suffix}") or ())
        if not bins:
            continue
        error = number(metrics.get(f"eval/expected_calibration_error{suffix}"))
        if error is not None:
            hint = f"Expected calibration error {error:.3f}. {hint}"
        if suffix and temperature is not None:
            hint += f" Of all pairs it is {temperature:.2f}."
        figures.append(_figure(title, reliability_chart(bins), hint))
    return figures


def _bins(entries: Sequence[Any]) -> list[tuple[float, float, float]]:
    bins = []
    for entry in entries:
        said, seen, count = (number(entry.get(key)) for key in ("confidence", "accuracy", "count"))
        if said is not None and seen is not None and count:
            bins.append((said, seen, count))
    return bins


def _accuracy_table(manifest: dict[str, Any]) -> str:
    """Held-out accuracy by groups of pairs, beside that of always choosing the longer response."""
    rows = []
    for entry in (manifest.get("notes") or {}).get("accuracy_by") or ():
        values = [number(entry.get(key)) for key in ("accuracy", "low", "high", "length_baseline", "pairs")]
        if any(value is None for value in values):
            continue
        accuracy, low, high, baseline, pairs = (value or 0.0 for value in values)
        rows.append(
            f"<tr><th>{escape(str(entry.get('by')))}</th><td>{escape(str(entry.get('group')))}</td><td>{pairs:.0f}</td>"
            f"<td>{accuracy:.1%} ({low:.1%} to {high:.1%})</td><td>{baseline:.1%}</td></tr>"
        )
    if not rows:
        return ""
    head = "<th>by</th><th>pairs</th><th>number</th><th>accuracy</th><th>always the longer one</th>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
