"""The tokenizer of the base and the token that pads.

The pad token is never EOS: with pad = EOS a collator that masks pads masks the EOS too, and the model never
learns to stop. The embedding is never resized, since adapters, vLLM and the saved base have to keep one
shape.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import ModelError
from stages.models.config import ModelConfig
from stages.models.own_code import own_code_error
from stages.models.sources import local_file
from stages.models.tokenizer_files import check_template_file, vocabulary_problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEW_PAD_TOKEN = "<|rlhf_pad|>"
"""Text of the token that is put on an unused embedding row."""

_CIRCUMSTANCES = ("is_local", "local_files_only", "name_or_path")


@dataclass(frozen=True)
class PadChoice:
    """The pad token and why it was chosen, for the manifest.

    Attributes:
        token_id: Its id, below the number of embedding rows.
        token: Its text in the vocabulary.
        reason: One sentence.
    """

    token_id: int
    token: str
    reason: str


def load_tokenizer(
    base: Path | str, model: ModelConfig, config_dir: Path | None = None, *, needs_eos: bool = True
) -> "PreTrainedTokenizerBase":
    """Load the base's tokenizer, with the chat template of `model.chat_template` if one is set.

    Args:
        base: What `resolve_base` returned, or a folder that `save_pretrained` wrote.
        model: The model section.
        config_dir: Folder of the configuration file, where `model.chat_template` is looked up.
        needs_eos: Whether responses are to end with its EOS; a classifier reads whole texts.

    Raises:
        ModelError: There is none, or it has no EOS token.
    """
    from transformers import AutoTokenizer

    from stages.models.quiet import quiet_transformers

    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                base, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
    except MemoryError:
        raise
    except Exception as error:  # its parser is in Rust and raises no class of its own
        if (own_code := own_code_error(base, error)) is not None:
            raise own_code from error
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"model.base={str(base)!r}: the tokenizer cannot be loaded ({reason}). The tokenizer files that "
            "belong to the model are needed. Save them into the folder with "
            "`tokenizer.save_pretrained(folder)`."
        ) from error
    if needs_eos and tokenizer.eos_token_id is None:
        raise ModelError(
            f"model.base={str(base)!r}: the tokenizer declares no EOS token. Responses end with it, so it is "
            "needed. Set `eos_token` in the model's tokenizer_config.json."
        )
    if model.chat_template is not None:
        path = local_file(model.chat_template, config_dir, "model.chat_template")
        check_template_file(path, f"model.chat_template={model.chat_template!r}")
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    return tokenizer


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Save a tokenizer: the same one gives the same bytes, wherever and however it was loaded.

    transformers also writes down whether it came from a local folder and whether the hub was out of reach.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in _CIRCUMSTANCES:
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def choose_pad_token(
    tokenizer: "PreTrainedTokenizerBase", embedding_rows: int, used_token_ids: Collection[int]
) -> PadChoice:
    """Choose the pad token and set it on the tokenizer. The embedding is not resized.

    In this order: (1) a declared pad that is not EOS; (2) a special token that neither the data nor the chat
    template uses; (3) an embedding row above the vocabulary; (4) a vocabulary token absent from the data.

    The choice survives `save_pretrained`: a token of case 3 is added to the tokenizer as `<|rlhf_pad|>`, so
    that its id has a text. Case 4 takes tokens that begin with the space mark of the vocabulary (U+0120 or
    U+2581) first: a pad is a special token, special tokens are cut out of the *raw* text before anything
    else, and raw text does not hold that mark, so no text is tokenised in another way than before.

    Args:
        tokenizer: Of the base; changed in place.
        embedding_rows: Rows of the base's input embedding.
        used_token_ids: Ids that occur in the data.

    Raises:
        ModelError: The embedding has no row for some tokens, or every vocabulary token occurs in the data.
    """
    used = set(used_token_ids)
    needed = used | {tokenizer.eos_token_id, tokenizer.bos_token_id}
    unused = {
        token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and number not in needed
    }
    problem = vocabulary_problem(tokenizer.get_vocab(), embedding_rows, unused)
    if problem is not None:
        raise ModelError(f"{tokenizer.name_or_path}: {problem}")
    declared = tokenizer.pad_token_id
    if declared is not None and declared != tokenizer.eos_token_id and declared < embedding_rows:
        return PadChoice(declared, str(tokenizer.pad_token), "declared by the tokenizer and not EOS")
    reserved = used | {tokenizer.eos_token_id, tokenizer.bos_token_id} | _template_ids(tokenizer)
    special = _unused_special_token(tokenizer, embedding_rows, reserved)
    if special is not None:
        tokenizer.pad_token = special
        return PadChoice(tokenizer.pad_token_id, special, "a special token that the data does not use")
    row = _add_on_unused_row(tokenizer, embedding_rows)
    if row is not None:
        return PadChoice(row, NEW_PAD_TOKEN, "an embedding row above the vocabulary")
    token_id, token = _absent_token(tokenizer, embedding_rows, reserved)
    tokenizer.pad_token = token
    return PadChoice(token_id, token, "a vocabulary token that does not occur in the data")


def _template_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids that a rendered chat can hold: the template's text, tokenised, and special tokens named in it."""
    templates = tokenizer.chat_template
    texts = list(templates.values()) if isinstance(templates, dict) else [templates]
    ids: set[int] = set()
    for text in texts:
        if not text:
            continue
        ids |= set(tokenizer(text, add_special_tokens=False).input_ids)
        ids |= {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.content in text}
    return ids


def _unused_special_token(
    tokenizer: "PreTrainedTokenizerBase", embedding_rows: int, reserved: Collection[int | None]
) -> str | None:
    """A special token that was made for padding or reserved, then any other, then an unused unknown token."""
    unk = tokenizer.unk_token_id

    def rank(item: tuple[int, str]) -> tuple[int, int]:
        token_id, text = item
        names = (("pad",), ("reserved", "unused"))
        for position, words in enumerate(names):
            if any(word in text.lower() for word in words):
                return position, token_id
        return (3 if token_id == unk else 2), token_id

    candidates = [
        (token_id, token.content)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and token_id not in reserved and token_id < embedding_rows
    ]
    return min(candidates, key=rank)[1] if candidates else None


def _add_on_unused_row(tokenizer: "PreTrainedTokenizerBase", embedding_rows: int) -> int | None:
    """Add a token if its id falls on an embedding row that no token has."""
    taken = set(tokenizer.get_vocab().values())
    # An added token gets the next id: len(tokenizer), or above the largest where ids have gaps.
    if max(len(tokenizer), max(taken) + 1) >= embedding_rows or len(tokenizer) in taken:
        return None
    tokenizer.add_special_tokens({"pad_token": NEW_PAD_TOKEN})
    token_id = int(tokenizer.pad_token_id)
    if token_id in taken or token_id >= embedding_rows:
        raise AssertionError(f"the tokenizer put {NEW_PAD_TOKEN} on id {token_id} of {embedding_rows} rows")
    return token_id


def _absent_token(
    tokenizer: "PreTrainedTokenizerBase", embedding_rows: int, reserved: Collection[int | None]
) -> tuple[int, str]:
    """The last token of the vocabulary that is absent; in BPE the last merges are the rarest."""
    special = set(tokenizer.all_special_ids)
    absent = [
        (token_id, token)
        for token, token_id in tokenizer.get_vocab().items()
        if token_id not in reserved and token_id not in special and token_id < embedding_rows
    ]
    if not absent:
        raise ModelError(
            f"no token of the vocabulary ({len(tokenizer)} tokens, {embedding_rows} embedding rows) is free "
            "for padding: all of them occur in the data. A pad token that is not EOS is needed. Declare one "
            "as `pad_token` in the model's tokenizer_config.json, or use a base with a larger vocabulary."
        )
    return max(absent, key=lambda item: (_cannot_occur_in_text(item[1]), item[0]))


def _cannot_occur_in_text(token: str) -> bool:
    return len(token) > 1 and token[0] in "\u0120\u2581"
