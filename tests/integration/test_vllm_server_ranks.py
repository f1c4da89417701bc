"""Two ranks of a stage and one vLLM server: gloo on the CPU, the server a stand-in in a process of its own."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import torch

from stages.models.config import ModelConfig
from stages.ranks import Ranks
from stages.rollouts import vllm_process
from stages.rollouts.adapter_files import folder_digest
from stages.rollouts.config import SamplingConfig, VLLMConfig, VLLMServerConfig
from stages.rollouts.contract import PublishedAdapter
from stages.rollouts.vllm_server import VLLMServerBackend
from tests.vllm_stand_in import logprobs

EOS = 7
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13], [20, 21]]
SAMPLING = SamplingConfig(max_new_tokens=6, temperature=0.7)


class AdapterFilesStandIn:
    """Publishes small folders; the main rank writes."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._folder = folder
        self._ranks = ranks
        self.sent: list[PublishedAdapter] = []

    def publish(self, version: int) -> PublishedAdapter:
        folder = self._folder / f"v{version}"
        if self._ranks.is_main:
            folder.mkdir()
            (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "version": version}))
        self._ranks.barrier()
        self.sent.append(PublishedAdapter(version, f"policy-v{version}", folder, folder_digest(folder)))
        return self.sent[-1]


def _sample_on_rank(rank: int, folder: Path, port: int) -> None:
    """One of two ranks: what it saw goes to a file of its own."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    vllm_process._MODULE = "tests.vllm_stand_in"
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    backend = VLLMServerBackend(
        VLLMServerConfig(), VLLMConfig(), ModelConfig(base="base", dtype="float32"), served="base", eos_token_id=EOS,
        max_length=64, seed=5, log_path=folder / "vllm.log", ranks=ranks,
    )  # fmt: skip
    adapters = AdapterFilesStandIn(folder, ranks)
    seen: dict[str, Any] = {"address": backend.address, "is_own": backend.process is not None, "versions": []}
    for version in (1, 2):
        sent = adapters.publish(version)
        loaded = backend.load_adapter(sent)
        probe = backend.next_token_logprobs(PROMPTS)
        rows = backend.sample(ranks.share(PROMPTS), SAMPLING, ranks.share([1, 2, 3, 4]))
        seen["versions"].append([loaded.digest == sent.digest, [list(row.items()) for row in probe],
                                 [[row.prompt_ids, row.response_ids, row.logprobs] for row in rows]])  # fmt: skip
        if version == 2:
            backend.unload_adapter(adapters.sent[0])
    ranks.barrier()
    backend.close()
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


def test_two_ranks_sample_their_own_rows_from_the_server_that_the_first_one_started(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_sample_on_rank, (tmp_path, port), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["address"] == second["address"]
    assert (first["is_own"], second["is_own"]) == (True, False)
    for version, (ours, theirs) in enumerate(zip(first["versions"], second["versions"], strict=True), start=1):
        assert ours[0] and theirs[0]
        assert ours[1] == theirs[1]
        assert [row[0] for row in ours[2] + theirs[2]] == PROMPTS
        for prompt, response, found in ours[2] + theirs[2]:
            context = [prompt[-1], *response]
            assert found == [
                logprobs(f"policy-v{version}", last, SAMPLING.temperature)[token]
                for last, token in zip(context, response, strict=False)
            ]
