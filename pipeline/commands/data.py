"""`rlhf data check CONFIG|PATH`: what is in the data, and what is wrong with it; trains nothing."""

import argparse
import logging
from pathlib import Path
from typing import Any

from data.errors import ConfigError
from pipeline.commands.run import configured
from pipeline.console import Console, table
from pipeline.data_check import DataCheck, check_data, limits_of, source_of_path
from pipeline.data_check_page import render_page

_CONFIG_SUFFIXES = (".yaml", ".yml")
FOLDER = "data_check"


def check(options: argparse.Namespace) -> int:
    """Check, write page and JSON, print the figures.

    Returns:
        0, or 2 where a finding would stop a run.
    """
    target = Path(options.target)
    logging.getLogger("stages.data").setLevel(logging.CRITICAL)  # what it warns of is printed below
    if target.suffix.lower() in _CONFIG_SUFFIXES:
        found, output_dir = _check_config(target, options)
    else:
        found, output_dir = _check_path(options)
    folder = output_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    page, values = folder / f"{found.name}.html", folder / f"{found.name}.json"
    page.write_text(render_page(found), encoding="utf-8", errors="replace")
    values.write_text(found.to_json(), encoding="utf-8", errors="replace")
    print("\n".join([*summary(found), "", f"page      {page}", f"figures   {values}"]))
    return 2 if found.errors else 0


def _check_config(path: Path, options: argparse.Namespace) -> tuple[DataCheck, Path]:
    config = configured(path, options.set, options.output_dir)
    config_dir = path.resolve().parent
    console = Console()
    from stages.models.sources import resolve_base
    from stages.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve_base(config.model, config_dir), config.model, config_dir)
    found = check_data(
        config.data,
        name=path.stem,
        config_dir=config_dir,
        tokenizer=tokenizer,
        limits=limits_of(config),
        all_responses=config.sft.loss_on == "all_responses",
        progress=lambda done, total, what: console.progress("data", done, total, what),
    )
    console.end_progress()
    return found, config.output_path()


def _check_path(options: argparse.Namespace) -> tuple[DataCheck, Path]:
    if options.set:
        raise ConfigError(
            f"--set {options.set[0]}: {options.target} is data, not a configuration; --set changes settings of a YAML "
            f"file; name one, or leave --set out"
        )
    tokenizer: Any = None
    if options.base is not None:
        from stages.models.config import ModelConfig
        from stages.models.sources import resolve_base
        from stages.models.tokenizer import load_tokenizer

        model = ModelConfig(base=options.base)
        tokenizer = load_tokenizer(resolve_base(model), model)
    console = Console()
    found = check_data(
        source_of_path(options.target),
        name=Path(options.target).name.partition(".")[0] or "data",
        config_dir=None,
        tokenizer=tokenizer,
        progress=lambda done, total, what: console.progress("data", done, total, what),
    )
    console.end_progress()
    return found, Path(options.output_dir or "outputs")


def summary(found: DataCheck) -> list[str]:
    """The figures as text."""
    unit = "tokens" if found.lengths else found.quality["unit"]
    lines: list[str] = []
    for kind, report in found.quality["kinds"].items():
        skipped = ", ".join(f"{reason} {count}" for reason, count in report["skipped"].items()) or "none"
        languages = ", ".join(
            f"{name} {count}" for name, count in sorted(report["languages"].items(), key=lambda item: -item[1])[:6]
        )
        lines += [
            f"{kind}: {report['rows']} rows, {report['train']} to train on, {report['held_out']} held out",
            f"  skipped    {skipped}",
            f"  languages  {languages} (of a sample)",
            f"  repeats    {report['near_duplicates']} near duplicates",
        ]
        if bias := report["bias"]:
            lines.append(
                f"  length     the chosen response is the longer one in {bias['longer_chosen']:.1%} of pairs "
                f"({bias['low']:.1%} to {bias['high']:.1%})"
            )
        lengths = {name: vars(each) for name, each in found.lengths.get(kind, {}).items()} or report["lengths"]
        rows = [
            (name, *(str(each["percentiles"][percent]) for percent in ("5", "50", "95", "99", "100")))
            for name, each in lengths.items()
        ]
        lines += [f"  {line}" for line in table((unit, "5 %", "50 %", "95 %", "99 %", "longest"), rows)]
        lines.append("")
    for row in found.truncation:
        lines.append(f"{row['setting']}={row['max_tokens']}: {row['dropped']} of {row['rows']} {row['kind']} dropped")
    lines += [""] * bool(found.truncation)
    lines += [
        f"{name.removeprefix('augmentation/').replace('_', ' ')}: {count:g}"
        for name, count in found.metrics.items()
        if name.startswith("augmentation/")
    ]
    lines += [f"{finding['level'].upper():8} {finding['text']}" for finding in found.findings] or ["nothing found"]
    return lines
