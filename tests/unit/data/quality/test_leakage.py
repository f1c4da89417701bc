"""Leaks of held-out prompts: exact, by long runs of words, and what is none."""

from data.quality.leakage import Leak, find_leaks
from data.schema import Demonstration, Message, PreferencePair, PromptRecord

LONG = " ".join(f"word{number}" for number in range(20))
FIRST_HALF = " ".join(LONG.split()[:16])  # 4 of its 8 sequences of 13 words


def held(*prompts: str) -> list[PromptRecord]:
    """Held-out prompts."""
    return [PromptRecord(prompt=prompt) for prompt in prompts]


def test_the_same_prompt_leaks_whatever_its_length_and_form() -> None:
    train = [Demonstration(prompt=(Message(role="user", content=" short? "),), response="a")]
    assert find_leaks(held("short?", "other"), train, num_words=13) == [Leak(0, True, 1.0)]


def test_runs_of_words_leak_from_prompts_and_responses() -> None:
    inside = f"You asked: {LONG.upper()}! Well..."
    for train in (
        [Demonstration(prompt="q", response=inside)],
        [PreferencePair(prompt=inside, chosen="a", rejected="b")],
        [PreferencePair(prompt="q", chosen="a", rejected=inside)],
    ):
        assert find_leaks(held("q2", LONG), train, num_words=13) == [Leak(1, False, 1.0)]


def test_half_of_the_runs_is_the_limit() -> None:
    def leaks(words: int) -> list[Leak]:
        train = [Demonstration(prompt="q", response=" ".join(LONG.split()[:words]))]
        return find_leaks(held(LONG), train, num_words=13)

    assert leaks(16) == [Leak(0, False, 0.5)] and leaks(15) == []
    assert leaks(20) == [Leak(0, False, 1.0)] and leaks(12) == []


def test_what_ten_held_out_prompts_share_is_boilerplate() -> None:
    template = " ".join(f"rule{number}" for number in range(15))
    train = [Demonstration(prompt=f"{template} train", response="a")]
    assert find_leaks(held(*(f"{template} own{n}" for n in range(9))), train, num_words=13)
    assert not find_leaks(held(*(f"{template} own{n}" for n in range(10))), train, num_words=13)


def test_system_text_is_no_leak_and_a_prompt_counts_once() -> None:
    system = Message(role="system", content=LONG)
    record = PromptRecord(prompt=(system, Message(role="user", content="new?")))
    assert find_leaks([record], [Demonstration(prompt="q", response=LONG)], num_words=13) == []
    assert len(find_leaks(held("q", "q"), [PromptRecord(prompt="q")], num_words=13)) == 1
