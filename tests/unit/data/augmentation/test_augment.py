"""Copies of records: what is reworded, what stays, and which copies are none; a local server stands in for a model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from data.augmentation.config import StepConfig
from data.augmentation.records import Augmented, augment
from data.errors import ConfigError
from data.schema import Demonstration, Kind, Message, PreferencePair, PromptRecord, Record, read_split, split_key
from tests.unit.data.augmentation.test_wordnet import SYNSETS, write_wordnet
from tests.unit.data.test_endpoint import Model, completion, served
from tests.unit.stages.data.test_data_stage import run, write

WORDS = [f"How does the car number {number} turn?".replace(str(number), "abcdefghij"[number]) for number in range(10)]


def steps(*values: dict[str, Any]) -> tuple[StepConfig, ...]:
    return TypeAdapter(tuple[StepConfig, ...]).validate_python(values)


def augmented(
    train: dict[Kind, list[Record]], *values: dict[str, Any], tmp_path: Path, held_out: frozenset[str] = frozenset()
) -> Augmented:
    return augment(train, held_out, steps(*values), config_dir=tmp_path, cache_dir=tmp_path)


def demonstrations(*prompts: str) -> dict[Kind, list[Record]]:
    return {"demonstrations": [Demonstration(prompt=prompt, response="So.") for prompt in prompts]}


def test_copies_say_how_they_were_made_and_keep_all_else(tmp_path: Path) -> None:
    write_wordnet(tmp_path / "words", SYNSETS)
    turns = (
        Message(role="system", content="You sell a car."),
        Message(role="user", content="A car?"),
        Message(role="assistant", content="A car."),
        Message(role="user", content="Which way? Auto then?"),
    )
    more: dict[str, Any] = {"margin": 2.0, "weight": 0.5, "source": "shop"}
    record = PreferencePair(prompt=turns, chosen="This car.", rejected="No car.", **more)
    step = {"type": "synonyms", "words": 0.9, "wordnet": "words", "kinds": ["preferences"]}
    (copy,) = augmented({"preferences": [record]}, step, tmp_path=tmp_path).copies["preferences"]
    assert copy.prompt in [
        (*turns[:3], Message(role="user", content=f"Which way? {word} then?")) for word in ("Automobile", "Car")
    ]
    assert copy == record.model_copy(update={"prompt": copy.prompt, "augmentation": "synonyms"})
    assert json.loads(copy.to_json())["augmentation"] == "synonyms"


def test_kinds_shares_and_copies(tmp_path: Path) -> None:
    train = demonstrations(*WORDS) | {"prompts": [PromptRecord(prompt=prompt) for prompt in WORDS]}
    found = augmented(train, {"type": "random_deletion", "share": 0.5, "copies": 3}, tmp_path=tmp_path)
    copies = found.copies["demonstrations"]
    assert found.copies["prompts"] == [] and len(set(copies)) == len(copies)
    assert found.metrics == {
        "augmentation/0_random_deletion_copies": len(copies),
        "augmentation/0_random_deletion_unchanged": found.metrics["augmentation/0_random_deletion_unchanged"],
        "augmentation/0_random_deletion_refused": 0,
        "augmentation/0_random_deletion_held_out": 0,
    }
    made = len(copies) + found.metrics["augmentation/0_random_deletion_unchanged"]
    assert made % 3 == 0 and 6 <= made <= 24, "some of ten records, three copies each"
    step = {"type": "random_deletion", "share": 0.5, "copies": 3}
    again = augmented(demonstrations(*WORDS[::-1]), step, tmp_path=tmp_path)
    assert set(again.copies["demonstrations"]) == set(copies), "whatever stands beside a record"


def test_pairs_of_one_prompt_get_the_same_new_prompt(tmp_path: Path) -> None:
    pairs: list[Record] = [
        PreferencePair(prompt=WORDS[0], chosen="a", rejected=rejected, weight=0.5) for rejected in ("b", "c")
    ]
    step = {"type": "random_deletion", "kinds": ["preferences"]}
    copies = augmented({"preferences": pairs}, step, tmp_path=tmp_path).copies["preferences"]
    assert len(copies) == 2 and len({copy.prompt for copy in copies}) == 1


def test_no_copy_has_a_prompt_that_is_held_out_or_trained_on(tmp_path: Path) -> None:
    train = demonstrations("left right", "right", "up")
    held_out = frozenset({split_key(PromptRecord(prompt="left "))})
    found = augmented(train, {"type": "random_deletion", "copies": 8}, tmp_path=tmp_path, held_out=held_out)
    assert found.copies["demonstrations"] == []
    values = {name.rpartition("0_random_deletion_")[2]: value for name, value in found.metrics.items()}
    assert values["held_out"] + values["unchanged"] == 24 and values["held_out"] >= 1 and values["unchanged"] >= 17


def reply(change: Callable[[str], str]) -> Callable[[dict[str, Any]], Any]:
    """A model that answers with the marked text of the question, changed."""

    def answer(body: dict[str, Any]) -> Any:
        text = body["messages"][0]["content"].split("<text>\n")[1].split("\n</text>")[0]
        return completion(change(text))

    return answer


def endpoint(model: Model) -> dict[str, Any]:
    return {"address": model.address, "model": "m", "price_per_million_prompt_tokens": 1000.0}


def test_a_model_says_it_otherwise(tmp_path: Path) -> None:
    answers = {
        "first": "Sure: <text>the 1st 你好</text>",
        "second": "I would rather answer it.",
        "third": "<text> third </text>",
        "fourth": f"<text>{'long ' * 200}</text>",
        "fifth": "<text>fourth</text>",
    }
    with served(reply(lambda text: answers[text])) as model:
        step = {"type": "paraphrase", "endpoint": endpoint(model)}
        found = augmented(demonstrations(*answers), step, tmp_path=tmp_path)
        asked = len(model.requests)
        again = augmented(demonstrations(*answers), step, tmp_path=tmp_path)
        assert asked == 5 == len(model.requests), "answers are kept"
    assert [copy.prompt for copy in found.copies["demonstrations"]] == ["the 1st 你好"]
    assert again.copies == found.copies
    values = {name.rpartition("0_paraphrase_")[2]: value for name, value in found.metrics.items()}
    assert (values["copies"], values["refused"], values["unchanged"]) == (1, 2, 2)
    assert values["requests"] == 5 and values["cost"] == pytest.approx(0.5)


def test_there_and_back_through_each_language(tmp_path: Path) -> None:
    def translate(body: dict[str, Any]) -> Any:
        question = body["messages"][0]["content"]
        language = question.split("Translate it into ")[1].split(":")[0]
        text = question.split("<text>\n")[1].split("\n</text>")[0]
        return completion(f"<text>{text}>{language}</text>" if "bad" not in text else "What?")

    with served(translate) as model:
        step = {"type": "back_translation", "endpoint": endpoint(model), "language": "Dutch"}
        step["through"] = ["Thai", "Hindi"]
        found = augmented(demonstrations("hoi", "bad"), step, tmp_path=tmp_path)
    assert [copy.prompt for copy in found.copies["demonstrations"]] == ["hoi>Thai>Dutch", "hoi>Hindi>Dutch"]
    assert found.metrics["augmentation/0_back_translation_refused"] == 2


def test_a_question_of_the_users_own_needs_its_field(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("Say it otherwise.", encoding="utf-8")
    step = {"type": "paraphrase", "endpoint": {"address": "http://h/v1", "model": "m"}, "template": "q.txt"}
    with pytest.raises(ConfigError, match=r"data\.augmentation\.0\.template: .*q\.txt lacks \{text\}"):
        augmented(demonstrations("a"), step, tmp_path=tmp_path)


def test_in_the_stage_held_out_records_stay_as_they_are(tmp_path: Path) -> None:
    rows = [{"prompt": f"{prompt} Or {number}?", "response": "Yes."} for number, prompt in enumerate(WORDS * 3)]
    source = {"path": write(tmp_path / "rows.jsonl", rows), "held_out": 0.3}
    plain_output, plain = run(tmp_path, {"demonstrations": source}, "plain")
    step = {"type": "random_deletion"}
    output, found = run(tmp_path, {"demonstrations": source, "augmentation": [step]}, "more")
    for kind in ("demonstrations", "prompts"):
        assert read_split(found, kind, "held_out") == read_split(plain, kind, "held_out")
    train, before = read_split(found, "demonstrations", "train"), read_split(plain, "demonstrations", "train")
    assert train[: len(before)] == before
    assert {each.augmentation for each in train[len(before) :]} == {"random_deletion"}
    assert output.metrics["demonstrations/train"] == len(train) > len(before)
    assert read_split(found, "prompts", "train") == read_split(plain, "prompts", "train"), "only the kinds asked for"
    assert output.notes["quality"] == plain_output.notes["quality"], "copies are no near duplicates"
