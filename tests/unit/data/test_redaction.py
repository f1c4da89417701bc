"""What counts as a secret, in which spellings it is found, and what is left alone."""

import base64

import pytest

from data.redaction import find_secrets, holds_secret, is_secret_name, redact, redact_values

SECRET = "pa55/w0rd+planted"
ENVIRONMENT = {"MY_TOKEN": SECRET}


@pytest.mark.parametrize(
    "name",
    ["WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "PREFECT_API_KEY", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY",
     "CLIENT_SECRET", "PREFECT_API_AUTH_STRING", "my_token"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["PATH", "MONKEY", "KEYBOARD", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "GPG_KEY"])
def test_names_of_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "spelling",
    [SECRET, "pa55%2Fw0rd%2Bplanted", base64.b64encode(SECRET.encode()).decode(), "cGE1NS93MHJkK3BsYW50ZWQ="],
)
def test_each_spelling_of_a_value_is_replaced(spelling: str) -> None:
    assert redact(f"before {spelling} after", ENVIRONMENT) == "before *** after"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("git+https://me:hunter22@host/x.git", "git+https://***@host/x.git"),
        ("https://sometoken@host", "https://***@host"),
        ("http://a:p@ss@host/", "http://***@host/"),
        ("GET /x?a=1&api_key=abc&b=2", "GET /x?a=1&api_key=***&b=2"),
        ("/x?access_token=abc", "/x?access_token=***"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic ***"),
        ("{'authorization': 'Bearer abcdefgh12345678'}", "{'authorization': 'Bearer ***'}"),
    ],
)
def test_what_looks_like_a_secret_is_replaced(text: str, expected: str) -> None:
    assert redact(text, {}) == expected


@pytest.mark.parametrize(
    "text",
    ["http://host:8000/v1", "basic understanding of tokens", "the bearer understanding", "a@b.c", "x://h/p@q",
     "ppo.kl_coef=0.1 key=value", "https://host/a?tokens=3&max_tokens=5"],
)  # fmt: skip
def test_innocent_text_is_left_alone(text: str) -> None:
    assert redact(text, ENVIRONMENT) == text
    assert not holds_secret(text, ENVIRONMENT)


def test_passwords_of_proxies_are_secrets_and_short_values_are_not() -> None:
    found = find_secrets({"HTTPS_PROXY": "http://user:long-enough@proxy:1", "A_TOKEN": "short", "HOME": "/home/user"})
    assert found == {"user:long-enough", "long-enough"}


def test_nested_values_are_redacted_and_others_kept() -> None:
    value = {"a": [f"x {SECRET}", 1, None], "b": {"c": (SECRET, 2.5)}, "d": True}
    assert redact_values(value, ENVIRONMENT) == {"a": ["x ***", 1, None], "b": {"c": ["***", 2.5]}, "d": True}
