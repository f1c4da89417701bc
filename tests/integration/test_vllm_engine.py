"""vLLM in this process runs the adapter that was just sent: real engine, tiny random Llama, float32."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.models.shared_base import SharedBase
from stages.rollouts.config import RolloutConfig
from stages.rollouts.contract import Rollout, RolloutEngine
from stages.rollouts.factory import build_engine
from stages.seeds import row_seeds
from tests.integration.vllm_parts import (
    EOS,
    PAD,
    PROMPTS,
    SAMPLING,
    base_with_policy,
    check_endings,
    largest_gap,
    model_section,
    move,
)
from tests.unit.stages.parts import stage_context


@pytest.fixture(params=["none", "nf4"])
def parts(
    request: pytest.FixtureRequest, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[SharedBase, RolloutEngine]]:
    """A shared base with a policy, and an engine for it, with full and with NF4 weights."""
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    model = model_section(tiny_llama, quantization=request.param)
    shared_base = base_with_policy(tiny_llama, model, tmp_path / "adapter")
    engine = build_engine(
        RolloutConfig(engine="vllm", max_new_tokens=SAMPLING.max_new_tokens),
        model,
        shared_base,
        base=tiny_llama,
        tokenizer=SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS),
        prompts=PROMPTS,
        batch_size=4,
        max_prompt_tokens=56,
        context=stage_context(tmp_path),
    )
    yield shared_base, engine
    engine.close()


def test_checklist_21_each_version_that_is_sent_is_the_one_that_acts(parts: tuple[SharedBase, RolloutEngine]) -> None:
    shared_base, engine = parts
    seeds = row_seeds(5, len(PROMPTS))
    with pytest.raises(ValueError, match="no policy is loaded"):
        engine.generate(PROMPTS, SAMPLING, seeds=seeds)
    stale: list[Rollout] = []
    for version in (1, 2, 3):
        loaded = engine.load_policy("policy")
        assert loaded.number == version
        assert loaded.metrics["sync/gap_rms"] < 1e-4
        assert ("sync/correlation" in loaded.metrics) == (version > 1)
        rollouts = engine.generate(PROMPTS, SAMPLING, seeds=seeds)
        # FACTS: float32 on both sides agrees to 2e-6; the step below moves the policy a thousand times further.
        assert largest_gap(shared_base, rollouts) < 1e-4
        assert rollouts != stale
        assert engine.generate(PROMPTS, SAMPLING, seeds=seeds) == rollouts
        stale = rollouts
        move(shared_base, 0.05, seed=version)  # no further: the likeliest tokens of two versions have to overlap
        # Not sent yet: the engine still acts with the version before, and the gap says so.
        assert largest_gap(shared_base, engine.generate(PROMPTS, SAMPLING, seeds=seeds)) > 1e-2
    check_endings(engine)
