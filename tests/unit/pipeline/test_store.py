"""What changes a fingerprint and what does not; the graph; the digest of the code."""

from pathlib import Path
from typing import Any

import pytest

import pipeline.store as store
from data.errors import ConfigError, ModelError
from pipeline.code_digest import import_closure, stage_code_digest
from pipeline.config import PipelineConfig
from pipeline.graph import downstream, stage_inputs, upstream
from stages.contract import STAGE_NAMES, Artifact, DatasetArtifact, PolicyArtifact, StageName
from tests.tiny import tiny_model_dir

INPUTS: dict[str, Artifact] = {
    "dataset": DatasetArtifact(path=Path("/d"), digest="d0"),
    "policy": PolicyArtifact(path=Path("/p"), digest="p0"),
}


def configuration(**sections: Any) -> PipelineConfig:
    values = {
        "model": {"base": "some/model"},
        "data": {"preferences": {"path": "pairs.jsonl"}},
        "launch": {"device": "cpu"},
        **sections,
    }
    return PipelineConfig.model_validate(values)


def fingerprint(stage: StageName = "ppo", inputs: dict[str, Artifact] = INPUTS, **sections: Any) -> str:
    return store.stage_fingerprint(configuration(**sections), stage, inputs, None)


@pytest.mark.parametrize(
    "sections",
    [
        {"ppo": {"kl_coef": 0.2}},
        {"ppo": {"steps": 101}},
        {"model": {"base": "other/model"}},
        {"model": {"base": "some/model", "revision": "abc"}},
        {"model": {"base": "some/model", "tuning": {"rank": 8}}},
        {"seed": 1},
        {"launch": {"device": "cuda"}},
    ],
)
def test_checklist_52_what_changes_the_key(sections: dict[str, Any]) -> None:
    assert fingerprint(**sections) != fingerprint()


@pytest.mark.parametrize(
    "sections",
    [
        {"output_dir": "elsewhere"},
        {"tracking": {"mode": "disabled"}},
        {"launch": {"device": "cpu", "mode": "inline"}},
        {"sft": {"epochs": 2}},  # counts through the digest of SFT's artifact
        {"evaluation": {"num_prompts": 4}},
    ],
)
def test_checklist_51_what_does_not_change_the_key(sections: dict[str, Any]) -> None:
    assert fingerprint(**sections) == fingerprint()


def test_checklist_51_where_a_server_listens_does_not_change_the_key() -> None:
    def served(**server: str) -> str:
        return fingerprint(ppo={"rollout": {"engine": "vllm_server", "server": server}})

    assert served(address="http://elsewhere:8000") == served() != fingerprint()


def test_checklist_52_a_reward_of_the_users_own_counts_by_its_file_and_not_by_how_it_is_asked(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def f(prompts, responses): ...\n", encoding="utf-8")

    def asked(**settings: Any) -> str:
        reward = {"type": "python", "source": f"{own}:f"} | settings
        return fingerprint(ppo={"rewards": [reward]})

    before = asked()
    assert before != fingerprint() and asked(timeout_seconds=9) == before
    assert asked(source=f"{own}:g") != before
    own.write_text("def f(prompts, responses): return []\n", encoding="utf-8")
    assert asked() != before
    own.unlink()
    with pytest.raises(ConfigError, match=r"ppo\.rewards\[python\]\.source=.*: no file at "):
        asked()

    def served(**settings: Any) -> str:
        return fingerprint(ppo={"rewards": [{"type": "remote", "address": "http://judge:1/", **settings}]})

    assert served(timeout_seconds=9, max_retries=0, token_env="T", batch_size=4, health="/health") == served()
    assert served(address="http://judge:2/") != served()


def test_checklist_52_components_count_with_the_files_that_they_name(tmp_path: Path) -> None:
    words, member = tmp_path / "words.txt", tmp_path / "member"
    words.write_text("bad\n", encoding="utf-8")
    member.mkdir()
    (member / "adapter_config.json").write_text("{}", encoding="utf-8")

    def judged(*rewards: dict[str, Any]) -> str:
        return fingerprint(ppo={"rewards": list(rewards)})

    listed = {"type": "toxicity", "words": str(words)}
    learned = {"type": "learned", "path": str(member)}
    before = judged(listed, learned)
    assert len({before, judged(learned, listed), judged(listed), judged({**listed, "weight": 2}, learned)}) == 4
    assert judged({"type": "math", "timeout_seconds": 1}) != judged({"type": "math"}), "an answer counts by the clock"
    for file in (words, member / "adapter_config.json"):
        content = file.read_text(encoding="utf-8")
        file.write_text(content + " ", encoding="utf-8")
        assert judged(listed, learned) != before
        file.write_text(content, encoding="utf-8")
    assert judged(listed, learned) == before
    assert "math-verify" in store.shaping_packages(configuration(ppo={"rewards": [{"type": "math"}]}), "ppo")
    assert "math-verify" not in store.shaping_packages(configuration(), "ppo")


def test_who_labels_counts_and_how_long_they_are_waited_for_does_not(tmp_path: Path) -> None:
    def labeled(selection: dict[str, Any] | None = None, policy: str = "sft", **labeler: Any) -> str:
        section = {
            "labeler": {"type": "human", **labeler},
            "selection": selection or {"type": "random"},
            "policy": policy,
        }
        return fingerprint("preferences", data={"demonstrations": {"path": "d.jsonl"}}, preferences=section)

    assert labeled(timeout_hours=3) == labeled() != labeled(min_share=0.5)
    assert labeled(annotators=["anna"]) != labeled()
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    selection = {"type": "ensemble_disagreement", "reward_models": [str(folder) for folder in folders]}
    before = labeled(policy=str(folders[0])), labeled(selection)
    (folders[0] / "adapter_model.safetensors").write_bytes(b"trained")
    assert labeled(policy=str(folders[0])) != before[0] and labeled(selection) != before[1]


def test_checklist_52_inputs_count_by_digest_and_role() -> None:
    moved = {role: type(artifact)(Path("/x"), artifact.digest) for role, artifact in INPUTS.items()}
    assert fingerprint(inputs=moved) == fingerprint()
    changed = INPUTS | {"policy": PolicyArtifact(path=Path("/p"), digest="p1")}
    assert fingerprint(inputs=changed) != fingerprint()
    swapped: dict[str, Artifact] = {"dataset": INPUTS["policy"], "policy": INPUTS["dataset"]}
    assert fingerprint(inputs=swapped) != fingerprint()


def test_ranks_count_for_stages_that_train_on_them() -> None:
    def on(mode: str, number: int, zero_stage: int = 2) -> str:
        launch = {"device": "cpu", "mode": mode, "num_processes": number, "zero_stage": zero_stage}
        return fingerprint("sft", launch=launch)

    single = fingerprint("sft")
    assert len({single, on("accelerate", 2), on("accelerate", 4), on("deepspeed", 2), on("deepspeed", 2, 1)}) == 5


def test_checklist_52_versions_of_the_packages_that_shape_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stage: fingerprint(stage) for stage in ("sft", "evaluation")}
    real = store.package_version
    monkeypatch.setattr(store, "package_version", lambda name: "9" if name == "vaderSentiment" else real(name))
    assert fingerprint("sft") == before["sft"]
    assert fingerprint("evaluation") == before["evaluation"]
    gold = {"evaluation": {"gold": {"type": "vader"}}}
    with_nine = fingerprint("evaluation", **gold)
    monkeypatch.undo()
    assert fingerprint("evaluation", **gold) != with_nine
    monkeypatch.setattr(store, "package_version", lambda name: "9" if name == "trl" else real(name))
    assert fingerprint("sft") != before["sft"]


def _with_base(base: Path, **settings: Any) -> dict[str, Any]:
    return {"reward_model": {"model": {"base": str(base), **settings}}}


def test_the_reward_models_own_base_counts_by_bytes_where_it_is_loaded(tmp_path: Path) -> None:
    own = tiny_model_dir("gpt2", tmp_path / "own")
    shared = {stage: fingerprint(stage) for stage in STAGE_NAMES if stage not in ("data", "preferences")}
    before = {stage: fingerprint(stage, **_with_base(own)) for stage in shared}
    assert {stage for stage in shared if before[stage] != shared[stage]} == {"reward_model", "ppo", "evaluation"}

    tiny_model_dir("gpt2", own, seed=1)
    store._base_digest.cache_clear()  # as in the next process
    after = {stage: fingerprint(stage, **_with_base(own)) for stage in shared}
    assert {stage for stage in shared if after[stage] != before[stage]} == {"reward_model", "ppo", "evaluation"}


def test_an_own_base_that_is_gone_is_named_as_the_reward_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^reward_model\.model\.base=.*: no folder at"):
        fingerprint("ppo", **_with_base(tmp_path / "nowhere"))


def test_checklist_52_the_code_of_the_stage_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stage: fingerprint(stage) for stage in ("sft", "ppo")}
    real = store.stage_code_digest
    monkeypatch.setattr(store, "stage_code_digest", lambda stage: "edited" if stage == "ppo" else real(stage))
    assert fingerprint("sft") == before["sft"]
    assert fingerprint("ppo") != before["ppo"]


def test_checklist_51_a_field_of_ppo_changes_the_key_of_ppo_alone() -> None:
    """And what comes after it by PPO's new digest; what comes before is not asked."""
    changed = {"ppo": {"kl_coef": 0.2}}
    for stage in ("sft", "reward_model", "evaluation"):
        assert fingerprint(stage, **changed) == fingerprint(stage)
    assert fingerprint("ppo", **changed) != fingerprint("ppo")
    assert downstream(configuration(), "ppo") == ("evaluation",)
    assert "ppo" in stage_inputs(configuration())["evaluation"].values()


def test_packages() -> None:
    nf4 = {"model": {"base": "b", "quantization": "nf4"}}
    assert "bitsandbytes" in store.shaping_packages(configuration(**nf4), "sft")
    own = configuration(**_with_base(Path("org/other"), quantization="nf4"))
    for stage in ("reward_model", "ppo", "evaluation"):
        assert "bitsandbytes" in store.shaping_packages(own, stage)
    assert "bitsandbytes" not in store.shaping_packages(own, "sft")
    vllm = configuration(ppo={"rollout": {"engine": "vllm"}})
    assert "vllm" in store.shaping_packages(vllm, "ppo")
    assert "vllm" not in store.shaping_packages(vllm, "evaluation")
    assert store.shaping_packages(configuration(), "data") == ()
    hub = configuration(data={"preferences": {"hub": "a/b"}})
    assert store.shaping_packages(hub, "data") == ("datasets",)


def test_checklist_51_52_data_counts_by_bytes_and_not_by_model(tmp_path: Path) -> None:
    rows = tmp_path / "pairs.jsonl"
    data = {"preferences": {"path": str(rows)}}
    rows.write_text("{}\n", encoding="utf-8")
    before = fingerprint("data", {}, data=data)
    assert fingerprint("data", {}, data=data, model={"base": "other"}, launch={"device": "cuda"}) == before
    rows.write_text("{ }\n", encoding="utf-8")
    assert fingerprint("data", {}, data=data) != before


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in {
        "stages/__init__.py": "",
        "stages/sft/__init__.py": "",
        "stages/sft/stage.py": "import os\nfrom stages import shared\n\ndef run():\n    from data.late import f\n",
        "stages/shared.py": '"""Doc."""\nX = 1\n',
        "stages/other.py": "Y = 1\n",
        "data/__init__.py": "",
        "data/late.py": "def f():\n    return 1\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_import_closure(tree: Path) -> None:
    assert import_closure("stages.sft.stage", tree) == {
        "stages.sft.stage", "stages", "stages.shared", "data.late",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "text", "is_changed"),
    [
        ("stages/shared.py", '"""Another doc."""\n\nX = 1  # why\n', False),
        ("stages/shared.py", '"""Doc."""\nX = 2\n', True),
        ("data/late.py", "def f():\n    return 2\n", True),
        ("data/late.py", 'def f():\n    """Doc."""\n    return 1\n', False),
        ("data/late.py", "def f(  ):\n    return (\n        1\n    )\n", False),
        ("stages/other.py", "Y = 2\n", False),
    ],
)
def test_checklist_52_the_digest_of_the_code(
    tree: Path, tmp_path: Path, file: str, text: str, is_changed: bool
) -> None:
    from pipeline import code_digest

    before = stage_code_digest("sft", tree)
    (tree / file).write_text(text, encoding="utf-8")
    code_digest._read.cache_clear()
    stage_code_digest.cache_clear()
    assert (stage_code_digest("sft", tree) != before) == is_changed


def test_a_module_of_several_stages_is_read_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import code_digest

    (tree / "stages/ppo").mkdir()
    (tree / "stages/ppo/stage.py").write_text("from stages import shared\n", encoding="utf-8")
    parsed: list[str] = []
    real = code_digest.ast.parse

    def parse(text: str, filename: str) -> Any:
        parsed.append(filename)
        return real(text, filename=filename)

    monkeypatch.setattr(code_digest.ast, "parse", parse)
    stage_code_digest("sft", tree)
    stage_code_digest("ppo", tree)
    assert str(tree / "stages/shared.py") in parsed
    assert sorted(parsed) == sorted(set(parsed))


def test_graph() -> None:
    config = configuration()
    assert list(stage_inputs(config)) == ["data", "sft", "reward_model", "ppo", "evaluation"]
    assert stage_inputs(config)["reward_model"] == {"dataset": "data", "policy": "sft"}
    assert upstream(config, "ppo") == ("data", "sft", "reward_model")
    assert downstream(config, "reward_model") == ("ppo", "evaluation")
    collected = configuration(data={"demonstrations": {"path": "x"}}, preferences={})
    assert stage_inputs(collected)["reward_model"]["preferences"] == "preferences"
    assert downstream(collected, "preferences") == ("reward_model", "ppo", "evaluation")
    only_sft = configuration(reward_model=None, ppo=None, evaluation=None)
    assert list(stage_inputs(only_sft)) == ["data", "sft"]
