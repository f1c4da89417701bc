"""`rlhf label RUN`: the page on which people rank the responses of a run, and its labels from and to files."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import ConfigError
from pipeline.labeling.exchange import Format, read_jsonl, take, write_jsonl
from pipeline.run_record import read_run_record
from pipeline.runs import RunFolder, open_run
from stages.preferences.judgements import name_fault
from stages.preferences.labeling import LABELING, Labeling

if TYPE_CHECKING:
    from starlette.applications import Starlette


def label(options: argparse.Namespace) -> int:
    """Serve the page, or import or export labels."""
    run = open_run(Path(options.output_dir).expanduser().resolve(), options.run)
    labeling = Labeling(run.stage_dir("preferences") / LABELING)
    if options.import_file is not None:
        return _import(run, labeling, Path(options.import_file).expanduser(), options.format)
    if options.export_file is not None:
        return _export(run, labeling, Path(options.export_file).expanduser(), options.format)
    return _serve(run, labeling, options.annotator, options.port)


def _serve(run: RunFolder, labeling: Labeling, annotator: str | None, port: int | None) -> int:
    if annotator is not None:
        _check_annotator(labeling, annotator)
    from pipeline.labeling.app import LabelingPage
    from pipeline.labeling.serving import serve

    progress = labeling.progress()
    print(f"{run.name}: {progress.done} of {progress.needed} prompts are judged", file=sys.stderr)
    if _is_closed(run):
        print(f"{run.name} has taken its labels and gone on: the page shows them, and takes no more", file=sys.stderr)

    def tell(address: str) -> None:
        print(f"open {address}\nthe key in it is for your annotators alone; Ctrl-C ends", file=sys.stderr, flush=True)

    def make_app(token: str) -> "Starlette":
        page = LabelingPage(labeling, run=run.name, token=token, annotator=annotator, is_closed=lambda: _is_closed(run))
        return page.app()

    serve(labeling.folder, make_app, port, tell)
    print(f"{run.name}: all clicks are saved; `rlhf label {run.name}{run.output_dir_option}` goes on", file=sys.stderr)
    return 0


def _check_annotator(labeling: Labeling, annotator: str) -> None:
    if fault := name_fault(annotator):
        raise ConfigError(f"--annotator {annotator!r}: {fault}; give such a name, or leave it out")
    names = labeling.job.annotators
    if names is not None and annotator not in names:
        raise ConfigError(
            f"--annotator {annotator!r}: this run counts labels of {', '.join(names)} alone "
            f"(preferences.labeler.annotators); give one of these names"
        )


def _import(run: RunFolder, labeling: Labeling, path: Path, chosen: Format) -> int:
    if _is_closed(run):
        raise ConfigError(
            f"run {run.name}: has taken its labels and gone on, so that more would not count; import them into a run "
            f"that waits: `rlhf rerun preferences --run {run.name}` starts one"
        )
    match chosen:
        case "jsonl":
            rows = list(read_jsonl(path, labeling))
        case "argilla":
            from pipeline.labeling.argilla import read_argilla

            rows = list(read_argilla(path, labeling))
        case "label_studio":
            from pipeline.labeling.label_studio import read_label_studio

            rows = list(read_label_studio(path, labeling))
    new, known = take(labeling, rows)
    progress = labeling.progress()
    print(f"{path}: {new} judgements imported, {known} were there; {progress.done} of {progress.needed} prompts judged")
    return 0


def _export(run: RunFolder, labeling: Labeling, path: Path, chosen: Format) -> int:
    if path.exists():
        raise ConfigError(f"--export {path}: there is such a file; it is not overwritten; give another name")
    if not path.parent.is_dir():
        raise ConfigError(f"--export {path}: the folder {path.parent} is not there; make it, or give another one")
    match chosen:
        case "jsonl":
            print(f"{path}: {write_jsonl(labeling, path)} judgements")
        case "argilla":
            from pipeline.labeling.argilla import write_argilla

            print(f"{path}: {write_argilla(labeling, path, run.name)} records for Argilla 2")
        case "label_studio":
            from pipeline.labeling.label_studio import configuration_path, write_label_studio

            count = write_label_studio(labeling, path, run.name)
            print(f"{path}: {count} tasks for Label Studio; its labeling configuration: {configuration_path(path)}")
    return 0


def _is_closed(run: RunFolder) -> bool:
    """Whether the stage has its artifact: labels that come now are in none."""
    record = read_run_record(run.path) or {"stages": []}
    statuses = {stage["name"]: stage["status"] for stage in record["stages"]}
    return statuses.get("preferences") in ("executed", "cached")
