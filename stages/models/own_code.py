"""Models and tokenizers that bring Python code of their own: what is said where that is not allowed."""

from pathlib import Path

from data.errors import ModelError


def own_code_error(base: Path | str, error: BaseException) -> ModelError | None:
    """The message for a base that only its own code can load; None where transformers had another reason."""
    if "trust_remote_code" not in str(error):
        return None
    return ModelError(
        f"model.base={str(base)!r}: it is loaded by Python code of its own, and model.trust_remote_code is false. An "
        "architecture and a tokenizer of transformers are needed, or your word for that code. Use another base, or "
        "read the code and set model.trust_remote_code: true."
    )
