"""Training on rankings: how pairs make them again, what the trainer computes, and that it learns them."""

from array import array
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from data.records import ranked_pairs
from data.schema import PreferencePair, Record, read_split, write_records
from rewards.plackett_luce import plackett_luce_loss
from stages.artifacts import combine_digests, file_digests
from stages.contract import DatasetArtifact
from stages.metrics import read_metrics
from stages.models.config import ModelConfig
from stages.reward_model import training
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.evaluation_pairs import TokenizedPair
from stages.reward_model.rankings import TokenizedRanking, rankings_of
from stages.reward_model.trainer import RankingCollator
from tests.unit.stages.data.test_data_stage import run as run_data
from tests.unit.stages.data.test_data_stage import write
from tests.unit.stages.parts import PROMPTS, Executed, executed, stage_spec

RESPONSES = (" kind and great.", " is kind.", " was cold and sad.")


def pair(prompt: int, chosen: int, rejected: int, ranking: str | None = None) -> TokenizedPair:
    return TokenizedPair(array("i", [prompt]), array("i", [chosen]), array("i", [rejected]), None, ranking=ranking)


def test_pairs_of_one_ranking_come_together_and_others_stay_alone() -> None:
    pairs = [
        pair(1, 10, 11, "a"), pair(1, 10, 12, "a"), pair(1, 11, 12, "a"),
        pair(1, 10, 11), pair(1, 10, 11), pair(2, 20, 21, "b"), pair(2, 22, 23, "b"), pair(9, 10, 11, "a"),
    ]  # fmt: skip
    assert rankings_of(pairs) == [
        TokenizedRanking(((1, 10), (1, 11), (1, 12)), ((1, 2), (2,), ())),
        TokenizedRanking(((1, 10), (1, 11)), ((1,), ())),
        TokenizedRanking(((1, 10), (1, 11)), ((1,), ())),
        TokenizedRanking(((2, 20), (2, 21), (2, 22), (2, 23)), ((1,), (), (3,), ())),
        TokenizedRanking(((9, 10), (9, 11)), ((1,), ())),
    ]


def test_a_microbatch_has_each_sequence_once() -> None:
    batch = RankingCollator(pad_token_id=7)(
        [
            {"chosen_ids": [[1, 2], [1, 3, 4]], "rejected_ids": [[], [0]]},
            {"chosen_ids": [[5], [6], [5, 5, 5, 5]], "rejected_ids": [[1, 2], [2], []]},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 7, 7], [1, 3, 4, 7], [5, 7, 7, 7], [6, 7, 7, 7], [5, 5, 5, 5]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [2, 3, 1, 1, 4]
    assert batch["places"].tolist() == [[0, 1, 0], [2, 3, 4]]
    assert batch["worse"].nonzero().tolist() == [[0, 1, 0], [1, 0, 1], [1, 0, 2], [1, 1, 2]]


@pytest.fixture
def rankings(tmp_path: Path) -> DatasetArtifact:
    """An artifact of the data stage with rankings of three, some of two."""
    folder = tmp_path / "data"
    for split, prompts in (("held_out", PROMPTS[:8]), ("train", PROMPTS[8:72])):
        pairs: list[Record] = []
        for number, prompt in enumerate(prompts):
            count = 2 if number % 8 == 0 else 3
            pairs += ranked_pairs(prompt, RESPONSES[:count], list(range(count, 0, -1)))
        write_records(folder / "preferences" / f"{split}.jsonl", pairs)
        write_records(folder / "prompts" / f"{split}.jsonl", [])
    return DatasetArtifact(folder, combine_digests(file_digests(folder)))


def trained(rm_run: Executed, rankings: DatasetArtifact, folder: Path, **settings: Any) -> Executed:
    settings = {"loss": "plackett_luce", "batch_size": 16, "microbatch_size": 4} | settings
    config = RewardModelConfig.model_validate(rm_run.spec.config | settings)
    inputs = rm_run.spec.inputs | {"preferences": rankings}
    return executed(stage_spec("reward_model", config, ModelConfig.model_validate(rm_run.spec.model), inputs, folder))


def test_the_loss_is_that_of_each_sequence_alone_and_falls(
    rm_run: Executed, rankings: DatasetArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    original = training.PlackettLuceTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not checked:
            with torch.no_grad():
                found = original(self, model, inputs, *args, **kwargs)
                alone = [
                    model(input_ids=ids[mask.bool()][None]).logits[0, 0]
                    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
                ]
            scores = torch.stack(alone)[inputs["places"]]
            counts = [int(worse.any(dim=0).sum()) + 1 for worse in inputs["worse"]]  # all but the best are worse
            mean = torch.stack([row[:count].mean() for row, count in zip(scores, counts, strict=True)])
            expected = plackett_luce_loss(scores, inputs["worse"]) + 0.3 * (2 * mean).square().mean()
            checked.append((float(found), float(expected)))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(training.PlackettLuceTrainer, "compute_loss", spy)
    run = trained(rm_run, rankings, tmp_path / "out", center_coefficient=0.3, epochs=2.0)
    found, expected = checked[0]
    assert found == pytest.approx(expected, rel=1e-4)
    metrics = run.manifest["metrics"]
    assert (metrics["data/rankings"], metrics["data/train"]) == (64, 8 + 3 * 56)
    assert metrics["eval/accuracy"] == 1.0 and metrics["eval/pairs"] == 1 + 3 * 7
    losses = [row["train/loss"] for row in read_metrics(run.spec.stage_dir / "metrics.jsonl") if "train/loss" in row]
    assert losses[-1] < 0.7 * losses[0]


def test_the_update_does_not_depend_on_the_microbatches(
    rm_run: Executed, rankings: DatasetArtifact, tmp_path: Path
) -> None:
    found = [
        trained(rm_run, rankings, tmp_path / str(size), microbatch_size=size, max_steps=2).manifest["metrics"]
        for size in (1, 8)
    ]
    for name in ("eval/loss", "eval/margin"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-3)


def test_margins_are_said_to_be_unused(rm_run: Executed, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "data"
    pairs = [PreferencePair(prompt=prompt, chosen=" a", rejected=" b", margin=1.0) for prompt in PROMPTS[:4]]
    for split in ("train", "held_out"):
        write_records(folder / "preferences" / f"{split}.jsonl", pairs)
    data = DatasetArtifact(folder, combine_digests(file_digests(folder)))
    trained(rm_run, data, tmp_path / "out", max_steps=1)
    assert "margins are stated, and loss=plackett_luce does not use them" in caplog.text


def test_rankings_of_a_file_come_through_the_data_stage(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "responses": [f"a{n}", f"b{n}", f"c{n}"], "ranks": [2, 1, 2]} for n in range(30)]
    path = write(tmp_path / "rows.jsonl", rows)
    _, folder = run_data(tmp_path, {"preferences": {"path": path}})
    pairs = read_split(folder, "preferences", "train")
    groups = {each.ranking for each in pairs}
    assert None not in groups and len(pairs) == 2 * len(groups)
    for first, second in combinations(pairs, 2):
        assert (first.ranking == second.ranking) == (first.prompt == second.prompt)
