"""Stages that train nothing, for tests of the orchestration: a payload made from settings and inputs in no time.

    python -m tests.stand_in SPEC.json

is `python -m stages.run SPEC.json` with them. `RLHF_STAND_IN` says what goes wrong: `STAGE=WHAT`.
"""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import stages.run
from data.errors import DataError
from data.schema import Demonstration, Kind, PreferencePair, PromptRecord, Record, split_path, write_records
from rewards.contract import Episode
from stages.contract import StageContext, StageOutput
from stages.preferences.config import HumanLabelerConfig
from stages.preferences.contract import Candidates
from stages.preferences.human import HumanLabeler
from stages.preferences.labeling import LABELING

logger = logging.getLogger("stages.stand_in")


def execute(spec: stages.run.StageSpec, context: StageContext) -> StageOutput:
    """Write what depends on the settings, the inputs and the seed alone."""
    logger.info("stand-in for %s", spec.stage)
    wanted = os.environ.get("RLHF_STAND_IN", "").partition("=")
    if wanted[0] == spec.stage:
        _go_wrong(wanted[2])
    inputs = {role: artifact.digest for role, artifact in spec.inputs.items()}
    settings = {"stage": spec.stage, "config": spec.config, "inputs": inputs, "seed": spec.seed}
    text = json.dumps(settings, sort_keys=True)
    value = int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 2**24
    for step in range(1, 4):
        context.metrics.write(step, {"loss/train": value / step})
        context.report_progress(step, 3, "steps")
    (context.payload_dir / "payload.json").write_text(text, encoding="utf-8")
    if spec.config.get("labeler", {}).get("type") == "human":
        let_people_judge(spec.config["labeler"], context)
    if spec.stage == "data":
        write_rows(context.payload_dir, held_out=0 if wanted == ("data", "=", "few") else 2)
    return StageOutput(metrics={"loss/final": value})


def let_people_judge(labeler: dict[str, Any], context: StageContext) -> None:
    """As the stage does, on responses that no model has made."""
    config = HumanLabelerConfig.model_validate(labeler)
    human = HumanLabeler(
        config, context.stage_dir / LABELING, seed=context.seed, only_finished=True, priority=[3.0, 2.0, 1.0]
    )
    opinions = human(
        [
            Candidates(tuple(Episode("p", text, (1,), (2,), f"Prompt {number}", True) for text in ("a", "b", "c")))
            for number in range(3)
        ]
    )
    (context.payload_dir / "opinions.json").write_text(json.dumps(opinions), encoding="utf-8")
    human.record(context.payload_dir)


def write_rows(folder: Path, *, held_out: int) -> None:
    """The least that later stages need."""
    record = {"prompt": "The tea"}
    rows: dict[Kind, Record] = {
        "demonstrations": Demonstration(**record, response=" was warm."),
        "preferences": PreferencePair(**record, chosen=" was warm.", rejected=" was cold."),
        "prompts": PromptRecord(**record),
    }
    for kind, row in rows.items():
        write_records(split_path(folder, kind, "train"), [row])
        write_records(split_path(folder, kind, "held_out"), [row] * held_out)


def _go_wrong(what: str) -> None:
    match what:
        case "user":
            raise DataError("rows.jsonl:3: column `prompt` is missing; add it, or map it with `columns`")
        case "crash":
            raise RuntimeError("matrix is singular")
        case "connection":
            raise ConnectionError("the hub does not answer")
        case "leak":
            logger.warning("environment: %s", dict(os.environ))
            print("GET https://me:plantedpassword@host/x?token=plantedpassword", flush=True)
            try:
                raise ValueError(os.environ["HF_TOKEN"])
            except ValueError as error:
                raise RuntimeError(f"401 for https://me:plantedpassword@host, {os.environ['HF_TOKEN']}") from error
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wait":  # until the file `go` lies in the working folder
            while not os.path.exists("go"):
                time.sleep(0.05)
        case "hang":  # with a child that ignores SIGTERM and has a session of its own, as torchrun's ranks have
            code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
            child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
            print(f"hanging {os.getpid()} {child.pid}", flush=True)
            time.sleep(600)


if __name__ == "__main__":
    stages.run._execute = execute
    sys.exit(stages.run.main())
