"""Proof that an engine runs the adapter that was just sent, and not the one before, another, or none.

Four checks after each sync, on the next-token distributions of a few probe prompts:

    identity      what the engine says it loaded has the digest that was sent, under a name and a path that no
                  version had before
    agreement     engine and trainer give the probe tokens the same log-probabilities, within what their
                  precision explains
    change        the engine's probe is no earlier version's, bit for bit, unless the trainer's is too
    correlation   engine and trainer moved together since the last version that could be told apart

`agreement` sees an adapter that is far from the one sent (none at all, another role's). `change` sees one that is
stale, however little the policy moved: an engine that computes the same numbers twice runs the same weights. What
they leave is an adapter that is none of ours and yet within the precision of the one sent; `correlation` sees it
once the policy has moved further than the precision's noise, and until then `sync/correlation` is not reported.
The limits are measured in docs/sync.md.

Knows no engine and no model: numbers in, figures out.

Shape legend: K = probe prompts, V = vocabulary, n = probe tokens.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from data.errors import StageError
from stages.algorithms.sync import pearson_correlation, rms
from stages.rollouts.contract import LoadedAdapter, PublishedAdapter

logger = logging.getLogger(__name__)

Probe = Sequence[Mapping[int, float]]


@dataclass(frozen=True)
class SyncBounds:
    """What a precision explains.

    Attributes:
        max_gap: Largest RMS of trainer minus engine, in nats, that two implementations of the same weights
            reach.
        min_judged_change: Smallest RMS of the trainer's own change, in nats, at which the correlation says
            something; below it the noise of both decides.
        min_change: RMS of the trainer's change below which an unchanged engine is no fault.
        min_correlation: Of the two changes, where judged.
    """

    max_gap: float
    min_judged_change: float
    min_change: float
    min_correlation: float = 0.5

    @classmethod
    def of(cls, dtype: str) -> "SyncBounds":
        """Bounds for a trainer and an engine in this type. Measured in docs/sync.md."""
        if dtype == "float32":
            return cls(max_gap=0.002, min_judged_change=1e-4, min_change=1e-5)
        return cls(max_gap=0.1, min_judged_change=0.1, min_change=1e-3)


@dataclass(frozen=True)
class _Seen:
    """One version's probe: the engine's tokens with both log-probabilities."""

    version: int
    engine: Probe
    trainer: tuple[tuple[float, ...], ...]


class SyncError(StageError):
    """The engine does not run the adapter that was sent."""


class SyncProof:
    """Checks version after version; remembers what each looked like."""

    def __init__(self, bounds: SyncBounds, *, agreement_is_fatal: bool = True) -> None:
        """Start with no version seen.

        Args:
            bounds: What the precision explains.
            agreement_is_fatal: False where the engine serves other base weights on purpose: `agreement` is then
                measured and not judged.
        """
        self._bounds = bounds
        self._agreement_is_fatal = agreement_is_fatal
        self._names: set[str] = set()
        self._paths: set[str] = set()
        self._seen: list[_Seen] = []
        self._anchor: _Seen | None = None

    def check(
        self, sent: PublishedAdapter, loaded: LoadedAdapter, engine: Probe, trainer: Float[Tensor, "K V"]
    ) -> dict[str, float]:
        """Judge one sync.

        Args:
            sent: What was published.
            loaded: What the engine says it loaded.
            engine: The engine's likeliest next tokens with their log-probabilities, for each probe prompt.
            trainer: The trainer's next-token log-probabilities of the same prompts.

        Returns:
            `sync/version`, `sync/gap_rms`, and from the second version on `sync/change_rms` (the trainer's);
            `sync/correlation` where it could be judged.

        Raises:
            SyncError: A check failed; the message says which and by how much.
        """
        self._check_identity(sent, loaded)
        now = _Seen(
            sent.version,
            engine,
            tuple(tuple(row[list(tokens)].tolist()) for row, tokens in zip(trainer, engine, strict=True)),
        )
        gap = rms(_flat(now.trainer) - _values(engine))
        metrics = {"sync/version": float(sent.version), "sync/gap_rms": float(gap)}
        self._check_agreement(sent, float(gap))
        self._check_change(sent, engine, trainer)
        if self._seen:
            metrics["sync/change_rms"] = float(rms(_moved(self._seen[-1], trainer)))
        metrics |= self._check_correlation(sent, now, trainer)
        self._seen.append(now)
        return metrics

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

    def _check_agreement(self, sent: PublishedAdapter, gap: float) -> None:
        if gap <= self._bounds.max_gap:
            return
        text = (
            f"{_where(sent)}: agreement: log-probabilities of engine and trainer on the probe prompts differ by "
            f"{gap:.4f} nats (RMS); at most {self._bounds.max_gap} is explained by precision"
        )
        if self._agreement_is_fatal:
            raise SyncError(
                f"{text}: the engine runs another adapter, another base or none. See its log; `rollout.engine: hf` "
                f"needs no sync"
            )
        if not self._seen:  # once: the base's weights stay as they are
            logger.warning("%s; the engine serves the original base weights, the trainer computes in NF4", text)

    def _check_change(self, sent: PublishedAdapter, engine: Probe, trainer: Float[Tensor, "K V"]) -> None:
        for seen in self._seen:
            if seen.engine != engine:
                continue
            moved = rms(_moved(seen, trainer))
            if moved > self._bounds.min_change:
                raise SyncError(
                    f"{_where(sent)}: change: the engine's log-probabilities on the probe prompts are those of "
                    f"version {seen.version}, bit for bit, while the trainer's moved by {moved:.2e} nats (RMS); the "
                    f"engine still runs version {seen.version}: its cache kept the old adapter. Restart it"
                )

    def _check_correlation(self, sent: PublishedAdapter, now: _Seen, trainer: Float[Tensor, "K V"]) -> dict[str, float]:
        """Compare the movements since the anchor, and move the anchor on once they could be told from noise."""
        anchor = self._anchor
        if anchor is None:
            self._anchor = now
            return {}
        if not rms(_moved(anchor, trainer)) >= self._bounds.min_judged_change:
            return {}
        engine_moved, trainer_moved = _common_movements(anchor, now.engine, trainer)
        if len(engine_moved) < 2:
            return {}  # the distributions share no likely token: `agreement` has already compared them
        correlation = float(pearson_correlation(engine_moved, trainer_moved))
        if not correlation >= self._bounds.min_correlation:
            raise SyncError(
                f"{_where(sent)}: correlation: since version {anchor.version} the trainer's log-probabilities on the "
                f"probe prompts moved by {rms(trainer_moved):.4f} nats and the engine's by {rms(engine_moved):.4f} "
                f"(RMS), correlated by {correlation:.2f}; at least {self._bounds.min_correlation} is needed: the "
                f"engine runs another adapter. See its log; `rollout.engine: hf` needs no sync"
            )
        self._anchor = now
        return {"sync/correlation": correlation}


def _where(sent: PublishedAdapter) -> str:
    return f"rollout engine, adapter version {sent.version}"


def _flat(rows: Sequence[Sequence[float]]) -> Float[Tensor, " n"]:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


def _values(probe: Probe) -> Float[Tensor, " n"]:
    return _flat([list(row.values()) for row in probe])


def _moved(seen: _Seen, trainer: Float[Tensor, "K V"]) -> Float[Tensor, " n"]:
    """The trainer's log-probabilities now minus then, on the tokens of then."""
    now = [row[list(tokens)].tolist() for row, tokens in zip(trainer, seen.engine, strict=True)]
    return _flat(now) - _flat(seen.trainer)


def _common_movements(
    anchor: _Seen, engine: Probe, trainer: Float[Tensor, "K V"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Movements of engine and trainer since the anchor, on the tokens that the engine named both times."""
    engine_moved, trainer_moved = [], []
    for row, (then, now) in enumerate(zip(anchor.engine, engine, strict=True)):
        for (token, before), trainer_before in zip(then.items(), anchor.trainer[row], strict=True):
            if token in now:
                engine_moved.append(now[token] - before)
                trainer_moved.append(float(trainer[row, token]) - trainer_before)
    return _flat([engine_moved]), _flat([trainer_moved])
