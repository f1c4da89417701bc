"""The ways that `benchmarks.passes` compares do the same thing; what it prints of them follows from their figures."""

from pathlib import Path

import pytest
import torch

from benchmarks.memory_process import save_fresh_adapter
from benchmarks.passes import Way, generate_ways, head_ways, measure, microbatch_ways, mixed_episodes, table
from data.collators import collate_episodes
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from tests.tiny import tiny_model_dir


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SharedBase:
    folder = tiny_model_dir("llama", tmp_path_factory.mktemp("tiny"))
    model = ModelConfig.model_validate({"base": str(folder), "dtype": "float32"})
    adapter: Path = tmp_path_factory.mktemp("adapter")
    save_fresh_adapter(folder, model, adapter)
    shared_base = SharedBase(load_causal_lm(folder, model, "cpu"), model)
    shared_base.add_adapter("policy", adapter, trainable=True)
    return shared_base


def gradients(base: SharedBase, way: Way) -> list[torch.Tensor]:
    for parameter in base.parameters("policy"):
        parameter.grad = None
    way.run()
    return [parameter.grad.clone() for parameter in base.parameters("policy") if parameter.grad is not None]


def test_ways_of_the_head_agree_on_values_and_gradients(base: SharedBase) -> None:
    episodes = mixed_episodes(4, shortest=2, longest=9)
    batch = collate_episodes([prompt for prompt, _ in episodes], [response for _, response in episodes], 0)
    ways = head_ways(base, batch)
    measure(ways, base, rounds=2)
    assert [len(way.seconds) for way in ways] == [2, 2]
    assert ways[0].run().numel() == sum(len(response) for _, response in episodes)
    assert max(way.difference for way in ways) < 1e-5
    whole, chunked = (gradients(base, way) for way in ways)
    assert whole and len(whole) == len(chunked)
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=1e-4)


def test_ways_of_cutting_agree_and_tell_their_padding(base: SharedBase) -> None:
    """Prompts of 8 tokens. Responses, shuffled: 2 4 6 8; longest rows are 16 tokens, so a pass has at most 32."""
    episodes = mixed_episodes(4, shortest=2, longest=8)
    assert sorted(len(response) for _, response in episodes) == [2, 4, 6, 8]
    in_order, by_length, by_tokens = microbatch_ways(base, episodes, max_rows=2)
    # Of rows 10 12 14 16: passes 12 + 12 and 16 + 16, 52 of 56 positions are real. At most 32 tokens: the same.
    assert by_length.padding == by_tokens.padding == pytest.approx(4 / 56)
    assert in_order.padding is not None and in_order.padding >= 4 / 56
    measure([in_order, by_length, by_tokens], base, rounds=1)
    assert max(by_length.difference, by_tokens.difference) < 1e-5


def test_a_wrong_way_shows_as_a_difference(base: SharedBase) -> None:
    right = microbatch_ways(base, mixed_episodes(4, shortest=2, longest=8), max_rows=2)[0]
    wrong = Way("wrong", lambda: right.run() + 1)
    measure([right, wrong], base, rounds=1)
    assert wrong.difference == pytest.approx(1)


def test_calls_of_generate_agree(base: SharedBase) -> None:
    prompts = [prompt for prompt, _ in mixed_episodes(5, shortest=1, longest=2)]
    ways = generate_ways(base, prompts, max_new_tokens=4, eos_token_id=1, call_sizes=[2, 5])
    measure(ways, base, rounds=1)
    assert [way.name for way in ways] == ["calls of 2", "calls of 5"]
    assert ways[0].run().shape == (5,) and ways[1].difference == 0


def test_the_table() -> None:
    way = Way("a way", lambda: torch.zeros(1), padding=0.25, seconds=[3, 1, 2], peak_bytes=2**29, difference=0.001)
    assert table([way]).splitlines()[-1] == "| a way | 2.00 (1.00 to 3.00) | 0.50 | 25% | 1.0e-03 |"
