"""The faults of `benchmarks.sync_faults`, each run over the same recorded updates of a policy.

An update is recorded once and replayed for each fault, so that all see the same policy, and the real base affords
it. The trainer's side is that of a PPO stage: `SyncedEngine`, `AdapterFiles`, `SyncProof`.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.sync_faults import (
    ChangedFileBackend,
    HealthyBackend,
    HonestlySwappedBackend,
    HonestPathReusedBackend,
    LaggingBackend,
    NoAdapterBackend,
    PathReusedBackend,
    PathReusingFiles,
    RestoredFileBackend,
    StaleBackend,
    SwappedBackend,
    flip_last_byte,
    zero_b,
)
from data.collators import PromptResponseBatch
from stages.models.config import ModelConfig
from stages.models.shared_base import SharedBase
from stages.models.tuning import save_adapter
from stages.ranks import Ranks
from stages.rollouts.adapter_files import AdapterFiles
from stages.rollouts.sync_proof import SyncBounds, SyncError, SyncProof
from stages.rollouts.synced_engine import SyncedEngine
from stages.rollouts.vllm_engine import VLLMBackend

State = dict[str, list[Tensor]]
"""Parameters of each role that an update moved."""


@dataclass(frozen=True)
class World:
    """A trainer with roles `policy`, `other` (far from it) and `twin` (starts equal, goes its own way), and vLLM."""

    model: ModelConfig
    shared: SharedBase
    backend: VLLMBackend
    probes: Sequence[Sequence[int]]
    pad_token_id: int

    def save_role(self, role: str, folder: Path) -> None:
        """Save a role's adapter as it is now."""
        save_adapter(self.shared.peft_model, role, folder, base_spec=self.model.base)


@dataclass(frozen=True)
class Outcome:
    """What became of one fault.

    Attributes:
        check: The check that ended the run; None if none did.
        step: Which sync of a wrong adapter that was, from 1; None if none did.
        message: Of the error.
        metrics: Of the syncs that passed, the first without fault.
    """

    check: str | None
    step: int | None
    message: str
    metrics: list[dict[str, float]]


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        first: Version of the first wrong adapter.
        make: Makes the engine around the real one, with a folder of its own.
        files: What publishes the versions.
    """

    first: int
    make: Callable[[World, Path], HealthyBackend]
    files: type[AdapterFiles] = AdapterFiles


CASES = {
    "healthy": Case(2, lambda world, folder: HealthyBackend(world.backend)),
    "stale: id used again": Case(2, lambda world, folder: StaleBackend(world.backend, since=2)),
    "stale: one version behind": Case(2, lambda world, folder: LaggingBackend(world.backend, folder, lag=1, since=2)),
    "stale: two versions behind": Case(3, lambda world, folder: LaggingBackend(world.backend, folder, lag=2, since=3)),
    "swapped: another role": Case(
        2, lambda world, folder: SwappedBackend(world.backend, world.save_role, "other", folder, since=2)
    ),
    "swapped: another role, from the start": Case(
        1, lambda world, folder: SwappedBackend(world.backend, world.save_role, "other", folder, since=1)
    ),
    "swapped: another role, reported": Case(
        2, lambda world, folder: HonestlySwappedBackend(world.backend, world.save_role, "other", folder, since=2)
    ),
    "swapped: a twin": Case(
        2, lambda world, folder: SwappedBackend(world.backend, world.save_role, "twin", folder, since=2)
    ),
    "zeroed: in the file": Case(2, lambda world, folder: ChangedFileBackend(world.backend, zero_b, since=2)),
    "zeroed: in the engine": Case(2, lambda world, folder: RestoredFileBackend(world.backend, zero_b, since=2)),
    "zeroed: not in the requests": Case(2, lambda world, folder: NoAdapterBackend(world.backend, since=2)),
    "zeroed: not in the requests, from the start": Case(1, lambda world, folder: NoAdapterBackend(world.backend)),
    "path reused: by the trainer": Case(2, lambda world, folder: HealthyBackend(world.backend), PathReusingFiles),
    "path reused: reported": Case(2, lambda world, folder: HonestPathReusedBackend(world.backend, folder)),
    "path reused: warm prefix cache": Case(2, lambda world, folder: PathReusedBackend(world.backend, folder)),
    "one bit of the file": Case(2, lambda world, folder: ChangedFileBackend(world.backend, flip_last_byte, since=2)),
}


def state_of(shared: SharedBase, roles: Sequence[str]) -> State:
    """Copies of the parameters of roles."""
    return {role: [parameter.detach().clone() for parameter in shared.parameters(role)] for role in roles}


@torch.no_grad()
def put_state(shared: SharedBase, state: State) -> None:
    """Give roles the parameters of a recorded moment."""
    for role, tensors in state.items():
        for parameter, value in zip(shared.parameters(role), tensors, strict=True):
            parameter.copy_(value)


def updates(
    shared: SharedBase, role: str, batches: Sequence[PromptResponseBatch], *, learning_rate: float, steps: int
) -> Iterator[float]:
    """AdamW steps on the negative log-likelihood of responses, one batch a step; gives each step's loss."""
    parameters = shared.parameters(role)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    for step in range(steps):
        batch = batches[step % len(batches)]
        with shared.role(role):
            logprobs = shared.training_logprobs(batch, temperature=1.0)
            loss = -logprobs.sum() / batch.response_mask.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield float(loss.detach())


def record(
    shared: SharedBase,
    batches: dict[str, Sequence[PromptResponseBatch]],
    *,
    learning_rate: float,
    steps: int,
) -> list[State]:
    """The states of roles before and after each of some updates; the roles themselves are left as they were."""
    start = state_of(shared, list(batches))
    states = [start]
    running = [updates(shared, role, own, learning_rate=learning_rate, steps=steps) for role, own in batches.items()]
    for _ in zip(*running, strict=True):
        states.append(state_of(shared, list(batches)))
    put_state(shared, start)
    return states


def run_case(world: World, case: Case, states: Sequence[State], *, same_weights: bool = True) -> Outcome:
    """Send the policy of each state to an engine with a fault, until a check ends it.

    Args:
        world: Trainer and engine.
        case: The fault.
        states: One for each version.
        same_weights: False where the engine serves other base weights on purpose.
    """
    metrics: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = SyncedEngine(
            case.make(world, folder / "fault"),
            world.shared,
            case.files(world.shared, world.model.base, None, folder, Ranks()),
            SyncProof(SyncBounds.of(world.model.dtype), same_weights=same_weights),
            probe_prompts=world.probes,
            pad_token_id=world.pad_token_id,
            dtype=getattr(torch, world.model.dtype),
        )
        try:
            for version, state in enumerate(states, start=1):
                put_state(world.shared, state)
                try:
                    metrics.append(dict(engine.load_policy("policy").metrics))
                except SyncError as error:
                    found = re.search(r": (identity|agreement|change|correlation): ", str(error))
                    check = None if found is None else found.group(1)
                    return Outcome(check, version - case.first + 1, str(error), metrics)
        finally:
            engine.close()
            put_state(world.shared, states[0])
    return Outcome(None, None, "", metrics)
