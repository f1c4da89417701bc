"""What can be known to be wrong before anything starts: unreadable data, a missing base, an empty store."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from data.config import source_parts
from data.errors import UserError
from data.formats import parse_sources
from data.parsed import NothingLeft
from data.quarantine import QUARANTINE, check_share, count_reasons
from data.schema import KINDS
from data.sources import read_rows
from pipeline.augmentation_checks import augmentation_problems
from pipeline.config import PipelineConfig
from pipeline.environment import environment_problems
from pipeline.graph import stage_inputs
from pipeline.judge_checks import judge_problems
from pipeline.model_sizes import size_problems
from pipeline.reward_checks import reward_problems
from pipeline.session import RunPlan
from pipeline.store import lookup, named_adapters, stage_fingerprint
from pipeline.tasks import missing_in_store
from stages.contract import Artifact, StageName
from stages.models.adapters import check_adapter, check_reward_model
from stages.models.own_base import names_own_base
from stages.models.reward_members import num_members
from stages.models.sources import check_base, check_classifier
from stages.storage import check_room

LEAST_ROOM_BYTES = 64 << 20
"""Twice the artifacts of the quickstart (29 MiB, docs/benchmarks.md): a run of any base needs no less."""

_ROWS_CHECKED = 2000  # a tenth of a second


def check_inputs(config: PipelineConfig, config_dir: Path | None) -> None:
    """Check this machine, the room for results, that each base exists and that each source's first rows can be read.

    Imports nothing heavy.

    Raises:
        UserError: With all problems found, one a line.
    """
    problems = environment_problems(config)
    try:
        check_room(config.output_path(), LEAST_ROOM_BYTES)
    except UserError as error:
        problems.append(str(error))
    try:
        check_base(config.model, config_dir)
    except UserError as error:
        problems.append(str(error))
    if config.own_reward_base is not None:
        try:
            with names_own_base(config.own_reward_key.removeprefix("reward_model.")):
                (check_classifier if _brings_one(config) else check_base)(config.own_reward_base, config_dir)
        except UserError as error:
            problems.append(str(error))
    problems += reward_problems(config, config_dir)
    problems += judge_problems(config, config_dir)
    problems += _preferences_problems(config, config_dir)
    problems += size_problems(config, config_dir)
    problems += _source_problems(config, config_dir)
    problems += augmentation_problems(config.data, config_dir)
    prompts = config.data.prompts or config.data.preferences or config.data.demonstrations
    if config.evaluation is not None and prompts is not None and not prompts.holds_out:
        kind = next(kind for kind in reversed(KINDS) if getattr(config.data, kind) is not None)
        problems.append(
            f"data.{kind}.held_out: 0 holds no prompt out; `evaluation` needs two or more at the end of the run; raise "
            f"it, or set `evaluation: null`"
        )
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def _brings_one(config: PipelineConfig) -> bool:
    """Whether the reward model is a ready one."""
    return config.reward_model is not None and config.reward_model.pretrained is not None


def _source_problems(config: PipelineConfig, config_dir: Path | None) -> list[str]:
    """What is wrong with the beginnings of the sources on this machine; the `data` stage reads those of the hub."""
    problems = []
    for kind, key, part in source_parts(config.data):
        if part.hub is not None:
            continue
        quarantine = config.output_path() / f"{key.removeprefix('data.')}.{QUARANTINE}"
        with suppress(OSError):
            quarantine.unlink()  # of an earlier try
        try:
            rows = islice(read_rows(part, config_dir, name=key), _ROWS_CHECKED)
            (parsed,) = parse_sources([(key, part, rows)], kind, quarantine=quarantine)
            if parsed.num_rows < _ROWS_CHECKED:  # of a longer source, the `data` stage counts all rows
                share = config.data.max_skipped_share
                check_share(parsed.quarantine, parsed.num_rows, share, name=key, quarantine=quarantine)
        except NothingLeft as error:
            # Where the good responses come first, their bad counterparts lie behind the rows read here.
            if len(error.quarantine) < _ROWS_CHECKED or set(count_reasons(error.quarantine)) != {"no_counterpart"}:
                problems.append(str(error))
        except UserError as error:
            problems.append(str(error))
    return problems


def _preferences_problems(config: PipelineConfig, config_dir: Path | None) -> Iterator[str]:
    """Adapters that the `preferences` section names: not there, damaged, of another base, or too few to disagree."""
    if config.preferences is None:
        return
    counts = []
    try:
        for key, folder in named_adapters(config.preferences, config_dir):
            if key == "policy":
                check_adapter(folder, config.model, config_dir=config_dir)
            else:
                check_reward_model(folder, config.model, config_dir=config_dir)
                counts.append(num_members(folder))
    except UserError as error:
        yield str(error)
        return
    if counts == [1]:
        yield (
            "preferences.selection.reward_models: names one reward model of one member, which never disagrees with "
            "itself; name another one, too, or one that was trained with `reward_model.ensemble`"
        )


def stored_stages(config: PipelineConfig, config_dir: Path | None, store_dir: Path) -> dict[StageName, Artifact | None]:
    """What the store has for each stage; None from the first stage on that it cannot supply."""
    found: dict[StageName, Artifact | None] = {}
    for stage, roles in stage_inputs(config).items():
        inputs = {role: found[source] for role, source in roles.items()}
        present = {role: artifact for role, artifact in inputs.items() if artifact is not None}
        found[stage] = None
        if len(present) == len(inputs):
            hit = lookup(store_dir, stage_fingerprint(config, stage, present, config_dir))
            found[stage] = hit[0] if hit is not None else None
    return found


def check_stored(config: PipelineConfig, config_dir: Path | None, store_dir: Path, plan: RunPlan) -> None:
    """Check that the stages that must not be executed are in the store.

    Raises:
        ConfigError: One of them is not.
    """
    if not plan.stored:
        return
    found = stored_stages(config, config_dir, store_dir)
    for stage in found:
        if stage in plan.stored and found[stage] is None:
            raise missing_in_store(stage)
