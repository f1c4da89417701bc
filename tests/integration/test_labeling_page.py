"""The labeling page in headless Chromium: ten prompts by keyboard, the server killed in between, no label lost."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.integration.test_report_page import ARGUMENTS, CHROMIUM
from tests.labeling_run import judge, make_waiting_run

ROOT = Path(__file__).resolve().parents[2]
Serve = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    if not CHROMIUM.is_file():
        pytest.fail(f"{CHROMIUM} is missing; the tests of the labeling page need it: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start `rlhf label` as a user would; gives the process and the address that it prints."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "pipeline", "label", "demo", "--output-dir", str(tmp_path / "outputs")]
        process = subprocess.Popen([*command, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("open "):
                return process, line.split()[1]
        raise AssertionError("it never said where it listens")

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def open_page(browser: Browser, address: str) -> tuple[Page, list[str]]:
    """A page, and what went wrong on it or was asked of anybody else."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    troubles: list[str] = []
    origin = address.partition("/#")[0]
    page.on("console", lambda message: troubles.append(message.text) if "Failed to load" not in message.text else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(origin) else troubles.append(request.url))
    page.goto(address)
    return page, troubles


def rank(page: Page, *keys: str) -> None:
    """Press keys once the responses are there, and wait for what each of them is to do."""
    expect(page.locator(".response").first).to_be_visible()
    for key in keys:
        before = page.locator(".response.ranked").count()
        page.keyboard.press(key)
        if key.isdigit():
            expect(page.locator(".response.ranked")).to_have_count(before + 1)


def numbers(page: Page) -> list[int]:
    """The responses' numbers in the log, as they stand on the page."""
    return [int(card.get_attribute("data-number") or -1) for card in page.locator(".response").all()]


def prompt(page: Page) -> str:
    return page.locator(".prompt").inner_text()


def go_on(page: Page, done: int) -> None:
    """Save, and see that it was counted."""
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_contain_text(f"{done} of 10")


def test_ten_prompts_by_keyboard_with_the_server_killed_in_between(
    browser: Browser, serve: Serve, tmp_path: Path
) -> None:
    _, labeling = make_waiting_run(tmp_path / "outputs", "demo", 10)
    questions = list(labeling.questions.values())
    server, address = serve()
    page, troubles = open_page(browser, address)
    assert "token" not in page.url  # it left the address, and with it the history
    page.fill("#your-name", "Anna")
    page.keyboard.press("Enter")
    expect(page.locator(".response")).to_have_count(4)
    expected: dict[int, Any] = {}

    # 0: four ranks. 1: with a tie. 2: hostile text, all equal.
    order = numbers(page)
    rank(page, "2", "4", "1", "3")
    expect(page.locator("#sofar")).to_have_text("2 › 4 › 1 › 3")
    expected[0] = {order[1]: 1, order[3]: 2, order[0]: 3, order[2]: 4}
    go_on(page, 1)
    expect(page.locator(".prompt .text")).to_have_attribute("dir", "auto")
    order = numbers(page)
    rank(page, "3", "t", "1", "2")
    expect(page.locator("#sofar")).to_have_text("1 = 3 › 2")
    expected[1] = {order[2]: 1, order[0]: 1, order[1]: 2}
    go_on(page, 2)
    assert "<script>window.hacked=1</script> **bold**" in page.locator(".responses").inner_text()
    assert page.evaluate("window.hacked") is None and page.locator(".response img").count() == 0
    page.keyboard.press("t")
    expect(page.locator("#sofar")).to_have_text("1 = 2 = 3")
    expected[2] = {0: 1, 1: 1, 2: 1}
    go_on(page, 3)
    # 3: skipped, and brought back. 4: all bad, with a comment.
    page.keyboard.press("s")
    expect(page.locator("#count")).to_contain_text("4 of 10")
    page.keyboard.press("u")
    expect(page.locator("#count")).to_contain_text("3 of 10")
    assert "Question 3?" in prompt(page)
    page.keyboard.press("s")
    expect(page.locator("#count")).to_contain_text("4 of 10")
    page.keyboard.press("c")
    page.keyboard.type("none of them 1 2 3")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#comment-button.on")).to_be_visible()
    page.keyboard.press("b")
    expect(page.locator("#count")).to_contain_text("5 of 10")
    expected |= {3: "skip", 4: "all_bad"}

    # 5: two ranks, a kill, a click that cannot be saved, a new server: the click is saved by itself.
    order = numbers(page)
    rank(page, "4", "3")
    server.send_signal(signal.SIGKILL)
    server.wait()
    page.keyboard.press("1")
    expect(page.locator("#banner")).to_contain_text("Not saved yet: your last click is kept on this page")
    page.keyboard.press("2")  # not taken: only the last click before it is kept
    expect(page.locator(".response.ranked")).to_have_count(2)
    server, again = serve()
    assert again == address  # the same port and key, so that open pages go on
    expect(page.locator(".response.ranked")).to_have_count(3)
    expect(page.locator("#banner")).to_be_hidden()
    rank(page, "2")
    expected[5] = {order[3]: 1, order[2]: 2, order[0]: 3, order[1]: 4}
    go_on(page, 6)

    # 6: a kill and a reload of the page while a click is unsaved; 7: a rank by arrow key, undo of a rank.
    order = numbers(page)
    rank(page, "1")
    server.send_signal(signal.SIGKILL)
    server.wait()
    page.keyboard.press("2")
    expect(page.locator("#banner")).to_contain_text("Not saved yet")
    serve()
    expect(page.locator(".response.ranked")).to_have_count(2)
    page.reload()
    expect(page.locator(".response.ranked")).to_have_count(2)
    assert numbers(page) == order
    rank(page, "3", "4")
    expected[6] = {order[0]: 1, order[1]: 2, order[2]: 3, order[3]: 4}
    go_on(page, 7)
    order = numbers(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#hint")).to_have_text("Response 2 is selected: a number gives its rank.")
    rank(page, "4")
    page.keyboard.press("Escape")
    rank(page, "1")
    page.keyboard.press("u")
    expect(page.locator(".response.ranked")).to_have_count(1)
    rank(page, "3", "1", "4")
    expected[7] = {order[1]: 4, order[2]: 1, order[0]: 2, order[3]: 3}
    go_on(page, 8)
    # 8: Enter before the end does nothing; digits faster than the server. 9: by mouse.
    order = numbers(page)
    rank(page, "1")
    page.keyboard.press("Enter")
    expect(page.locator("#hint")).to_contain_text("3 of 4 responses have no rank yet")
    for key in "234":
        page.keyboard.press(key)
    expect(page.locator(".response.ranked")).to_have_count(4)
    expected[8] = {order[0]: 1, order[1]: 2, order[2]: 3, order[3]: 4}
    go_on(page, 9)
    order = numbers(page)
    for place, value in enumerate((2, 1, 4, 3)):
        page.get_by_role("button", name=f"Response {place + 1}: {('1st', '2nd', '3rd', '4th')[value - 1]}").click()
        expect(page.locator(".response.ranked")).to_have_count(place + 1)
    expected[9] = {order[0]: 2, order[1]: 1, order[2]: 4, order[3]: 3}
    page.get_by_role("button", name="Save and next").click()
    expect(page.locator("#end")).to_contain_text("All done, thank you")
    assert troubles == []
    page.close()

    labeling.refresh()
    found = {judgement.question: judgement for judgement in labeling.final()}
    assert len(found) == 10 and {judgement.annotator for judgement in found.values()} == {"Anna"}
    for number, question in enumerate(questions):
        judgement = found[question.identity]
        if isinstance(expected[number], str):
            assert judgement.decision == expected[number]
        else:
            assert judgement.decision == "rank" and dict(enumerate(judgement.ranks)) == expected[number], number
    assert found[questions[4].identity].comment == "none of them 1 2 3"
    clicks = labeling.store.clicks()
    assert sum(click.kind == "shown" for click in clicks) == 10
    assert sum(click.kind == "undo" for click in clicks) == 2


def test_several_people_names_that_are_fixed_and_a_narrow_dark_screen(
    browser: Browser, serve: Serve, tmp_path: Path
) -> None:
    _, labeling = make_waiting_run(tmp_path / "outputs", "demo", 6, annotators=["Anna", "Ben"], labels_per_prompt=2)
    for question in labeling.questions.values():
        judge(labeling, "Ben", question, [1, 2, 3, 4][: len(question.responses)])
    _, address = serve()
    page, troubles = open_page(browser, address)
    page.get_by_role("button", name="Anna").click()
    rank(page, "1", "2", "3", "4")
    page.keyboard.press("Enter")
    expect(page.locator("#alpha")).to_contain_text("2 people · agreement α")
    page.set_viewport_size({"width": 400, "height": 800})
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 26)"
    page.keyboard.press("?")
    expect(page.get_by_role("heading", name="Rank the responses, best first")).to_be_visible()
    page.keyboard.press("Escape")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, progress")].filter(element => !(
          element.innerText || element.getAttribute("aria-label") || element.labels?.length)).length"""
    )
    assert unnamed == 0
    assert troubles == []
    page.goto(f"{address.partition('#')[0]}#token=guessed")
    page.reload()
    expect(page.locator("#banner")).to_contain_text("use the address that `rlhf label` printed")
    page.close()
