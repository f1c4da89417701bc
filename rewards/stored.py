"""The rollouts of a step as one Parquet file: texts, token ids, and the raw parts of every score.

    <folder>/step-00000012.parquet

One row an episode. The file's metadata hold the components and their state at the start of the step, so that a file
alone gives its totals again, bit for bit (`combine(step.parts, step.components, step.state)`), and a folder gives those
of any other weights, bounds or normalising (`recomputed`). Files are written whole or not at all; the same rows give
the same bytes under one version of pyarrow.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data.errors import DataError
from data.schema import Message
from rewards.component_config import ComponentConfig
from rewards.composite import Combined, RewardState, combine, raw_columns
from rewards.composite_config import RewardConfig
from rewards.contract import Episode

_KEY = b"rlhf"
_RAW = "raw/"
_PREFIX, _SUFFIX = "step-", ".parquet"
_COMPONENTS: TypeAdapter[list[RewardConfig]] = TypeAdapter(list[RewardConfig])


@dataclass(frozen=True)
class StoredStep:
    """The episodes of one step with their scores.

    Attributes:
        step: Its number, from 1.
        episodes: In the order of the batch.
        components: That made the totals.
        state: At the start of the step.
        parts: Raw scores by the names of `rewards.composite.CompositeReward.columns`.
        totals: The sum of the weighed parts, before `ppo` shapes it (normalising, clipping, a missing EOS).
    """

    step: int
    episodes: list[Episode]
    components: Sequence[ComponentConfig]
    state: RewardState
    parts: dict[str, list[float]]
    totals: list[float]


def step_path(folder: Path, step: int) -> Path:
    """Where a step's file lies."""
    return folder / f"{_PREFIX}{step:08d}{_SUFFIX}"


def write_step(folder: Path, stored: StoredStep) -> Path:
    """Write a step's file, in place of one that is there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pa.list_(pa.int32())
    columns: dict[str, tuple[Any, list[Any]]] = {
        "prompt_text": (pa.string(), [each.prompt_text for each in stored.episodes]),
        "response_text": (pa.string(), [each.response_text for each in stored.episodes]),
        "finished": (pa.bool_(), [each.finished for each in stored.episodes]),
        "reference": (pa.string(), [each.reference for each in stored.episodes]),
        "prompt": (pa.string(), [_prompt_to_json(each) for each in stored.episodes]),
        "prompt_ids": (ids, [each.prompt_ids for each in stored.episodes]),
        "response_ids": (ids, [each.response_ids for each in stored.episodes]),
        **{f"{_RAW}{name}": (pa.float64(), scores) for name, scores in stored.parts.items()},
        "total": (pa.float64(), stored.totals),
    }
    described = {
        "step": stored.step,
        "components": [each.model_dump(mode="json") for each in stored.components],
        "state": stored.state.to_json(),
    }
    schema = pa.schema(
        [(name, kind) for name, (kind, _) in columns.items()],
        metadata={_KEY: json.dumps(described, sort_keys=True, ensure_ascii=False).encode()},
    )
    table = pa.table([pa.array(values, kind) for kind, values in columns.values()], schema=schema)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    path = step_path(folder, stored.step)
    folder.mkdir(parents=True, exist_ok=True)
    writing = folder / f".{path.name}"
    writing.write_bytes(buffer.getvalue())
    os.replace(writing, path)
    return path


def read_step(path: Path) -> StoredStep:
    """Read a step's file back.

    Raises:
        DataError: The file is damaged, or no such file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        described = json.loads(table.schema.metadata[_KEY])
        components = _COMPONENTS.validate_python(described["components"])
        values = table.to_pydict()
        episodes = [
            Episode(
                prompt_text, response_text, tuple(prompt_ids), tuple(response_ids), _prompt_from_json(prompt),
                finished, reference,
            )
            for prompt_text, response_text, prompt_ids, response_ids, prompt, finished, reference in zip(
                *(values[name] for name in (
                    "prompt_text", "response_text", "prompt_ids", "response_ids", "prompt", "finished", "reference",
                )),
                strict=True,
            )
        ]  # fmt: skip
        parts = {name.removeprefix(_RAW): scores for name, scores in values.items() if name.startswith(_RAW)}
        for component in components:
            raw_columns(component, parts)
        state = RewardState.from_json(described["state"])
        return StoredStep(described["step"], episodes, components, state, parts, values["total"])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: no rollouts of a PPO step ({error}); a file that PPO wrote is needed: leave it out, or let the "
            f"run write it again"
        ) from error


def read_steps(folder: Path) -> Iterator[StoredStep]:
    """The steps of a folder, one after the other, so that one is in memory at a time."""
    for path in sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}")):
        yield read_step(path)


def recomputed(
    folder: Path, components: Sequence[ComponentConfig] | None = None
) -> Iterator[tuple[StoredStep, Combined]]:
    """Every step of a folder with what its raw scores give.

    Args:
        folder: `rollouts` of a PPO stage.
        components: Other weights, bounds or normalising of the same raw scores, from the first step on; None gives what
            PPO had, each step from the state that it started with.

    Raises:
        DataError: A file is damaged, or a component has no raw scores there.
    """
    state: RewardState | None = None
    for stored in read_steps(folder):
        if components is None:
            yield stored, combine(stored.parts, stored.components, stored.state)
            continue
        for component in components:
            try:
                raw_columns(component, stored.parts)
            except KeyError as error:
                raise DataError(
                    f"{folder}: step {stored.step} has no raw scores of `{error.args[0]}`, but of "
                    f"{', '.join(f'`{part}`' for part in stored.parts)}; only what judged can be weighed anew: name "
                    f"the component as it was, or judge the episodes by it"
                ) from error
        combined = combine(stored.parts, components, state)
        state = combined.state
        yield stored, combined


def cut_steps(folder: Path, step: int) -> None:
    """Drop the files after a step, of a run that goes on from there, and what a killed one left."""
    for path in (*folder.glob(f"{_PREFIX}*{_SUFFIX}"), *folder.glob(f".{_PREFIX}*")):
        if path.name.startswith(".") or path.name > step_path(folder, step).name:
            path.unlink()


def _prompt_to_json(episode: Episode) -> str:
    prompt = episode.prompt
    turns = prompt if isinstance(prompt, str) else [turn.model_dump() for turn in prompt]
    return json.dumps(turns, ensure_ascii=False, sort_keys=True)


def _prompt_from_json(text: str) -> Any:
    turns = json.loads(text)
    return turns if isinstance(turns, str) else tuple(Message.model_validate(turn) for turn in turns)
