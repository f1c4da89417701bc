"""Text to tokens, with byte-level tokenizers built here: with and without BOS, EOS and chat template."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data.batch_encoding import count_tokenization_differences
from data.chat import (
    decode_response,
    drop_long,
    encode_episode,
    encode_prompt,
    encode_response,
    plain_transcript,
    render_prompt_text,
    response_text,
    retokenize_episode,
)
from data.errors import DataError, ModelError
from data.schema import Message

PAD, BOS, EOS = 0, 1, 2
TEMPLATE = (
    "<s>{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = (Message(role="system", content="Be kind."), Message(role="user", content="Hé \U0001f44b"))


def byte_tokenizer(around: str = "$A", **tokens: Any) -> Any:
    """One token a byte, but `he` and ` t` are one token each; `around` is the post-processor's template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", *alphabet, "he", "Ġt"]
    model = models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[("h", "e"), ("Ġ", "t")])
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    defaults = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(defaults | tokens))


def ids_of(text: str) -> list[int]:
    """Ids of a text alone."""
    return list(byte_tokenizer().encode(text, add_special_tokens=False))


@pytest.mark.parametrize(
    ("around", "before"),
    [("$A", []), ("<s> $A", [BOS]), ("<s> $A </s>", [BOS]), ("$A </s>", []), ("</s> $A", [EOS])],
)
def test_text_prompt_gets_the_tokenizers_start_and_no_end(around: str, before: list[int]) -> None:
    tokenizer = byte_tokenizer(around)
    assert encode_prompt(tokenizer, "the") == before + ids_of("the")
    assert encode_prompt(tokenizer, "<s>the") == [BOS, *ids_of("the")] or before == [EOS]
    assert encode_prompt(tokenizer, "\U0001f469‍\U0001f680 سلام") == before + ids_of("\U0001f469‍\U0001f680 سلام")


def test_prompt_of_repeated_bytes_is_not_cut() -> None:
    # The search for the text's ids must find their first place, also where they repeat or equal the start.
    assert encode_prompt(byte_tokenizer("<s> $A </s>"), "aaaa") == [BOS, *ids_of("aaaa")]


def test_empty_text_prompt_has_one_token() -> None:
    assert encode_prompt(byte_tokenizer("<s> $A </s>"), "") == [BOS]
    assert encode_prompt(byte_tokenizer(), "") == [BOS]
    assert encode_prompt(byte_tokenizer(bos_token=None), "") == [EOS]
    with pytest.raises(ModelError, match="neither BOS nor EOS; an empty prompt needs one .*; use prompts with"):
        encode_prompt(byte_tokenizer(bos_token=None, eos_token=None), "")


def test_messages_go_through_the_tokenizers_template() -> None:
    tokenizer = byte_tokenizer("<s> $A </s>", chat_template=TEMPLATE)
    text = "<s>[system]Be kind.</s>[user]Hé \U0001f44b</s>[assistant]"
    assert render_prompt_text(tokenizer, TALK) == text
    assert encode_prompt(tokenizer, TALK) == ids_of(text)
    assert encode_prompt(tokenizer, TALK).count(BOS) == 1
    assert encode_prompt(tokenizer, "the") == [BOS, *ids_of("the")], "plain text knows no template"


def test_given_template_takes_the_place_of_the_tokenizers() -> None:
    for tokenizer in (byte_tokenizer("<s> $A"), byte_tokenizer("<s> $A", chat_template=TEMPLATE)):
        assert encode_prompt(tokenizer, TALK, chat_template="{{ messages[1].content }}>") == ids_of("Hé \U0001f44b>")


def test_messages_without_a_template_are_a_plain_transcript() -> None:
    tokenizer = byte_tokenizer("<s> $A")
    text = "Be kind.\n\nHuman: Hé \U0001f44b\n\nAssistant:"
    assert plain_transcript(TALK) == render_prompt_text(tokenizer, TALK) == text
    assert encode_prompt(tokenizer, TALK) == [BOS, *ids_of(text)]
    more = (*TALK[1:], Message(role="assistant", content="b"), Message(role="user", content="c"))
    assert plain_transcript(more) == "\n\nHuman: Hé \U0001f44b\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


def test_template_that_refuses_is_an_error_of_the_data() -> None:
    tokenizer = byte_tokenizer(chat_template=TEMPLATE)
    with pytest.raises(DataError, match=r"the turns user, tool: the chat template refuses it \(no tools here\); .*;"):
        encode_prompt(tokenizer, (TALK[1], Message(role="tool", content="x")))


@pytest.mark.parametrize("around", ["$A", "<s> $A", "<s> $A </s>"])
def test_checklist_02_response_ids_end_with_eos_exactly_once(around: str) -> None:
    tokenizer = byte_tokenizer(around)
    assert encode_response(tokenizer, "the") == [*ids_of("the"), EOS]
    assert encode_response(tokenizer, "") == [EOS]
    assert encode_response(tokenizer, "the</s>") == [*ids_of("the"), EOS]
    assert encode_response(tokenizer, "the</s></s>") == [*ids_of("the"), EOS]
    inside = encode_response(tokenizer, "<s>a</s>b")
    assert inside.count(EOS) == 1
    assert BOS not in inside
    assert decode_response(tokenizer, inside) == "<s>a</s>b"
    # Splitting special tokens must not stay switched on.
    assert tokenizer.encode("</s>", add_special_tokens=False) == [EOS]


def test_response_needs_an_eos_token() -> None:
    with pytest.raises(ModelError, match="no EOS token; responses need one to end with; set `eos_token`"):
        encode_response(byte_tokenizer(eos_token=None), "a")


@pytest.mark.parametrize("text", ["the", " the ", "\nتجربة \U0001f1e9\U0001f1ea", "日本\t語", "שלום"])
def test_decoding_is_the_inverse_of_encoding(text: str) -> None:
    tokenizer = byte_tokenizer("<s> $A </s>")
    assert decode_response(tokenizer, encode_response(tokenizer, text)) == text
    assert decode_response(tokenizer, [*encode_response(tokenizer, text), PAD, PAD]) == text


def test_response_after_a_plain_transcript_starts_with_one_space() -> None:
    tokenizer = byte_tokenizer("<s> $A")
    assert response_text(tokenizer, TALK, "the") == response_text(tokenizer, TALK, "  the") == " the"
    assert response_text(tokenizer, "Once", "the") == "the"
    assert response_text(tokenizer, TALK, "the", chat_template=TEMPLATE) == "the"
    prompt_ids, response_ids = encode_episode(tokenizer, TALK, "the")
    assert prompt_ids == encode_prompt(tokenizer, TALK)
    assert response_ids == [*ids_of(" the"), EOS]
    assert tokenizer.decode(prompt_ids + response_ids, skip_special_tokens=True).endswith("\n\nAssistant: the")


def test_checklist_05_differences_between_joined_and_whole_tokenization_are_counted() -> None:
    tokenizer = byte_tokenizer("<s> $A </s>")
    # `he` and ` t` are one token each, so a prompt that ends between their characters is cut otherwise.
    episodes: list[tuple[Any, str]] = [
        ("a", " b"),
        ("th", "e"),
        ("a ", "the"),
        ("the", " the"),
        (TALK, "the"),
    ]
    assert _differences(tokenizer, episodes) == 2
    tokenizer.chat_template = TEMPLATE
    assert _differences(tokenizer, episodes) == 2
    tokenizer.chat_template = "{{ 'h' }}"
    assert _differences(tokenizer, [(TALK, "the")]) == 0
    assert _differences(tokenizer, [(TALK, "e")]) == 1
    assert _differences(tokenizer, []) == 0


def _differences(tokenizer: Any, episodes: list[tuple[Any, str]]) -> int:
    encoded = [[*prompt, *response] for prompt, response in (encode_episode(tokenizer, *each) for each in episodes)]
    return count_tokenization_differences(tokenizer, episodes, encoded)


def test_checklist_06_long_prompts_are_dropped_whole_and_counted() -> None:
    prompts = [[1], [1, 2, 3], [], [1, 2]]
    assert drop_long(prompts, 2) == ([0, 2, 3], 1)
    assert drop_long(prompts, 3) == ([0, 1, 2, 3], 0)
    assert prompts[1] == [1, 2, 3], "never cut"


@pytest.mark.parametrize("prompt", ["the", "<s>the"])
def test_text_of_another_model_gets_bos_once_and_eos_where_it_ended(prompt: str) -> None:
    tokenizer = byte_tokenizer("<s> $A")
    start = [BOS, *ids_of("the")]
    assert retokenize_episode(tokenizer, prompt, " then", finished=True) == (start, [*ids_of(" then"), EOS])
    assert retokenize_episode(tokenizer, prompt, " then</s>", finished=True) == (start, [*ids_of(" then"), EOS])
    assert retokenize_episode(tokenizer, prompt, " then", finished=False) == (start, ids_of(" then"))
    assert retokenize_episode(tokenizer, prompt, "", finished=True) == (start, [EOS])
    assert retokenize_episode(tokenizer, prompt, "", finished=False) == (start, [])


def test_a_turn_of_another_model_loses_the_space_that_its_form_puts_before_it() -> None:
    plain, templated = byte_tokenizer(), byte_tokenizer(chat_template=TEMPLATE)
    rendered = [BOS, *ids_of("[system]Be kind."), EOS, *ids_of("[user]H\u00e9 \U0001f44b"), EOS, *ids_of("[assistant]")]
    for response in ("then", " then"):
        assert retokenize_episode(templated, TALK, response, finished=True) == (rendered, [*ids_of("then"), EOS])
        assert retokenize_episode(plain, TALK, response, finished=False)[1] == ids_of(" then")


SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %} {{ m.content }}</s>{% endif %}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "space"),
    [
        (TEMPLATE, None),
        (SPACED, " "),
        (SPACED.replace("else %} {{", "else %}{{ '\\n ' }}{{"), "\n "),
        (SPACED.replace("else %} {{", "else %}{{ raise_exception('no') }} {{"), None),
        (TEMPLATE.replace("[assistant]{% endif", "[assistant]<think>{% endif"), None),
    ],
    ids=["none", "space", "newline", "refuses", "prompt_differs"],
)
def test_a_response_starts_with_the_space_that_its_template_puts_before_answers(
    template: str, space: str | None
) -> None:
    tokenizer = byte_tokenizer(chat_template=template)
    prompt = (Message(role="user", content="one"),)
    for response in (" two ", "two ", ""):
        expected = response if space is None else space + response.lstrip()
        assert response_text(tokenizer, prompt, response) == expected
    assert response_text(tokenizer, "plain", " two ") == " two "
    assert response_text(byte_tokenizer(), prompt, "two", chat_template=template) == f"{space or ''}two"
