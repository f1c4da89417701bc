"""Proof that an engine runs the adapter that was just sent, and not the one before, another, or none.

Four checks after each sync, on the next-token distributions of a few probe prompts:

    identity      what the engine says it loaded has the digest that was sent, under a name and a path that no
                  version had before
    agreement     engine and trainer give the probe tokens the same log-probabilities, within what their
                  precision explains
    change        the engine's probe is no earlier version's, bit for bit, unless the trainer's is too
    correlation   engine and trainer moved together since a version that they can be told apart from

`agreement` sees an adapter that is far from the one sent (none at all, another role's). `change` sees one that was
there before, however little the policy moved: an engine that computes the same numbers twice runs the same weights.
What they leave is an adapter that the engine never ran and that is yet within the precision of the one sent;
`correlation` sees it once the policy has moved further than the precision's noise, and until then
`sync/correlation` is not reported. docs/sync.md has what was measured of each.

The trainer's side has to be computed with the adapter rounded as the engine holds it (`SyncedEngine` does). In
bfloat16 a small step may leave every rounded weight where it was: the engine then repeats itself rightly, while
the trainer's own float32 adapter flips roundings further up and seems to move.

Knows no engine and no model: numbers in, figures out.

Shape legend: K = probe prompts, V = vocabulary, n = probe tokens of all prompts.
"""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.errors import StageError
from stages.algorithms.sync import pearson_correlation, rms
from stages.rollouts.contract import LoadedAdapter, PublishedAdapter

logger = logging.getLogger(__name__)

Probe = Sequence[Mapping[int, float]]

_HISTORY = 1000
"""Versions that are remembered, 10 KB each with 16 prompts of 20 tokens."""

_MOVED_PROMPTS = 0.75
"""Share of the prompts on which the trainer has to move before an engine that does not is at fault. Where a step
flips only a handful of rounded weights, both move on some prompts and not on others."""

_NOISE_FACTOR = 3.0
"""The trainer's movement is judged from this many times the noise on, see `_required_correlation`."""

_MIN_COMMON_TOKENS = 8
"""Fewer tokens that both versions name say nothing about their movement."""


@dataclass(frozen=True)
class SyncBounds:
    """What a precision explains.

    Attributes:
        max_gap: Largest RMS of trainer minus engine, in nats, that two implementations of the same weights
            reach.
        min_judged_change: Standard deviation over tokens of the trainer's change, in nats, below which the
            correlation is never judged. Above it the measured noise decides.
    """

    max_gap: float
    min_judged_change: float

    @classmethod
    def of(cls, dtype: str) -> "SyncBounds":
        """Bounds for a trainer and an engine in this type. Measured in docs/sync.md."""
        if dtype == "float32":
            return cls(max_gap=0.002, min_judged_change=1e-5)
        return cls(max_gap=0.2, min_judged_change=0.01)


@dataclass(frozen=True)
class _Seen:
    """One version's probe, by `row * V + token` in ascending order.

    Attributes:
        version: Its number.
        digest: Of its files.
        keys: The tokens that the engine named.
        engine: The engine's log-probabilities of them.
        trainer: The trainer's.
    """

    version: int
    digest: str
    keys: Int[Tensor, " n"]
    engine: Float[Tensor, " n"]
    trainer: Float[Tensor, " n"]

    @classmethod
    def of(cls, sent: PublishedAdapter, engine: Probe, trainer: Float[Tensor, "K V"]) -> "_Seen":
        vocabulary = trainer.shape[1]
        values = {row * vocabulary + token: value for row, top in enumerate(engine) for token, value in top.items()}
        keys = torch.tensor(sorted(values))
        return cls(
            sent.version,
            sent.digest,
            keys,
            torch.tensor([values[key] for key in keys.tolist()], dtype=torch.float64),
            trainer.flatten()[keys].double(),
        )

    def to_state(self) -> dict[str, Any]:
        """As checkpoints hold it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def gap(self) -> float:
        """RMS of trainer minus engine, in nats."""
        return rms(self.trainer - self.engine)

    def same_engine(self, other: "_Seen") -> bool:
        """Whether the engine said the same, bit for bit."""
        return torch.equal(self.keys, other.keys) and torch.equal(self.engine, other.engine)

    def moved(self, trainer: Float[Tensor, "K V"]) -> Float[Tensor, " n"]:
        """The trainer's log-probabilities now minus then, on the tokens of then."""
        return trainer.flatten()[self.keys].double() - self.trainer


class SyncError(StageError):
    """The engine does not run the adapter that was sent."""


class SyncProof:
    """Checks version after version; remembers what each looked like."""

    def __init__(self, bounds: SyncBounds, *, same_weights: bool = True) -> None:
        """Start with no version seen.

        Args:
            bounds: What the precision explains.
            same_weights: False where the engine serves other base weights on purpose: `agreement` is then
                measured and not judged, and a looser `correlation` is asked for.
        """
        self._bounds = bounds
        self._same_weights = same_weights
        self._names: set[str] = set()
        self._paths: set[str] = set()
        self._seen: deque[_Seen] = deque(maxlen=_HISTORY)
        self._anchor: _Seen | None = None

    def check(
        self, sent: PublishedAdapter, loaded: LoadedAdapter, engine: Probe, trainer: Float[Tensor, "K V"]
    ) -> dict[str, float]:
        """Judge one sync.

        Args:
            sent: What was published.
            loaded: What the engine says it loaded.
            engine: The engine's likeliest next tokens with their log-probabilities, for each probe prompt.
            trainer: The trainer's next-token log-probabilities of the same prompts, with the adapter rounded as
                the engine holds it.

        Returns:
            `sync/version`, `sync/gap_rms`, and from the second version on `sync/change_rms` (the trainer's);
            `sync/correlation` where it could be judged.

        Raises:
            SyncError: A check failed; the message says which and by how much.
        """
        self._check_identity(sent, loaded)
        now = _Seen.of(sent, engine, trainer)
        if self._seen and self._seen[-1].version == sent.version:  # the same once more, in an engine started anew
            self._seen.pop()
        self._check_finite(sent, now)
        self._check_change(sent, now, trainer)  # first: where both fail, it says more
        self._check_agreement(sent, now)
        metrics = {"sync/version": float(sent.version), "sync/gap_rms": now.gap}
        if self._seen:
            metrics["sync/change_rms"] = rms(self._seen[-1].moved(trainer))
        metrics |= self._check_correlation(sent, now, trainer)
        self._seen.append(now)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """What later versions are compared with."""
        anchor = None if self._anchor is None else self._anchor.to_state()
        return {"seen": [seen.to_state() for seen in self._seen], "anchor": anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what another proof has seen."""
        self._seen = deque((_Seen(**seen) for seen in state["seen"]), maxlen=_HISTORY)
        self._anchor = None if state["anchor"] is None else _Seen(**state["anchor"])

    def _check_identity(self, sent: PublishedAdapter, loaded: LoadedAdapter) -> None:
        if loaded.name != sent.name or loaded.digest != sent.digest:
            raise SyncError(
                f"{_where(sent)}: identity: the engine loaded {loaded.name!r} with digest {loaded.digest[:12]}, sent "
                f"was {sent.name!r} with digest {sent.digest[:12]}; the folder {loaded.path} was changed on its way, "
                f"or the engine reads another one: let engine and trainer see the same folder "
                f"(`rollout.server.adapter_dir`)"
            )
        if loaded.name in self._names or loaded.path in self._paths:
            raise SyncError(
                f"{_where(sent)}: identity: name {loaded.name!r} or path {loaded.path} was in use by an earlier "
                f"version; a new one is needed for each, because the engine's caches are keyed by them"
            )
        self._names.add(loaded.name)
        self._paths.add(loaded.path)

    def _check_finite(self, sent: PublishedAdapter, now: _Seen) -> None:
        for side, values in (("engine", now.engine), ("trainer", now.trainer)):
            if not bool(values.isfinite().all()):
                raise SyncError(
                    f"{_where(sent)}: agreement: log-probabilities of the {side} on the probe prompts are not finite; "
                    f"numbers are needed. Look for weights that overflowed, and lower the learning rate"
                )

    def _check_agreement(self, sent: PublishedAdapter, now: _Seen) -> None:
        if now.gap <= self._bounds.max_gap:
            return
        text = (
            f"{_where(sent)}: agreement: log-probabilities of engine and trainer on the probe prompts differ by "
            f"{now.gap:.4f} nats (RMS); at most {self._bounds.max_gap} is explained by precision"
        )
        if self._same_weights:
            raise SyncError(
                f"{text}: the engine runs another adapter, another base or none. See its log; `rollout.engine: hf` "
                f"needs no sync"
            )
        if not self._seen:  # once: the base's weights stay as they are
            logger.warning("%s; the engine serves the original base weights, the trainer computes in NF4", text)

    def _check_change(self, sent: PublishedAdapter, now: _Seen, trainer: Float[Tensor, "K V"]) -> None:
        for seen in self._seen:
            # A skipped update sends the same adapter again, evaluation may send two roles that are equal.
            if seen.digest == sent.digest or not seen.same_engine(now):
                continue
            moved = seen.moved(trainer)
            prompts = seen.keys // trainer.shape[1]
            moved_prompts = len(set(prompts[moved != 0].tolist()))
            if moved_prompts >= _MOVED_PROMPTS * len(trainer):
                raise SyncError(
                    f"{_where(sent)}: change: the engine's log-probabilities on the probe prompts are those of "
                    f"version {seen.version}, bit for bit, while the trainer's moved on {moved_prompts} of "
                    f"{len(trainer)} prompts, by {rms(moved):.2e} nats (RMS); the engine still runs version "
                    f"{seen.version}: its cache kept the old adapter. Restart it; `rollout.engine: hf` needs no sync"
                )

    def _check_correlation(self, sent: PublishedAdapter, now: _Seen, trainer: Float[Tensor, "K V"]) -> dict[str, float]:
        """Compare the movements since the anchor, and move the anchor on once they could be told from noise."""
        anchor = self._anchor
        if anchor is None:
            self._anchor = now
            return {}
        engine_moved, trainer_moved = _common_movements(anchor, now)
        if len(engine_moved) < _MIN_COMMON_TOKENS:
            self._anchor = now  # nothing to compare, and there never will be: `agreement` has to do
            return {}
        # The anchor's gap is the noise of both sides. Not the gap of now, which a fault would widen.
        noise = min(anchor.gap, self._bounds.max_gap)
        size = float(trainer_moved.std(correction=0))
        if size < max(self._bounds.min_judged_change, _NOISE_FACTOR * noise):
            return {}
        correlation = pearson_correlation(engine_moved, trainer_moved)
        required = _required_correlation(noise / size, same_weights=self._same_weights)
        if not correlation >= required:
            raise SyncError(
                f"{_where(sent)}: correlation: since version {anchor.version} the trainer's log-probabilities on the "
                f"probe prompts moved by {rms(trainer_moved):.2e} nats and the engine's by {rms(engine_moved):.2e} "
                f"(RMS), correlated by {correlation:.3f}; at least {required:.3f} is needed: the engine runs another "
                f"adapter, or caches of one. See its log; `rollout.engine: hf` needs no sync"
            )
        self._anchor = now
        return {"sync/correlation": correlation}


def _required_correlation(noise: float, *, same_weights: bool) -> float:
    """The least correlation of two movements of the same weights.

    With noise of variance s^2 and t^2 in one version of engine and trainer, s^2 + t^2 = g^2, a common movement of
    variance m^2 is seen as m^2 + 2 s^2 and m^2 + 2 t^2: the correlation is at least m^2 / (m^2 + g^2), about
    1 - (g / m)^2. The noise of two versions is not the same. Asked for is what is left if it doubled,
    1 - 4.5 (g / m)^2, up to 0.95; from there on, as float32 is, what is left if it grew tenfold, up to 0.999.

    Args:
        noise: g by the size of the trainer's movement, at most 1/3.
        same_weights: Whether both have the same base weights; other weights move a little apart.
    """
    if not same_weights:
        return 0.5
    return max(min(0.95, 1.0 - 4.5 * noise**2), min(0.999, 1.0 - 100.0 * noise**2))


def _where(sent: PublishedAdapter) -> str:
    return f"rollout engine, adapter version {sent.version}"


def _common_movements(then: _Seen, now: _Seen) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Movements of engine and trainer, on the tokens that the engine named both times."""
    kept_then, kept_now = torch.isin(then.keys, now.keys), torch.isin(now.keys, then.keys)
    return now.engine[kept_now] - then.engine[kept_then], now.trainer[kept_now] - then.trainer[kept_then]
