"""A ready sequence classifier as a reward model: the `TextScoreModel` of `rewards.contract`.

Each episode gets the tokens that the model's own tokenizer makes of it, and the score is the logit that transformers'
`AutoModelForSequenceClassification` computes for them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.chat import plain_transcript
from data.errors import ConfigError, ModelError
from data.microbatches import microbatches_by_length
from data.schema import Message, Prompt
from stages.models.classifier_config import ClassifierConfig
from stages.models.loading import load_classifier
from stages.models.own_base import names_own_base
from stages.models.scalar_head import ScoreNormalization
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer

_SETTING = "reward_model.pretrained"
_SECTION = "pretrained"
_NO_LIMIT = 1 << 20
"""Tokenizers without a limit name a number far above this one."""


class ClassifierScoreModel:
    """Scores text."""

    def __init__(
        self,
        config: ClassifierConfig,
        normalization: ScoreNormalization,
        *,
        batch_size: int,
        device: str,
        config_dir: Path | None,
    ) -> None:
        """Load the model.

        Args:
            config: Which one, and how it is asked.
            normalization: Of its scores; none before they are measured.
            batch_size: Episodes in one forward pass.
            device: Where it is loaded.
            config_dir: Folder of the configuration file.

        Raises:
            ConfigError: It has no such label, or no chat template.
            ModelError: It cannot be loaded, or has no trained head.
        """
        with names_own_base(_SECTION):
            base = resolve_base(config.as_model(), config_dir)
            self._model = load_classifier(base, config.as_model(), device)
            self._tokenizer = load_tokenizer(base, config.as_model(), config_dir, needs_eos=False)
        self._normalization = normalization
        self._label = _label_of(config, self._model.config)
        self._form = _form_of(config, has_template=bool(self._tokenizer.chat_template))
        positions = getattr(self._model.config, "max_position_embeddings", None)
        limits = (config.max_length, positions, self._tokenizer.model_max_length)
        self.max_length = min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)
        # Decoders look for the last token that is no pad, and cannot where none is declared.
        self._batch_size = 1 if self._model.config.pad_token_id is None else batch_size
        self._device = device

    @property
    def num_members(self) -> int:
        """One: it is no ensemble."""
        return 1

    def score_texts_by_member(
        self, prompts: Sequence[Prompt], responses: Sequence[str], finished: Sequence[bool]
    ) -> list[list[float]]:
        """`score_texts` as the only member's."""
        return [self.score_texts(prompts, responses, finished)]

    def score_texts(self, prompts: Sequence[Prompt], responses: Sequence[str], finished: Sequence[bool]) -> list[float]:
        """Normalised score of each prompt with its response; whether it ended by itself says nothing here.

        Raises:
            ModelError: An episode is longer than `max_length`.
        """
        encoded = [self.encode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        lengths = [len(each["input_ids"]) for each in encoded]
        if self.max_length is not None and max(lengths, default=0) > self.max_length:
            raise ModelError(
                f"{_SETTING}: an episode has {max(lengths)} tokens in its tokenizer, and it reads {self.max_length}; "
                f"prompt and response have to fit; lower `max_prompt_tokens` or `max_new_tokens` of the stage"
            )
        scores = [0.0] * len(encoded)
        for rows in microbatches_by_length(lengths, max_rows=self._batch_size):
            for row, score in zip(rows, self._score([encoded[row] for row in rows]), strict=True):
                scores[row] = (score - self._normalization.shift) / self._normalization.scale
        return scores

    def encode(self, prompt: Prompt, response: str) -> dict[str, list[int]]:
        """The tokens of an episode, with what else the model wants to know of them."""
        turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
        if self._form == "chat":
            said = [turn.model_dump() for turn in (*turns, Message(role="assistant", content=response))]
            text = self._tokenizer.apply_chat_template(said, tokenize=False)
            return dict(self._tokenizer(text, add_special_tokens=False))
        question = prompt if isinstance(prompt, str) else _as_text(prompt)
        if self._form == "pair":
            return dict(self._tokenizer(question, response))
        return dict(self._tokenizer(question + response))

    @torch.no_grad()
    def _score(self, encoded: Sequence[dict[str, list[int]]]) -> list[float]:
        """Raw scores of one pass, padded on the right, where the position of a token does not move."""
        width = max(len(each["input_ids"]) for each in encoded)
        fill = {"input_ids": self._model.config.pad_token_id or 0, "attention_mask": 0, "token_type_ids": 0}
        batch = {
            name: torch.tensor([each[name] + [fill[name]] * (width - len(each[name])) for each in encoded])
            for name in fill
            if name in encoded[0]
        }
        inputs = {name: value.to(self._device) for name, value in batch.items()}
        scores: list[float] = self._model(**inputs).logits[:, self._label].float().tolist()
        return scores


def _as_text(prompt: Sequence[Message]) -> str:
    """A conversation for a model without a template: one question alone as it is, else in the plain form."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return plain_transcript(prompt)


def _form_of(config: ClassifierConfig, *, has_template: bool) -> str:
    if config.form == "auto":
        return "chat" if has_template else "text"
    if config.form == "chat" and not has_template:
        raise ConfigError(
            f"{_SETTING}.form=chat, but {config.base} brings no chat template; one is needed; name a file by "
            f"`{_SETTING}.chat_template`, or use `form: text`"
        )
    return config.form


def _label_of(config: ClassifierConfig, base: Any) -> int:
    names = {int(number): str(name) for number, name in base.id2label.items()}
    shown = ", ".join(f"{number} ({name})" for number, name in sorted(names.items()))
    if config.label is None:
        if len(names) == 1:
            return next(iter(names))
        raise ConfigError(
            f"{_SETTING}: {config.base} has {len(names)} labels; which of them is the score has to be said; set "
            f"`{_SETTING}.label` to one of {shown}"
        )
    for number, name in names.items():
        if config.label in (number, name):
            return number
    raise ConfigError(f"{_SETTING}.label={config.label!r}: {config.base} has no such label; it has {shown}; name one")
