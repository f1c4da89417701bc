"""Which stage feeds which: the inputs of each enabled stage by role."""

from pipeline.config import PipelineConfig
from stages.contract import StageName


def stage_inputs(config: PipelineConfig) -> dict[StageName, dict[str, StageName]]:
    """For each enabled stage, in order, the stage that makes each of its inputs, by role."""
    reward_model: dict[str, StageName] = {"dataset": "data", "policy": "sft"}
    if config.preferences is not None:
        reward_model["preferences"] = "preferences"
    inputs: dict[StageName, dict[str, StageName]] = {
        "data": {},
        "sft": {"dataset": "data"},
        "preferences": {"dataset": "data", "policy": "sft"},
        "reward_model": reward_model,
        "ppo": {"dataset": "data", "policy": "sft", "reward_model": "reward_model"},
        "evaluation": {
            "dataset": "data",
            "reference": "sft",
            "policy": "ppo",
            "reward_model": "reward_model",
        },
    }
    return {stage: inputs[stage] for stage in config.enabled_stages()}


def upstream(config: PipelineConfig, stage: StageName) -> tuple[StageName, ...]:
    """All stages that `stage` is made from, directly or not, in order."""
    inputs = stage_inputs(config)
    needed: set[StageName] = set()
    waiting = list(inputs[stage].values())
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting.extend(inputs[name].values())
    return tuple(name for name in inputs if name in needed)


def downstream(config: PipelineConfig, stage: StageName) -> tuple[StageName, ...]:
    """All stages that are made from `stage`, directly or not, in order."""
    return tuple(name for name in stage_inputs(config) if stage in upstream(config, name))
