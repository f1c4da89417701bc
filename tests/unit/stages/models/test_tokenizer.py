"""The pad token: never EOS, never on a new embedding row, and the same after saving."""

from pathlib import Path
from typing import Any

import pytest

from data.errors import ModelError
from stages.models.config import ModelConfig
from stages.models.tokenizer import NEW_PAD_TOKEN, PadChoice, choose_pad_token, load_tokenizer
from tests.tiny import FAMILIES, Family

TEXTS = ["The coffee is great, zebra!", " two  spaces\n\nHuman: x", "<s>literal</s> <|endoftext|> Gpad"]
ROWS = 320


def _load(folder: Path) -> Any:
    return load_tokenizer(folder, ModelConfig(base=str(folder)))


@pytest.mark.parametrize("family", FAMILIES)
def test_checklist_01_pad_is_not_eos_and_survives_saving(family: Family, family_dir, tmp_path: Path) -> None:
    tokenizer = _load(family_dir(family))
    before = [tokenizer(text).input_ids for text in TEXTS]
    used = {token_id for ids in before for token_id in ids}
    choice = choose_pad_token(tokenizer, ROWS, used)
    assert choice.token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert choice.token == tokenizer.pad_token
    assert choice.token_id < ROWS
    assert choice.token_id not in used or "declared" in choice.reason
    tokenizer.save_pretrained(tmp_path)
    again = _load(tmp_path)
    assert (again.pad_token_id, again.pad_token) == (choice.token_id, choice.token)
    assert [again(text).input_ids for text in TEXTS] == before
    assert choose_pad_token(again, ROWS, used).token_id == choice.token_id


@pytest.mark.parametrize(
    ("family", "token", "reason"),
    [
        ("qwen2", "<|endoftext|>", "declared"),
        ("opt", "<pad>", "declared"),
        ("gpt_neox", "<|padding|>", "special token"),
        ("llama", "<unk>", "special token"),
    ],
)
def test_the_order_of_choice(family: Family, token: str, reason: str, family_dir) -> None:
    choice = choose_pad_token(_load(family_dir(family)), ROWS, set())
    assert choice.token == token and reason in choice.reason


def test_checklist_01_pad_equal_to_eos_is_replaced_as_in_smollm2(family_dir) -> None:
    tokenizer = _load(family_dir("qwen2"))
    tokenizer.pad_token = tokenizer.eos_token
    # `<|im_start|>` and `<|im_end|>` stand in the chat template, so `<|endoftext|>` is the one that is free.
    choice = choose_pad_token(tokenizer, ROWS, set())
    assert choice.token == "<|endoftext|>" and "special token" in choice.reason


def test_special_tokens_of_the_data_are_not_taken_and_an_unused_row_is(family_dir, tmp_path: Path) -> None:
    tokenizer = _load(family_dir("qwen2"))
    tokenizer.pad_token = tokenizer.eos_token
    length = len(tokenizer)
    used = set(tokenizer("<|endoftext|> in the data").input_ids)
    choice = choose_pad_token(tokenizer, ROWS, used)
    assert choice == PadChoice(length, NEW_PAD_TOKEN, "an embedding row above the vocabulary")
    tokenizer.save_pretrained(tmp_path)
    assert _load(tmp_path).pad_token_id == length < ROWS


def test_reserved_tokens_come_before_others(family_dir) -> None:
    tokenizer = _load(family_dir("llama"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|call|>", "<|reserved_special_token_0|>"]})
    assert choose_pad_token(tokenizer, ROWS + 2, set()).token == "<|reserved_special_token_0|>"


def test_a_word_that_pads_does_not_change_the_encoding(family_dir) -> None:
    tokenizer = _load(family_dir("gpt2"))
    vocabulary = set(tokenizer.get_vocab().values())
    choice = choose_pad_token(tokenizer, ROWS, set())
    assert choice.token.startswith("\u0120") and "does not occur" in choice.reason
    assert choice.token_id in vocabulary


def test_no_free_token_is_an_error(family_dir) -> None:
    tokenizer = _load(family_dir("gpt2"))
    with pytest.raises(ModelError, match=r"no token of the vocabulary .* is free.*not EOS is needed.*Declare one"):
        choose_pad_token(tokenizer, ROWS, range(ROWS))


def test_the_chat_template_comes_from_the_file_beside_the_configuration(family_dir, tmp_path: Path) -> None:
    folder = family_dir("llama")
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    tokenizer = load_tokenizer(folder, ModelConfig(base=str(folder), chat_template="chat.jinja"), tmp_path)
    messages = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "[hello]"
    with pytest.raises(ModelError, match=r"model.chat_template='none.jinja': no file at .*Correct the path"):
        load_tokenizer(folder, ModelConfig(base=str(folder), chat_template="none.jinja"), tmp_path)


def test_a_tokenizer_without_eos_is_refused(llama_copy: Path, edit_json) -> None:
    edit_json(llama_copy / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match=r"declares no EOS token.*Set `eos_token`"):
        _load(llama_copy)
