"""What SFT trains on in the formats of eight families: `python -m tests.chat_table` writes it into docs/chat.md."""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.assistant_turns import LearnedRows, encode_demonstrations
from data.schema import Demonstration, Message

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "chat.md"
TEMPLATES = ROOT / "docs" / "examples" / "chat_templates"
BEGIN, END = "<!-- begin of what tests/chat_table.py writes -->", "<!-- end -->"

TALK = Demonstration(
    prompt=(
        Message(role="system", content="Be brief."),
        Message(role="user", content="Is it raining?"),
        Message(role="assistant", content="Not yet."),
        Message(role="user", content="And tomorrow?"),
    ),
    response="All day.",
)


@dataclass(frozen=True)
class Family:
    """A chat format with the special tokens of its tokenizer."""

    title: str
    file: str
    eos: str
    bos: str | None = None
    others: tuple[str, ...] = ()


FAMILIES = (
    Family("Llama 3", "llama-3", "<|eot_id|>", "<|begin_of_text|>", ("<|start_header_id|>", "<|end_header_id|>")),
    Family("Llama 2", "llama-2", "</s>", "<s>"),
    Family("Mistral v0.3", "mistral-v0.3", "</s>", "<s>", ("[INST]", "[/INST]")),
    Family("Qwen 2.5 (ChatML)", "qwen-2.5", "<|im_end|>", None, ("<|im_start|>",)),
    Family("Gemma 3", "gemma-3", "<eos>", "<bos>", ("<start_of_turn>", "<end_of_turn>")),
    Family("Phi-3", "phi-3", "<|endoftext|>", "<s>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    Family("Zephyr", "zephyr", "</s>", "<s>"),
    Family("DeepSeek V2", "deepseek-v2", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
)


def tokenizer_of(family: Family) -> Any:
    """A token a byte, and the family's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos)
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.others)})
    tokenizer.chat_template = (TEMPLATES / f"{family.file}.jinja").read_text(encoding="utf-8")
    return tokenizer


def marked(family: Family) -> tuple[str, LearnedRows]:
    """The conversation as the model sees it, with signs around what is learned, and what could not be learned."""
    tokenizer = tokenizer_of(family)
    found = encode_demonstrations(tokenizer, [TALK], all_responses=True)
    (last,) = encode_demonstrations(tokenizer, [TALK], all_responses=False).rows
    (row,) = found.rows
    assert [*row.ids] == [*last.ids]
    text = ""
    signs = {(0, 0): "{}", (1, 0): "⟪{}⟫", (1, 1): "⟦{}⟧"}
    for kind, run in groupby(zip(row.ids, row.mask, last.mask, strict=True), key=lambda token: token[1:]):
        text += signs[kind].format(tokenizer.decode([token for token, _, _ in run]))
    return text, found


def table() -> str:
    """The part of the page that is written by this program."""
    rows, blocks = [], []
    for family in FAMILIES:
        text, found = marked(family)
        earlier = "the turn and its EOS"
        if found.num_unclear:
            earlier = "nothing: the format writes it in another way than it was asked for"
        elif found.num_open_turns:
            earlier = "the turn without its end: the format ends it with another token than EOS"
        rows.append(f"| {family.title} | `{family.eos}` | {earlier} |")
        blocks.append(f"**{family.title}**\n\n```text\n{text}\n```")
    head = "| Format | EOS | Of an earlier turn `all_responses` learns |\n| --- | --- | --- |\n"
    return head + "\n".join(rows) + "\n\n" + "\n\n".join(blocks)


def page_with(part: str) -> str:
    """The page with this part in its place."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page_with(table()), encoding="utf-8")
