"""A run that waits for labels: its folder, questions of all sorts, and people who click.

    python -m tests.labeling_run OUTPUTS

makes one called `demo`, to look at the page: `rlhf label demo --output-dir OUTPUTS`.
"""

import sys
from pathlib import Path

from data.schema import Message, Prompt
from pipeline.runs import RunFolder, create_run
from rewards.contract import Episode
from stages.preferences.config import HumanLabelerConfig
from stages.preferences.contract import Candidates
from stages.preferences.human import HumanLabeler
from stages.preferences.labeling import LABELING, Labeling, Question
from stages.waiting import WaitingForPeople

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> **bold** & `code`'
PROMPTS: tuple[tuple[Prompt, tuple[str, ...]], ...] = (
    (
        (
            Message(role="system", content="You are a helpful assistant. Answer in plain words."),
            Message(role="user", content="My sourdough starter smells of nail polish remover. Is it dead?"),
        ),
        (
            "No, it is hungry. That smell is acetone, which the yeast makes when it runs out of flour. Feed it twice a "
            "day with equal weights of flour and water, keep it warm, and it should smell sweet again in two or three "
            "days.",
            "Yes. Throw it away and begin again.",
            "It might be dead or not. Many people have this. Some feed it, some do not. It depends on many things, "
            "such as the flour and the water and the weather, and there are many opinions on it.",
            "Acetone means the culture is starving. Discard all but a spoonful, feed 1:2:2, repeat every 12 "
            "hours.\n\nWatch for:\n- pink or orange streaks: discard everything\n- bubbles within 6 hours: recovered",
        ),
    ),
    ("ما هي عاصمة أستراليا؟", ("عاصمة أستراليا هي كانبرا.", "سيدني هي أكبر مدينة، لكن العاصمة كانبرا 🇦🇺.", "Sydney.")),
    ("Show me some HTML.", (HOSTILE, "Here is none.", "Line one\n" * 120)),
)


def candidates(count: int) -> list[Candidates]:
    """Prompts with responses, the same ones for the same count."""
    found = []
    for number in range(count):
        if number < len(PROMPTS):
            prompt, texts = PROMPTS[number]
        else:
            prompt, texts = f"Question {number}?", tuple(f"Answer {letter} to {number}." for letter in "abcd")
        found.append(Candidates(tuple(Episode("p", text, (1,), (2,), prompt, True) for text in texts)))
    return found


def labeler(folder: Path, *, seed: int = 0, count: int | None = None, **settings: object) -> HumanLabeler:
    """A labeler whose questions come up in the order of the candidates."""
    config = HumanLabelerConfig.model_validate(settings)
    priority = None if count is None else [float(-number) for number in range(count)]
    return HumanLabeler(config, folder, seed=seed, only_finished=True, priority=priority)


def ask(folder: Path, count: int, **settings: object) -> Labeling:
    """Put questions before people."""
    try:
        labeler(folder, count=count, **settings)(candidates(count))
    except WaitingForPeople:
        return Labeling(folder)
    raise AssertionError("nobody has judged anything")


def make_waiting_run(output_dir: Path, name: str, count: int, **settings: object) -> tuple[RunFolder, Labeling]:
    """A run whose preferences stage waits."""
    run = create_run(output_dir, name, name, "", ("data", "sft", "preferences"))
    run.update_stage("preferences", status="waiting")
    run.let_go()
    return run, ask(run.stage_dir("preferences") / LABELING, count, **settings)


_NUMBERS = iter(range(10**9))


def judge(labeling: Labeling, annotator: str, question: Question, ranks: list[int] | str, comment: str = "") -> None:
    """Click as a person would: one response after the other, the best first; or `skip`, `all_bad`."""

    def click(kind: str, **data: object) -> None:
        number = f"{annotator}/{next(_NUMBERS)}"
        labeling.click(annotator, question.identity, kind, data, number)  # type: ignore[arg-type]

    if comment:
        click("comment", text=comment)
    if isinstance(ranks, str):
        click(ranks)
        return
    for response in sorted(range(len(ranks)), key=lambda response: ranks[response]):
        click("rank", responses=[response], rank=ranks[response])
    click("done")


if __name__ == "__main__":
    made, asked = make_waiting_run(Path(sys.argv[1]).resolve(), "demo", 64, labels_per_prompt=2)
    for who, shift in (("Ben", 0), ("Chloe", 1)):
        for place, each in enumerate(list(asked.questions.values())[3:15]):
            size = len(each.responses)
            order = list(range(1, size + 1))
            judge(asked, who, each, order if (place + shift) % 3 else [order[-1], *order[:-1]])
    print(f"rlhf label {made.name}{made.output_dir_option}")
