"""Loads a trained reward model, wherever its base is: on the shared base, or apart with a base of its own.

All members of one that was trained as an ensemble sit on the same base.
"""

from pathlib import Path

from rewards.learned import LearnedReward, LearnedTextReward
from stages.models.adapters import check_reward_model
from stages.models.classifier import ClassifierScoreModel
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.own_base import names_own_base, read_classifier, read_own_base
from stages.models.reward_members import member_folders
from stages.models.scalar_head import ScoreNormalization
from stages.models.score_heads import load_heads
from stages.models.score_model import SharedBaseScoreModel
from stages.models.separate_score_model import SeparateScoreModel
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer

AnyScoreModel = SharedBaseScoreModel | SeparateScoreModel | ClassifierScoreModel

REWARD_ROLE = "reward"
"""Name of the reward model's adapter; those of other members are called `reward-member-2` and so on."""


def load_score_model(
    folder: Path,
    model: ModelConfig,
    shared_base: SharedBase,
    *,
    pad_token_id: int,
    batch_size: int,
    device: str,
    config_dir: Path | None,
    role: str = REWARD_ROLE,
) -> AnyScoreModel:
    """Load a reward model; its normalisation is applied where it has one.

    Args:
        folder: Artifact of the stage `reward_model`.
        model: The shared model section.
        shared_base: The shared base, which gets the role `reward` unless the reward model has a base of its own.
        pad_token_id: The policy's pad token, for a reward model on the shared base.
        batch_size: Episodes in one forward pass.
        device: Where a base of its own is loaded.
        config_dir: Folder of the configuration file.
        role: Name of its adapter, on whichever base; those of other members get `-member-2` and so on at the end.

    Raises:
        ModelError: The adapter does not fit its base, or that base cannot be loaded.
    """
    ready = read_classifier(folder)
    if ready is not None:
        normalization = ScoreNormalization.load(folder)
        return ClassifierScoreModel(ready, normalization, batch_size=batch_size, device=device, config_dir=config_dir)
    return load_trained_model(
        folder,
        model,
        shared_base,
        pad_token_id=pad_token_id,
        batch_size=batch_size,
        device=device,
        config_dir=config_dir,
        role=role,
    )


def load_trained_model(
    folder: Path,
    model: ModelConfig,
    shared_base: SharedBase,
    *,
    pad_token_id: int,
    batch_size: int,
    device: str,
    config_dir: Path | None,
    role: str = REWARD_ROLE,
) -> SharedBaseScoreModel | SeparateScoreModel:
    """Load a reward model that the stage trained. Arguments and errors as `load_score_model`."""
    check_reward_model(folder, model, config_dir=config_dir)
    folders = member_folders(folder)
    adapters = {role if number == 1 else f"{role}-member-{number}": path for number, path in enumerate(folders, 1)}
    heads = {name: load_heads(path) for name, path in adapters.items()}
    own = read_own_base(folder)
    if own is None:
        for name, path in adapters.items():
            shared_base.add_adapter(name, path, trainable=False)
        return SharedBaseScoreModel(shared_base, heads, pad_token_id=pad_token_id, batch_size=batch_size)
    with names_own_base():
        base = SharedBase(load_causal_lm(resolve_base(own, config_dir), own, device), own)
        for name, path in adapters.items():
            base.add_adapter(name, path, trainable=False)
        # The artifact's tokenizer holds the chat template that it was trained with.
        tokenizer = load_tokenizer(folder, own.model_copy(update={"chat_template": None}))
    return SeparateScoreModel(base, heads, tokenizer, batch_size=batch_size)


def as_reward(score_model: AnyScoreModel) -> LearnedReward | LearnedTextReward:
    """Judge episodes by a score model: by their token ids on the shared base, by their text on another one."""
    if isinstance(score_model, SeparateScoreModel | ClassifierScoreModel):
        return LearnedTextReward(score_model)
    return LearnedReward(score_model)
