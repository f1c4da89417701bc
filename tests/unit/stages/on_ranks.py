"""What the tests of ranks and learners do on each rank of a group. Imports torch only: a rank starts quickly."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stages.learner import Learner, ReplicatedLearner
from stages.ranks import Ranks

MakeLearner = Callable[..., Learner]
NUM_MICROBATCHES = 6


def collectives(ranks: Ranks) -> dict[str, Any]:
    """All that ranks can say to one another, with uneven shares."""
    drawn = torch.randn(7, generator=torch.Generator().manual_seed(ranks.rank))
    gathered = torch.tensor(ranks.gather(drawn.tolist()))
    total = torch.tensor([ranks.rank + 1.0, 10.0 * ranks.rank])
    returned = ranks.sum(total)
    ranks.barrier()
    return {
        "is_main": ranks.is_main,
        "uneven": ranks.gather(["a", "b", "c"] if ranks.rank == 1 else []),
        "nothing": ranks.gather([]),
        "objects": ranks.gather([{"text": "\u00fc\u65e5\U0001f600 \n", "rank": ranks.rank, "flags": (True, None)}]),
        "special": ranks.gather([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45]),
        "bits": gathered.view(torch.int32).tolist(),
        "shared": ranks.gather(ranks.share(list(range(5)))),
        "broadcast": ranks.broadcast({"from": ranks.rank, "what": "\u00e9" * 3}),
        "sum": total.tolist(),
        "in_place": returned is total,
        "after": ranks.gather([ranks.rank]),
    }


def parameters() -> list[nn.Parameter]:
    """Two that every microbatch reaches, and one that the last microbatch alone does."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (4,), (2,))]


def microbatch_loss(held: Sequence[Tensor], number: int, *, scale: float = 1.0) -> Tensor:
    """A microbatch's share of a loss; nothing of it is linear, so that each share matters by itself."""
    data = torch.randn(number + 1, 3, generator=torch.Generator().manual_seed(100 + number))
    loss = torch.tanh(data @ held[0] + held[1]).square().sum()
    if number == NUM_MICROBATCHES - 1:
        loss = loss + held[2].square().sum()
    else:
        loss = loss + 0.0 * held[2].sum()
    return scale * loss


def minibatch(
    ranks: Ranks, learner: Learner, held: Sequence[Tensor], *, apply: bool = True, scale: float = 1.0
) -> float:
    """One optimizer step on this rank's microbatches."""
    for number in ranks.share(range(NUM_MICROBATCHES)):
        learner.backward(microbatch_loss(held, number, scale=scale))
    return learner.finish(apply=apply)


def weights(held: Sequence[Tensor]) -> list[float]:
    """All of them, flat."""
    return torch.cat([parameter.detach().flatten() for parameter in held]).tolist()


def learning(ranks: Ranks, make: MakeLearner, *, unused_on_a_rank: bool) -> dict[str, Any]:
    """The life of a learner: steps, a clipped one, one that is not applied, one with NaN, saving and loading."""
    found: dict[str, Any] = {}
    held = parameters()
    learner = make(held, learning_rate=0.1, adam_epsilon=1e-5, max_grad_norm=1e9, ranks=ranks)
    found["norm"] = minibatch(ranks, learner, held)
    found["first"] = weights(held)
    learner.set_learning_rate_factor(0.5)
    minibatch(ranks, learner, held, scale=0.3)
    found["second"] = weights(held)

    found["norm_of_a_step_not_made"] = minibatch(ranks, learner, held, apply=False, scale=50.0)
    found["not_applied"] = weights(held)
    learner.backward(microbatch_loss(held, 0, scale=float("nan") if ranks.rank == ranks.size - 1 else 1.0))
    found["norm_of_nan"] = learner.finish(apply=True)
    learner.backward(microbatch_loss(held, 0, scale=float("inf")))
    found["norm_of_infinity"] = learner.finish(apply=True)
    found["after_nan"] = weights(held)
    found["gradients_left"] = any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in held)

    state = _written_and_read(learner.state_dict())
    other_held = [nn.Parameter(parameter.detach().clone()) for parameter in held]
    other = make(other_held, learning_rate=0.1, adam_epsilon=1e-5, max_grad_norm=1e9, ranks=ranks)
    other.load_state_dict(state)
    for each, own in ((learner, held), (other, other_held)):
        each.set_learning_rate_factor(0.25)
        minibatch(ranks, each, own, scale=0.7)
    found["third"], found["loaded"] = weights(held), weights(other_held)

    clipped_held = parameters()
    clipped = make(clipped_held, learning_rate=0.1, adam_epsilon=1.0, max_grad_norm=0.5, ranks=ranks)
    found["norm_before_clipping"] = minibatch(ranks, clipped, clipped_held)
    found["clipped"] = weights(clipped_held)

    if unused_on_a_rank:
        lonely_held = parameters()
        lonely = make(lonely_held, learning_rate=0.1, adam_epsilon=1e-5, max_grad_norm=1e9, ranks=ranks)
        if ranks.is_main:
            lonely.backward(lonely_held[0].square().sum())
        found["norm_of_one_rank"] = lonely.finish(apply=True)
        found["one_rank"] = weights(lonely_held)
    return found


def _written_and_read(state: dict[str, Any]) -> dict[str, Any]:
    """As through a file: AdamW shares the tensors of a state that it is given."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    read: dict[str, Any] = torch.load(file, weights_only=True)
    return read


def replicated(ranks: Ranks) -> dict[str, Any]:
    """The life of a `ReplicatedLearner`."""
    return learning(ranks, ReplicatedLearner, unused_on_a_rank=True)
