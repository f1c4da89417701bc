"""The cached trunk beside the plain pass, for six families in three precisions; and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from data.collators import PromptResponseBatch, collate_episodes
from data.errors import ModelError
from stages.models.adapters import adapter_config
from stages.models.config import ModelConfig
from stages.models.scalar_head import ValueHead
from stages.models.shared_base import SharedBase
from stages.models.trunk import Trunk, TrunkCache
from tests.tiny import Family, tiny_model_dir
from tests.unit.stages.models.separate import CASES, Precision, precise_config
from tests.unit.stages.parts import FAMILIES, PAD, ROLES, Folders, all_roles, random_rows, save_random_adapter

PROMPTS = random_rows([5, 2, 8], seed=11)
RESPONSES = random_rows([4, 7, 1], seed=12)
BLOCKS, LAST = 5, 2
FoldersOf = Callable[[Family], Folders]


@pytest.fixture(scope="module")
def upper_folders(tmp_path_factory: pytest.TempPathFactory) -> FoldersOf:
    """Give a base of five blocks and adapters on the upper two."""
    built: dict[Family, Folders] = {}

    def build(family: Family) -> Folders:
        if family not in built:
            root = tmp_path_factory.mktemp(f"upper-{family}")
            base = tiny_model_dir(family, root / "base", layers=BLOCKS)
            built[family] = Folders(base, root / "policy", root / "reward")
            save_random_adapter(built[family].policy, base, "causal_lm", seed=1, layers={"last": LAST})
            save_random_adapter(built[family].reward, base, "seq_cls", seed=2, layers={"last": LAST})
        return built[family]

    return build


def _upper(folders: Folders, precision: Precision = "float32") -> SharedBase:
    settings = precise_config(folders.base, precision).model_dump()
    settings["tuning"]["layers"] = {"last": LAST}
    return all_roles(folders, ModelConfig.model_validate(settings))


def _batch(rows: slice = slice(None)) -> PromptResponseBatch:
    return collate_episodes(PROMPTS[rows], RESPONSES[rows], PAD)


def _figures(shared: SharedBase, batch: PromptResponseBatch) -> dict[str, Tensor]:
    """Log-probabilities, entropy and values under every role, and the gradients of policy and critic."""
    found: dict[str, Tensor] = {}
    torch.manual_seed(0)
    head = ValueHead(shared.hidden_size)
    nn.init.normal_(head.linear.weight)
    for role in ROLES:
        with shared.role(role):
            logprobs, entropy = shared.response_logprobs(batch, temperature=0.7)
            values = head(shared.response_hidden_states(batch))[batch.response_mask]
            found |= {f"{role}/logprobs": logprobs, f"{role}/entropy": entropy, f"{role}/values": values}
            if role in ("policy", "critic"):
                (logprobs.square().sum() + values.square().sum()).backward()
                for number, parameter in enumerate(shared.parameters(role)):
                    assert parameter.grad is not None
                    found[f"{role}/gradient {number}"] = parameter.grad
                    parameter.grad = None
    return {name: value.detach().clone() for name, value in found.items()}


def _spied(monkeypatch: pytest.MonkeyPatch) -> list[TrunkCache]:
    """The caches that are made."""
    made: list[TrunkCache] = []
    original = TrunkCache.__init__

    def remember(self: TrunkCache, trunk: Trunk) -> None:
        original(self, trunk)
        made.append(self)

    monkeypatch.setattr(TrunkCache, "__init__", remember)
    return made


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_outputs_and_gradients_are_bit_for_bit_those_without_the_cache(
    family: Family, precision: Precision, upper_folders: FoldersOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, batch = _upper(upper_folders(family), precision), _batch()
    expected = _figures(shared, batch)
    made = _spied(monkeypatch)
    assert shared.enable_trunk_cache() == BLOCKS - LAST
    with shared.cached_trunk():
        for _ in range(2):
            found = _figures(shared, batch)
            assert found.keys() == expected.keys()
            assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert made[0].num_computed == len(PROMPTS), "the trunk passes once, for four roles, twice"
    assert not torch.equal(expected["policy/logprobs"], expected["critic/logprobs"])


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_start_from_the_cached_trunk(family: Family, upper_folders: FoldersOf) -> None:
    shared, batch = _upper(upper_folders(family)), _batch()
    expected = _figures(shared, batch)
    shared.enable_trunk_cache()
    shared.enable_gradient_checkpointing()
    with shared.cached_trunk():
        found = _figures(shared, batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)


def test_a_cached_pass_runs_only_the_blocks_above(upper_folders: FoldersOf) -> None:
    shared = _upper(upper_folders("llama"))
    shared.enable_trunk_cache()
    ran: list[int] = []
    for number, block in enumerate(shared.peft_model.get_base_model().model.layers):
        # A replaced block does not run its attention.
        block.self_attn.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    with shared.cached_trunk(), shared.role("policy"):
        shared.hidden_states(*_batch()[:2])
        assert ran == [0, 1, 2, 3, 4]
        ran.clear()
        shared.hidden_states(*_batch()[:2])
        assert ran == [3, 4]
        ran.clear()
    shared.hidden_states(*_batch()[:2])
    assert ran == [0, 1, 2, 3, 4], "outside nothing is cached, and all blocks are themselves again"


def test_rows_serve_other_microbatches(upper_folders: FoldersOf, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = _upper(upper_folders("llama"))
    alone = [_figures(shared, _batch(slice(row, row + 1))) for row in range(3)]
    shared.enable_trunk_cache()
    made = _spied(monkeypatch)
    with shared.cached_trunk(), torch.no_grad(), shared.role("reward"):
        shared.hidden_states(*_batch()[:2])
        for row, expected in enumerate(alone):
            batch = _batch(slice(row, row + 1))
            found, _ = shared.response_logprobs(batch, temperature=0.7)
            torch.testing.assert_close(found, expected["reward/logprobs"], rtol=0, atol=1e-5)
        assert made[0].num_computed == 3
        shared.hidden_states(*collate_episodes(PROMPTS[:1], [[7, 8]], PAD)[:2])
        assert made[0].num_computed == 4, "another response is another sequence"


def test_the_pad_token_within_a_sequence_is_a_token(upper_folders: FoldersOf) -> None:
    """Rows are told apart by their real tokens, and a real token may be the pad token."""
    shared = _upper(upper_folders("llama"))
    batch = collate_episodes([[20, 21], [PAD, 20, 21]], [[22], [22]], PAD)
    with torch.no_grad(), shared.role("policy"):
        expected = shared.hidden_states(*batch[:2])
        shared.enable_trunk_cache()
        with shared.cached_trunk():
            for _ in range(2):
                found = shared.hidden_states(*batch[:2])
                assert torch.equal(found[batch.attention_mask], expected[batch.attention_mask])
    assert not torch.allclose(expected[0, -1], expected[1, -1], atol=1e-3)


def test_each_context_starts_empty(upper_folders: FoldersOf) -> None:
    shared = _upper(upper_folders("llama"))
    shared.enable_trunk_cache()
    block = shared.peft_model.get_base_model().model.layers[0]
    with torch.no_grad(), shared.role("policy"):
        with shared.cached_trunk():
            before = shared.hidden_states(*_batch()[:2])
        block.mlp.down_proj.weight.mul_(1.5)  # nobody does that; it shows where the numbers come from
        with shared.cached_trunk():
            after = shared.hidden_states(*_batch()[:2])
    assert not torch.allclose(before, after, atol=1e-3)


def test_adapters_on_all_blocks_are_refused(folders: FoldersOf) -> None:
    with pytest.raises(ModelError, match="lowest block already.*`ppo.cache_trunk: false`"):
        all_roles(folders("llama")).enable_trunk_cache()


def test_roles_that_begin_at_different_blocks_are_refused(upper_folders: FoldersOf) -> None:
    shared = _upper(upper_folders("llama"))
    shared.peft_model.add_adapter("deeper", LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1]))
    with pytest.raises(ModelError, match=r"begin at different blocks .*'deeper': 1.*'policy': 3"):
        shared.enable_trunk_cache()


def test_an_adapter_of_the_embedding_is_refused(upper_folders: FoldersOf) -> None:
    shared = _upper(upper_folders("llama"))
    shared.peft_model.add_adapter("words", LoraConfig(r=2, target_modules=["embed_tokens"]))
    with pytest.raises(ModelError, match="role 'words' sits on 'model.embed_tokens', outside the model's blocks"):
        shared.enable_trunk_cache()


def test_prompt_methods_are_refused_before_they_come_here(upper_folders: FoldersOf, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}', encoding="utf-8")
    with pytest.raises(ModelError, match="peft_type is 'PREFIX_TUNING'. A LoRA adapter is needed"):
        adapter_config(tmp_path)


@pytest.mark.parametrize("kind", ["tuple", "state"])
def test_a_model_that_cannot_be_cut_is_refused(upper_folders: FoldersOf, kind: str) -> None:
    """Blocks of some families hand on more than one tensor, or leave something behind for a later one."""
    shared = _upper(upper_folders("llama"))
    inner: Any = shared.peft_model.get_base_model().model
    passed: list[Tensor] = []

    def odd(original: Callable[..., Tensor]) -> Callable[..., Any]:
        def forward(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            if kind == "tuple":
                output = original(hidden[0] if isinstance(hidden, tuple) else hidden, *args, **kwargs)
                return output, output
            passed.append(hidden)
            return original(hidden, *args, **kwargs) * len(passed)

        return forward

    for block in inner.layers:
        block.forward = odd(block.forward)
    inner.norm.register_forward_pre_hook(lambda _, args: args[0] if isinstance(args[0], tuple) else args)
    before = [block.forward for block in inner.layers]
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be cut below block 3"):
        shared.enable_trunk_cache()
    assert [block.forward for block in inner.layers] == before, "what others put on a block comes back"
