"""Contract of the shipped sample data: size, form, disjointness, balance and variety."""

import json
import re
from collections import Counter
from pathlib import Path
from statistics import fmean

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
OPENINGS = SAMPLES / "openings.jsonl"
DEMONSTRATIONS = SAMPLES / "demonstrations.jsonl"

# Words kept when a response is reduced to its skeleton; every other word becomes "_".
FUNCTION_WORDS = frozenset(
    """
    a an the and or but nor so yet if because while although though when that than which who
    what where how as of to in on at by for from with without into onto over under through
    between among before after since until about around near behind beside above below across
    along off out up down within during despite i me my we us our you your he him his she her
    it its they them their this these those there is are was were be been being am has have had
    do does did will would can could may might must should not no never only even just still
    too very so more most all each every some any both either neither one such then again
    """.split()
)


def load(path: Path) -> list[dict[str, str]]:
    """Read a JSON-lines file into a list of records."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def compounds(texts: list[str]) -> list[float]:
    """Score each text with the VADER compound."""
    analyzer = SentimentIntensityAnalyzer()
    return [float(analyzer.polarity_scores(text)["compound"]) for text in texts]


def skeleton(response: str) -> str:
    """Keep the function words of a response and merge all other runs into one underscore."""
    words = re.findall(r"[a-z0-9'-]+", response.lower())
    marks = [word if word in FUNCTION_WORDS else "_" for word in words]
    kept = [m for i, m in enumerate(marks) if m != "_" or i == 0 or marks[i - 1] != "_"]
    return " ".join(kept)


def assert_jsonl(path: Path, keys: set[str]) -> None:
    """Assert one printable-ASCII JSON object a line with exactly these non-empty string keys."""
    text = path.read_bytes().decode("utf-8")
    assert text.endswith("\n")
    assert "\r" not in text
    for number, line in enumerate(text[:-1].split("\n"), start=1):
        where = f"{path.name}:{number}"
        record = json.loads(line)
        assert isinstance(record, dict), where
        assert set(record) == keys, where
        for value in record.values():
            assert isinstance(value, str), where
            assert value.strip(), where
            assert value.isascii() and value.isprintable(), where
            assert "  " not in value, where


def assert_opening_form(prompt: str) -> None:
    """Assert that a prompt is a short unfinished sentence without trailing space or mark."""
    assert prompt == prompt.strip(), repr(prompt)
    assert 3 <= len(prompt.split()) <= 9, prompt
    assert prompt[0].isupper() or prompt[0].isdigit(), prompt
    assert prompt[-1].isalnum(), prompt
    assert not re.search(r"[.!?;]\s", prompt), prompt


def test_openings_are_json_lines_with_exact_keys() -> None:
    """Each line of openings.jsonl holds a prompt and a topic and no more."""
    assert_jsonl(OPENINGS, {"prompt", "topic"})


def test_demonstrations_are_json_lines_with_exact_keys() -> None:
    """Each line of demonstrations.jsonl holds a prompt, a response and a topic."""
    assert_jsonl(DEMONSTRATIONS, {"prompt", "response", "topic"})


def test_counts() -> None:
    """There are enough openings and demonstrations."""
    assert len(load(OPENINGS)) >= 640
    assert len(load(DEMONSTRATIONS)) >= 420


def test_topics() -> None:
    """Both files span at least thirty topics, the same ones, none of them dominant."""
    openings = Counter(row["topic"] for row in load(OPENINGS))
    demonstrations = Counter(row["topic"] for row in load(DEMONSTRATIONS))
    assert len(openings) >= 30
    assert set(openings) == set(demonstrations)
    assert max(openings.values()) <= 0.05 * openings.total()
    assert max(demonstrations.values()) <= 0.05 * demonstrations.total()


def test_prompts_are_unique_and_disjoint() -> None:
    """No prompt occurs twice within or across the files, whatever its case."""
    prompts = [row["prompt"].casefold() for row in load(OPENINGS) + load(DEMONSTRATIONS)]
    assert [p for p, n in Counter(prompts).items() if n > 1] == []


def test_responses_are_unique() -> None:
    """No response occurs twice, whatever its case."""
    responses = [row["response"].casefold() for row in load(DEMONSTRATIONS)]
    assert [r for r, n in Counter(responses).items() if n > 1] == []


def test_prompt_form() -> None:
    """Every prompt of both files is a short unfinished sentence."""
    for row in load(OPENINGS) + load(DEMONSTRATIONS):
        assert_opening_form(row["prompt"])


def test_prompts_are_neutral() -> None:
    """Prompts carry next to no sentiment, one by one and on average."""
    for path in (OPENINGS, DEMONSTRATIONS):
        prompts = [row["prompt"] for row in load(path)]
        scores = compounds(prompts)
        assert [p for p, s in zip(prompts, scores, strict=True) if abs(s) > 0.2] == []
        assert abs(fmean(scores)) <= 0.02


def test_openings_vary_in_grammar() -> None:
    """No first word starts more than a third of the openings, and many words start one."""
    first = Counter(row["prompt"].split()[0].casefold() for row in load(OPENINGS))
    assert max(first.values()) <= first.total() / 3
    assert len(first) >= 40


def test_response_form() -> None:
    """Every response starts with one space, has 6-18 words and ends its one sentence."""
    for row in load(DEMONSTRATIONS):
        response = row["response"]
        assert re.fullmatch(r" [A-Za-z0-9][^.!?\n]*[a-z0-9][.!]", response), repr(response)
        assert 6 <= len(response.split()) <= 18, response
        assert len(response) <= 110, response


def test_sentiment_is_balanced() -> None:
    """Mean VADER lies near zero and positive, negative and neutral shares are near a third."""
    rows = load(DEMONSTRATIONS)
    full = compounds([row["prompt"] + row["response"] for row in rows])
    assert abs(fmean(full)) <= 0.05
    assert abs(fmean(compounds([row["response"] for row in rows]))) <= 0.1
    positive = sum(score > 0.05 for score in full)
    negative = sum(score < -0.05 for score in full)
    neutral = len(full) - positive - negative
    assert abs(positive - negative) <= 0.05 * len(full)
    for count in (positive, negative, neutral):
        assert 0.25 <= count / len(full) <= 0.42


def test_skeletons_are_distinct() -> None:
    """The responses are single sentences, not slots filled into a few templates."""
    assert 100 <= len(FUNCTION_WORDS) <= 140
    assert len({skeleton(row["response"]) for row in load(DEMONSTRATIONS)}) >= 320


def test_vocabulary_is_wide() -> None:
    """The responses draw on more than a thousand different words."""
    text = " ".join(row["response"] for row in load(DEMONSTRATIONS)).lower()
    assert len(set(re.findall(r"[a-z]+", text))) >= 1000
