"""A folder outside of the store for what others load. Without torch: copying an adapter needs none."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import ConfigError


def check_target(target: Path) -> None:
    """Refuse a target that holds something.

    Raises:
        ConfigError: It is a file, or a folder that is not empty.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(
            f"{target}: there is something already; an export needs a folder of its own: name one that is empty or "
            f"does not exist, with --to DIR"
        )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder beside the target, to be filled, which takes the target's place in the end.

    Args:
        target: A folder that is empty or does not exist; there whole afterwards, or not at all.

    Raises:
        ConfigError: The target is taken, or cannot be written.
    """
    check_target(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise ConfigError(
            f"{target}: cannot be written ({error.strerror}); a folder that can be made there is needed: name another "
            f"one with --to DIR"
        ) from error
    try:
        yield scratch
        # A temporary folder is its owner's alone, and so are the files that safetensors writes.
        scratch.chmod(0o755)
        for path in scratch.iterdir():
            path.chmod(0o644)
        os.rename(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def export_adapter(policy_folder: Path, target: Path) -> None:
    """Copy a policy's adapter with its tokenizer, for `PeftModel.from_pretrained` and `vllm serve --enable-lora`.

    Args:
        policy_folder: The policy's artifact.
        target: See `new_folder`.

    Raises:
        ConfigError: See `new_folder`.
    """
    with new_folder(target) as folder:
        for path in sorted(policy_folder.iterdir()):
            shutil.copyfile(path, folder / path.name)
