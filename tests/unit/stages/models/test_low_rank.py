"""The low-rank sum beside PEFT's own layer: values and gradients, and what is left to PEFT."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.models.low_rank import add_low_rank, save_copies

SHAPES = [(5, 7), (2, 5, 7)]


def _pair(dtype: torch.dtype, *, alpha: float = 8.0, conv: bool = False, **lora: object) -> tuple[PeftModel, PeftModel]:
    """PEFT's layer and ours, with the same weights."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        linear: nn.Module = Conv1D(9, 7) if conv else nn.Linear(7, 9)
        settings = {"r": 4, "lora_alpha": alpha, "target_modules": ["0"], "fan_in_fan_out": conv} | lora
        model = get_peft_model(nn.Sequential(linear).to(dtype), LoraConfig(**settings))  # type: ignore[arg-type]
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        models.append(model)
    save_copies(models[1].modules())
    return models[0], models[1]


def _outcome(model: PeftModel, inputs: Tensor) -> dict[str, Tensor]:
    inputs = inputs.clone().requires_grad_()
    output = model(inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    assert inputs.grad is not None
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) >= 2
    return {"output": output.detach(), "inputs": inputs.grad, **gradients}


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_pefts_layer_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...], conv: bool) -> None:
    plain, ours = _pair(dtype, conv=conv)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected, found = _outcome(plain, inputs), _outcome(ours, inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_a_scale_that_is_no_power_of_two_differs_by_rounding() -> None:
    plain, ours = _pair(torch.float32, alpha=3.0)
    inputs = torch.randn((5, 7), generator=torch.Generator().manual_seed(1))
    expected, found = _outcome(plain, inputs), _outcome(ours, inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    arguments = (random(2, 3, 5), random(2, 3, 4), random(2, 4), random(5, 2))
    assert torch.autograd.gradcheck(lambda *tensors: add_low_rank(*tensors, 0.3), arguments)


def test_inputs_are_kept_in_their_own_type() -> None:
    """PEFT keeps a float32 copy for the backward, twice the bytes."""

    def kept(model: PeftModel) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter) and tensor.grad_fn is None and tensor.shape[-1] == 7:
                sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        inputs = torch.randn(3, 7).bfloat16()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(inputs)
        return sum(sizes.values())

    plain, ours = _pair(torch.bfloat16)
    assert kept(ours) == 3 * 7 * 2 and kept(plain) == 3 * 7 * 4


@pytest.mark.parametrize("case", ["disabled", "merged", "dropout", "dora", "two adapters", "bias"])
def test_all_but_the_plain_case_is_pefts_own(case: str) -> None:
    settings = {"dropout": {"lora_dropout": 0.5}, "dora": {"use_dora": True}, "bias": {"lora_bias": True}}
    plain, ours = _pair(torch.float32, **settings.get(case, {}))
    inputs = torch.randn((5, 7), generator=torch.Generator().manual_seed(1))
    without = ours(inputs)
    outputs = []
    for model in (plain, ours):
        if case == "two adapters":
            model.add_adapter("second", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
            model.base_model.set_adapter(["default", "second"])
            for name, parameter in model.named_parameters():
                if "second" in name:
                    parameter.data = torch.ones_like(parameter)
        if case == "merged":
            model.merge_adapter()
        torch.manual_seed(4)
        if case == "disabled":
            with model.disable_adapter():
                outputs.append(model(inputs))
        else:
            outputs.append(model(inputs))
    assert torch.equal(*outputs)
    if case in ("disabled", "two adapters"):
        assert not torch.allclose(outputs[1], without, atol=1e-2)
