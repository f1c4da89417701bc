"""The command line: parse first, import late, so that `--help` answers at once.

Exit codes: 0 done, 1 a stage failed, 2 the user's input is at fault, 130 and 143 cancelled.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

STAGES = ("data", "sft", "preferences", "reward_model", "ppo", "evaluation")
DEFAULT_OUTPUT_DIR = "outputs"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `command` in the result is the name of a module in `pipeline.commands`."""
    parser = argparse.ArgumentParser(
        prog="rlhf",
        description="RLHF of a language model: SFT, reward model, PPO with a KL penalty, evaluation.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = _add(commands, "run", "run the stages of a configuration")
    run.add_argument("config", metavar="CONFIG", help="YAML file")
    _add_set(run)
    run.add_argument(
        "--run", metavar="NEW_NAME", dest="name", help="name of the run (default: CONFIG's name and a number)"
    )
    start = run.add_mutually_exclusive_group()
    start.add_argument(
        "--from",
        choices=STAGES,
        metavar="STAGE",
        dest="from_stage",
        help="take earlier stages from the store",
    )
    start.add_argument("--only", choices=STAGES, metavar="STAGE", help="as --from, and leave later stages out")
    run.add_argument("--force", choices=STAGES, metavar="STAGE", help="execute STAGE even if the store has it")
    _add_output_dir(run, default=None)

    rerun = _add(commands, "rerun", "execute a stage again on a run's recorded inputs, as a new run")
    rerun.add_argument("stage", choices=STAGES, metavar="STAGE", help="one of " + ", ".join(STAGES))
    rerun.add_argument(
        "--run", metavar="SOURCE", dest="source", required=True, help="the run whose artifacts are taken"
    )
    rerun.add_argument("--name", metavar="NEW_NAME", help="name of the new run")
    _add_set(rerun)
    rerun.add_argument("--downstream", action="store_true", help="go on with the stages after STAGE")
    _add_output_dir(rerun)

    _add_for_run(commands, "resume", "go on where a run was killed or failed, to the same result")

    validate = _add(commands, "validate", "check a configuration and its files; trains nothing")
    validate.add_argument("config", metavar="CONFIG", help="YAML file")
    _add_set(validate)
    _add_output_dir(validate, default=None)

    data = _add(commands, "data", "look at data before training").add_subparsers(
        dest="data_command", required=True, metavar="COMMAND"
    )
    check = _add(data, "check", "count, measure and judge the rows of a configuration or a file")
    check.add_argument("target", metavar="CONFIG|PATH", help="YAML file, or a data file, folder or glob")
    check.add_argument("--base", metavar="MODEL", help="count tokens of a data file by this base's tokenizer")
    _add_set(check)
    _add_output_dir(check, default=None)

    _add_output_dir(_add(commands, "runs", "list the runs"))
    show = _add_for_run(commands, "show", "a run's stages, artifacts and figures")
    show.add_argument("--json", action="store_true", help="print run.json and nothing else")
    _add_for_run(commands, "report", "write the run's report.html")
    chat = _add_for_run(commands, "chat", "talk with a trained policy")
    _add_stage(chat)
    export = _add_for_run(commands, "export", "write a trained policy for use elsewhere")
    export.add_argument("--to", metavar="DIR", required=True, help="folder to write; empty, or not there yet")
    export.add_argument("--merge", action="store_true", help="merge the adapter into its base: one model, no PEFT")
    _add_stage(export)
    _add_label(commands)
    bench = _add_for_run(commands, "reward-bench", "a run's reward model on a benchmark of pairs by subset")
    bench.add_argument("file", metavar="FILE", help="rows with prompt, chosen, rejected and subset")
    bench.add_argument("--json", metavar="FILE", dest="json_file", help="write the table to FILE, too")
    bench.add_argument("--max-length", type=_count, metavar="N", help="drop pairs of more tokens (default: none)")
    bench.add_argument("--batch-size", type=_count, metavar="N", default=8, help="sequences at once (default: 8)")
    gc = _add(commands, "gc", "list what no run uses: artifacts, records, what killed runs left")
    gc.add_argument("--remove", action="store_true", help="remove it; no run may be at work")
    _add_output_dir(gc)
    _add(commands, "ui", "serve Prefect's user interface on this machine until Ctrl-C")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    options = build_parser().parse_args(arguments)
    from pipeline.shadowing import shadowed_packages

    if problems := shadowed_packages():
        print("\n".join(problems), file=sys.stderr)
        return 2

    from data.errors import StageError, UserError
    from data.redaction import redact

    try:
        return _dispatch(options)
    except UserError as error:
        print(redact(str(error)), file=sys.stderr)
        return 2
    except StageError as error:
        print(redact(str(error)), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `rlhf runs | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        from stages.storage import storage_error

        problem = storage_error(error, Path(getattr(options, "output_dir", None) or DEFAULT_OUTPUT_DIR))
        if problem is None:
            raise
        print(problem, file=sys.stderr)
        return 2


def _dispatch(options: argparse.Namespace) -> int:
    match options.command:
        case "run":
            from pipeline.commands.run import run

            return run(options)
        case "rerun":
            from pipeline.commands.rerun import rerun

            return rerun(options)
        case "reward-bench":
            from pipeline.commands.reward_bench import reward_bench

            return reward_bench(options)
        case "gc":
            from pipeline.commands.gc import gc

            return gc(options)
        case "resume":
            from pipeline.commands.resume import resume

            return resume(options)
        case "validate":
            from pipeline.commands.validate import validate

            return validate(options)
        case "data":
            from pipeline.commands.data import check

            return check(options)
        case "runs":
            from pipeline.commands.show import list_all

            return list_all(options)
        case "show":
            from pipeline.commands.show import show

            return show(options)
        case "report":
            from pipeline.commands.report import report

            return report(options)
        case "label":
            from pipeline.commands.label import label

            return label(options)
        case "chat":
            from pipeline.commands.chat import chat

            return chat(options)
        case "export":
            from pipeline.commands.export import export

            return export(options)
        case _:
            from pipeline.commands.ui import ui

            return ui(options)


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")


def _add_for_run(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    parser = _add(commands, name, text)
    parser.add_argument("run", metavar="RUN", help="name of the run")
    _add_output_dir(parser)
    return parser


def _add_label(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    label = _add_for_run(commands, "label", "rank a run's responses on a page; import and export labels")
    label.add_argument("--annotator", metavar="NAME", help="who labels here (default: the page asks)")
    label.add_argument("--port", type=_port, metavar="N", help="port of the page (default: the one of last time)")
    files = label.add_mutually_exclusive_group()
    files.add_argument("--import", metavar="FILE", dest="import_file", help="take labels from FILE, and end")
    files.add_argument("--export", metavar="FILE", dest="export_file", help="write labels to FILE, and end")
    label.add_argument(
        "--format", choices=("jsonl", "argilla", "label_studio"), default="jsonl", help="of FILE (default: jsonl)"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"found {text[:20]!r}, a port is a number from 1 to 65535; give another")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text[:20]!r}, a whole number from 1 on is needed; give another")
    return int(text)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a setting, as in --set ppo.kl_coef=0.2",
    )


def _folder(path: str) -> str:
    """A path that is not blank: an empty one would be the working folder, which nobody means by a variable unset."""
    if not path.strip():
        raise argparse.ArgumentTypeError(f"found {path!r}, which is blank; the path of a folder is needed; name one")
    try:
        Path(path).expanduser().exists()
    except (RuntimeError, OSError) as error:  # the home of a user who is not there; a name too long
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise argparse.ArgumentTypeError(
            f"found {path[:60]!r}, which cannot be looked up ({reason}); the path of a folder is needed; name another"
        ) from error
    return path


def _add_stage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", choices=("sft", "ppo"), help="whose policy (default: the last one)")


def _add_output_dir(parser: argparse.ArgumentParser, default: str | None = DEFAULT_OUTPUT_DIR) -> None:
    text = "the configuration's output_dir" if default is None else default
    parser.add_argument(
        "--output-dir", metavar="DIR", type=_folder, default=default, help=f"folder of the runs (default: {text})"
    )
