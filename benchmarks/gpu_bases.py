"""Bases with random weights, made in place for `benchmarks.gpu`: nothing is downloaded."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama kind.

    Attributes:
        hidden: Width of the hidden states.
        layers: Transformer blocks.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        intermediate: Width of the feed-forward layer.
        vocabulary: Rows of the embedding.
        tied: Whether the head is the embedding.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool


SHAPES = {
    # Llama 3 8B (https://arxiv.org/abs/2407.21783, table 3) and SmolLM2-135M (its config.json).
    "llama-8b": Shape(4096, 32, 32, 8, 14336, 128256, tied=False),
    "smollm2-135m": Shape(576, 30, 9, 3, 1536, 49152, tied=True),
    "tiny": Shape(64, 2, 2, 1, 128, 512, tied=True),
}


def make_base(shape: Shape, folder: Path, *, device: str) -> None:
    """Save a base with random bfloat16 weights and a tokenizer of single bytes.

    Args:
        shape: What to make.
        folder: Where; made if need be.
        device: Where the weights are drawn: an 8B model takes minutes on a CPU.
    """
    tokenizer = _byte_tokenizer()
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; ends and pads are their own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>", "<pad>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")
