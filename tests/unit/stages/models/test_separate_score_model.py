"""A reward model with a base and a tokenizer of its own: equal to transformers with PEFT, and loaded from its artifact.

The policy is a Llama throughout. What the scores are compared with loads the artifact by `PeftModel`, puts tokens
together by hand, passes each row alone and normalises by hand.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data.errors import ModelError
from data.schema import Message
from rewards.contract import Episode
from stages.models.adapters import check_reward_model
from stages.models.loading import load_base_config, load_causal_lm
from stages.models.own_base import BASE_MODEL_FILE, read_own_base, save_own_base
from stages.models.reward_loading import as_reward, load_score_model
from stages.models.scalar_head import ScoreNormalization
from stages.models.score_model import SharedBaseScoreModel
from stages.models.separate_score_model import SeparateScoreModel
from stages.models.shared_base import SharedBase
from stages.models.tokenizer import choose_pad_token, load_tokenizer, save_tokenizer
from tests.tiny import Family
from tests.unit.stages.parts import FoldersOf, model_config

SHIFT, SCALE = 0.3, 2.0
PROMPTS = ["The coffee", "Anna says of the room, after a long and sad evening:", "I love", "We waited"]
RESPONSES = [" is great and the staff is kind.", " cold", " the view and the quiet street", ""]
FINISHED = [True, True, False, True]

Artifact = Callable[[Family], Path]


@pytest.fixture(scope="module")
def policy(folders: FoldersOf) -> SharedBase:
    """Give the policy's base, without an adapter."""
    model = model_config(folders("llama").base)
    return SharedBase(load_causal_lm(model.base, model, "cpu"), model)


@pytest.fixture(scope="module")
def artifact(folders: FoldersOf, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Give a reward model of a family as its stage leaves it: adapter, tokenizer with a pad, base, normalisation."""

    def build(family: Family) -> Path:
        own = folders(family)
        folder = Path(shutil.copytree(own.reward, tmp_path_factory.mktemp("reward") / family))
        model = model_config(own.base)
        tokenizer = load_tokenizer(own.base, model)
        choose_pad_token(tokenizer, load_base_config(own.base, model).vocab_size, tokenizer.encode(" ".join(RESPONSES)))
        save_tokenizer(tokenizer, folder)
        save_own_base(folder, model)
        ScoreNormalization(SHIFT, SCALE, 8).save(folder)
        return folder

    return build


def _load(folder: Path, policy: SharedBase, folders: FoldersOf, batch_size: int = 3) -> SeparateScoreModel:
    model = model_config(folders("llama").base)
    loaded = load_score_model(
        folder, model, policy, pad_token_id=3, batch_size=batch_size, device="cpu", config_dir=None
    )
    assert isinstance(loaded, SeparateScoreModel)
    return loaded


def _by_hand(folder: Path, base: Path, rows: list[list[int]]) -> list[float]:
    """Normalised scores of rows of ids by transformers and PEFT, a row at a time."""
    pad = AutoTokenizer.from_pretrained(folder).pad_token_id
    judge = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, pad_token_id=pad, dtype=torch.float32
    )
    judge = PeftModel.from_pretrained(judge, folder).eval()
    with torch.no_grad():
        return [(float(judge(torch.tensor([row])).logits[0, 0]) - SHIFT) / SCALE for row in rows]


def _rows_by_hand(tokenizer: Any) -> list[list[int]]:
    """Ids of the episodes above: each text alone, EOS where the response ended."""
    rows = []
    for prompt, response, ended in zip(PROMPTS, RESPONSES, FINISHED, strict=True):
        ids = [*tokenizer(prompt).input_ids, *tokenizer(response).input_ids]
        rows.append([*ids, tokenizer.eos_token_id] if ended else ids)
    return rows


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "opt", "gemma2"])
def test_checklist_11_scores_of_text_are_those_of_transformers_with_peft(
    family: Family, artifact: Artifact, policy: SharedBase, folders: FoldersOf
) -> None:
    folder = artifact(family)
    expected = _by_hand(folder, folders(family).base, _rows_by_hand(AutoTokenizer.from_pretrained(folder)))
    found = _load(folder, policy, folders).score_texts(PROMPTS, RESPONSES, FINISHED)
    assert found == pytest.approx(expected, abs=1e-4)  # float32, and padding adds in another order
    assert len({round(score, 3) for score in found}) == len(found)


def test_checklist_10_a_score_does_not_depend_on_its_batch(
    artifact: Artifact, policy: SharedBase, folders: FoldersOf
) -> None:
    folder = artifact("gpt2")
    alone = _load(folder, policy, folders, batch_size=1).score_texts(PROMPTS, RESPONSES, FINISHED)
    for batch_size in (3, 99):
        together = _load(folder, policy, folders, batch_size).score_texts(PROMPTS, RESPONSES, FINISHED)
        assert together == pytest.approx(alone, abs=1e-5)
    turned = _load(folder, policy, folders, 99).score_texts(PROMPTS[::-1], RESPONSES[::-1], FINISHED[::-1])
    assert turned[::-1] == pytest.approx(alone, abs=1e-5)
    assert _load(folder, policy, folders).score_texts([], [], []) == []


def test_the_end_of_a_response_counts(artifact: Artifact, policy: SharedBase, folders: FoldersOf) -> None:
    model = _load(artifact("qwen2"), policy, folders)
    ended, cut_off = model.score_texts(["I love"] * 2, [" the view"] * 2, [True, False])
    assert abs(ended - cut_off) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_conversation_takes_the_form_of_the_reward_models_own_tokenizer(
    family: Family, artifact: Artifact, policy: SharedBase, folders: FoldersOf
) -> None:
    """Qwen2 has a chat template, GPT-2 has none; whether the policy put a space before its answer is the same."""
    folder = artifact(family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = (Message(role="user", content="How do I bake bread?"),)
    if family == "qwen2":
        text, answer = "<|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\n", "Take flour"
    else:
        text, answer = "\n\nHuman: How do I bake bread?\n\nAssistant:", " Take flour"
    row = [*tokenizer(text).input_ids, *tokenizer(answer).input_ids, tokenizer.eos_token_id]
    (expected,) = _by_hand(folder, folders(family).base, [row])
    found = _load(folder, policy, folders).score_texts([prompt] * 2, ["Take flour", " Take flour"], [True] * 2)
    assert found == pytest.approx([expected] * 2, abs=1e-4)


def test_an_episode_beyond_the_positions_is_named(artifact: Artifact, policy: SharedBase, folders: FoldersOf) -> None:
    model = _load(artifact("gpt2"), policy, folders)
    prompt, response = [7] * 6, [8] * 250
    assert len(model.score([prompt], [response])) == 1
    with pytest.raises(ModelError, match=r"an episode has 257 tokens .* knows 256 positions\. .* Lower `max_prompt"):
        model.score([prompt, prompt], [response, [*response, 8]])


def test_the_reward_reads_the_text_and_not_the_policys_ids(
    artifact: Artifact, policy: SharedBase, folders: FoldersOf
) -> None:
    folder, model = artifact("gpt2"), model_config(folders("llama").base)
    reward = as_reward(
        load_score_model(folder, model, policy, pad_token_id=3, batch_size=2, device="cpu", config_dir=None)
    )
    episodes = [
        Episode("not this", response, (1, 2), (3,), prompt, ended)
        for prompt, response, ended in zip(PROMPTS, RESPONSES, FINISHED, strict=True)
    ]
    assert reward(episodes) == _load(folder, policy, folders, 2).score_texts(PROMPTS, RESPONSES, FINISHED)


def test_checklist_16_it_is_frozen_and_the_policys_base_gets_no_adapter(artifact: Artifact, folders: FoldersOf) -> None:
    model = model_config(folders("llama").base)
    shared = SharedBase(load_causal_lm(model.base, model, "cpu"), model)
    scorer = _load(artifact("gpt2"), shared, folders)
    with pytest.raises(ValueError, match="no adapter yet"):
        shared.peft_model  # noqa: B018
    scorer.score_texts(PROMPTS, RESPONSES, FINISHED)
    own = list(scorer._base.peft_model.parameters())
    assert own and not any(weight.requires_grad or weight.grad is not None for weight in own)


def test_without_the_file_it_is_on_the_shared_base(folders: FoldersOf) -> None:
    own = folders("llama")
    model = model_config(own.base)
    shared = SharedBase(load_causal_lm(own.base, model, "cpu"), model)
    loaded = load_score_model(own.reward, model, shared, pad_token_id=3, batch_size=2, device="cpu", config_dir=None)
    assert isinstance(loaded, SharedBaseScoreModel)
    assert list(shared.peft_model.peft_config) == ["reward"]


def test_what_does_not_fit_is_refused(
    artifact: Artifact, policy: SharedBase, folders: FoldersOf, tmp_path: Path
) -> None:
    model = model_config(folders("llama").base)
    folder = Path(shutil.copytree(artifact("gpt2"), tmp_path / "reward"))
    check_reward_model(folder, model, config_dir=None)

    save_own_base(folder, model_config(folders("qwen2").base))
    with pytest.raises(ModelError, match=r"was trained on base .*gpt2.*, but model\.base is .*qwen2"):
        check_reward_model(folder, model, config_dir=None)
    save_own_base(folder, model_config(folders("gpt2").base, rank=8))
    with pytest.raises(ModelError, match=r"model\.tuning\.rank=4, the configuration 8"):
        _load(folder, policy, folders)
    (folder / BASE_MODEL_FILE).unlink()
    with pytest.raises(ModelError, match=r"was trained on base .*gpt2.*, but model\.base is .*llama"):
        check_reward_model(folder, model, config_dir=None)
    for text in ("{", '{"base": "x", "bass": 1}', "[]"):
        (folder / BASE_MODEL_FILE).write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match=r"base_model\.json: no readable model section .*Run the stage `reward_m"):
            read_own_base(folder)


def test_a_base_that_is_gone_is_named_as_the_reward_models(
    artifact: Artifact, policy: SharedBase, folders: FoldersOf, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifact("gpt2"), tmp_path / "reward"))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "./gone"
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_own_base(folder, model_config(Path("/x")).model_copy(update={"base": "./gone"}))
    with pytest.raises(ModelError, match=r"^reward_model\.model\.base='\./gone': no folder at .*Correct the path"):
        _load(folder, policy, folders)


def test_the_file_is_canonical_and_holds_the_spec_as_written(tmp_path: Path) -> None:
    model = model_config(Path("x")).model_copy(update={"base": "./other", "chat_template": "chat.jinja"})
    save_own_base(tmp_path, model)
    text = (tmp_path / BASE_MODEL_FILE).read_text(encoding="utf-8")
    values = json.loads(text)
    assert text == json.dumps(values, indent=2, sort_keys=True) + "\n"
    assert (values["base"], values["chat_template"]) == ("./other", "chat.jinja")
    assert read_own_base(tmp_path) == model


def test_the_chat_template_is_the_one_saved_with_the_tokenizer(
    artifact: Artifact, policy: SharedBase, folders: FoldersOf, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifact("qwen2"), tmp_path / "reward"))
    expected = _load(folder, policy, folders).score_texts([(Message(role="user", content="Hi"),)], ["Ho"], [True])
    model = model_config(folders("qwen2").base).model_copy(update={"chat_template": "gone.jinja"})
    save_own_base(folder, model)
    found = _load(folder, policy, folders).score_texts([(Message(role="user", content="Hi"),)], ["Ho"], [True])
    assert found == expected
