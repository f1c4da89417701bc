"""A conversation with a trained policy on the terminal."""

from collections.abc import Iterator
from pathlib import Path

from data.chat import decode_response, encode_prompt
from data.schema import Message
from stages.models.adapters import check_adapter
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer
from stages.rollouts.config import SamplingConfig
from stages.rollouts.hf_engine import HFEngine
from stages.seeds import derive_seed, row_seeds


def chat_session(
    policy_folder: Path,
    model: ModelConfig,
    device: str,
    lines: Iterator[str],
    *,
    conversational: bool,
    sampling: SamplingConfig,
    config_dir: Path | None,
    seed: int,
) -> Iterator[str]:
    """Answer each line.

    Args:
        policy_folder: The policy's artifact.
        model: The model section of its run.
        device: `cpu` or `cuda`.
        lines: What the user writes.
        conversational: Whether the policy was trained on turns: then the talk so far is the prompt. Else each
            line is continued by itself.
        sampling: Longest answer and temperature.
        config_dir: Folder of the configuration file.
        seed: Of the sampling.

    Yields:
        The answer to each line.
    """
    base = resolve_base(model, config_dir)
    check_adapter(policy_folder, model, config_dir=config_dir)
    tokenizer = load_tokenizer(policy_folder, model, config_dir)
    shared_base = SharedBase(load_causal_lm(base, model, device), model)
    shared_base.add_adapter("policy", policy_folder, trainable=False)
    engine = HFEngine(
        shared_base,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        batch_size=1,
    )
    engine.load_policy("policy")
    turns: list[Message] = []
    for number, line in enumerate(lines):
        turns.append(Message(role="user", content=line))
        prompt = encode_prompt(tokenizer, tuple(turns) if conversational else line)
        rollout = engine.generate([prompt], sampling, seeds=row_seeds(derive_seed(seed, "chat", number), 1))[0]
        answer = decode_response(tokenizer, rollout.response_ids)
        turns.append(Message(role="assistant", content=answer))
        yield answer if conversational else line + answer
