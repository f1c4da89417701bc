"""Personal data: found where a check digit or a numbering plan says so, masked, and left alone elsewhere."""

import pytest

from data.quality.personal import find_personal_data, has_luhn_digit, mask_personal_data

# 555-01xx and 4111... are reserved for examples; the IBAN is that of the standard, the identity numbers of their rules.
FOUND = {
    "Write to anna.lee+news@mail.example.co.uk!": "Write to [EMAIL]!",
    "Mail: 用户@例子.中国": "Mail: [EMAIL]",
    "Call (212) 736-5000 or +1 415-555-2671.": "Call [PHONE] or [PHONE].",
    "London: +44 20 7946 0958": "London: [PHONE]",
    "电话+86 138 0013 8000。手机13800138000，": "电话[PHONE]。手机[PHONE]，",
    "Card 4111 1111 1111 1111, or 4111-1111-1111-1111": "Card [CARD], or [CARD]",
    "IBAN DE89 3704 0044 0532 0130 00.": "IBAN [IBAN].",
    "SSN 078-05-1120": "SSN [ID_NUMBER]",
    "身份证11010519491231002X。": "身份证[ID_NUMBER]。",
    "from 93.184.216.34 on": "from [IP_ADDRESS] on",
}
NOT_FOUND = (
    "From 2019-11-23 12:30 to 2023-2024, 1,000,000 people.",
    "Pi is 3.14159265358979323846.",
    "ISBN 978-3-16-148410-0, page 12-34",
    "https://www.example.com/2020/3/18/21229268/covid-19",
    "4111 1111 1111 1112 has another check digit",
    "DE89 3704 0044 0532 0130 02",
    "110105194912310021 is no identity number",
    "1 2 3 4 5 6 7 8 9 10 11 12",
    "user@localhost, @name, a @ b",
    "127.0.0.1, 192.168.1.1, 10.0.0.1, 1.2.3.4.5, v1.2.3",
    "000-12-3456 and 666-12-3456",
    "",
    "سلام \U0001f600",
)


@pytest.mark.parametrize(("text", "masked"), FOUND.items())
def test_what_is_found_is_masked_and_the_rest_stays(text: str, masked: str) -> None:
    result, kinds = mask_personal_data(text)
    assert result == masked and len(kinds) == masked.count("[")
    assert mask_personal_data(masked) == (masked, [])


@pytest.mark.parametrize("text", NOT_FOUND)
def test_ordinary_figures_are_left_alone(text: str) -> None:
    assert mask_personal_data(text) == (text, [])


def test_places_are_exact_and_do_not_overlap() -> None:
    text = "a@b.org, (212) 736-5000, a@b.org"
    found = find_personal_data(text)
    assert [text[piece.start : piece.end] for piece in found] == ["a@b.org", "(212) 736-5000", "a@b.org"]
    assert all(first.end <= second.start for first, second in zip(found, found[1:], strict=False))


def test_luhn() -> None:
    assert has_luhn_digit("79927398713")  # the example of the standard's description
    assert [digit for digit in range(10) if has_luhn_digit(f"7992739871{digit}")] == [3]
