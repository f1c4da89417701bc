"""The arithmetic of `benchmarks.memory` against hand formulas and against models that exist."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from benchmarks.memory import align, weights_rows
from benchmarks.memory_bytes import LiveBytes, base_tensors, nf4_bytes, storage_bytes
from benchmarks.memory_process import (
    load_roles,
    make_heads,
    measure_update,
    random_batch,
    resident_tensors,
    save_fresh_adapter,
)
from benchmarks.memory_shape import (
    SHAPES,
    Batch,
    Precision,
    Weights,
    model_section,
    shape_update,
    shape_weights,
)
from tests.tiny import tiny_model_dir

RANK = 4
HIDDEN, LAYERS, VOCAB = 64, 2, 320
# tests.tiny at width 64: four query heads and two key heads of 32, MLP of 128.
LINEAR = [(64, 128), (64, 64), (64, 64), (128, 64), (64, 128), (64, 128), (128, 64)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir("llama", tmp_path_factory.mktemp("tiny"), hidden=HIDDEN, layers=LAYERS, vocab=VOCAB)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    save_fresh_adapter(base, model_section(str(base), "bf16", RANK), folder)
    return folder


def tiny_base_bytes() -> int:
    """By hand: bf16 weights, and the two float32 copies of 16 rotary frequencies (of heads 32 wide)."""
    linear = LAYERS * sum(inputs * outputs for inputs, outputs in LINEAR)
    embeddings = 2 * VOCAB * HIDDEN
    norms = (2 * LAYERS + 1) * HIDDEN
    return 2 * (linear + embeddings + norms) + 2 * 16 * 4


def tiny_adapter_bytes() -> int:
    return 4 * RANK * LAYERS * sum(inputs + outputs for inputs, outputs in LINEAR)


HEADS = 4 * (HIDDEN + 1) + 4 * HIDDEN


def test_four_roles_on_one_8b_base_are_within_a_quarter_of_the_base() -> None:
    # Llama 3 8B: 8,030,261,248 parameters; 2 x 64 rotary frequencies in float32. Per block, input + output
    # features: q and o 8192, k and v 5120, gate, up and down 18432.
    base = 2 * 8_030_261_248 + 2 * 64 * 4
    adapter = 4 * 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    heads = 4 * 4097 + 4 * 4096
    found = shape_weights(SHAPES["llama-8b"], model_section("llama-8b", "bf16", 16))
    assert found.base == base
    assert found.adapters == dict.fromkeys(("policy", "reference", "critic", "reward"), adapter)
    assert found.shared == base + 4 * adapter + heads
    assert found.separate == 4 * base + 4 * adapter + heads
    assert found.gradients == 2 * adapter + 4 * 4097
    # Two moments, and a step count for each A and B of 7 x 32 modules in two adapters and for two of the head.
    assert found.optimizer == 2 * found.gradients + 4 * (2 * 2 * 7 * 32 + 2)
    assert found.shared <= 1.25 * found.base


def test_four_roles_on_one_8b_base_in_nf4_are_within_a_quarter_of_it() -> None:
    # Per weight 4 bits, 8 bits a block of 64, 32 bits a block of 64 x 256; the code books are 0.1 % of nothing.
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    other = 2 * (8_030_261_248 - linear)
    by_hand = linear * (0.5 + 1 / 64 + 4 / (64 * 256)) + other
    found = shape_weights(SHAPES["llama-8b"], model_section("llama-8b", "nf4", 16))
    assert found.base == pytest.approx(by_hand, rel=1e-4)
    assert found.shared <= 1.25 * found.base


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_weights_of_loaded_roles_are_those_of_the_arithmetic(layout: str, base: Path, adapter: Path) -> None:
    model = model_section(str(base), "bf16", RANK)
    roles = load_roles(base, adapter, model, layout)
    found = storage_bytes(resident_tensors(roles, make_heads(HIDDEN)))
    bases = 1 if layout == "shared" else 4
    assert found == bases * tiny_base_bytes() + 4 * tiny_adapter_bytes() + HEADS
    expected = shape_weights(AutoConfig.from_pretrained(base), model)
    assert found == (expected.shared if layout == "shared" else expected.separate)


def test_nf4_formula_is_what_bitsandbytes_stores(base: Path, adapter: Path) -> None:
    model = model_section(str(base), "nf4", RANK)
    roles = load_roles(base, adapter, model, "shared")
    found = storage_bytes(base_tensors(roles["policy"].peft_model))
    assert found == shape_weights(AutoConfig.from_pretrained(base), model).base


def test_nf4_bytes_of_one_module() -> None:
    # 64 x 128 weights: 4096 bytes of codes, 128 scales, one scale of scales, 273 constants.
    assert nf4_bytes(64 * 128) == 4096 + 128 + 4 * (1 + 16 + 256 + 1)
    # One weight more: half a byte, a block and no scale of scales more.
    assert nf4_bytes(64 * 128 + 1) - nf4_bytes(64 * 128) == 2


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_update_on_fake_tensors_needs_what_a_real_one_needs(
    precision: Precision, checkpointing: bool, tmp_path: Path
) -> None:
    # Wide, so that what the fake update leaves out is small beside the rest: the losses, the indices of the
    # response tokens, and with checkpointing a random state of 5 kB a block.
    wide = 256
    base, adapter = tiny_model_dir("llama", tmp_path / "base", hidden=wide), tmp_path / "adapter"
    batch = Batch(rows=4, prompt_tokens=48, response_tokens=16)
    model = model_section(str(base), precision, RANK)
    save_fresh_adapter(base, model, adapter)
    roles = load_roles(base, adapter, model, "shared")
    value_head = make_heads(wide)["critic"]
    measured = measure_update(roles, value_head, random_batch(batch), checkpointing=checkpointing)
    config = AutoConfig.from_pretrained(base)
    expected = shape_update(config, model, batch, checkpointing=checkpointing, device="cpu")
    assert measured.live.kept == pytest.approx(expected.kept, rel=0.05)
    assert measured.live.peak == pytest.approx(expected.peak, rel=0.05)
    weights = shape_weights(config, model)
    assert (measured.gradients, measured.optimizer) == (weights.gradients, weights.optimizer)


def test_checkpointing_keeps_little_of_each_block() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model("llama", **sizes, num_hidden_layers=4, vocab_size=320)
    model, batch = model_section("x", "bf16", RANK), Batch(4, 24, 16)
    without, checkpointed = (
        shape_update(config, model, batch, checkpointing=checkpointing, device="cpu") for checkpointing in (False, True)
    )
    assert checkpointed.kept < without.kept / 8
    assert checkpointed.peak < without.peak


def test_live_bytes_follow_storages() -> None:
    existing = torch.zeros(256)
    with LiveBytes([existing]) as live:
        first = existing * 2  # 1024 bytes
        second = first + 1  # 1024 bytes
        view = first.view(16, 16)[:8]
        in_place = second.add_(1)
        assert live.current == 2048
        del second, in_place
        assert live.current == 1024
        del first
        assert live.current == 1024  # the view keeps the storage
        del view
        assert live.current == 0
        existing.view(2, 128)
        assert (live.current, live.peak) == (0, 2048)


def test_storages_count_once() -> None:
    weights = torch.zeros(64)
    assert storage_bytes([weights, weights[:8], weights.view(8, 8), torch.zeros(3, dtype=torch.bfloat16)]) == 256 + 6
    meta = [torch.empty(64, device="meta"), torch.empty(64, device="meta")]
    assert storage_bytes([*meta, meta[0][:8]]) == 512


def test_table_of_weights() -> None:
    gib = 2**30
    adapters = dict.fromkeys(("policy", "reference", "critic", "reward"), gib // 8)
    weights = Weights(base=2 * gib, adapters=adapters, heads={}, gradients=gib // 4, optimizer=gib // 2)
    assert align([("GiB", "shared", "separate"), *weights_rows(weights)]).splitlines() == [
        "GiB                          shared  separate",
        "base                          2.000     8.000",
        "policy: adapter               0.125     0.125",
        "reference: adapter            0.125     0.125",
        "critic: adapter, value head   0.125     0.125",
        "reward: adapter, score head   0.125     0.125",
        "weights                       2.500     8.500",
        "weights / base                1.250     4.250",
        "gradients                     0.250     0.250",
        "optimizer state               0.500     0.500",
    ]
