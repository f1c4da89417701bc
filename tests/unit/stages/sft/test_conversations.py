"""SFT on conversations: what TRL's trainer computes its loss from, and what is told of turns that cannot be learned."""

import logging
from pathlib import Path
from typing import Any

import pytest

from data.schema import Demonstration, Message, write_records
from stages.artifacts import combine_digests, file_digests
from stages.contract import DatasetArtifact
from stages.models.config import ModelConfig
from stages.models.tokenizer import load_tokenizer
from stages.sft import stage as sft_stage
from stages.sft.config import SFTConfig
from tests.unit.stages.parts import Executed, executed, stage_spec

TEMPLATE = (
    "{% for m in messages %}({{ m.role }} {{ m.content }}{{ eos_token if m.role == 'assistant' }}){% endfor %}"
    "{% if add_generation_prompt %}(assistant {% endif %}"
)


def conversation(number: int) -> Demonstration:
    """Three turns of the user's, answered twice before."""
    words = ("hi", f"yes {number}", "and", f"no {number}", "so")
    turns = tuple(Message(role="assistant" if place % 2 else "user", content=text) for place, text in enumerate(words))
    return Demonstration(prompt=turns, response=f"end {number}")


@pytest.fixture
def data(tmp_path: Path) -> DatasetArtifact:
    """An artifact of the data stage."""
    folder = tmp_path / "data"
    write_records(folder / "demonstrations" / "train.jsonl", [conversation(number) for number in range(4)])
    write_records(folder / "demonstrations" / "held_out.jsonl", [conversation(9)])
    return DatasetArtifact(folder, combine_digests(file_digests(folder)))


def trained(sft_run: Executed, data: DatasetArtifact, template: str, folder: Path, **settings: Any) -> Executed:
    (folder / "template.jinja").write_text(template, encoding="utf-8")
    settings = {"max_steps": 1, "eval_every_steps": 1, "batch_size": 4, "microbatch_size": 4} | settings
    config = SFTConfig.model_validate(sft_run.spec.config | settings)
    values = sft_run.spec.model | {"chat_template": str(folder / "template.jinja")}
    return executed(stage_spec("sft", config, ModelConfig.model_validate(values), {"dataset": data}, folder / "out"))


def test_labels_are_all_turns_of_the_assistant_with_their_ends(
    sft_run: Executed, data: DatasetArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the very batches that TRL's trainer computes its loss from."""
    batches: list[dict[str, Any]] = []
    original = sft_stage.SFTTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        batches.append({name: inputs[name].clone() for name in ("input_ids", "labels")})
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(sft_stage.SFTTrainer, "compute_loss", spy)
    run = trained(sft_run, data, TEMPLATE, tmp_path, loss_on="all_responses")
    tokenizer = load_tokenizer(run.artifact.path, ModelConfig.model_validate(run.spec.model))
    eos = tokenizer.eos_token
    seen = set()
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            kept = labels != -100
            assert (ids[kept] == labels[kept]).all()
            seen.add(tokenizer.decode(labels[kept]))
    expected = {"".join(f"{word} {number}{eos}" for word in ("yes", "no", "end")) for number in (0, 1, 2, 3, 9)}
    assert {text.replace(" ", "") for text in seen} == {text.replace(" ", "") for text in expected}
    metrics = run.manifest["metrics"]
    assert metrics["data/earlier_responses"] == 8
    assert metrics["data/earlier_responses_without_end"] == metrics["data/last_response_alone"] == 0


def test_what_cannot_be_learned_is_told(
    sft_run: Executed, data: DatasetArtifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for number, (template, figures, message) in enumerate(
        [
            (TEMPLATE.replace("{{ eos_token if m.role == 'assistant' }}", ""), (8, 8, 0), "the ends of 8 of 8 earlier"),
            (TEMPLATE.replace("(assistant {%", "(assistant think {%"), (0, 0, 4), "of 4 of 4 demonstrations only the"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        metrics = trained(sft_run, data, template, folder, loss_on="all_responses").manifest["metrics"]
        names = ("earlier_responses", "earlier_responses_without_end", "last_response_alone")
        assert tuple(metrics[f"data/{name}"] for name in names) == figures
        assert message in caplog.text
