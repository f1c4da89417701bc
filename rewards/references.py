"""Whether the prompts have the reference answers that a reward compares with."""

from collections.abc import Sequence

from data.errors import DataError
from data.schema import PromptRecord, prompt_key
from rewards.component_config import ComponentConfig

_GIVE = "name the column that holds them (`data.prompts.columns: {reference: answer}`)"


def check_references(components: Sequence[ComponentConfig], records: Sequence[PromptRecord]) -> None:
    """Check that each prompt has one reference, where a component compares with it.

    Args:
        components: Of the reward.
        records: Prompts to train on.

    Raises:
        DataError: A prompt has none, or two.
    """
    asking = [component.setting for component in components if component.needs_reference]
    if not asking:
        return
    needs = f"{', '.join(asking)} {'needs' if len(asking) == 1 else 'need'} the right answer to each"
    without = sum(record.reference is None for record in records)
    if without:
        raise DataError(
            f"data.prompts: {without} of {len(records)} prompts to train on have no `reference`; {needs}: {_GIVE}, "
            f"leave these prompts out, or remove the component"
        )
    answers: dict[str, str | None] = {}
    for record in records:
        if answers.setdefault(prompt_key(record.prompt), record.reference) != record.reference:
            prompt = record.prompt if isinstance(record.prompt, str) else record.prompt[-1].content
            raise DataError(
                f"data.prompts: the prompt {prompt[:80]!r} is there with two references, "
                f"{str(answers[prompt_key(record.prompt)])[:80]!r} and {str(record.reference)[:80]!r}; {needs}, and "
                f"one only: correct one of the rows"
            )
