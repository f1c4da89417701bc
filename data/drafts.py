"""A row as a format reads it, before it is known which record is wanted of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data.cells import flag_in, margin_in, numbers_in, prompt_in, text_in, texts_in
from data.config import RecordFormat
from data.conversations import SkippedRow, common_prompt, parse_hh_turns, parse_messages
from data.errors import DataError
from data.rows import Row
from data.schema import Kind, Message, Prompt, is_empty_prompt
from data.shown import described, shown_list

MAX_RESPONSES = 64
"""Most responses that one row may rank: they make 2016 pairs."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What a row says.

    Attributes:
        prompt: Text or messages; empty text where the row has no prompt.
        response: The response; of several, the best.
        rejected: The worse response of a pair.
        margin: By how much the other is better.
        responses: All responses of a row that ranks several; empty otherwise.
        values: How good each of them is; higher is better, equal is a tie.
        is_good: What a row with a label says of its response.
        reference: The right answer to a prompt.
    """

    prompt: Prompt
    response: str = ""
    rejected: str = ""
    margin: float | None = None
    responses: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    is_good: bool | None = None
    reference: str | None = None


def rewrite_texts(draft: Draft, rewrite: Callable[[str], str]) -> Draft:
    """The draft with every text of it rewritten.

    Args:
        draft: What a row says.
        rewrite: From a text to another.
    """
    prompt = draft.prompt
    return replace(
        draft,
        prompt=rewrite(prompt)
        if isinstance(prompt, str)
        else tuple(Message(role=turn.role, content=rewrite(turn.content)) for turn in prompt),
        response=rewrite(draft.response),
        rejected=rewrite(draft.rejected),
        responses=tuple(map(rewrite, draft.responses)),
        reference=None if draft.reference is None else rewrite(draft.reference),
    )


def read_draft(row: Row, record_format: RecordFormat, kind: Kind, name: str) -> Draft:
    """Read a row by its format.

    Args:
        row: Columns renamed; it has those that the format needs.
        record_format: Not `auto`.
        kind: What is wanted of it. Where prompts are, the response may be absent.
        name: The source's key in the configuration, for messages.

    Raises:
        DataError: A column holds something else than the format says.
        SkippedRow: The row teaches nothing.
    """

    def text(column: str) -> str:
        return text_in(row, column, name)

    match record_format:
        case "instruction":
            return Draft(_instruction(row, name), text("output"))
        case "prompt_response":
            return Draft(_some_prompt(row, name), text("response"))
        case "labeled":
            good = None if kind == "prompts" else flag_in(row, "label", name)
            return Draft(_some_prompt(row, name), text("response"), is_good=good)
        case "ranking":
            ranked = _some_prompt(row, name)
            return Draft(ranked) if kind == "prompts" else _ranking(row, ranked, name)
        case "text":
            return Draft("", text("text"))
        case "messages":
            return _last_turn(_with_system(parse_messages(row, "messages", name), row, name), kind)
        case "sharegpt":
            opening = _with_system(parse_messages(row, "conversations", name), row, name)
            if "chosen" in row.values and "rejected" in row.values:
                return replace(_pair(row, opening, name), margin=margin_in(row, name))
            return _last_turn(opening, kind)
        case "preference":
            prompt = prompt_in(row, "prompt", name) if "prompt" in row.values else None
            return replace(_pair(row, prompt, name), margin=margin_in(row, name))
        case "hh":
            return Draft(*common_prompt(parse_hh_turns(text("chosen")), parse_hh_turns(text("rejected"))))
        case _:
            return Draft(prompt_in(row, "prompt", name))


def _some_prompt(row: Row, name: str) -> Prompt:
    prompt = prompt_in(row, "prompt", name)
    if is_empty_prompt(prompt):  # plain text without prompts has a format of its own
        raise SkippedRow("empty_prompt")
    return prompt


def _instruction(row: Row, name: str) -> tuple[Message, ...]:
    """System text, earlier turns, then the instruction with its input."""
    parts = [text_in(row, "instruction", name), text_in(row, "input", name)]
    content = "\n\n".join(part for part in parts if part.strip())
    turns = [*_history(row, name), Message(role="user", content=content)]
    return _with_system(turns, row, name)


def _history(row: Row, name: str) -> list[Message]:
    """Earlier turns, `[[question, answer], ...]`."""
    value = row.values.get("history")
    if value is None or value == "":
        return []
    turns: list[Message] = []
    for pair in value if isinstance(value, list) else [value]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise DataError(
                f"{row.origin}: {name}: column `history` holds {described(pair)} where a turn is; a list of pairs "
                f"[question, answer] of texts is needed; repair the row, or rename the column away"
            )
        turns += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    return turns


def _with_system(turns: Sequence[Message], row: Row, name: str) -> tuple[Message, ...]:
    """The turns behind the column `system`, where there is one and the turns have no system text of their own."""
    system = text_in(row, "system", name)
    if not system.strip() or (turns and turns[0].role == "system"):
        return tuple(turns)
    return (Message(role="system", content=system), *turns)


def _last_turn(messages: Sequence[Message], kind: Kind) -> Draft:
    """The last assistant turn is the response; what follows it answers nothing."""
    if kind == "prompts" and messages and messages[-1].role != "assistant":
        return Draft(tuple(messages))
    for index in reversed(range(len(messages))):
        if messages[index].role == "assistant":
            return Draft(tuple(messages[:index]), messages[index].content)
    raise SkippedRow("no_assistant_turn")


def _pair(row: Row, prompt: Prompt | None, name: str) -> Draft:
    chosen, rejected = (_side(row, column, name) for column in ("chosen", "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise DataError(
                f"{row.origin}: {name}: column `prompt` is missing, the row has {shown_list(row.values)}; "
                f"`chosen` and `rejected` are plain text and need it; add it, or set `{name}.format: hh` if "
                "they hold transcripts"
            )
        return Draft(prompt, chosen, rejected)
    return Draft(*common_prompt(_conversation(prompt, chosen), _conversation(prompt, rejected)))


def _side(row: Row, column: str, name: str) -> Prompt:
    """Text, messages, or one message alone as in preference files of ShareGPT."""
    value = row.values[column]
    if isinstance(value, dict):
        row = replace(row, values={column: [value]})
    return prompt_in(row, column, name)


def _conversation(prompt: Prompt | None, response: Prompt) -> tuple[Message, ...]:
    """The whole conversation. Some data sets repeat the prompt in front of both responses, some do not."""
    if prompt is None:
        opening: tuple[Message, ...] = ()
    else:
        opening = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    turns = (Message(role="assistant", content=response),) if isinstance(response, str) else response
    repeated = isinstance(prompt, str) and len(turns) > 1 and opening[0] in turns[:-1]
    return turns if repeated or turns[: len(opening)] == opening else (*opening, *turns)


def _ranking(row: Row, prompt: Prompt, name: str) -> Draft:
    """Several responses with ranks, of which 1 is the best, or with scores, of which the highest is."""
    responses = texts_in(row, "responses", name)
    if len(responses) > MAX_RESPONSES:
        raise SkippedRow("too_many_responses")
    column = "scores" if row.values.get("scores") is not None else "ranks"
    numbers = numbers_in(row, column, name)
    if len(numbers) != len(responses):
        raise DataError(
            f"{row.origin}: {name}: {len(numbers)} `{column}` for {len(responses)} `responses`; one for each is "
            f"needed; repair the row"
        )
    if not responses:
        raise SkippedRow("empty_response")
    values = numbers if column == "scores" else tuple(-number for number in numbers)
    best = max(range(len(values)), key=lambda index: values[index])
    return Draft(prompt, responses[best], responses=responses, values=values)
