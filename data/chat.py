"""Text to tokens: prompts with chat template or plain, responses that end with EOS exactly once.

Prompt and response are always encoded apart and their ids joined, since that is what happens at generation:
the model never sees the response's characters while its prompt is cut into tokens.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from data.errors import DataError, ModelError
from data.schema import Message, Prompt

if TYPE_CHECKING:  # transformers takes seconds to import, and the tokenizer comes from the caller
    from transformers import PreTrainedTokenizerBase

_SPEAKERS = {"user": "Human", "assistant": "Assistant", "tool": "Tool"}


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, *, chat_template: str | None = None
) -> list[int]:
    """Encode a prompt, ready for a response to follow.

    Plain text gets the special tokens that the tokenizer puts at the start (BOS once, also where the text
    already begins with it) and none at the end. Messages go through the chat template up to the assistant's
    turn; without a template they are written in the plain form of `plain_transcript`.

    Args:
        tokenizer: A tokenizer of transformers.
        prompt: Plain text, or messages.
        chat_template: A Jinja template that takes the place of the tokenizer's.

    Returns:
        At least one id: an empty text is BOS, or EOS where there is no BOS.

    Raises:
        DataError: The chat template refuses the messages.
        ModelError: The text is empty and the tokenizer has neither BOS nor EOS.
    """
    text = render_prompt_text(tokenizer, prompt, chat_template=chat_template)
    if uses_chat_template(tokenizer, prompt, chat_template):
        return list(tokenizer.encode(text, add_special_tokens=False))  # the template wrote its special tokens
    return _encode_with_start(tokenizer, text)


def encode_response(tokenizer: "PreTrainedTokenizerBase", response: str) -> list[int]:
    """Encode a response: no special tokens but EOS, exactly once, at the end.

    What looks like a special token inside the response is plain text (an EOS in the middle would teach the
    model to go on after its end); an EOS that the text already ends with is not doubled.

    Raises:
        ModelError: The tokenizer has no EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no EOS token; responses need one to end with; set `eos_token` in its "
            "tokenizer_config.json, or use another base model"
        )
    text = without_final_eos(tokenizer, response)
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return [*ids, int(tokenizer.eos_token_id)]


def without_final_eos(tokenizer: "PreTrainedTokenizerBase", response: str) -> str:
    """A response without the EOS, or several, that its text may end with."""
    while response.endswith(tokenizer.eos_token):
        response = response.removesuffix(tokenizer.eos_token)
    return response


def encode_episode(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, response: str, *, chat_template: str | None = None
) -> tuple[list[int], list[int]]:
    """Encode a prompt and its response, with the space that the plain transcript puts between them.

    Returns:
        Ids of the prompt and of the response; the response's end with EOS.
    """
    text = response_text(tokenizer, prompt, response, chat_template=chat_template)
    return encode_prompt(tokenizer, prompt, chat_template=chat_template), encode_response(tokenizer, text)


def retokenize_episode(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, response: str, *, finished: bool
) -> tuple[list[int], list[int]]:
    """Encode the text of an episode for another model than the one that wrote it.

    As `encode_episode`, but EOS stands only where the response ended by itself, and white space before a turn
    of a conversation is dropped: whether there is some depends on the writer's form, as in `response_text`.

    Args:
        tokenizer: Of the model that reads.
        prompt: As the data has it; messages go through this tokenizer's chat template.
        response: Without special tokens.
        finished: Whether the response ended by itself.

    Returns:
        Ids of the prompt and of the response; the latter may be empty where it was cut off.
    """
    text = response if isinstance(prompt, str) else response.lstrip()
    prompt_ids, response_ids = encode_episode(tokenizer, prompt, text)
    return prompt_ids, response_ids if finished else response_ids[:-1]


def response_text(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, response: str, *, chat_template: str | None = None
) -> str:
    """The response as it follows its prompt: with the white space that the form puts before an answer.

    After the plain form's `Assistant:` that is a space, and so it is in the formats of Llama 2, Mistral and DeepSeek,
    whose templates write it with the answer, not with the question.
    """
    if isinstance(prompt, str):
        return response
    space = " "
    if uses_chat_template(tokenizer, prompt, chat_template):
        space = _space_before_answers(tokenizer, str(chat_template or tokenizer.chat_template))
    return space + response.lstrip() if space else response


@lru_cache(maxsize=16)
def _space_before_answers(tokenizer: "PreTrainedTokenizerBase", chat_template: str) -> str:
    """White space that a template writes between its prompt and an answer; none where it cannot be asked."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    options: dict[str, Any] = {"chat_template": chat_template, "tokenize": False}
    try:
        prompt = str(tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, **options))
        whole = str(tokenizer.apply_chat_template(turns, add_generation_prompt=False, **options))
    except Exception:  # a template is a program: it fails in any way, and says so when it writes the data's prompts
        return ""
    rest = whole.removeprefix(prompt)
    space = rest[: len(rest) - len(rest.lstrip())]
    return space if len(rest) < len(whole) and rest.lstrip().startswith("a") else ""


def decode_response(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Decode the ids of a response, special tokens left out."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def decode_with_special_tokens(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Decode ids as the model sees them, special tokens written out."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def uses_chat_template(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, chat_template: str | None = None) -> bool:
    """Whether a prompt is written by a chat template: messages, and there is one."""
    return not isinstance(prompt, str) and bool(chat_template or tokenizer.chat_template)


def render_prompt_text(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, *, chat_template: str | None = None
) -> str:
    """The text of a prompt as the model sees it, up to where the response starts; BOS only from a template.

    Raises:
        DataError: The chat template refuses the messages.
    """
    if isinstance(prompt, str):
        return prompt
    if not uses_chat_template(tokenizer, prompt, chat_template):
        return plain_transcript(prompt)
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
    try:
        return str(
            tokenizer.apply_chat_template(
                turns, chat_template=chat_template, tokenize=False, add_generation_prompt=True
            )
        )
    except Exception as error:  # a template is a program: it fails in any way, and is the user's
        roles = ", ".join(turn.role for turn in prompt)
        raise DataError(
            f"prompt with the turns {roles}: the chat template refuses it ({error}); turns that the template "
            f"knows are needed; change the data, or give another template by `model.chat_template`"
        ) from None


def plain_transcript(messages: Sequence[Message]) -> str:
    """Messages in the form of HH-RLHF, system text first, up to the assistant's turn."""
    system = [turn.content for turn in messages if turn.role == "system"]
    turns = [f"\n\n{_SPEAKERS[turn.role]}: {turn.content}" for turn in messages if turn.role != "system"]
    return "\n\n".join(system) + "".join(turns) + "\n\nAssistant:"


def drop_long(prompt_ids: Sequence[Sequence[int]], max_tokens: int) -> tuple[list[int], int]:
    """Find the prompts that fit; longer ones are dropped, never cut.

    Args:
        prompt_ids: Ids of each prompt.
        max_tokens: Most tokens a prompt may have.

    Returns:
        Indices of the prompts that fit, ascending, and the number of dropped ones.
    """
    kept = [index for index, ids in enumerate(prompt_ids) if len(ids) <= max_tokens]
    return kept, len(prompt_ids) - len(kept)


def _encode_with_start(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Ids of a text with the special tokens before it, and without those after it."""
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    if not ids:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ModelError(
                "the tokenizer has neither BOS nor EOS; an empty prompt needs one of them to start from; use "
                "prompts with text, or another base model"
            )
        return [int(start)]
    full = list(tokenizer.encode(text, add_special_tokens=True))
    # Found by search, not by length: a tokenizer may add tokens on either side.
    before = next((at for at in range(len(full)) if full[at : at + len(ids)] == ids), 0)
    prefix = full[:before]
    return ids if ids[: len(prefix)] == prefix else prefix + ids
