"""Keeps the libraries from reporting what is meant: a head that is new, an accelerator that is absent."""

import logging as standard_logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_imports(device: str) -> None:
    """Silence what deepspeed and bitsandbytes say when they are imported. To be called before peft is.

    deepspeed warns that it found no accelerator, and bitsandbytes, on a CPU with bf16 instructions, that it
    cannot get a kernel from the hub.
    """
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    standard_logging.getLogger("bitsandbytes").setLevel(standard_logging.ERROR)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors and no progress bars of transformers inside; the former state after."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
