"""Checks and masking as the data stage does them."""

from pathlib import Path
from typing import Any

import pytest

from data.schema import Message, read_split
from stages.data.stage import DataQualityError
from tests.unit.stages.data.test_data_stage import pairs, run, write


def test_an_error_stops_the_stage_and_tells_how_to_go_on(tmp_path: Path) -> None:
    turned = [{"prompt": f"q{n}", "chosen": f"bad {n}", "rejected": f"good {n}"} for n in range(20)]
    config: dict[str, Any] = {
        "max_skipped_share": 1.0,
        "preferences": {"path": write(tmp_path / "p.jsonl", [*pairs(range(60)), *turned])},
    }
    with pytest.raises(DataQualityError, match=r"40 of 80 pairs say the opposite") as error:
        run(tmp_path, config, "stopped")
    assert str(error.value).endswith("or go on with `data.checks.levels: {contradictions: warning}`")
    assert error.value.metrics["quality/preferences_contradictions"] == 40
    config["checks"] = {"levels": {"contradictions": "warning"}}
    output, folder = run(tmp_path, config)
    assert len(read_split(folder, "preferences", "train")) + len(read_split(folder, "preferences", "held_out")) == 40
    finding = next(each for each in output.notes["quality"]["findings"] if each["check"] == "contradictions")
    assert finding["examples"][0] == "p.jsonl:1 by p.jsonl:61"


def test_settings_of_checks_leave_the_artifact_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", pairs(range(60)))
    _, plain = run(tmp_path, {"preferences": {"path": path}}, "a")
    _, strict = run(tmp_path, {"preferences": {"path": path}, "checks": {"language_sample": 3}}, "b")
    files = [sorted((each.relative_to(folder), each.read_bytes()) for each in folder.rglob("*.jsonl"))
             for folder in (plain, strict)]  # fmt: skip
    assert files[0] == files[1]


def test_personal_data_are_masked_before_anything_else(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Mail a{n}@example.org", "chosen": "Call +1 415-555-2671.", "rejected": f"No {n}."}
        for n in range(3)
    ]
    rows.append(
        {
            "prompt": [{"role": "user", "content": "My card is 4111 1111 1111 1111"}],
            "chosen": "Keep it secret.",
            "rejected": "Thanks, 4111 1111 1111 1111!",
        }
    )
    path = write(tmp_path / "p.jsonl", rows)
    config = {"mask_personal_data": True, "preferences": {"path": path, "held_out": 0}, "max_skipped_share": 1}
    output, folder = run(tmp_path, config)
    found = read_split(folder, "preferences", "train")
    assert found[0].prompt == "Mail [EMAIL]" and found[0].chosen == "Call [PHONE]."
    assert found[-1].prompt == (Message(role="user", content="My card is [CARD]"),)
    assert found[-1].rejected == "Thanks, [CARD]!"
    assert (output.metrics["masked/email"], output.metrics["masked/phone"], output.metrics["masked/card"]) == (3, 3, 2)
    assert "quality/preferences_personal_data" not in output.metrics
    kept, _ = run(tmp_path, {"preferences": {"path": path, "held_out": 0}}, "kept")
    assert kept.metrics["quality/preferences_personal_data"] == 4
