"""Whether an answer is mathematically equal to a reference, by the package `math-verify` (0.9).

An answer is text that a model wrote, and `10**10**10` is a short one. So it is read and compared in a process of its
own (`math_worker.py`) with limits on time and memory; an answer that exceeds them is wrong, and said in the log.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from data.errors import StageError
from rewards.contract import Episode
from rewards.matching import AnswerExtractor
from rewards.math_worker import READY
from rewards.rule_config import MathRewardConfig

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 20_000
"""Longer answers are cut at the front: the result stands at the end."""

_WORKER = Path(__file__).with_name("math_worker.py")


class MathReward:
    """Compares answers in a process of its own, which is started with the first one."""

    def __init__(self, config: MathRewardConfig) -> None:
        """Compile the pattern that finds the answer.

        Raises:
            ConfigError: It is none.
        """
        self._config = config
        self._extract = AnswerExtractor(config, config.setting)
        self._worker: subprocess.Popen[str] | None = None

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """1 or 0 an episode; 0 where there is no answer or no reference.

        Raises:
            StageError: The process cannot be started.
        """
        return [float(self._is_right(self._extract(each.response_text), each.reference)) for each in episodes]

    def _is_right(self, answer: str | None, reference: str | None) -> bool:
        if answer is None or reference is None:
            return False
        worker = self._worker or self._started()
        assert worker.stdin is not None and worker.stdout is not None
        question = json.dumps([answer[-MAX_CHARACTERS:], reference])
        try:
            worker.stdin.write(question + "\n")
            worker.stdin.flush()
            said = worker.stdout.readline().strip()
        except BrokenPipeError:
            said = ""
        if said in ("0", "1"):
            return said == "1"
        worker.kill()
        worker.wait()
        self._worker = None
        logger.warning(
            "%s: an answer took more than %g s or too much memory to read, and counts as wrong: %.80r",
            self._config.setting, self._config.timeout_seconds, answer,
        )  # fmt: skip
        return False

    def _started(self) -> subprocess.Popen[str]:
        self._worker = subprocess.Popen(
            # -P: else the folder of this package would be where Python looks for others first.
            [sys.executable, "-P", str(_WORKER), str(self._config.timeout_seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip
        assert self._worker.stdout is not None
        if self._worker.stdout.readline().strip() != READY:
            code = self._worker.wait()
            raise StageError(
                f"{self._config.setting}: the process that compares answers did not start (exit code {code}); the "
                f"package `math-verify` is needed: see the log above, and install it with `pip install "
                f"'math-verify[antlr4_13_2]'`"
            )
        return self._worker

    def __del__(self) -> None:
        """End the process; it also ends by itself when its input does."""
        if getattr(self, "_worker", None) is not None and self._worker is not None:
            self._worker.kill()
            self._worker.wait()
