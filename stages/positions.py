"""Whether what a stage is going to pass through a base fits the positions that it knows. Pure.

Beyond them a base with learned positions ends with an index error in the middle of training, and one with rotary
positions goes on with noise.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from data.errors import ConfigError


def known_positions(base_config: Any) -> int | None:
    """Longest sequence of a base by its configuration of transformers; None where that does not say."""
    value = getattr(base_config.get_text_config(), "max_position_embeddings", None)
    return None if value is None else int(value)


def check_examples(stage: str, lengths: Iterable[int], positions: int | None) -> None:
    """Refuse examples that are longer than the base knows positions for.

    Args:
        stage: Its name, for the message.
        lengths: Tokens of each example that is used.
        positions: What the base knows; None where it does not say.

    Raises:
        ConfigError: One is longer.
    """
    longest = max(lengths, default=0)
    if positions is not None and longest > positions:
        raise ConfigError(
            f"{stage}: the longest example has {longest} tokens, but the base knows {positions} positions; each "
            f"example has to fit; set `{stage}.max_length: {positions}`, which drops longer ones, or take another base"
        )


def check_prompts(stage: str, prompts: Iterable[Sequence[int]], max_new_tokens: int, positions: int | None) -> None:
    """Refuse prompts that leave no room for the longest response.

    Args:
        stage: Its name, for the message.
        prompts: Those that are used.
        max_new_tokens: Longest response.
        positions: What the base knows; None where it does not say.

    Raises:
        ConfigError: The longest prompt and the longest response do not fit.
    """
    longest = max((len(prompt) for prompt in prompts), default=0)
    if positions is None or longest + max_new_tokens <= positions:
        return
    room = positions - max_new_tokens
    drop = f"set `{stage}.max_prompt_tokens: {room}`, which drops longer prompts, or " if room > 0 else ""
    raise ConfigError(
        f"{stage}: the longest prompt has {longest} tokens, a response up to {max_new_tokens}, but the base knows "
        f"{positions} positions; the two have to fit together; {drop}lower `{stage}.rollout.max_new_tokens`"
    )
