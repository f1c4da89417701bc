"""Values of secrets are hidden in every text; everything else stays."""

import pytest

from pipeline.console import Console
from pipeline.redaction import redact

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123", "HF_TOKEN": "hf_planted+secret/x=", "MY_DB_PASSWORD": "correct horse",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7", "SERVICE_AUTH": "Basic dXNlcjpwYXNz",
}  # fmt: skip


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", SECRETS)
def test_the_value_of_a_secret_is_replaced_by_its_name(name: str) -> None:
    assert redact(f"sent {SECRETS[name]} twice: {SECRETS[name]}.") == f"sent ***{name}*** twice: ***{name}***."


def test_as_urls_have_it() -> None:
    assert redact("GET https://host/?t=hf_planted%2Bsecret%2Fx%3D") == "GET https://host/?t=***HF_TOKEN***"
    assert redact("https://user:word@host/x and http://token@host") == "https://***@host/x and http://***@host"
    assert redact("mail@host, https://host/a@b, see x://") == "mail@host, https://host/a@b, see x://"


def test_short_values_and_other_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("RUN_FOLDER", "/some/folder/of/mine")
    text = "false /some/folder/of/mine token key"
    assert redact(text) == text


def test_a_secret_that_holds_another_is_hidden_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONG_KEY", "0123456789abcdef0123-and-more")
    assert redact("x 0123456789abcdef0123-and-more x") == "x ***LONG_KEY*** x"


def test_the_screen_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    Console().line(f"failed with {SECRETS['WANDB_API_KEY']}")
    assert capsys.readouterr().err == "failed with ***WANDB_API_KEY***\n"
