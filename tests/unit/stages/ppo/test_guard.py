"""What ends or warns a run, from numbers alone."""

import logging
import math

import pytest

from data.errors import StageError
from stages.ppo.guard import BadStepCounter, NegativeKLWatch


def test_checklist_49_what_is_not_finite_is_named_counted_and_ends_the_stage(caplog: pytest.LogCaptureFixture) -> None:
    counter = BadStepCounter(2)
    with caplog.at_level(logging.WARNING):
        assert counter.check(1, {"a": 1.0, "b": -2.0}, "batch")
        assert not caplog.records and counter.count == 0
        assert not counter.check(2, {"b": math.inf, "c": 1.0, "a": math.nan}, "update")
    assert caplog.messages == ["step 2: a, b not finite; update skipped"]
    assert not counter.check(3, {"a": -math.inf}, "batch")
    assert counter.check(4, {"a": 0.0}, "batch") and counter.count == 2
    with pytest.raises(
        StageError,
        match=r"ppo: 3 batches or updates were not finite \(loss\), more than ppo\.max_bad_steps=2; lower "
        r"`ppo\.learning_rate` or raise `ppo\.kl_coef`",
    ):
        counter.check(5, {"loss": math.nan, "kl": 1.0}, "update")


def test_checklist_49_none_is_too_many_where_none_is_allowed() -> None:
    with pytest.raises(StageError, match="1 batches or updates were not finite"):
        BadStepCounter(0).check(1, {"loss": math.nan}, "update")


def test_checklist_31_a_kl_that_stays_negative_is_named_once_and_flagged_on(caplog: pytest.LogCaptureFixture) -> None:
    watch = NegativeKLWatch()
    with caplog.at_level(logging.WARNING):
        assert [watch.see(step, -1.0, 0.1) for step in range(1, 6)] == [False, False, True, True, True]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        "step 3: the KL of policy and reference was negative in 3 steps on end (now -1.000 +- 0.100 nats a response); "
        "a divergence is not: the responses are not samples of the policy that is trained."
    )
    assert not watch.see(6, 1.0, 0.1)
    assert [watch.see(step, -1.0, 0.1) for step in (7, 8, 9)] == [False, False, True], "counted from 0 again"


def test_checklist_31_noise_around_zero_is_none() -> None:
    watch = NegativeKLWatch()
    # Within three standard errors, or within a tenth of a nat however small these are.
    assert not any(watch.see(step, -0.29, 0.1) for step in range(5))
    assert not any(watch.see(step, -0.099, 0.0) for step in range(5))
    assert watch.num_negative == 0
    assert [watch.see(step, -0.31, 0.1) for step in range(3)][2]
    watch = NegativeKLWatch()
    assert [watch.see(step, -0.101, 0.0) for step in range(3)][2]
    # One step in three breaks the row.
    watch = NegativeKLWatch()
    assert not any(watch.see(step, 0.5 if step % 3 == 2 else -5.0, 0.1) for step in range(9))
