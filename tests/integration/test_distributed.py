"""SFT and reward model on two gloo ranks: the same global batches as one process, so the same losses."""

from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.config import LaunchConfig
from pipeline.launch import execute
from stages.contract import artifact_from_json
from stages.metrics import read_metrics
from stages.models.config import ModelConfig
from stages.reward_model.config import RewardModelConfig
from stages.run import StageSpec
from stages.sft.config import SFTConfig

Mode = Literal["process", "accelerate", "deepspeed"]

LEARNING: dict[str, Any] = {"batch_size": 16, "microbatch_size": 4, "max_steps": 3, "learning_rate": 1e-3}
NORMALIZATION = {"num_prompts": 4, "sampling": {"max_new_tokens": 4}}
# bf16 optimizer state and gradients under DeepSpeed against float32; DDP only sums in another order.
TOLERANCE = {"accelerate": 2e-5, "deepspeed": 2e-5}


def run(folder: Path, base: Path, mode: Mode) -> dict[str, list[float]]:
    """Data, SFT and reward model under one launch mode; the training losses of the two."""
    model = ModelConfig.model_validate({"base": str(base), "dtype": "float32", "tuning": {"rank": 4, "alpha": 8}})
    launch = LaunchConfig(mode=mode, num_processes=1 if mode == "process" else 2, device="cpu")
    pairs = folder / "pairs.jsonl"
    folder.mkdir()
    rows = [
        f'{{"prompt": "Number {n} of the tests", "chosen": " is {"very " * (n % 3)}good.", "rejected": " is bad."}}'
        for n in range(60)
    ]
    pairs.write_text("\n".join(rows) + "\n", encoding="utf-8")
    sections: dict[str, dict[str, Any]] = {
        "data": {"preferences": {"path": str(pairs), "held_out": 0.1}},
        "sft": SFTConfig(**LEARNING).model_dump(mode="json"),
        "reward_model": RewardModelConfig(**LEARNING, normalization=NORMALIZATION).model_dump(mode="json"),
    }
    artifacts: dict[str, Any] = {}
    losses = {}
    for stage, section in sections.items():
        roles = {"dataset": "data", "policy": "sft"}
        spec = StageSpec(
            stage=stage,  # type: ignore[arg-type]
            config=section,
            model=model.model_dump(mode="json"),
            inputs={role: artifacts[source] for role, source in roles.items() if source in artifacts},
            stage_dir=folder / "run" / stage,
            store_dir=folder / "store",
            seed=0,
            device="cpu",
            fingerprint=stage,
        )
        manifest = execute(spec, launch, log=print, progress=lambda done, total, what: None)
        artifacts[stage] = artifact_from_json(manifest["artifact"])
        rows_written = read_metrics(folder / "run" / stage / "metrics.jsonl")
        losses[stage] = [row["train/loss"] for row in rows_written if "train/loss" in row]
    return losses


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> dict[str, list[float]]:
    return run(tmp_path_factory.mktemp("single") / "x", tiny_llama, "process")


@pytest.mark.parametrize("mode", ["accelerate", "deepspeed"])
def test_two_ranks_lose_what_one_process_loses(
    mode: Mode, single: dict[str, list[float]], tiny_llama: Path, tmp_path: Path
) -> None:
    found = run(tmp_path / "x", tiny_llama, mode)
    for stage in ("sft", "reward_model"):
        assert len(found[stage]) == 3
        # TRL logs losses rounded to four significant digits.
        assert found[stage] == pytest.approx(single[stage], rel=1e-3, abs=TOLERANCE[mode])
    assert single["sft"][-1] < single["sft"][0]
