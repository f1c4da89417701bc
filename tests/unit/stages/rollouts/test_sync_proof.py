"""The four checks of a sync, on numbers by hand: every fault has its message, no healthy engine is accused."""

import logging
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.rollouts.contract import LoadedAdapter, PublishedAdapter
from stages.rollouts.sync_proof import Probe, SyncBounds, SyncError, SyncProof

BOUNDS = SyncBounds(max_gap=0.2, min_judged_change=0.01)
START = torch.tensor(
    [[-1.0, -2.0, -3.0, -4.0], [-1.5, -2.5, -3.5, -4.5], [-1.0, -3.0, -5.0, -7.0], [-2.0, -2.0, -4.0, -4.0]],
    dtype=torch.float64,
)
"""Four prompts, four tokens. (They need not be probabilities: the proof only compares them.)"""
ALTERNATING = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).expand(4, 4)
"""Mean 0 and standard deviation 1, over all tokens and for each prompt."""
ACROSS = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).expand(4, 4)
"""The same, and its products with the other add up to 0: a movement that is not correlated with it."""


def _correlated(correlation: float, size: float) -> Tensor:
    """A movement of this size whose correlation with `ALTERNATING` is this."""
    return size * (correlation * ALTERNATING + (1 - correlation**2) ** 0.5 * ACROSS)


def _sent(version: int, digest: str | None = None) -> PublishedAdapter:
    name = f"policy-v{version}"
    return PublishedAdapter(version, name, Path("/shm") / name, digest or f"digest-{version}")


def _loaded(sent: PublishedAdapter) -> LoadedAdapter:
    return LoadedAdapter(sent.name, str(sent.folder), sent.digest)


def _probe(values: Tensor, tokens: tuple[int, ...] = (0, 1, 2, 3)) -> Probe:
    return [{token: float(row[token]) for token in tokens} for row in values]


def _check(
    proof: SyncProof, version: int, engine: Tensor | Probe, trainer: Tensor, *, digest: str | None = None
) -> dict[str, float]:
    sent = _sent(version, digest)
    return proof.check(sent, _loaded(sent), _probe(engine) if isinstance(engine, Tensor) else engine, trainer)


def test_bounds_are_those_that_docs_sync_justifies() -> None:
    assert SyncBounds.of("float32") == SyncBounds(max_gap=0.002, min_judged_change=1e-5)
    assert SyncBounds.of("bfloat16") == SyncBounds.of("float16") == SyncBounds(max_gap=0.2, min_judged_change=0.01)


def test_the_first_version_has_a_number_and_a_gap() -> None:
    # 16 tokens, on 4 of them 0.1 apart: sqrt(4 * 0.01 / 16) = 0.05
    engine = START.clone()
    engine[:, 1] += 0.1
    metrics = _check(SyncProof(BOUNDS), 1, engine, START)
    assert metrics == {"sync/version": 1.0, "sync/gap_rms": pytest.approx(0.05)}


def test_tokens_may_come_in_any_order_and_number() -> None:
    # one of four tokens is 0.5 apart: sqrt(0.25 / 4) = 0.25
    proof = SyncProof(SyncBounds(max_gap=0.3, min_judged_change=0.01))
    metrics = _check(proof, 1, [{3: -4.0, 0: -0.5}, {1: -2.5}, {}, {2: -4.0}], START.float())
    assert metrics["sync/gap_rms"] == pytest.approx(0.25)


# identity


def test_another_digest_is_refused() -> None:
    sent = _sent(3, "a" * 64)
    with pytest.raises(
        SyncError,
        match=re.escape(
            "rollout engine, adapter version 3: identity: the engine loaded 'policy-v3' with digest bbbbbbbbbbbb, sent "
            "was 'policy-v3' with digest aaaaaaaaaaaa; the folder /shm/policy-v3 was changed on its way, or the engine "
            "reads another one: let engine and trainer see the same folder (`rollout.server.adapter_dir`)"
        ),
    ):
        SyncProof(BOUNDS).check(sent, LoadedAdapter(sent.name, str(sent.folder), "b" * 64), _probe(START), START)


def test_another_name_is_refused() -> None:
    sent = _sent(3)
    with pytest.raises(
        SyncError, match=r"identity: the engine loaded 'policy' with digest digest-3, sent was 'policy-"
    ):
        SyncProof(BOUNDS).check(sent, LoadedAdapter("policy", str(sent.folder), sent.digest), _probe(START), START)


@pytest.mark.parametrize(("name", "path"), [("policy-v1", "/shm/new"), ("new", "/shm/policy-v1")])
def test_a_name_or_a_path_that_was_in_use_is_refused(name: str, path: str) -> None:
    proof = SyncProof(BOUNDS)
    _check(proof, 1, START, START)
    _check(proof, 2, START + 0.01, START)
    sent = PublishedAdapter(3, name, Path(path), "digest-3")
    with pytest.raises(
        SyncError,
        match=re.escape(
            f"rollout engine, adapter version 3: identity: name {name!r} or path {path} was in use by an earlier "
            "version; a new one is needed for each, because the engine's caches are keyed by them"
        ),
    ):
        proof.check(sent, _loaded(sent), _probe(START), START)


# agreement


def test_a_gap_beyond_the_precision_ends_the_run() -> None:
    _check(SyncProof(BOUNDS), 1, START + 0.199, START)
    with pytest.raises(
        SyncError,
        match=re.escape(
            "rollout engine, adapter version 1: agreement: log-probabilities of engine and trainer on the probe "
            "prompts differ by 0.2010 nats (RMS); at most 0.2 is explained by precision: the engine runs another "
            "adapter, another base or none. See its log; `rollout.engine: hf` needs no sync"
        ),
    ):
        _check(SyncProof(BOUNDS), 1, START + 0.201, START)


@pytest.mark.parametrize("same_weights", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("side", ["engine", "trainer"])
def test_what_is_not_finite_ends_the_run_with_any_weights(side: str, value: float, same_weights: bool) -> None:
    broken = START.clone()
    broken[2, 1] = value
    engine, trainer = (broken, START) if side == "engine" else (START, broken)
    with pytest.raises(
        SyncError,
        match=re.escape(
            f"rollout engine, adapter version 1: agreement: log-probabilities of the {side} on the probe prompts are "
            "not finite; numbers are needed. Look for weights that overflowed, and lower the learning rate"
        ),
    ):
        _check(SyncProof(BOUNDS, same_weights=same_weights), 1, engine, trainer)


def test_other_weights_on_purpose_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    proof = SyncProof(BOUNDS, same_weights=False)
    with caplog.at_level(logging.WARNING):
        for version in (1, 2, 3):
            assert _check(proof, version, START + 0.3 - version * 1e-3, START + version)["sync/gap_rms"] > 0.2
    assert [record.getMessage() for record in caplog.records] == [
        "rollout engine, adapter version 1: agreement: log-probabilities of engine and trainer on the probe prompts "
        "differ by 0.7010 nats (RMS); at most 0.2 is explained by precision; the engine serves the original base "
        "weights, the trainer computes in NF4"
    ]


# change


def _moved(prompts: int, size: float = 1e-6) -> Tensor:
    trainer = START.clone()
    trainer[:prompts, 0] += size
    return trainer


@pytest.mark.parametrize("prompts", [3, 4])
@pytest.mark.parametrize("since", [1, 2])
def test_an_engine_that_repeats_an_earlier_version_is_stale_however_little_the_trainer_moved(
    since: int, prompts: int
) -> None:
    proof = SyncProof(BOUNDS)
    for version in (1, 2):
        _check(proof, version, START + version * 1e-7, START)
    with pytest.raises(SyncError) as raised:
        _check(proof, 3, START + since * 1e-7, _moved(prompts))
    # one of four tokens of each of these prompts moved by 1e-6
    rms = 1e-6 * (prompts / 16) ** 0.5
    assert str(raised.value) == (
        "rollout engine, adapter version 3: change: the engine's log-probabilities on the probe prompts are those of "
        f"version {since}, bit for bit, while the trainer's moved on {prompts} of 4 prompts, by {rms:.2e} nats (RMS); "
        f"the engine still runs version {since}: its cache kept the old adapter. Restart it; `rollout.engine: hf` "
        "needs no sync"
    )


def test_where_both_fail_the_message_is_that_of_the_stale_engine() -> None:
    proof = SyncProof(BOUNDS)
    _check(proof, 1, START, START)
    with pytest.raises(SyncError, match="version 2: change: .* those of version 1, bit for bit.* by 5.00e-01 nats"):
        _check(proof, 2, START, START + 0.5)


def test_an_engine_that_moves_in_the_last_bit_of_one_token_is_not_stale() -> None:
    proof = SyncProof(BOUNDS)
    _check(proof, 1, START, START)
    engine = START.clone()
    engine[0, 0] = torch.nextafter(engine[0, 0], torch.tensor(0.0, dtype=torch.float64))
    _check(proof, 2, engine, _moved(4))


def test_an_engine_that_names_other_tokens_is_not_stale() -> None:
    proof = SyncProof(BOUNDS)
    _check(proof, 1, _probe(START, (0, 1, 2)), START)
    _check(proof, 2, _probe(START, (0, 1, 3)), _moved(4))


def test_an_engine_may_repeat_itself_where_the_trainer_hardly_moved() -> None:
    """A step that flips a handful of rounded weights moves some prompts in the trainer and, by chance, none there."""
    proof = SyncProof(BOUNDS)
    _check(proof, 1, START, START)
    _check(proof, 2, START, START)
    _check(proof, 3, START, _moved(2))


def test_the_same_adapter_may_be_sent_again() -> None:
    """A skipped update, and a trainer whose kernels are not deterministic."""
    proof = SyncProof(BOUNDS)
    _check(proof, 1, START, START, digest="same")
    _check(proof, 2, START, _moved(4), digest="same")


def test_roles_may_alternate() -> None:
    proof, other = SyncProof(BOUNDS), START + 0.5 * ALTERNATING
    for version in (1, 3, 5):
        _check(proof, version, START, START, digest="reference")
        metrics = _check(proof, version + 1, other, other, digest="policy")
        assert metrics["sync/correlation"] == pytest.approx(1.0)
        assert metrics["sync/change_rms"] == pytest.approx(0.5)


# correlation


def test_the_trainers_change_is_measured_on_the_tokens_of_the_version_before() -> None:
    proof = SyncProof(BOUNDS)
    _check(proof, 1, _probe(START, (0, 1)), START)
    now = START.clone()
    now[:, 0] += 0.1
    now[:, 3] += 9.0
    # 4 of 8 tokens moved by 0.1: sqrt(4 * 0.01 / 8) = 0.0707; token 3 was not named
    metrics = _check(proof, 2, _probe(now + 1e-3, (0, 1)), now)
    assert metrics["sync/change_rms"] == pytest.approx(0.1 / 2**0.5)


def test_an_engine_that_moves_elsewhere_runs_another_adapter() -> None:
    proof = SyncProof(BOUNDS)
    _check(proof, 1, START, START)
    with pytest.raises(
        SyncError,
        match=re.escape(
            "rollout engine, adapter version 2: correlation: since version 1 the trainer's log-probabilities on the "
            "probe prompts moved by 5.00e-02 nats and the engine's by 4.00e-02 (RMS), correlated by 0.000; at least "
            "0.999 is needed: the engine runs another adapter, or caches of one. See its log; `rollout.engine: hf` "
            "needs no sync"
        ),
    ):
        _check(proof, 2, START + 0.04 * ACROSS, START + 0.05 * ALTERNATING)


@pytest.mark.parametrize(("size", "judged"), [(0.0099, False), (0.0101, True)])
def test_small_changes_are_not_judged(size: float, judged: bool) -> None:
    proof = SyncProof(BOUNDS)
    _check(proof, 1, START, START)
    moved = START + size * ALTERNATING
    assert ("sync/correlation" in _check(proof, 2, moved, moved)) == judged


@pytest.mark.parametrize(("size", "judged"), [(0.29, False), (0.31, True)])
def test_changes_within_three_times_the_noise_are_not_judged(size: float, judged: bool) -> None:
    """The anchor's gap is 0.1; a common shift of all tokens is no movement that a correlation could see."""
    proof = SyncProof(BOUNDS)
    _check(proof, 1, START + 0.1, START)
    trainer = START + 5.0 + size * ALTERNATING
    assert ("sync/correlation" in _check(proof, 2, trainer + 0.01, trainer)) == judged


def test_a_fault_that_widens_the_gap_does_not_hide_itself_as_noise() -> None:
    """The gap of the faulty version is 0.19, and thrice that is more than the trainer moved."""
    proof = SyncProof(BOUNDS)
    _check(proof, 1, START + 0.001, START)
    with pytest.raises(SyncError, match=r"correlation: .* correlated by 0\.000; at least 0\.99\d"):
        _check(proof, 2, START + 0.001 + _correlated(0.0, 0.001), START + 0.19 * ALTERNATING)


@pytest.mark.parametrize(
    ("noise", "size", "required"),
    [
        (0.0, 0.1, 0.999),
        (1e-4, 0.1, 0.999),  # 1 - 100 / 1000^2 = 0.9999, capped
        (1e-4, 0.005, 0.96),  # 1 - 100 / 50^2
        (0.01, 0.4, 0.95),  # 1 - 100 / 40^2 = 0.9375; 1 - 4.5 / 40^2 = 0.997, capped
        (0.01, 0.2, 0.95),  # 1 - 4.5 / 20^2 = 0.98875, capped
        (0.01, 0.05, 0.82),  # 1 - 4.5 / 5^2
        (0.02, 0.0601, 0.5017),  # 1 - 4.5 / 3.005^2
    ],
)
def test_the_required_correlation_grows_as_the_movement_outgrows_the_noise(
    noise: float, size: float, required: float
) -> None:
    bounds = SyncBounds(max_gap=0.2, min_judged_change=0.001)
    for difference, fails in ((-0.0005, True), (0.0005, False)):
        proof = SyncProof(bounds)
        _check(proof, 1, START + noise, START)
        engine = START + noise + _correlated(required + difference, size)
        if fails:
            with pytest.raises(SyncError, match=f"at least {required:.3f} is needed"):
                _check(proof, 2, engine, START + size * ALTERNATING)
        else:
            metrics = _check(proof, 2, engine, START + size * ALTERNATING)
            assert metrics["sync/correlation"] == pytest.approx(required + difference)


@pytest.mark.parametrize(("correlation", "fails"), [(0.49, True), (0.51, False)])
def test_other_weights_may_move_a_little_apart(correlation: float, fails: bool) -> None:
    proof = SyncProof(BOUNDS, same_weights=False)
    _check(proof, 1, START + 3.0, START)  # a gap of 3 nats is no noise: what precision explains is taken for it
    engine, trainer = START + 3.0 + _correlated(correlation, 4.0), START + 4.0 * ALTERNATING
    if fails:
        with pytest.raises(SyncError, match=r"correlated by 0\.490; at least 0\.500 is needed"):
            _check(proof, 2, engine, trainer)
    else:
        assert _check(proof, 2, engine, trainer)["sync/correlation"] == pytest.approx(0.51)


def test_changes_add_up_until_they_can_be_judged() -> None:
    proof = SyncProof(BOUNDS)
    judged = []
    for version in range(1, 8):
        moved = START + 0.004 * (version - 1) * ALTERNATING
        judged.append("sync/correlation" in _check(proof, version, moved + version * 1e-9, moved))
    # 0.012 at version 4, judged since version 1; then 0.012 at version 7, since version 4
    assert judged == [False, False, False, True, False, False, True]


def test_an_engine_that_drifts_away_slowly_is_seen_once_the_changes_add_up() -> None:
    proof = SyncProof(BOUNDS)
    _check(proof, 1, START, START)
    for version in (2, 3):
        _check(proof, version, START + version * 1e-5, START + 0.004 * (version - 1) * ALTERNATING)
    with pytest.raises(SyncError, match="version 4: correlation: since version 1 "):
        _check(proof, 4, START + 4e-5, START + 0.012 * ALTERNATING)


def test_versions_without_common_tokens_start_a_new_comparison() -> None:
    """A collapsed policy may share no likely token with the first; the check must not stay blind for ever."""
    proof = SyncProof(BOUNDS)
    _check(proof, 1, _probe(START, (0, 1)), START)
    later = START + 0.5 * ALTERNATING
    assert "sync/correlation" not in _check(proof, 2, _probe(later, (2, 3)), later)
    last = later + 0.5 * ALTERNATING
    assert _check(proof, 3, _probe(last, (2, 3)), last)["sync/correlation"] == pytest.approx(1.0)


@pytest.mark.parametrize(("tokens", "judged"), [((0, 1, 2), True), ((1, 2, 3), True), ((0, 3), False)])
def test_a_correlation_needs_eight_common_tokens(tokens: tuple[int, ...], judged: bool) -> None:
    """Of each of the four prompts (1, 2) and one or none of these are common."""
    proof = SyncProof(BOUNDS)
    _check(proof, 1, _probe(START, (1, 2)), START)
    later = START + 0.5 * ALTERNATING
    assert ("sync/correlation" in _check(proof, 2, _probe(later, tokens), later)) == judged


# a simulated run


def _noisy(values: Tensor, size: float, generator: torch.Generator) -> Tensor:
    return values + size * torch.randn(values.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("noise", [1e-6, 0.01, 0.07])
@pytest.mark.parametrize("step", [1e-8, 1e-3, 0.05, 0.5])
def test_no_healthy_engine_is_accused(step: float, noise: float) -> None:
    """200 versions of a policy that walks at random; both sides have noise of their own, drawn anew each time."""
    generator = torch.Generator().manual_seed(7)
    proof, truth = SyncProof(BOUNDS), torch.randn(16, 20, generator=generator, dtype=torch.float64)
    for version in range(1, 201):
        _check(
            proof,
            version,
            [dict(enumerate(row.tolist())) for row in _noisy(truth, noise, generator)],
            _noisy(truth, noise, generator),
        )
        truth = _noisy(truth, step, generator)


@pytest.mark.parametrize("noise", [1e-6, 0.01, 0.03])
def test_an_adapter_that_goes_its_own_way_is_caught_once_the_noise_is_outgrown(noise: float) -> None:
    generator = torch.Generator().manual_seed(7)
    proof, truth = SyncProof(BOUNDS), torch.randn(16, 20, generator=generator, dtype=torch.float64)
    twin, step, moved = truth, 0.5 * noise, 0.0
    for version in range(1, 200):
        moved = step * (version - 1) ** 0.5
        engine = [dict(enumerate(row.tolist())) for row in _noisy(twin, noise, generator)]
        try:
            _check(proof, version, engine, _noisy(truth, noise, generator))
        except SyncError as error:
            assert ": correlation: " in str(error) or ": agreement: " in str(error)
            break
        truth, twin = _noisy(truth, step, generator), _noisy(twin, step, generator)
    # The gap of the first version is sqrt(2) noise; its own noise adds to the movement that is judged.
    assert max(moved, 0.01) < 6 * max(noise, 0.01)
    assert moved > 0
