"""Configurations at fault: exit code 2 with the whole message, before anything is made."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pipeline.cli import main
from tests.bad_inputs import (
    cases_config_models,
    cases_config_ppo,
    cases_config_relations,
    cases_config_values,
    cases_rewards,
)
from tests.bad_inputs.config_case import Case
from tests.bad_inputs.test_data import MAX_PER_TEMPLATE, template

CASES: list[Case] = [
    *cases_config_models.CASES, *cases_config_ppo.CASES, *cases_config_relations.CASES, *cases_config_values.CASES,
    *cases_rewards.CASES,
]  # fmt: skip
RIGHT = {
    "model": {"base": "./base"},
    "data": {"demonstrations": {"path": "d.jsonl"}, "preferences": {"path": "p.jsonl"}},
    "launch": {"device": "cpu"},
}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = b"a: " + b"[" * 3000 + b"]" * 3000 + b"\n"
LIST = "c.yaml: the top level is a list, must be `key: value` lines; start from a file in configs/"
FILES: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "c.yaml: data: missing"),
    "a list": (b"- model\n- data\n", LIST),
    "a word": (b"hello\n", LIST.replace("list", "str")),
    "a tab": (b"model:\n\tbase: x\n", "c.yaml:2: found character '\\t' that cannot start any token; correct the YAML"),
    "a bracket that stays open": (b"model: {base: x\n", "c.yaml:2: expected ',' or '}', but got '<stream end>'"),
    "the same key twice": (b"seed: 1\nseed: 2\n", "c.yaml:2: the key 'seed' is given twice; correct the YAML there"),
    "a Python object": (b"seed: !!python/object/apply:os.system ['touch trace']\n", "c.yaml:1: could not determine a"),
    "text in another encoding": (
        b"model: {base: \xff\xfe}\n",
        "c.yaml: not UTF-8 text (invalid start byte at byte 14",
    ),
    "aliases of aliases": (
        BOMB.encode(),
        "c.yaml: its aliases unfold to more than 100000 values; write out what is meant",
    ),
    "an alias of itself": (
        b"sft: &a {b: *a}\n",
        "c.yaml: its aliases unfold to more than 100000 values; write out",
    ),
    "lists in lists": (DEEP, "c.yaml: nested too deeply; a few levels are needed; correct the YAML there"),
    "a date": (b"seed: 2026-13-45\n", "c.yaml: seed: found '2026-13-45', must be a whole number; correct it, or leave"),
    "a number of 5000 digits": (b"seed: " + b"1" * 5000 + b"\n", "c.yaml: a value cannot be read (Exceeds the limit"),
    "a byte of zero": (b"seed: \0\n", "c.yaml: unacceptable character #x0000: special characters are not allowed"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data, and a configuration that is right but for its base, which is not looked at."""
    rows = [{"prompt": f"The tea {number}", "response": " was warm."} for number in range(40)]
    pairs = [{"prompt": row["prompt"], "chosen": " was warm.", "rejected": " was cold."} for row in rows]
    for name, values in (("d.jsonl", rows), ("p.jsonl", pairs)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, values)) + "\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(RIGHT), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.checks.check_base", lambda *_: None)
    return tmp_path


def options(case: Case) -> list[str]:
    return [part for option in case.options for part in ("--set", option)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_configuration_is_refused(case: Case, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert main(["validate", "c.yaml", *options(case)]) == 2
    assert capsys.readouterr().err.strip().replace(f"{folder}/", "") == case.message
    assert sorted(folder.rglob("*")) == before, "nothing is made"


def test_the_configuration_that_the_cases_change_is_right(folder: Path) -> None:
    assert main(["validate", "c.yaml"]) == 0


def test_run_says_what_validate_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case in CASES[::10]:
        assert main(["run", "c.yaml", *options(case)]) == 2
        assert capsys.readouterr().err.strip().replace(f"{folder}/", "") == case.message
    assert not (folder / "outputs").exists()


def test_no_message_serves_for_more_than_eight_configurations(folder: Path) -> None:
    counts = Counter(template(case.message, folder) for case in CASES)
    assert {text: number for text, number in counts.items() if number > MAX_PER_TEMPLATE} == {}


def test_every_case_is_another(folder: Path) -> None:
    assert len({case.name for case in CASES}) == len({case.options for case in CASES}) == len(CASES) >= 180


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_configuration_is_refused(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, said = FILES[name]
    (folder / "c.yaml").write_bytes(content)
    assert main(["validate", "c.yaml"]) == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message
    assert not (folder / "trace").exists(), "nothing of the file was executed"


@pytest.mark.parametrize(
    "path, said",
    [
        ("cc.yaml", "cc.yaml: no such configuration file. Did you mean c.yaml?"),
        (".", ".: a folder; a YAML file is needed. Did you mean c.yaml?"),
        ("x" * 300, f"{'x' * 300}: cannot be read (File name too long); give the path of a YAML file"),
    ],
    ids=["missing", "a folder", "too long a name"],
)
def test_a_path_that_is_no_file(path: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", path]) == 2
    assert capsys.readouterr().err.strip() == said


@pytest.mark.parametrize("command", ["validate", "run", "runs"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        (" ", "found ' ', which is blank; the path of a folder is needed; name one"),
        (
            "~nobody-of-that-name/x",
            "found '~nobody-of-that-name/x', which cannot be looked up (Could not determine home directory); the path "
            "of a folder is needed; name another",
        ),
        (
            "x" * 300,
            f"found '{'x' * 60}', which cannot be looked up (File name too long); the path of a folder is needed; name "
            f"another",
        ),
    ],
    ids=["blank", "nobody's", "long"],
)
def test_an_output_folder_on_the_command_line_that_can_be_none(
    command: str, path: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*([command] if command == "runs" else [command, "c.yaml"]), "--output-dir", path])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"rlhf {command}: error: argument --output-dir: {said}"


@pytest.mark.parametrize("key", ["output_dir", "model.base", "model.chat_template", "ppo.rollout.server.adapter_dir"])
def test_a_path_that_can_be_none(key: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = ["--set", "ppo.rollout={engine: vllm_server}"]
    for path, said in {
        "x/" + "y" * 300: f"--set {key}=x/{'y' * 300}: {key}: found a name of 300 bytes in the path; file systems take "
        f"255 at most; shorten it",
        "~nobody-of-that-name/x": f"{key}: found '~nobody-of-that-name/x', but this machine knows no home of that "
        f"user; a path that can be found is needed; write it out",
    }.items():
        assert main(["validate", "c.yaml", *engine, "--set", f"{key}={path}"]) == 2
        assert capsys.readouterr().err.strip() == said


def test_what_the_base_is_too_small_for_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "base").mkdir()
    sizes = {"model_type": "llama", "num_hidden_layers": 2, "max_position_embeddings": 64}
    (folder / "base" / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    options = ["--set", "model.tuning.layers.last=3", "--set", "evaluation.rollout.max_new_tokens=16"]
    options += ["--set", "reward_model.normalization.sampling.max_new_tokens=16"]
    assert main(["validate", "c.yaml", *options]) == 2
    assert capsys.readouterr().err.strip().split("\n") == [
        "model.tuning.layers.last=3, but './base' has 2 blocks; at most that many can carry adapters; use "
        "`layers: {last: 2}` or less, or leave `layers` out for all",
        "ppo.rollout.max_new_tokens=64, but './base' knows 64 positions for prompt and response together; a prompt "
        "needs some of them; lower ppo.rollout.max_new_tokens to less than 64",
    ]


def test_a_batch_beyond_all_memory_is_answered_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "c.yaml", "--set", "ppo.batch_size=1000000000001"]) == 2
    assert "ppo: batch_size=1000000000001 is not divisible by minibatch_size=32; use minibatch_size=" in (
        capsys.readouterr().err
    )
