"""The evaluation's figures in plain words: did PPO help, and is there a reason not to trust it?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.report_data import number

Level = Literal["good", "warning", "bad", "note"]

KL_LIMIT = 15.0
"""Nats a response. Beyond it samples are so far from SFT's that the reward model is asked about texts that it
never saw."""
MIN_DISTINCT_SHARE = 0.5
LENGTH_CHANGE = 0.5


@dataclass(frozen=True)
class Finding:
    """One sentence, and whether it speaks for the run."""

    level: Level
    text: str


@dataclass(frozen=True)
class Verdict:
    """The sum of the findings."""

    level: Level
    headline: str
    findings: list[Finding] = field(default_factory=list)


def judge(metrics: Mapping[str, Any]) -> Verdict:
    """Judge a run by the evaluation's metrics.

    A gain counts where its 95% interval excludes zero. Gold is the independent scorer: where the proxy (the
    reward model) rises and gold does not, the policy exploits the reward model (Gao et al. 2023,
    https://arxiv.org/abs/2210.10760).
    """
    proxy, gold = _direction(metrics, "proxy"), _direction(metrics, "gold")
    if proxy is None and gold is None:
        return Verdict("note", "No evaluation figures, so there is no verdict yet.")
    findings = [
        finding
        for finding in (
            _gain(metrics, "proxy", "Reward-model (proxy) score"),
            _gain(metrics, "gold", "Gold score"),
            _overoptimized(proxy, gold),
            _win_rate(metrics, "win_rate", "Win rate of PPO over SFT"),
            _win_rate(metrics, "gold_win_rate", "Win rate by the gold scorer"),
            _kl(metrics),
            _diversity(metrics),
            _length(metrics),
        )
        if finding is not None
    ]
    warned = sum(finding.level in ("warning", "bad") for finding in findings)
    level, headline = _headline(proxy, gold, warned)
    return Verdict(level, headline, findings)


def _headline(proxy: int | None, gold: int | None, warned: int) -> tuple[Level, str]:
    trusted = proxy if gold is None else gold
    if trusted is not None and trusted < 0:
        return "bad", "PPO made the model worse."
    if proxy == 1 and gold == 0:
        return "bad", "The reward model likes PPO's responses better, the independent gold scorer does not."
    if trusted == 0 or (proxy is not None and proxy < 1):
        return "warning", "No clear improvement: a gain cannot be told from chance."
    if gold is None:
        text = "PPO raised the reward-model score; no independent scorer checked it."
        return ("warning", f"{text} See the warnings.") if warned else ("good", text)
    if warned:
        return "warning", "PPO improved the model by both scores, with something to look at."
    return "good", "PPO improved the model: the reward model and the independent gold scorer agree."


def _direction(metrics: Mapping[str, Any], name: str) -> int | None:
    """1 for a gain whose interval excludes zero, -1 for such a loss, 0 for neither, None without figures."""
    low, high = number(metrics.get(f"{name}/gain_low")), number(metrics.get(f"{name}/gain_high"))
    if low is None or high is None:
        return None
    return 1 if low > 0 else -1 if high < 0 else 0


def _gain(metrics: Mapping[str, Any], name: str, title: str) -> Finding | None:
    direction = _direction(metrics, name)
    gain = number(metrics.get(f"{name}/gain"))
    if direction is None or gain is None:
        return None
    interval = f"95% interval {metrics[f'{name}/gain_low']:.2f} to {metrics[f'{name}/gain_high']:.2f}"
    if direction == 0:
        return Finding("warning", f"{title}: changed by {gain:+.2f}, but the {interval} includes zero.")
    level: Level = "good" if direction > 0 else "bad"
    verb = "rose" if direction > 0 else "fell"
    return Finding(level, f"{title}: {verb} by {abs(gain):.2f}; the {interval} excludes zero.")


def _overoptimized(proxy: int | None, gold: int | None) -> Finding | None:
    if proxy != 1 or gold is None or gold > 0:
        return None
    return Finding(
        "bad",
        "Proxy rises and gold does not: the policy seems to exploit the reward model. A larger `ppo.kl_coef`, "
        "fewer steps or more preference data are the usual remedies.",
    )


def _win_rate(metrics: Mapping[str, Any], name: str, title: str) -> Finding | None:
    mean, low, high = (number(metrics.get(f"{name}/{part}")) for part in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return None
    text = f"{title}: {mean:.0%} (95% interval {low:.0%} to {high:.0%})"
    if low <= 0.5 <= high:
        return Finding("warning", f"{text}; it includes 50%, so neither side clearly wins.")
    return Finding("good" if low > 0.5 else "bad", f"{text}.")


def _kl(metrics: Mapping[str, Any]) -> Finding | None:
    kl = number(metrics.get("kl/mean"))
    if kl is None:
        return None
    if kl > KL_LIMIT:
        return Finding(
            "warning",
            f"KL to the SFT policy: {kl:.1f} nats a response, above {KL_LIMIT:.0f}: far from where it began.",
        )
    return Finding("good", f"KL to the SFT policy: {kl:.1f} nats a response, below {KL_LIMIT:.0f}.")


def _diversity(metrics: Mapping[str, Any]) -> Finding | None:
    before, after = (number(metrics.get(f"distinct_2/{part}")) for part in ("before", "after"))
    if before is None or after is None or before <= 0:
        return None
    text = f"Diversity (distinct-2): {before:.2f} to {after:.2f}, {after / before:.0%} of SFT's"
    if after < MIN_DISTINCT_SHARE * before:
        return Finding("warning", f"{text}: below half, the responses have become alike.")
    return Finding("good", f"{text}.")


def _length(metrics: Mapping[str, Any]) -> Finding | None:
    before, after = (number(metrics.get(f"response_length/{part}")) for part in ("before", "after"))
    if before is None or after is None or before <= 0:
        return None
    change = after / before - 1
    text = f"Response length: {before:.1f} to {after:.1f} tokens ({change:+.0%})"
    if abs(change) > LENGTH_CHANGE:
        return Finding("warning", f"{text}: part of the gain may be length alone.")
    return Finding("note", f"{text}.")
