"""Responses that are kept while people judge them, and what reward models disagree on."""

from pathlib import Path

import pytest

from data.errors import ArtifactError
from stages.preferences.disagreement import pair_disagreements, prompt_disagreement
from stages.preferences.sampled import Sampled, keep_sampled, kept_sampled, sampling_key
from tests.labeling_run import candidates


def test_what_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    for disagreements in (None, {"train": [(0.5, 1.0), (0.25,), ()], "held_out": []}):
        sampled = Sampled(
            {"train": candidates(3), "held_out": []}, {"train": 2, "held_out": 0}, disagreements  # type: ignore[arg-type]
        )  # fmt: skip
        keep_sampled(tmp_path / "sampled", "key", sampled)
        assert kept_sampled(tmp_path / "sampled", "key") == sampled
        assert kept_sampled(tmp_path / "sampled", "another") is None
    assert kept_sampled(tmp_path / "nowhere", "key") is None


def test_what_was_changed_is_refused(tmp_path: Path) -> None:
    keep_sampled(
        tmp_path / "sampled", "key", Sampled({"train": candidates(3), "held_out": []}, {"train": 0, "held_out": 0})
    )
    path = tmp_path / "sampled" / "candidates.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("hungry", "angry"), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"being labeled cannot be read \(candidates.jsonl was changed\)"):
        kept_sampled(tmp_path / "sampled", "key")
    (tmp_path / "sampled" / "sampled.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="being labeled cannot be read"):
        kept_sampled(tmp_path / "sampled", "key")


def test_a_half_written_folder_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".sampled.new").mkdir()
    (tmp_path / ".sampled.new" / "candidates.jsonl").write_text("{", encoding="utf-8")
    assert kept_sampled(tmp_path / "sampled", "key") is None
    keep_sampled(tmp_path / "sampled", "key", Sampled({"train": [], "held_out": []}, {"train": 0, "held_out": 0}))
    assert kept_sampled(tmp_path / "sampled", "key") is not None


def test_the_key_depends_on_every_part() -> None:
    assert sampling_key({"seed": 0, "a": 1}) == sampling_key({"a": 1, "seed": 0}) != sampling_key({"a": 1, "seed": 1})


def test_disagreement_by_hand() -> None:
    # Differences of the pairs (0,1), (0,2), (1,2): first member 1, 3, 2; second 1, -1, -2.
    # Standard deviations: 0; (3 - -1) / 2 = 2; (2 - -2) / 2 = 2.
    assert pair_disagreements([[3.0, 2.0, 0.0], [0.0, -1.0, 1.0]]) == (0.0, 2.0, 2.0)
    assert prompt_disagreement((0.0, 2.0, 2.0)) == pytest.approx(4 / 3)
    assert prompt_disagreement(()) == 0.0


def test_a_members_view_of_the_whole_prompt_is_no_disagreement() -> None:
    assert pair_disagreements([[1.0, 2.0, 4.0], [101.0, 102.0, 104.0]]) == (0.0, 0.0, 0.0)
