"""One tiny model folder a family and one adapter of each kind on it, built once a session; nobody writes into them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tiny import Family, tiny_model_dir
from tests.unit.stages.parts import Executed, Folders, dataset, executed, model_config, save_random_adapter, stage_spec


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Products of this size only lose by a second thread, most of all beside other work on the machine.

    Of the session, so that the runs below, which are too, start after it: another number of threads is another
    rounding, and the same run is to give the same bits.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def no_telemetry() -> Iterator[None]:
    """TRL's trainers would call the hub at each start; the pipeline sets the same by an environment variable."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Folders]:
    """Give base, policy artifact and reward-model artifact of a family; the adapters are random, B is not 0."""
    built: dict[Family, Folders] = {}

    def build(family: Family) -> Folders:
        if family not in built:
            root: Path = tmp_path_factory.mktemp(f"tiny-{family}")
            base = tiny_model_dir(family, root / "base")
            built[family] = Folders(base, root / "policy", root / "reward")
            save_random_adapter(built[family].policy, base, "causal_lm", seed=1)
            save_random_adapter(built[family].reward, base, "seq_cls", seed=2)
        return built[family]

    return build


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the one small run below: store, stage folders, data."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="session")
def sft_run(folders: Callable[[Family], Folders], outputs: Path) -> Executed:
    """Train a policy on the planted demonstrations."""
    from stages.sft.config import SFTConfig

    config = SFTConfig(learning_rate=0.02, batch_size=10, microbatch_size=5, eval_every_steps=2)
    data = dataset(outputs / "data")
    return executed(stage_spec("sft", config, model_config(folders("llama").base), {"dataset": data}, outputs))


@pytest.fixture(scope="session")
def rm_run(sft_run: Executed, outputs: Path) -> Executed:
    """Train a reward model on the planted pairs, from that policy."""
    from stages.models.config import ModelConfig
    from stages.reward_model.config import RewardModelConfig

    config = RewardModelConfig.model_validate(
        {
            "learning_rate": 0.01,
            "batch_size": 4,
            "microbatch_size": 4,
            "normalization": {"num_prompts": 24, "batch_size": 10, "sampling": {"max_new_tokens": 6}},
        }
    )
    model = ModelConfig.model_validate(sft_run.spec.model)
    inputs = {"dataset": sft_run.spec.inputs["dataset"], "policy": sft_run.artifact}
    return executed(stage_spec("reward_model", config, model, inputs, outputs))


@pytest.fixture(scope="session")
def ensembles(rm_run: Executed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Executed]:
    """Train three adapters, and three heads, on the same pairs."""
    from stages.models.config import ModelConfig
    from stages.reward_model.config import RewardModelConfig

    model = ModelConfig.model_validate(rm_run.spec.model)
    found = {}
    for kind in ("adapters", "heads"):
        settings = rm_run.spec.config | {"ensemble": {"members": 3, "of": kind}}
        config = RewardModelConfig.model_validate(settings)
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = executed(stage_spec("reward_model", config, model, rm_run.spec.inputs, folder))
    return found


@pytest.fixture(scope="session")
def preferences_run(sft_run: Executed, outputs: Path) -> Executed:
    """Sample that policy and let a planted rule rank the responses."""
    from stages.models.config import ModelConfig
    from stages.preferences.config import PreferencesConfig

    config = PreferencesConfig.model_validate(
        {
            "labeler": {"type": "simulated", "reward": {"type": "character_share", "characters": "aeiou"}},
            "responses_per_prompt": 3,
            "only_finished": False,
            "num_prompts": 12,
            "num_held_out_prompts": 5,
            "batch_size": 7,
            "rollout": {"engine": "hf", "max_new_tokens": 6},
        }
    )
    model = ModelConfig.model_validate(sft_run.spec.model)
    inputs = {"dataset": sft_run.spec.inputs["dataset"], "policy": sft_run.artifact}
    return executed(stage_spec("preferences", config, model, inputs, outputs))


@pytest.fixture(scope="session")
def ppo_run(sft_run: Executed, rm_run: Executed, outputs: Path) -> Executed:
    """Train the policy on that reward model."""
    from stages.models.config import ModelConfig
    from stages.ppo.config import PPOConfig

    config = PPOConfig.model_validate(
        {
            "steps": 3,
            "batch_size": 8,
            "minibatch_size": 4,
            "microbatch_size": 2,
            "learning_rate": 0.01,
            "rollout": {"engine": "hf", "max_new_tokens": 6},
        }
    )
    model = ModelConfig.model_validate(sft_run.spec.model)
    inputs = {
        "dataset": sft_run.spec.inputs["dataset"],
        "policy": sft_run.artifact,
        "reward_model": rm_run.artifact,
    }
    return executed(stage_spec("ppo", config, model, inputs, outputs))


@pytest.fixture(scope="session")
def evaluation_run(ppo_run: Executed, outputs: Path) -> Executed:
    """Compare the two policies, with a gold scorer."""
    from stages.evaluation.config import EvaluationConfig
    from stages.models.config import ModelConfig

    config = EvaluationConfig.model_validate(
        {
            "num_prompts": 10,
            "batch_size": 4,
            "bootstrap_samples": 200,
            "gold": {"type": "character_share", "characters": "aeiou"},
            "rollout": {"engine": "hf", "max_new_tokens": 6},
        }
    )
    before = ppo_run.spec.inputs
    inputs = {
        "dataset": before["dataset"],
        "reference": before["policy"],
        "policy": ppo_run.artifact,
        "reward_model": before["reward_model"],
    }
    return executed(stage_spec("evaluation", config, ModelConfig.model_validate(ppo_run.spec.model), inputs, outputs))
