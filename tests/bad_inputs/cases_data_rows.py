"""Rows that teach nothing, in a share over what may be skipped; conversations that are none."""

from typing import Any

from data.quarantine import REASONS
from tests.bad_inputs.data_case import DataCase, demonstrations, preferences, prompts
from tests.bad_inputs.data_files import Rows, chats, demos, pairs, turn


def _pair(reason: str, name: str, *rows: dict[str, Any]) -> DataCase:
    """Nine good pairs and bad ones; the first is line 10."""
    found = f"data.preferences: {len(rows)} of {9 + len(rows)} rows would be skipped ({reason}: {len(rows)}): "
    return preferences(name, {"p.jsonl": [*pairs(9), *rows]}, found, *REASONS[reason])


def _chat(reason: str, name: str, *turns: dict[str, Any]) -> DataCase:
    found = f"data.demonstrations: 1 of 10 rows would be skipped ({reason}: 1): "
    return demonstrations(name, {"d.jsonl": chats([*turns])}, found, *REASONS[reason])


_U, _A, _S = turn("user", "q"), turn("assistant", "a"), turn("system", "s")

PAIRS = [
    _pair("equal_responses", "chosen_is_rejected", {"prompt": "q", "chosen": "a", "rejected": "a"}),
    _pair("equal_responses", "chosen_is_rejected_but_for_space", {"prompt": "q", "chosen": "a\n", "rejected": " a"}),
    _pair("contradicting_pair", "pair_both_ways_round",
          {"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "b", "rejected": "a"}),
    _pair("contradicting_pair", "pair_both_ways_round_but_for_space",
          {"prompt": "q", "chosen": "a ", "rejected": "b"}, {"prompt": " q", "chosen": "b", "rejected": "a"}),
    _pair("duplicate", "pair_twice", pairs(1)[0]),
    _pair("duplicate", "pair_many_times", *pairs(1) * 9),
    _pair("empty_response", "empty_chosen", {"prompt": "q", "chosen": "", "rejected": "b"}),
    _pair("empty_response", "null_rejected", {"prompt": "q", "chosen": "a", "rejected": None}),
    _pair("empty_response", "rejected_of_spaces", {"prompt": "q", "chosen": "a", "rejected": "\u3000\n"}),
    _pair("empty_prompt", "null_prompt", {"prompt": None, "chosen": "a", "rejected": "b"}),
    _pair("broken_unicode", "half_a_character", {"prompt": "q", "chosen": "a\ud83d", "rejected": "b"}),
    _pair("prompts_differ", "responses_to_different_prompts",
          {"prompt": None, "chosen": [_U, _A], "rejected": [turn("user", "other"), _A]}),
    _pair("ends_without_response", "conversation_without_response",
          {"prompt": None, "chosen": [_U, _A], "rejected": [_U]}),
    _pair("too_long", "pair_longer_than_any_context", {"prompt": "q", "chosen": "a" * 10**6, "rejected": "b"}),
    _pair("no_turns", "conversation_of_no_turns", {"prompt": [], "chosen": "a", "rejected": "b"}),
    preferences("transcript_without_turns", {"p.jsonl": [{"chosen": "a", "rejected": "b"}]},
                "data.preferences: no preferences are left of the rows up to ", "at least one usable row is needed",
                "or a transcript that starts with `Human:`", format="hh"),
    preferences("every_pair_equal", {"p.jsonl": [pair | {"rejected": pair["chosen"]} for pair in pairs(9)]},
                "data.preferences: no preferences are left of the rows up to ", "at least one usable row is needed",
                "check that both columns were written from different responses"),
    preferences("reasons_mixed", {"p.jsonl": [*pairs(9), {"prompt": "", "chosen": "a", "rejected": "b"}, *pairs(2)]},
                "data.preferences: 3 of 12 rows would be skipped (duplicate: 2, empty_prompt: 1): ",
                "each row is needed once", "remove the repeated rows"),
]  # fmt: skip

CONVERSATIONS = [
    _chat("turns_do_not_alternate", "two_user_turns", _U, turn("user", "and"), _A),
    _chat("turns_do_not_alternate", "two_assistant_turns", _U, _A, turn("assistant", "b"), _U, _A),
    _chat("starts_without_user", "assistant_first", _A, _U, _A),
    _chat("system_turn_in_the_middle", "system_in_the_middle", _U, _S, _A),
    _chat("system_turn_in_the_middle", "two_system_turns", _S, _S, _U, _A),
    _chat("no_user_turn", "system_alone", _S, _A),
    _chat("no_assistant_turn", "no_assistant", _U, turn("tool", "t")),
    _chat("prompt_ends_with_assistant", "assistant_twice_at_the_end", _U, _A, turn("assistant", "b")),
    _chat("empty_turn", "empty_turn", _U, turn("assistant", " "), turn("user", "r"), _A),
    _chat("empty_response", "empty_last_turn", _U, turn("assistant", "")),
    _chat("message_without_text", "message_of_null", _U, turn("assistant", None)),
    demonstrations("unknown_role", {"d.jsonl": chats([_U, turn("bot", "a")])},
                   "d.jsonl:10: data.demonstrations: column `messages` holds the role 'bot' at 1",
                   'a list of messages {"role": system, user, assistant or tool, "content": text} is needed',
                   "repair the row"),
    demonstrations("no_role", {"d.jsonl": chats([{"content": "q"}])}, "holds the role None at 0",
                   "a list of messages", "repair the row"),
    demonstrations("role_of_a_list", {"d.jsonl": chats([{"role": ["user"], "content": "q"}])},
                   "holds the role ['user'] at 0", "a list of messages", "repair the row"),
    demonstrations("messages_of_text", {"d.jsonl": [{"messages": "User: q"}]}, "column `messages` holds a str",
                   "a list of messages", "repair the row"),
    demonstrations("message_of_text", {"d.jsonl": [{"messages": ["q", "a"]}]}, "`messages` holds a str at 0",
                   "a list of messages", "repair the row"),
    demonstrations("image_in_a_message", {"d.jsonl": chats([turn("user", [{"type": "image"}]), _A])},
                   "`messages` holds a list as content at 0", "a list of messages", "repair the row"),
    demonstrations("number_in_a_message", {"d.jsonl": chats([_U, turn("assistant", 4)])},
                   "d.jsonl:10: data.demonstrations: column `messages` holds a int as content at 1",
                   "a list of messages", "repair the row"),
]  # fmt: skip

_TWICE: Rows = [*demos(9), demos(1)[0]]
OTHERS = [
    demonstrations("demonstration_twice", {"d.jsonl": _TWICE},
                   "data.demonstrations: 1 of 10 rows would be skipped (duplicate: 1): ", *REASONS["duplicate"]),
    demonstrations("empty_instruction", {"d.jsonl": [{"instruction": f"{'q' * n}", "output": "a"} for n in range(9)]},
                   "data.demonstrations: 1 of 9 rows would be skipped (empty_prompt: 1): ", *REASONS["empty_prompt"]),
    prompts("empty_prompts", {"q.jsonl": [{"prompt": "\n"}, {"prompt": "q"}]},
            "data.prompts: 1 of 2 rows would be skipped (empty_prompt: 1): ", *REASONS["empty_prompt"]),
    prompts("prompt_twice", {"q.jsonl": [{"prompt": "q"}, {"prompt": "r"}, {"prompt": "q"}]},
            "data.prompts: 1 of 3 rows would be skipped (duplicate: 1): ", *REASONS["duplicate"]),
    DataCase("one_defect_where_none_may_be",
             {"p.jsonl": [*pairs(2100), {"prompt": "q", "chosen": "a", "rejected": "a"}]},
             {"preferences": {"path": "p.jsonl"}, "max_skipped_share": 0},
             "data.preferences: 1 of 2101 rows would be skipped (equal_responses: 1): ", "two different responses",
             "or raise `data.max_skipped_share` from 0", by="stage"),
]  # fmt: skip

CASES: list[DataCase] = [*PAIRS, *CONVERSATIONS, *OTHERS]
