"""Secrets planted in the environment, and the search for them in every file that a run leaves."""

import base64
from pathlib import Path
from urllib.parse import quote

import pytest

SECRETS = {
    "PLANTED_TOKEN": "planted/token+5f0c1e9a7b",
    "WANDB_API_KEY": "5e0b1c2d3f4a5b6c7d8e9f0a1b2c3d4e5f6a7b8c",
    "HF_TOKEN": "hf_plantedSecretOfTheHub0123",
    "OPENAI_API_KEY": "sk-planted-0123456789abcdef",
    "MY_SERVICE_PASSWORD": "correct-horse-battery",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
}


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put them into the environment."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def found_secrets(*folders: Path) -> list[str]:
    """Files that hold one: as it is, as URLs have it, or in base64 at any of its three alignments."""
    needles = {form: name for name, value in SECRETS.items() for form in _forms(value)}
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                found += [f"{name} in {path}" for needle, name in needles.items() if needle in content]
    return sorted(set(found))


def _forms(value: str) -> set[bytes]:
    plain = value.encode()
    # The first and last characters of base64 depend on what stands around.
    encoded = {base64.b64encode(b"x" * shift + plain)[4:-4] for shift in range(3)}
    return {plain, quote(value, safe="").encode(), *encoded}
