"""Models at fault: exit code 2 with the whole message, before anything is trained."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.schema import Demonstration, Message, write_records
from pipeline.checks import check_inputs
from pipeline.cli import main
from pipeline.loading import load_config
from stages.artifacts import combine_digests, file_digests
from stages.contract import DatasetArtifact
from stages.leftovers import TOKENS
from stages.models.config import ModelConfig
from stages.run import run_stage
from stages.sft.config import SFTConfig
from tests.bad_inputs import cases_adapters, cases_models, cases_weights
from tests.bad_inputs.model_case import ModelCase, add_token, edit, in_turn, rename, tensors, write
from tests.bad_inputs.test_data import MAX_PER_TEMPLATE, template
from tests.tiny import tiny_model_dir
from tests.unit.stages.parts import save_random_adapter, stage_spec

CASES: list[ModelCase] = [*cases_models.CASES, *cases_weights.CASES, *cases_adapters.CASES]
MODEL = {"base": "./base", "dtype": "float32", "tuning": {"rank": 4, "alpha": 8.0}}
ROOT = Path(__file__).parents[2]
_said: dict[str, str] = {}


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a base and a reward model that are right; nobody writes into them."""
    folder = tmp_path_factory.mktemp("right")
    rows = [{"prompt": f"The tea {number}", "response": " was warm."} for number in range(40)]
    pairs = [{"prompt": row["prompt"], "chosen": " was warm.", "rejected": " was cold."} for row in rows]
    for name, values in (("d.jsonl", rows), ("p.jsonl", pairs)):
        (folder / name).write_text("\n".join(map(json.dumps, values)) + "\n", encoding="utf-8")
    tiny_model_dir("llama", folder / "base")
    save_random_adapter(folder / "member", folder / "base", "seq_cls", seed=1)
    edit("member/adapter_config.json", base_model_name_or_path="./base")(folder)
    return folder


@pytest.fixture
def folder(right: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of them in the working folder, with the hub switched off."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shutil.copytree(right, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configuration(model: dict[str, Any], *, ensemble: bool = False) -> Path:
    values = {
        "model": model,
        "data": {"demonstrations": {"path": "d.jsonl"}, "preferences": {"path": "p.jsonl"}},
        "launch": {"device": "cpu"},
        "ppo": {"rewards": [{"type": "ensemble", "members": ["./member"]}] if ensemble else None},
        "output_dir": "out",
    }
    Path("c.yaml").write_text(json.dumps(values), encoding="utf-8")
    return Path("c.yaml")


def said(case: ModelCase, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of who finds it, after all who look before have found nothing."""
    model = MODEL | dict(case.model)
    path = configuration(model, ensemble=case in cases_adapters.CASES)
    if case.by == "validate":
        assert main(["validate", str(path)]) == 2
        message = capsys.readouterr().err.strip()
    else:
        check_inputs(load_config(path), folder)
        section = ModelConfig.model_validate(model)
        with pytest.raises(UserError) as error:
            if case.by == "reward":
                load_reward_model(section, folder)
            else:
                run_sft(section, folder, chat=case.by == "chat")
        message = str(error.value)
    return message.replace(f"{folder}/", "").replace(str(folder), ".")


def load_reward_model(section: ModelConfig, folder: Path) -> None:
    """As the stage `ppo` does."""
    from stages.models.loading import load_causal_lm
    from stages.models.reward_loading import load_score_model
    from stages.models.shared_base import SharedBase

    load_score_model(
        folder / "member", section, SharedBase(load_causal_lm(folder / "base", section, "cpu"), section),
        pad_token_id=0, batch_size=2, device="cpu", config_dir=folder,
    )  # fmt: skip


def run_sft(section: ModelConfig, folder: Path, *, chat: bool) -> None:
    """The stage, which begins with the base."""
    prompt: Any = [Message(role="user", content="Is the tea warm?")] if chat else "The tea <image>"
    for split in ("train", "held_out"):
        rows = [Demonstration(prompt=prompt, response=" is warm.")] * 4
        write_records(folder / "dataset" / "demonstrations" / f"{split}.jsonl", rows)
    dataset = DatasetArtifact(folder / "dataset", combine_digests(file_digests(folder / "dataset")), {})
    config = SFTConfig(batch_size=4, microbatch_size=4)
    spec = stage_spec("sft", config, section, {"dataset": dataset}, folder / "run", config_dir=folder)
    run_stage(spec, lambda done, total, what: None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_model_is_refused(case: ModelCase, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case.damage(folder)
    message = said(case, folder, capsys)
    if isinstance(case.message, str):
        assert message == case.message
    else:
        places = [message.find(part) for part in case.message]
        assert places[0] == 0 and -1 not in places and places == sorted(places), message
        assert message.endswith(case.message[-1]), message
    assert "\n" not in message and "Traceback" not in message
    stored = {path.name for path in folder.glob("run/store/*")} - {TOKENS}
    assert not (folder / "out").exists() and not stored, "nothing was trained"
    _said[case.name] = template(message, folder)


FINE = {
    "no pad token": lambda folder: None,
    "pickled weights beside safetensors": write("base/pytorch_model.bin", b"\x80\x04never read"),
    "a pad token without a row": in_turn(
        edit("base/tokenizer_config.json", pad_token="[PAD]"),
        lambda folder: add_token(folder, "[PAD]", 320),
    ),
    "a special token without a row that no text holds": lambda folder: add_token(folder, "<image>", 320),
    "code of its own for an architecture that transformers has": edit(
        "base/config.json", auto_map={"AutoModelForCausalLM": "c.M"}
    ),
    "tags that only the templates of transformers have": write(
        "base/chat_template.jinja",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
    ),
    "weights in two files": lambda folder: shard(folder),
    "a weight that the architecture does not have": tensors(
        "base/model.safetensors", lambda arrays: arrays.update({"rotary.inv_freq": arrays["model.norm.weight"]})
    ),
}


def shard(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    arrays = load_file(folder / "base" / "model.safetensors")
    names = {name: f"{number % 2}.safetensors" for number, name in enumerate(arrays)}
    for file in set(names.values()):
        held = {name: array for name, array in arrays.items() if names[name] == file}
        save_file(held, folder / "base" / file, metadata={"format": "pt"})
    rename("base/model.safetensors", "unused")(folder)
    write("base/model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": names}))(folder)


@pytest.mark.parametrize("name", FINE)
def test_what_looks_odd_and_is_right(name: str, folder: Path) -> None:
    from stages.models.loading import embedding_rows, load_causal_lm
    from stages.models.tokenizer import choose_pad_token, load_tokenizer

    FINE[name](folder)
    assert main(["validate", str(configuration(MODEL, ensemble=True))]) == 0
    section = ModelConfig.model_validate(MODEL)
    tokenizer = load_tokenizer(folder / "base", section)
    loaded = load_causal_lm(folder / "base", section, "cpu")
    assert choose_pad_token(tokenizer, embedding_rows(loaded), set()).token_id not in (tokenizer.eos_token_id, None)


def test_messages_without_a_chat_template_are_written_in_the_plain_form(folder: Path) -> None:
    from data.chat import render_prompt_text
    from stages.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "base", ModelConfig.model_validate(MODEL))
    assert tokenizer.chat_template is None
    text = render_prompt_text(tokenizer, [Message(role="user", content="Is it?")])
    assert text == "\n\nHuman: Is it?\n\nAssistant:"


def test_validate_looks_at_models_without_torch(folder: Path) -> None:
    path = configuration(MODEL | {"chat_template": "chat.jinja"}, ensemble=True)
    (folder / "chat.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    code = (
        f"import sys\nfrom pipeline.cli import main\ncode = main(['validate', {str(path)!r}])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\nsys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)


def test_there_are_eighty_cases_of_distinct_names() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 80, len(names)


def test_no_message_serves_for_more_than_eight_cases() -> None:
    assert len(_said) in (0, len(CASES)), "runs after the cases of the same session"
    counts = Counter(_said.values())
    assert {text: number for text, number in counts.items() if number > MAX_PER_TEMPLATE} == {}
