"""The report in headless Chromium: it renders, loads nothing, and holds what a reader looks for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pipeline.report import write_report
from tests.report_run import make_run

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    if not CHROMIUM.is_file():
        pytest.fail(f"{CHROMIUM} is missing; the tests of the report need it: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the report of a finished run."""
    return write_report(make_run(tmp_path_factory.mktemp("outputs"))).as_uri()


def open_page(browser: Browser, address: str, **options: object) -> tuple[Page, list[str]]:
    """Open a page; also what went wrong, and each request but that for the page."""
    page = browser.new_page(**options)  # type: ignore[arg-type]
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: None if request.url in (address, "data:,") else troubles.append(request.url))
    page.goto(address)
    return page, troubles


def test_the_page_shows_verdict_curves_samples_and_lineage(browser: Browser, report: str) -> None:
    page, troubles = open_page(browser, report, viewport={"width": 1280, "height": 900})
    assert "PPO improved the model" in page.locator("#verdict h2").inner_text()
    assert page.locator("#verdict li").count() == 7
    assert page.locator("#figures .tile").count() == 7
    titles = page.locator("#curves figcaption").all_inner_texts()
    assert {"Loss", "Accuracy", "Calibration", "Score", "KL to the SFT policy", "Entropy"} <= set(titles)
    assert all(chart.bounding_box() for chart in page.locator("#curves > .charts svg.chart").all())
    assert page.locator("#evaluation tbody tr").count() == 9
    assert page.locator("#samples article").count() == 8
    assert page.locator("#samples .winner").count() == 7
    assert "window.hacked" in page.locator("#samples").inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.locator("svg.lineage.wide").is_visible()
    assert page.locator("svg.lineage.wide .node").count() == 6
    assert page.locator("#stages tbody tr").count() == 6
    assert troubles == []
    page.close()


def test_pointing_at_a_chart_reads_its_values(browser: Browser, report: str) -> None:
    page, troubles = open_page(browser, report)
    figure = page.locator("figure", has_text="KL to the SFT policy")
    assert "9 at step 20" in figure.locator(".readout").inner_text()
    figure.scroll_into_view_if_needed()
    box = figure.locator("svg").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] / 2)
    assert "at step 1" in figure.locator(".readout").inner_text()
    assert "at step 20" not in figure.locator(".readout").inner_text()
    page.mouse.move(0, 0)
    assert "9 at step 20" in figure.locator(".readout").inner_text()
    assert troubles == []
    page.close()


def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Browser, report: str) -> None:
    page, troubles = open_page(browser, report, viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.locator("svg.lineage.narrow").is_visible()
    assert not page.locator("svg.lineage.wide").is_visible()
    assert troubles == []
    page.close()


def test_labels_of_the_charts_do_not_overlap(browser: Browser, report: str) -> None:
    page, _ = open_page(browser, report, viewport={"width": 1280, "height": 900})
    overlaps = page.evaluate(
        """() => [...document.querySelectorAll("#curves > .charts svg.chart")].flatMap(svg => {
          const boxes = [...svg.querySelectorAll("text:not(.reference)")].map(t => [t, t.getBoundingClientRect()]);
          return boxes.flatMap(([t, a], i) => boxes.slice(i + 1).filter(([_, b]) =>
            a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3
          ).map(([u]) => svg.getAttribute("aria-label") + ": " + t.textContent + " / " + u.textContent));
        })"""
    )
    assert overlaps == []
    page.close()


def test_dark_mode_and_no_javascript(browser: Browser, report: str) -> None:
    context = browser.new_context(java_script_enabled=False, color_scheme="dark")
    page = context.new_page()
    page.goto(report)
    assert page.locator("#samples article").count() == 8
    assert "9 at step 20" in page.locator("figure", has_text="KL to the SFT policy").inner_text()
    context.close()
    dark, _ = open_page(browser, report, color_scheme="dark")
    assert dark.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 26)"
    dark.close()
