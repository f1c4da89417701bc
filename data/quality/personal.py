"""Personal data in text: e-mail addresses, phone, card and account numbers, identity numbers; found and masked.

Each number has to pass the check that its kind has (the plan of the country's numbers, Luhn, ISO 7064), so that few
figures in ordinary text are taken for one. What is found is a hint: names and addresses are not looked for.
"""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

PersonalKind = Literal["email", "phone", "card", "iban", "id_number", "ip_address"]

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}\b")
_DIGITS = re.compile(r"(?<![A-Za-z0-9_.])\+?\(?\d[\d ().\-\u2010-\u2015/]{5,30}\d(?![A-Za-z0-9_])")
_SEVEN_DIGITS = re.compile(r"(?:\d\D{0,3}){6}\d")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_US_SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_CARD = re.compile(r"[\d -]+")
_CHINESE_ID = re.compile(
    r"(?<![A-Za-z0-9])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![A-Za-z0-9])"
)
_CHINESE_MOBILE = re.compile(r"(?<![\d.])1[3-9]\d{9}(?!\d)")
_IPV4 = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.])")


class PersonalData(NamedTuple):
    """A piece of personal data in a text: what, and where it begins and ends."""

    kind: PersonalKind
    start: int
    end: int


def find_personal_data(text: str) -> list[PersonalData]:
    """Find personal data; pieces do not overlap.

    Phone numbers are those with plus sign and country code, those of the United States with their area code, and
    Chinese mobile numbers: among others, any figure of that many digits would be one somewhere.
    """
    found: list[PersonalData] = []
    for piece in sorted(_candidates(text), key=lambda each: (each.start, -each.end)):
        if not found or piece.start >= found[-1].end:
            found.append(piece)
    return found


def mask_personal_data(text: str) -> tuple[str, list[PersonalKind]]:
    """Put `[EMAIL]`, `[PHONE]`, `[CARD]`, `[IBAN]`, `[ID_NUMBER]` or `[IP_ADDRESS]` in the place of each piece.

    Returns:
        The text, and the kinds of the pieces in their order.
    """
    found = find_personal_data(text)
    parts: list[str] = []
    end = 0
    for piece in found:
        parts += [text[end : piece.start], f"[{piece.kind.upper()}]"]
        end = piece.end
    return "".join(parts) + text[end:], [piece.kind for piece in found]


def _candidates(text: str) -> Iterator[PersonalData]:
    if "@" in text:
        yield from (PersonalData("email", *match.span()) for match in _EMAIL.finditer(text))
    for match in _IPV4.finditer(text):
        if not match[0].startswith(("127.", "0.", "10.", "192.168.", "255.")):  # of no one in particular
            yield PersonalData("ip_address", *match.span())
    if not _SEVEN_DIGITS.search(text):  # every other kind has as many; most text has none
        return
    for match in _IBAN.finditer(text):
        if _is_iban(match[0].replace(" ", "")):
            yield PersonalData("iban", *match.span())
    for match in _US_SSN.finditer(text):
        yield PersonalData("id_number", *match.span())
    for match in _CHINESE_ID.finditer(text):
        if _has_chinese_check_digit(match[0]):
            yield PersonalData("id_number", *match.span())
    for match in _CHINESE_MOBILE.finditer(text):
        yield PersonalData("phone", *match.span())
    for match in _DIGITS.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        is_grouped = _CARD.fullmatch(match[0]) is not None
        if is_grouped and 13 <= len(digits) <= 19 and digits[0] in "23456" and has_luhn_digit(digits):
            yield PersonalData("card", *match.span())
        else:
            yield from _phones(text, match)


def _phones(text: str, match: "re.Match[str]") -> Iterator[PersonalData]:
    """Valid numbers in a run of digits, grouped as their country writes them, by Google's library of numbering plans.

    Dates and columns of figures are valid numbers of some country too often, but are seldom grouped like one.
    """
    import phonenumbers  # late: it reads its tables

    for found in phonenumbers.PhoneNumberMatcher(match[0], "US", leniency=phonenumbers.Leniency.STRICT_GROUPING):
        written = found.raw_string
        if written.startswith("+") or not written.isdigit():
            yield PersonalData("phone", match.start() + found.start, match.start() + found.end)


def has_luhn_digit(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _is_iban(account: str) -> bool:
    """ISO 13616: the account, turned round and with letters as numbers, leaves 1 when divided by 97."""
    turned = account[4:] + account[:4]
    return len(account) >= 15 and int("".join(str(int(character, 36)) for character in turned)) % 97 == 1


def _has_chinese_check_digit(number: str) -> bool:
    """GB 11643: weights 2^i mod 11, ISO 7064 MOD 11-2."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()
