"""What was sampled, and how it is kept on disk while people judge it. Imports nothing heavy."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data.errors import ArtifactError
from data.schema import SPLITS, Message, Prompt, Split
from rewards.contract import Episode
from stages.artifacts import file_digest, write_json
from stages.preferences.contract import Candidates

_EPISODES, _FACTS = "candidates.jsonl", "sampled.json"
_PROMPT: TypeAdapter[Prompt] = TypeAdapter(Prompt)


@dataclass(frozen=True)
class Sampled:
    """The responses of a stage.

    Attributes:
        candidates: By split, one entry a prompt.
        dropped: By split, prompts that were too long.
        disagreements: By split, one entry a prompt: what the reward models disagree on, by pair; None where none
            were asked.
    """

    candidates: Mapping[Split, list[Candidates]]
    dropped: Mapping[Split, int]
    disagreements: Mapping[Split, list[tuple[float, ...]]] | None = None


def sampling_key(parts: Mapping[str, Any]) -> str:
    """Identify what was to be sampled: settings, model, inputs and seed.

    The code is no part of it: a new version of rlhf in the middle of the labeling must not take the responses away
    from under the labels.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def keep_sampled(folder: Path, key: str, sampled: Sampled) -> None:
    """Write it to disk, whole or not at all.

    Args:
        folder: Made, or replaced, by one rename.
        key: Of `sampling_key`.
        sampled: What to keep.
    """
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    with (new / _EPISODES).open("w", encoding="utf-8", newline="\n") as file:
        for split in SPLITS:
            for number, candidates in enumerate(sampled.candidates[split]):
                disagreement = None if sampled.disagreements is None else sampled.disagreements[split][number]
                file.write(json.dumps(_row(split, candidates, disagreement), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    facts = {"key": key, "dropped": dict(sampled.dropped), "sha256": file_digest(new / _EPISODES)}
    write_json(new / _FACTS, facts)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def kept_sampled(folder: Path, key: str) -> Sampled | None:
    """Read it back; None where nothing was kept, or something else.

    Raises:
        ArtifactError: The files are not as they were written.
    """
    try:
        facts = json.loads((folder / _FACTS).read_bytes())
        if facts["key"] != key:
            return None
        if file_digest(folder / _EPISODES) != facts["sha256"]:
            raise ValueError(f"{_EPISODES} was changed")
        rows = [json.loads(line) for line in (folder / _EPISODES).read_text(encoding="utf-8").split("\n") if line]
        found = [row["disagreement"] for row in rows if row["disagreement"] is not None]
        return Sampled(
            {split: [_candidates(row) for row in rows if row["split"] == split] for split in SPLITS},
            {split: int(facts["dropped"][split]) for split in SPLITS},
            {split: [tuple(row["disagreement"]) for row in rows if row["split"] == split] for split in SPLITS}
            if found
            else None,
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder}: the responses that are being labeled cannot be read ({error}); they must be as the stage "
            f"wrote them: bring the folder back from a copy, or remove it to sample, and label, anew"
        ) from error


def _row(split: Split, candidates: Candidates, disagreement: tuple[float, ...] | None) -> dict[str, Any]:
    prompt = candidates.prompt
    episodes = [asdict(episode) for episode in candidates.episodes]
    for episode in episodes:
        del episode["prompt"]
    return {
        "split": split,
        "prompt": prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt],
        "episodes": episodes,
        "disagreement": disagreement,
    }


def _candidates(row: Mapping[str, Any]) -> Candidates:
    prompt = _PROMPT.validate_python(
        row["prompt"] if isinstance(row["prompt"], str) else tuple(Message(**turn) for turn in row["prompt"])
    )
    return Candidates(
        tuple(
            Episode(
                **{
                    **episode,
                    "prompt": prompt,
                    "prompt_ids": tuple(episode["prompt_ids"]),
                    "response_ids": tuple(episode["response_ids"]),
                }
            )
            for episode in row["episodes"]
        )
    )
