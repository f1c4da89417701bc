"""SFT, reward model and PPO on two gloo ranks: the same global batches as one process, so the same figures."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from pipeline.config import LaunchConfig
from pipeline.launch import execute
from rewards.composite import combine
from rewards.stored import StoredStep, read_steps
from stages.contract import artifact_from_json
from stages.metrics import read_metrics
from stages.models.config import ModelConfig
from stages.models.tuning import adapter_state
from stages.ppo.config import PPOConfig
from stages.reward_model.config import RewardModelConfig
from stages.run import StageSpec
from stages.sft.config import SFTConfig

PPO: dict[str, Any] = {
    "steps": 2,
    "batch_size": 8,
    "minibatch_size": 4,
    "microbatch_size": 1,
    "learning_rate": 1e-3,
    "ptx_coef": 0.1,
    "entropy_coef": 0.01,
    "rewards": [
        {"type": "learned"},
        {"type": "length", "weight": 0.1, "normalize": "running"},
        {"type": "character_share", "characters": "aeiou", "threshold": {"at_least": 0.5, "multiplier_init": 0.2}},
    ],
    "rollout": {"engine": "hf", "max_new_tokens": 6},
}
Mode = Literal["process", "accelerate", "deepspeed"]
Found = tuple[dict[str, list[dict[str, Any]]], Path, list[StoredStep]]

LEARNING: dict[str, Any] = {"batch_size": 16, "microbatch_size": 4, "max_steps": 3, "learning_rate": 1e-3}
NORMALIZATION = {"num_prompts": 4, "sampling": {"max_new_tokens": 4}}
JUDGES: dict[str, Any] = {**LEARNING, "normalization": NORMALIZATION, "ensemble": {"members": 2}}
# bf16 optimizer state and gradients under DeepSpeed against float32; DDP only sums in another order.
TOLERANCE = {"accelerate": 2e-5, "deepspeed": 2e-5}


def run(folder: Path, base: Path, mode: Mode) -> tuple[dict[str, list[dict[str, Any]]], Path]:
    """All training stages under one launch mode; their metrics, and the folder of the trained policy.

    The rollouts are in `folder / "run/ppo/rollouts"`.
    """
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
        "sft": SFTConfig(**LEARNING, packing=True).model_dump(mode="json"),
        "reward_model": RewardModelConfig(**LEARNING, normalization=NORMALIZATION, ensemble={"members": 2}).model_dump(
            mode="json"
        ),
        "ppo": PPOConfig(**PPO).model_dump(mode="json"),
    }
    artifacts: dict[str, Any] = {}
    metrics = {}
    for stage, section in sections.items():
        roles = {"dataset": "data", "policy": "sft", "reward_model": "reward_model"}
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
        metrics[stage] = read_metrics(folder / "run" / stage / "metrics.jsonl")
    return metrics, artifacts["ppo"].path


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Found:
    folder = tmp_path_factory.mktemp("single") / "x"
    metrics, policy = run(folder, tiny_llama, "process")
    return metrics, policy, list(read_steps(folder / "run/ppo/rollouts"))


@pytest.mark.parametrize("mode", ["accelerate", "deepspeed"])
def test_two_ranks_compute_what_one_process_computes(
    mode: Mode, single: Found, tiny_llama: Path, tmp_path: Path
) -> None:
    expected, expected_policy, expected_steps = single
    found, policy = run(tmp_path / "x", tiny_llama, mode)
    for stage in ("sft", "reward_model"):
        assert len(losses(found[stage])) == (3 if stage == "sft" else 2 * 3), "two members of three steps"
        # TRL logs losses rounded to four significant digits.
        assert losses(found[stage]) == pytest.approx(losses(expected[stage]), rel=1e-3, abs=TOLERANCE[mode])
    assert losses(expected["sft"])[-1] < losses(expected["sft"])[0]
    assert len(found["ppo"]) == len(expected["ppo"]) == 2
    for row, wanted in zip(found["ppo"], expected["ppo"], strict=True):
        assert row.keys() == wanted.keys()
        for name in row:
            if not name.startswith(
                ("time/", "memory/", "seconds", "rollout/tokens_per_second", "policy/padding_share")
            ):
                # The SFT and reward models before differ by the order of their own sums already.
                assert row[name] == pytest.approx(wanted[name], rel=2e-2, abs=2e-3), name
    assert found["ppo"][1]["policy/approx_kl"] > 0
    steps = list(read_steps(tmp_path / "x/run/ppo/rollouts"))
    assert [stored.step for stored in steps] == [1, 2]
    for stored, wanted_step in zip(steps, expected_steps, strict=True):  # the first rank writes those of both
        assert [each.prompt_ids for each in stored.episodes] == [each.prompt_ids for each in wanted_step.episodes]
        assert combine(stored.parts, stored.components, stored.state).totals == stored.totals
    assert steps[0].episodes == expected_steps[0].episodes and len(steps[0].episodes) == 8
    moved = adapter_state(policy)
    for name, weight in adapter_state(expected_policy).items():
        torch.testing.assert_close(moved[name], weight, rtol=0, atol=5e-4, msg=name)
