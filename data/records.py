"""Drafts to records: what has to be true of the text and the turns, and how several responses make pairs."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from data.conversations import SkippedRow, check_turns
from data.drafts import Draft
from data.parsed import Read
from data.quarantine import Skipped
from data.rows import Row
from data.schema import Demonstration, PreferencePair, Prompt, PromptRecord, is_empty_prompt, prompt_key

MAX_ROW_CHARS = 1_000_000
"""Most characters of a row: some 200 000 tokens, more than a step of training holds. The stages count in tokens."""


def demonstrations_of(draft: Draft) -> tuple[Demonstration, ...]:
    """The response to imitate; none where a label says that it is a bad one.

    Raises:
        SkippedRow: The row teaches nothing.
    """
    if draft.is_good is False:
        return ()
    _require(draft.response, "empty_response")
    return (Demonstration(prompt=_checked(draft.prompt), response=_encodable(draft.response)),)


def preferences_of(draft: Draft) -> tuple[PreferencePair, ...]:
    """The pair, or the pairs of a ranking.

    Raises:
        SkippedRow: The row teaches nothing.
    """
    if is_empty_prompt(draft.prompt):
        raise SkippedRow("empty_prompt")
    if draft.responses:
        return ranked_pairs(draft.prompt, draft.responses, draft.values)
    _require(draft.response, "empty_response")
    _require(draft.rejected, "empty_response")
    if draft.response.strip() == draft.rejected.strip():
        raise SkippedRow("equal_responses")
    return (
        PreferencePair(
            prompt=_checked(draft.prompt),
            chosen=_encodable(draft.response),
            rejected=_encodable(draft.rejected),
            margin=draft.margin,
        ),
    )


def prompts_in(draft: Draft) -> tuple[PromptRecord, ...]:
    """The prompt.

    Raises:
        SkippedRow: The row teaches nothing.
    """
    if is_empty_prompt(draft.prompt):
        raise SkippedRow("empty_prompt")
    reference = None if draft.reference is None else _encodable(draft.reference)
    return (PromptRecord(prompt=_checked(draft.prompt), reference=reference),)


def ranked_pairs(prompt: Prompt, responses: Sequence[str], values: Sequence[float]) -> tuple[PreferencePair, ...]:
    """All pairs of a ranking, each with the weight that lets the prompt count once.

    Comparisons of one ranking are correlated, and as separate examples they overfit (Ouyang et al. 2022, section 3.5,
    https://arxiv.org/abs/2203.02155), so n pairs weigh 1 / n each.

    Args:
        prompt: What the responses answer.
        responses: At least one.
        values: How good each is; higher is better, equal is a tie, which makes no pair.

    Returns:
        At least one pair, in the order of the responses.

    Raises:
        SkippedRow: A response is empty, or no two differ in text and value.
    """
    checked = _checked(prompt)
    for response in responses:
        _require(response, "empty_response")
        _encodable(response)
    pairs: dict[tuple[str, str], None] = {}
    for first, second in combinations(range(len(responses)), 2):
        better, worse = (first, second) if values[first] > values[second] else (second, first)
        if values[first] != values[second] and responses[first].strip() != responses[second].strip():
            pairs[responses[better], responses[worse]] = None
    if not pairs:
        raise SkippedRow("all_tied")
    weight = None if len(pairs) == 1 else 1.0 / len(pairs)
    ranking = None if len(pairs) == 1 else ranking_id(checked, responses, values)
    return tuple(
        PreferencePair(prompt=checked, chosen=chosen, rejected=rejected, weight=weight, ranking=ranking)
        for chosen, rejected in pairs
    )


def ranking_id(prompt: Prompt, responses: Sequence[str], values: Sequence[float]) -> str:
    """A name for a ranking: the same for the same order of the same responses, whatever the units of the values."""
    order = sorted(set(values))
    said = sorted((order.index(value), response) for response, value in zip(responses, values, strict=True))
    text = json.dumps([prompt_key(prompt), said], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pair_labeled(rows: Sequence[tuple[Row, Draft] | Skipped]) -> list[Read[PreferencePair] | Skipped]:
    """Pair the good responses to each prompt with the bad ones.

    Args:
        rows: Drafts with labels, or that the row was skipped.

    Returns:
        In the order of the rows. The first row of a prompt has its pairs.
    """
    drafts = {index: each for index, each in enumerate(rows) if not isinstance(each, Skipped)}
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, (_, draft) in drafts.items():
        groups[prompt_key(draft.prompt)].append(index)
    outcomes: dict[int, Read[PreferencePair] | Skipped] = {}
    for indices in groups.values():
        labels = [drafts[index][1].is_good for index in indices]
        if len(set(labels)) < 2:
            outcomes |= {index: Skipped(drafts[index][0], "no_counterpart") for index in indices}
            continue
        outcomes |= {index: Read(drafts[index][0], (), is_richer=True) for index in indices}
        row, draft = drafts[indices[0]]
        responses = [drafts[index][1].response for index in indices]
        try:
            pairs = ranked_pairs(draft.prompt, responses, [float(label is True) for label in labels])
            outcomes[indices[0]] = Read(row, pairs, is_richer=True)
        except SkippedRow as reason:
            outcomes |= {index: Skipped(drafts[index][0], str(reason)) for index in indices}
    return [each if isinstance(each, Skipped) else outcomes[index] for index, each in enumerate(rows)]


def require_length(draft: Draft) -> None:
    """Refuse a row longer than any step of training holds.

    Raises:
        SkippedRow: It is.
    """
    prompt = draft.prompt if isinstance(draft.prompt, str) else "".join(turn.content for turn in draft.prompt)
    responses = (*(draft.responses or (draft.response, draft.rejected)), draft.reference or "")
    if len(prompt) + sum(map(len, responses)) > MAX_ROW_CHARS:
        raise SkippedRow("too_long")


def require_usable_response(draft: Draft) -> None:
    """Refuse a labelled row whose prompt or response cannot be used, before it is paired with others.

    Raises:
        SkippedRow: It cannot.
    """
    _checked(draft.prompt)
    _require(draft.response, "empty_response")
    _encodable(draft.response)


def _require(text: str, reason: str) -> None:
    if not text.strip():
        raise SkippedRow(reason)


def _checked(prompt: Prompt) -> Prompt:
    if isinstance(prompt, str):
        return _encodable(prompt)
    if is_empty_prompt(prompt):
        raise SkippedRow("empty_prompt")
    check_turns(prompt)
    for turn in prompt:
        _encodable(turn.content)
    return prompt


def _encodable(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can spell (an emoji cut in two) but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SkippedRow("broken_unicode") from None
    return text
