"""Parts that the tests of the stages share: tiny adapters, shared bases with all roles, batches, artifacts, specs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.collators import PromptResponseBatch
from data.schema import Demonstration, PreferencePair, PromptRecord, Record, write_records
from stages.artifacts import combine_digests, file_digests
from stages.contract import Artifact, DatasetArtifact, StageContext, StageName, artifact_from_json
from stages.metrics import NullMetricsWriter
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm, load_sequence_classifier
from stages.models.shared_base import SharedBase
from stages.models.tokenizer import load_tokenizer
from stages.models.tuning import Task, attach_adapter, lora_config, save_adapter
from stages.run import StageSpec, run_stage
from tests.tiny import Family

ROLES = ("reference", "policy", "reward", "critic")
FAMILIES: tuple[Family, ...] = ("llama", "gpt2", "opt", "qwen2", "gemma2", "gpt_neox")
PAD, EOS = 3, 2
"""Of the Llama family; PAD is an ordinary token there, so that real tokens may equal it."""


class Folders(NamedTuple):
    """Folders of one family."""

    base: Path
    policy: Path
    reward: Path


FoldersOf = Callable[[Family], Folders]


def model_config(base: Path, **tuning: Any) -> ModelConfig:
    """The model section of a tiny base, in float32."""
    settings = {"base": str(base), "dtype": "float32", "tuning": {"rank": 4, "alpha": 8.0} | tuning}
    return ModelConfig.model_validate(settings)


def save_random_adapter(folder: Path, base: Path, task: Task, *, seed: int, **tuning: Any) -> None:
    """Save an adapter whose B is not 0, as after training, with the tokenizer."""
    model = model_config(base, **tuning)
    if task == "causal_lm":
        loaded = load_causal_lm(base, model, "cpu")
    else:
        loaded = load_sequence_classifier(base, model, "cpu", pad_token_id=PAD, seed=seed)
    peft_model = attach_adapter(loaded, lora_config(model, loaded.config, task), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for key, weight in peft_model.named_parameters():
        if "lora_B" in key:
            weight.data.normal_(0.0, 0.1, generator=generator)
    save_adapter(peft_model, "default", folder, base_spec=str(base))
    load_tokenizer(base, model).save_pretrained(folder)


def all_roles(folders: Folders, model: ModelConfig | None = None) -> SharedBase:
    """A shared base with the four roles of PPO, as the stage builds them; in float32 where nothing is said."""
    model = model or model_config(folders.base)
    shared = SharedBase(load_causal_lm(folders.base, model, "cpu"), model)
    shared.add_adapter("reference", folders.policy, trainable=False)
    shared.copy_adapter("reference", "policy", trainable=True)
    shared.add_adapter("reward", folders.reward, trainable=False)
    shared.copy_adapter("reward", "critic", trainable=True)
    return shared


def random_rows(lengths: Sequence[int], *, seed: int) -> list[list[int]]:
    """Rows of ordinary token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(10, 300, (length,), generator=generator).tolist() for length in lengths]


def wider(batch: PromptResponseBatch, left: int, right: int, pad: int) -> PromptResponseBatch:
    """The same episodes with more padding at both ends."""

    def padded(values: torch.Tensor, before: int, fill: int) -> torch.Tensor:
        return torch.nn.functional.pad(values, (before, right), value=fill)

    return PromptResponseBatch(
        padded(batch.input_ids, left, pad),
        padded(batch.attention_mask, left, 0),
        padded(batch.response_mask, 0, 0),
        padded(batch.response_ids, 0, pad),
        batch.prompt_width + left,
    )


def snapshot(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies of parameters."""
    return [parameter.detach().clone() for parameter in parameters]


def same(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    """Whether two lists of tensors are equal bit for bit."""
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


_PEOPLE = ("Anna", "Ben", "Clara", "Deniz", "Emil", "Fatou", "Goran", "Hana")
_PLACES = ("room", "soup", "film", "view", "coffee", "street", "music", "staff")
_VERBS = ("says", "asks")
PROMPTS = tuple(f"{who} {verb} of the {what}:" for verb in _VERBS for who in _PEOPLE for what in _PLACES)


def dataset(folder: Path, *, num_held_out: int = 28) -> DatasetArtifact:
    """An artifact of the `data` stage with planted demonstrations and separable preferences.

    Demonstrations repeat one sentence. Chosen responses praise, rejected ones complain; which of the two is longer
    alternates, so that length says nothing.
    """
    held_out, train = PROMPTS[:num_held_out], PROMPTS[num_held_out:]  # 28 and 100
    for split, prompts in (("train", train), ("held_out", held_out)):
        records: dict[str, list[Record]] = {
            "demonstrations": [Demonstration(prompt=prompt, response=" kind and great.") for prompt in prompts],
            "preferences": [
                PreferencePair(
                    prompt=prompt,
                    chosen=" great" + " and kind" * (number % 2),
                    rejected=" cold" + " and sad" * (1 - number % 2),
                )
                for number, prompt in enumerate(prompts)
            ],
            "prompts": [PromptRecord(prompt=prompt) for prompt in prompts],
        }
        for kind, rows in records.items():
            write_records(folder / kind / f"{split}.jsonl", rows)
    return DatasetArtifact(folder, combine_digests(file_digests(folder)))


def stage_spec(
    stage: StageName, config: Any, model: ModelConfig | None, inputs: dict[str, Artifact], outputs: Path, **other: Any
) -> StageSpec:
    """A specification as the pipeline writes it."""
    return StageSpec(
        **{
            "stage": stage,
            "config": config.model_dump(mode="json"),
            "model": {} if model is None else model.model_dump(mode="json"),
            "inputs": inputs,
            "stage_dir": outputs / "run" / stage,
            "store_dir": outputs / "store",
            "seed": 5,
            "device": "cpu",
            "fingerprint": f"fingerprint-{stage}",
        }
        | other
    )


def stage_context(folder: Path, *, seed: int = 5) -> StageContext:
    """The context of a stage that writes below `folder`."""
    for name in ("payload", "scratch"):
        (folder / name).mkdir(exist_ok=True)
    return StageContext(
        payload_dir=folder / "payload",
        scratch_dir=folder / "scratch",
        stage_dir=folder,
        seed=seed,
        device="cpu",
        metrics=NullMetricsWriter(),
        report_progress=lambda done, total, what: None,
    )


class Executed(NamedTuple):
    """One execution of a stage."""

    spec: StageSpec
    manifest: dict[str, Any]
    artifact: Any


def executed(spec: StageSpec) -> Executed:
    """Execute a stage in this process."""
    manifest = run_quietly(spec)
    return Executed(spec, manifest, artifact_from_json(manifest["artifact"]))


def run_quietly(spec: StageSpec) -> dict[str, Any]:
    """Execute a stage in this process and give its manifest."""
    return run_stage(spec, lambda done, total, what: None)
