"""The peer's side of `benchmarks.ppo_throughput`: TRL 1.12.0's PPOTrainer, run by a Python that has it.

    PEER_PYTHON benchmarks/throughput_peer.py JOB.json

The policy is a LoRA adapter (its reference is the base with the adapter off), the critic is tuned in full, since this
trainer takes no adapter for it, and the reward model is a model of its own. Prints the seconds of each step as JSON.
Imports nothing of this project.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.update({"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TRL_EXPERIMENTAL_SILENCE": "1"})

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Stopwatch(TrainerCallback):
    """Takes the time at the end of every step."""

    def __init__(self) -> None:
        """Start."""
        self.ends: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Note the start."""
        self.ends.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Note the end of a step."""
        self.ends.append(time.perf_counter())
        print(f"{len(self.ends) - 1} {self.ends[-1] - self.ends[-2]:.1f} s", file=sys.stderr, flush=True)


def run_peer(job: dict) -> list[float]:  # type: ignore[type-arg]
    """Seconds of each step."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(job["base"], padding_side="left")
    settings = {"dtype": getattr(torch, job["dtype"]), "attn_implementation": job["attention"]}

    def scorer():  # type: ignore[no-untyped-def]
        model = AutoModelForSequenceClassification.from_pretrained(job["base"], num_labels=1, **settings)
        model.config.pad_token_id = tokenizer.pad_token_id
        return model

    blocks = {} if job["last"] is None else {"layers_to_transform": list(range(30 - job["last"], 30))}
    if blocks:
        blocks["layers_pattern"] = "layers"
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    else:
        targets = "all-linear"
    rows = [tokenizer(prompt)["input_ids"] for prompt in job["prompts"]]
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder,
                per_device_train_batch_size=job["batch_size"],
                gradient_accumulation_steps=1,
                num_mini_batches=1,
                num_ppo_epochs=job["num_ppo_epochs"],
                total_episodes=job["steps"] * job["batch_size"],
                response_length=job["max_new_tokens"],
                stop_token="eos",
                temperature=0.7,
                learning_rate=job["learning_rate"],
                use_cpu=True,
                bf16=job["autocast"],
                gradient_checkpointing=False,
                num_sample_generations=0,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            processing_class=tokenizer,
            model=AutoModelForCausalLM.from_pretrained(job["base"], **settings),
            ref_model=None,
            reward_model=scorer(),
            value_model=scorer(),
            train_dataset=Dataset.from_dict({"input_ids": rows}),
            peft_config=LoraConfig(
                r=job["rank"], lora_alpha=2 * job["rank"], target_modules=targets, task_type="CAUSAL_LM", **blocks
            ),
            callbacks=[stopwatch],
        )
        trainer.train()
    return [end - start for start, end in zip(stopwatch.ends, stopwatch.ends[1:], strict=False)]


if __name__ == "__main__":
    print(json.dumps(run_peer(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
