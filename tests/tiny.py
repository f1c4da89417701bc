"""Tiny random models with tokenizers, for tests and for the smoke configuration. Importable without pytest.

Each family has the special tokens of its real relatives: Llama and Mistral declare no pad, GPT-2 has one
special token for everything, Pythia (GPT-NeoX) has `<|padding|>` without declaring it, OPT, Gemma and Qwen2
declare a pad, and Qwen2 has more embedding rows than tokens. Attention heads are 32 wide, which vLLM's CPU
backend supports.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

Family = Literal["llama", "gpt2", "opt", "qwen2", "gemma", "gemma2", "mistral", "gpt_neox"]
FAMILIES: tuple[Family, ...] = get_args(Family)

HEAD_DIM = 32
_CORPUS = [
    "The coffee here is great and the staff is kind.",
    "We waited an hour and the soup was cold, what a sad evening.",
    "I love the room, the view and the quiet street.",
    "The film was too long, but the music made us happy.",
    "Human: How do I bake bread? Assistant: Take flour, water, salt and time.",
]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class _Specials:
    """Special tokens in the order of their ids, and the roles that the family declares."""

    tokens: tuple[str, ...]
    eos: str
    bos: str | None = None
    unk: str | None = None
    pad: str | None = None


_SENTENCEPIECE_LIKE = _Specials(("<unk>", "<s>", "</s>"), eos="</s>", bos="<s>", unk="<unk>")
_END = "<|endoftext|>"
_SPECIALS: dict[Family, _Specials] = {
    "llama": _SENTENCEPIECE_LIKE,
    "mistral": _SENTENCEPIECE_LIKE,
    "gpt2": _Specials((_END,), eos=_END, bos=_END, unk=_END),
    "opt": _Specials(("<s>", "<pad>", "</s>", "<unk>"), eos="</s>", bos="</s>", unk="<unk>", pad="<pad>"),
    "qwen2": _Specials((_END, "<|im_start|>", "<|im_end|>"), eos="<|im_end|>", pad=_END),
    "gemma": _Specials(("<pad>", "<eos>", "<bos>", "<unk>"), eos="<eos>", bos="<bos>", unk="<unk>", pad="<pad>"),
    "gemma2": _Specials(("<pad>", "<eos>", "<bos>", "<unk>"), eos="<eos>", bos="<bos>", unk="<unk>", pad="<pad>"),
    "gpt_neox": _Specials((_END, "<|padding|>"), eos=_END, bos=_END, unk=_END),
}


def tiny_model_dir(
    family: Family, path: Path, *, hidden: int = 32, layers: int = 2, vocab: int = 320, seed: int = 0
) -> Path:
    """Save a tiny random float32 model with its tokenizer. The same arguments give the same files.

    Args:
        family: Architecture.
        path: Folder to write; made if need be.
        hidden: Width of the hidden states, a multiple of 32.
        layers: Number of transformer blocks.
        vocab: Rows of the embedding; the tokenizer is trained to at most as many tokens (8 fewer for Qwen2).
        seed: Seed of the weights.

    Returns:
        `path`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from stages.models.quiet import quiet_transformers

    tokenizer = _tokenizer(family, vocab - 8 if family == "qwen2" else vocab)
    config = _config(family, tokenizer, hidden=hidden, layers=layers, vocab=vocab)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # The default generation config of a class may name other special tokens than this tokenizer has.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    path.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


def _tokenizer(family: Family, size: int) -> Any:
    """Train a byte-level BPE tokenizer, so that every text has an encoding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = _SPECIALS[family]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials.tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    roles = {"eos_token": specials.eos, "bos_token": specials.bos}
    roles |= {"unk_token": specials.unk, "pad_token": specials.pad}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        **{role: token for role, token in roles.items() if token is not None},
    )
    if family == "qwen2":
        tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _config(family: Family, tokenizer: Any, *, hidden: int, layers: int, vocab: int) -> Any:
    """The smallest configuration that still has what is special about the family."""
    from transformers import AutoConfig

    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # A wider spread than the usual 0.02 keeps logits and scores of different inputs apart.
    common = {"vocab_size": vocab, **ids}
    spread = {"initializer_range": 0.1}
    heads = max(1, hidden // HEAD_DIM)
    wide = {"hidden_size": hidden, "num_hidden_layers": layers, "max_position_embeddings": 256}
    match family:
        case "gpt2":
            sizes = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": 256}
            return AutoConfig.for_model("gpt2", **common, **spread, **sizes)
        case "opt":
            return AutoConfig.for_model(
                "opt", **common, **wide, init_std=0.1, num_attention_heads=heads, ffn_dim=2 * hidden,
                word_embed_proj_dim=hidden // 2, do_layer_norm_before=False,
            )  # fmt: skip
        case "gpt_neox":
            sizes = {"num_attention_heads": heads, "intermediate_size": 2 * hidden}
            return AutoConfig.for_model("gpt_neox", **common, **spread, **wide, **sizes)
        case _:
            pass
    sizes = {"num_attention_heads": 2 * heads, "num_key_value_heads": heads, "intermediate_size": 2 * hidden}
    if family == "qwen2":  # vLLM derives the head's width of Qwen2 from the hidden size
        sizes["num_attention_heads"] = heads
    else:
        sizes["head_dim"] = HEAD_DIM
    return AutoConfig.for_model(family, **common, **spread, **wide, **sizes)


def main() -> None:
    """`python -m tests.tiny FAMILY FOLDER`: save a tiny random model for the smoke run."""
    import sys

    family, folder = sys.argv[1], Path(sys.argv[2])
    if not (folder / "config.json").is_file():
        tiny_model_dir(cast(Family, family), folder)


if __name__ == "__main__":
    main()
