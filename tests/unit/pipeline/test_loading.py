"""Messages of the configuration, by their text, and what `auto` becomes."""

from pathlib import Path

import pytest

from data.errors import ConfigError
from pipeline import loading
from pipeline.config import PipelineConfig
from pipeline.loading import apply_overrides, dump_config, load_config, resolve, validate_values

VALID = """
model: {base: some/model}
data: {preferences: {path: pairs.jsonl}}
"""


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("c.yaml")
    path.write_text(VALID, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ppo.kl_coeff=1"], "--set ppo.kl_coeff=1: ppo.kl_coeff: unknown key. Did you mean ppo.kl_coef?"),
        (["model.rank=8"], "--set model.rank=8: model.rank: unknown key. Did you mean model.tuning.rank?"),
        (
            ["launch.zzzzz=8"],
            "--set launch.zzzzz=8: launch.zzzzz: unknown key. Allowed here: mode, num_processes, device, checkpoints, "
            "zero_stage",
        ),
        (
            ["ppo.clip_range=-1"],
            "--set ppo.clip_range=-1: ppo.clip_range: found -1, must be greater than 0; "
            "correct it, or leave it out for the default 0.2",
        ),
        (
            ["sft.epochs=many"],
            "--set sft.epochs=many: sft.epochs: found 'many', must be a number; "
            "correct it, or leave it out for the default 1.0",
        ),
        (
            ["ppo.steps=1.5"],
            "--set ppo.steps=1.5: ppo.steps: found 1.5, must be a whole number; "
            "correct it, or leave it out for the default 100",
        ),
        (
            ["ppo.rollout.engine=vlm"],
            "--set ppo.rollout.engine=vlm: ppo.rollout.engine: found 'vlm', must be 'auto', 'hf', 'vllm' or "
            "'vllm_server'. Did you mean 'vllm'?",
        ),
        (
            ["ppo.rollout.server.address=localhost:8000"],
            "--set ppo.rollout.server.address=localhost:8000: ppo.rollout.server.address: found 'localhost:8000', "
            "must be an address without a key in it; write it as http://host:8000",
        ),
        (
            ["ppo.kl_controller={type: adaptve}"],
            "--set ppo.kl_controller={type: adaptve}: ppo.kl_controller: found type 'adaptve', "
            "must be 'fixed', 'adaptive'. Did you mean 'adaptive'?",
        ),
        (
            ["ppo.kl_controller={type: adaptive, target: 0}"],
            "--set ppo.kl_controller={type: adaptive, target: 0}: ppo.kl_controller.target: found 0, "
            "must be greater than 0; correct it",
        ),
        (
            ["ppo.batch_size=100"],
            "--set ppo.batch_size=100: ppo: batch_size=100 is not divisible by minibatch_size=32; "
            "use minibatch_size=20, 25, 50",
        ),
        (
            ["reward_model=null"],
            "--set reward_model=null: ppo: needs the reward model that `reward_model: null` switches off; "
            "set `ppo: null`",
        ),
        (
            ["reward_model.model.base=some/model"],
            "--set reward_model.model.base=some/model: reward_model.model: it is the same as "
            "`model`, which would be loaded a second time; a base of its "
            "own has to differ: leave it out, and the reward model starts from SFT on the shared base",
        ),
        (
            ["ppo.cache_trunk=true"],
            "--set ppo.cache_trunk=true: ppo.cache_trunk=true, but "
            "`model.tuning.layers` is not set: adapters on all blocks leave no trunk "
            "to cache; set `model.tuning.layers: {last: N}`, or `ppo.cache_trunk: auto`",
        ),
        (
            ["reward_model.model={base: x, rank: 8}"],
            "--set reward_model.model={base: x, rank: 8}: reward_model.model.rank: unknown key. "
            "Did you mean reward_model.model.tuning.rank?",
        ),
        (
            ["reward_model.model={base: x, quantization: none, tuning: {method: qlora}}"],
            "--set reward_model.model={base: x, quantization: none, tuning: {method: qlora}}: reward_model.model: "
            "`tuning.method: qlora` needs `quantization: nf4`; drop one of the two",
        ),
    ],
)
def test_messages(config_file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(config_file, overrides)
    assert str(error.value) == message


def test_unknown_key_in_the_file_names_the_file(config_file: Path) -> None:
    config_file.write_text(VALID + "ppo: {kl_coeff: 1}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(config_file)
    assert str(error.value) == "c.yaml: ppo.kl_coeff: unknown key. Did you mean ppo.kl_coef?"


def test_all_errors_are_listed(config_file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(config_file, ["ppo.kl_coeff=1", "sft.epochs=0", "seed=-1"])
    assert len(str(error.value).splitlines()) == 3


def test_missing_base() -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml: model: missing\. It is required"):
        validate_values({"data": {"prompts": {"path": "x"}}}, [], "c.yaml")
    with pytest.raises(ConfigError, match=r"c\.yaml: model\.base: missing\. It is required \(A hub id"):
        validate_values({"model": {}, "data": {"preferences": {"path": "x"}}}, [], "c.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "c.yaml:2: the key 'seed' is given twice; correct the YAML there"),
        ("seed: [1\n", "c.yaml:2: expected ',' or ']', but got '<stream end>'; correct the YAML there"),
        ("- 1\n", "c.yaml: the top level is a list, must be `key: value` lines; start from a file in configs/"),
    ],
)
def test_yaml_errors(config_file: Path, text: str, message: str) -> None:
    config_file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(config_file)
    assert str(error.value) == message


def test_missing_file_names_a_near_one(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"^cc\.yaml: no such configuration file\. Did you mean c\.yaml\?$"):
        load_config(Path("cc.yaml"))


def test_numbers_that_yaml_reads_as_text(config_file: Path) -> None:
    assert load_config(config_file, ["sft.learning_rate=5e-6"]).sft.learning_rate == 5e-6


def test_overrides_make_sections_and_leave_the_original() -> None:
    values = {"preferences": None, "sft": {"epochs": 1}}
    result = apply_overrides(values, ["preferences.labeler.label_noise=0.1", "sft.epochs=2", "ppo=null"])
    assert result == {"preferences": {"labeler": {"label_noise": 0.1}}, "sft": {"epochs": 2}, "ppo": None}
    assert values == {"preferences": None, "sft": {"epochs": 1}}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("sft.epochs", "--set sft.epochs: must read KEY=VALUE"),
        ("a..b=1", "--set a..b=1: must read KEY=VALUE"),
        ("sft.epochs.x=1", "--set sft.epochs.x=1: sft.epochs is 1, which has no keys; set sft.epochs itself"),
        ("sft.epochs=[1", "--set sft.epochs=[1:1: expected ',' or ']', but got '<stream end>'; quote it"),
    ],
)
def test_bad_overrides(option: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        apply_overrides({"sft": {"epochs": 1}}, [option])
    assert str(error.value).startswith(message)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PipelineConfig:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(loading, "gpu_is_visible", lambda: False)
    values = {"model": {"base": "b"}, "data": {"preferences": {"path": "x"}}}
    return validate_values(values, [], "c.yaml")


def test_resolved_on_a_cpu(config: PipelineConfig) -> None:
    resolved = resolve(config)
    assert resolved.launch.device == "cpu"
    assert resolved.tracking.mode == "offline"
    assert resolved.ppo is not None and resolved.ppo.rollout.engine == "hf"
    assert "auto" not in dump_config(resolved).replace("format: auto", "")


@pytest.mark.parametrize(("has_vllm", "engine"), [(True, "vllm"), (False, "hf")])
def test_resolved_on_a_gpu(
    config: PipelineConfig, monkeypatch: pytest.MonkeyPatch, has_vllm: bool, engine: str
) -> None:
    monkeypatch.setattr(loading, "gpu_is_visible", lambda: True)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: object() if has_vllm else None)
    resolved = resolve(config)
    assert resolved.launch.device == "cuda"
    assert resolved.evaluation is not None and resolved.evaluation.rollout.engine == engine


def test_what_is_asked_for_must_be_there(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = config.model_copy(update={"launch": config.launch.model_copy(update={"device": "cuda"})})
    with pytest.raises(ConfigError, match="launch.device: found cuda, but no NVIDIA GPU is visible"):
        resolve(cuda)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    ppo = config.ppo
    assert ppo is not None
    rollout = ppo.rollout.model_copy(update={"engine": "vllm"})
    vllm = config.model_copy(update={"ppo": ppo.model_copy(update={"rollout": rollout})})
    with pytest.raises(ConfigError, match="ppo.rollout.engine: found vllm, but vLLM is not installed"):
        resolve(vllm)


def test_online_where_wandb_has_a_key(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n", encoding="utf-8")
    assert resolve(config).tracking.mode == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert resolve(config).tracking.mode == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert resolve(config).tracking.mode == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve(config).tracking.mode == "disabled"


def test_resolved_configuration_loads_back_equal(config: PipelineConfig, tmp_path: Path) -> None:
    resolved = resolve(config)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(resolved), encoding="utf-8")
    assert load_config(path) == resolved
    assert resolve(load_config(path)) == resolved


def test_the_reward_models_own_base(config_file: Path) -> None:
    assert load_config(config_file).own_reward_base is None
    assert load_config(config_file, ["reward_model=null", "ppo=null", "evaluation=null"]).own_reward_base is None
    config = load_config(config_file, ["reward_model.model={base: org/judge, tuning: {method: qlora, rank: 8}}"])
    own = config.own_reward_base
    assert own is not None and (own.base, own.quantization, own.tuning.rank) == ("org/judge", "nf4", 8)
    assert config.model.quantization == "none"
    config_file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(config_file) == config
    # The same base with another tuning section is another reward model.
    assert load_config(config_file, ["reward_model.model={base: some/model, tuning: {rank: 8}}"]).own_reward_base


@pytest.mark.parametrize("reward", ["{type: python, source: 'own.py:f'}", "{type: remote, address: 'http://h/'}"])
def test_a_reward_that_is_no_reward_model_starts_no_critic(config_file: Path, tmp_path: Path, reward: str) -> None:
    """And what was resolved loads back: the stage reads it so."""
    resolved = resolve(load_config(config_file, [f"ppo.rewards=[{reward}]"]))
    assert resolved.ppo is not None and resolved.ppo.critic_init == "zero"
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(resolved), encoding="utf-8")
    assert load_config(path) == resolved
