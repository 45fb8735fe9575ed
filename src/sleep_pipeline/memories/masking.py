"""Masks secrets, what identifies people, and files inside a text: `[SECRET]`, `[EMAIL]`, `[PHONE]`, `[CARD]`, `[IBAN]`,
`[SSN]`, `[FILE]`.

Secrets are found by their forms (`secret_forms`), by the words that announce them (`told_secrets`) and by the detectors
of detect-secrets, telephone numbers by phonenumbers, and bank accounts, cards and social security numbers by check
digits and ranges (python-stdnum); what merely looks like a number stays. Nothing is looked up over a network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from sleep_pipeline.memories.records import Content
from sleep_pipeline.memories.secret_forms import is_reference, mask_forms
from sleep_pipeline.memories.settings import MaskSettings
from sleep_pipeline.memories.told_secrets import asked_for, mask_ssns, mask_told, put_mark

# Letters and digits of any script, with the vowel signs and accents that are characters of their own.
_MARKS = r"[\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0971-\u0dff\u0e31-\u0e4e\u200c\u200d]"
_SIGN = rf"(?:[^\W_]|{_MARKS})"
# The user of a repository, pictures for fine screens and units of systemd are no mailboxes.
_NO_DOMAIN = r"(?:\d(?:\.\d)?x\.(?:png|jpe?g|gif|webp|svg|pdf)|[\w.:-]*\.(?:service|socket|timer))(?![.-]?\w)"
_EMAIL = re.compile(
    rf"(?<!\w)(?!git@)\w(?:[\w.%+'-]|{_MARKS}){{0,63}}@(?!{_NO_DOMAIN})(?:{_SIGN}(?:(?:{_SIGN}|-){{0,61}}{_SIGN})?\.)+"
    rf"(?:xn--[A-Za-z0-9-]{{2,59}}|(?:[^\W\d_]|{_MARKS}){{2,24}})(?!{_SIGN})"
)
_BLANK = " \u00a0\u2000-\u200a\u202f"
_IBAN = re.compile(rf"\b[A-Z]{{2}}\d{{2}}[A-Z0-9{_BLANK}-]{{10,}}[A-Z0-9]\b", re.I)
_IBAN_FORM = re.compile(r"[A-Z]{2}\d{2}[A-Z0-9]{11,30}")
_CARD = re.compile(rf"(?:(?<![\w.,-])|(?<=[A-Za-z]\.))\d[\d{_BLANK}-]{{11,}}\d(?![\w-])")
_GROUPS = 12  # as many as the longest IBAN has, and some
# Leading digits and lengths of the card networks; Luhn's sum alone lets every tenth number through.
_NETWORKS = re.compile(
    r"4\d{12}(?:\d{3})?(?:\d{3})?|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12}|35\d{14}"
)
# RFC 2397, in base 64. In Markdown a picture leaves what it shows in words, and a line that only defines one nothing.
_FILE = r"data:[\w.+-]{1,64}/[\w.+-]{1,64}(?:;[\w.+-]{1,64}=[\w.+-]{1,64}){0,4};base64,[A-Za-z0-9+/_%-]{16,}={0,2}"
_FILES = re.compile(
    rf"!\[(?P<shown>[^\[\]\n]{{0,500}})\]\([ ]?<?{_FILE}>?[^()\n]{{0,200}}\)"
    rf"|(?P<defined>^[ ]{{0,3}}\[[^\[\]\n]{{1,99}}\]:[ ]*<?{_FILE}>?[^\n]{{0,200}}$)|{_FILE}",
    re.M,
)
# Of one that is cut off, or only spoken of, the lines that are in base 64 as far as they follow.
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY[A-Z ]*-----"
    r"(?:(?:(?!-----BEGIN).)*?-----END [A-Z ]*PRIVATE KEY[A-Z ]*-----"
    r"|(?:(?:\s|\\n)*+(?:(?:Proc-Type|DEK-Info|Version|Comment):[^\n\\]*|[A-Za-z0-9+/=:,-]{16,}(?![^\s\\])))*)",
    re.S,
)
_KEYWORD = re.compile(r"key|pass|pwd|pw|kennwort|secret|contrase", re.I)
# How people write it to each other; detect-secrets knows how programs do.
_NAMES = (
    r"\b(?:password|passwd|passphrase|passcode|pwd|pass|pw|passwort|kennwort"
    r"|api[ _-]?key|access[ _-]?token|secret[ _-]?key)\b"
)
_TOLD = re.compile(
    _NAMES
    + r"[*_\"'`]{0,3}\s*(?:(?:is|was|ist|lautet)\s*[:：]?|[=:：]|[-\u2013\u2014\u2192]\s)[*_]{0,3}\s*[\"'`]?(\S{6,})",
    re.I,
)
# Tests pass, too.
_NAMES_ALONE = rf"{_NAMES}(?<!\bpass)"
_CELL = re.compile(_NAMES_ALONE + r"[*_`]{0,3}\s*\|\s*[*_\"'`]{0,3}([^\s|()]{6,64}?)[*_\"'`]{0,3}\s*(?:\||$)", re.I)
# A line that names a secret, and the next one, which is that alone.
_BELOW = r"[*_\"'`]{0,3}[ \t]*[:：][*_]{0,3}[ \t]*\n(?:[ \t]*\n)?[ \t>]*[*_\"'`]{0,3}"
_ALONE = r"[*_\"'`]{0,3}[ \t]*$"
_BELOW_NAME = re.compile(rf"{_NAMES_ALONE}{_BELOW}(?P<secret>\S{{6,64}}?){_ALONE}", re.I | re.M)
_BELOW_PIN = re.compile(rf"\bpin(?:[ -]?number)?{_BELOW}(?P<secret>\d{{4,8}}){_ALONE}", re.I | re.M)
# What stands before the secret in a reply, and how far it is looked for.
_REPLY = 200
_LEAD = re.compile(
    r"\s*(?:(?:it|that|this|es|das)(?:['’]s|\s+(?:is|was|ist|war))\s*:?\s+"
    r"|(?:sure|yes|yeah|ok(?:ay)?|of course|ja|klar)[,.!:]\s+){0,3}",
    re.I,
)
_TOKEN = re.compile(r"(?<![\w/+=.-])[A-Za-z0-9_+/-]{24,200}={0,2}(?![\w/+])")
# Lines, and portions of long ones: some detectors take time that grows with the square of a line's length.
# A portion ends with a sentence where one ends soon, since a clause tells a password from other words.
_PORTION = re.compile(r"(?=[\s\S])[^\n]{0,4000}(?:[^\n.!?]{0,400}[.!?](?=\s)|\S{0,4000})\n?")
_MASK = re.compile(r"\[[A-Z]+\]")
_BLANKS = re.compile(r"[^\S\n]{2,}")
_NEAR = 48
_CALLED = re.compile(
    r"\b(?:phones?|telephones?|tel|telefon|call(?:ed)?|dial|ring|mobile|mobil|handy|cell|fax|sms|whatsapp|hotline|contact"
    r"|reach(?:ed)?|rufnummer|text (?:me|us|him|her|them)"
    r"|(?:my|your|his|her|its|our|their|['’]s) (?:\w+ )?number)\b",
    re.I,
)
_ENTROPY = 4.0


@dataclass(frozen=True)
class Masked:
    """A masked text.

    Attributes:
        text: with marks such as `[EMAIL]` in the place of what was found.
        counts: how many were found, by kind.
    """

    text: str
    counts: dict[str, int] = field(default_factory=dict)


def mask(text: str, settings: MaskSettings) -> Masked:
    """Mask what the settings name; masking twice changes nothing more."""
    counts: Counter[str] = Counter()

    # First of all: among so many letters there is everything that the others look for.
    if settings.files and ";base64," in text:
        text, found = _FILES.subn(_without_file, text)
        counts.update({"file": found} if found else {})
    if settings.secrets:
        text = _mask_every(text, "secret", _PRIVATE_KEY, counts)
        for pattern, is_one in ((_BELOW_NAME, _is_told), (_BELOW_PIN, str.isdigit)):
            text, found = put_mark(text, pattern, is_one, "[SECRET]")
            counts.update({"secret": found} if found else {})
        text = "".join(_mask_secrets(part, counts) for part in _PORTION.findall(text))
    if settings.emails and "@" in text:
        text = _mask_every(text, "email", _EMAIL, counts)
    if settings.ibans:
        text = _mask_groups(text, "iban", _IBAN, _is_iban, counts)
    if settings.cards:
        text = _mask_groups(text, "card", _CARD, _is_card, counts)
    if settings.ssns:
        text, found = mask_ssns(text)
        counts.update({"ssn": found} if found else {})
    if settings.phones:
        text = _mask_phones(text, settings.phone_regions, counts)
    return Masked(text, dict(sorted(counts.items())))


def mask_content(content: Content, settings: MaskSettings) -> tuple[Content, dict[str, int]]:
    """A memory's content with every text in it masked, and how many of what were.

    What is asked for in a question or a turn is no less of a secret in the reply, which need not name it.
    """
    counts: Counter[str] = Counter()

    def masked(text: str | None, before: str | None = None) -> str | None:
        if text is None:
            return None
        if settings.secrets and before and (name := asked_for(before)):
            text, replied = _mask_reply(text, name)
            counts.update({"secret": replied} if replied else {})
        found = mask(text, settings)
        counts.update(found.counts)
        return found.text

    said = [message["content"] for message in content.messages]
    messages = tuple(
        {**message, "content": masked(message["content"], before) or ""}
        for message, before in zip(content.messages, ["", *said], strict=False)
    )
    content = replace(
        content,
        messages=messages,
        text=masked(content.text),
        question=masked(content.question),
        answer=masked(content.answer, content.question),
        label=masked(content.label),
    )
    return content, dict(sorted(counts.items()))


def _without_file(match: re.Match[str]) -> str:
    if match["defined"] is not None:
        return ""
    return match["shown"] or "[FILE]"


def _mask_reply(text: str, name: str) -> tuple[str, int]:
    """A reply to one who asks for a secret by its name, masked as what follows that name would be."""
    lead = _LEAD.match(text)
    begin = lead.end() if lead else 0
    rest = text[begin : begin + _REPLY].partition("\n")[0]
    line, found = f"{name}: {rest}", 0
    # A reply of several clauses begins with other words.
    if name == "PIN" or rest[:1].isdigit() or not re.search(r"[,;:.!?]\s+\S", rest):
        line, found = mask_told(line)
    if (told := _TOLD.match(line)) and _is_told(told[1]):
        line, found = line.replace(_word(told[1]), "[SECRET]", 1), 1
    return text[:begin] + line[len(name) + 2 :] + text[begin + len(rest) :], found


def _mask_every(text: str, kind: str, pattern: re.Pattern[str], counts: Counter[str]) -> str:
    text, count = pattern.subn(f"[{kind.upper()}]", text)
    if count:
        counts[kind] += count
    return text


def _mask_groups(
    text: str, kind: str, pattern: re.Pattern[str], is_one: Callable[[str], bool], counts: Counter[str]
) -> str:
    """Mask the groups of digits that together are one number, whatever other groups stand beside them."""

    def put(match: re.Match[str]) -> str:
        found = match[0]
        groups = [group.span() for group in re.finditer(r"[A-Za-z0-9]+", found)]
        told, done, at = [], 0, 0
        while at < len(groups):
            ends = range(min(len(groups), at + _GROUPS), at, -1)
            end = next((end for end in ends if is_one(found[groups[at][0] : groups[end - 1][1]])), None)
            if end is not None:
                counts[kind] += 1
                told += [found[done : groups[at][0]], f"[{kind.upper()}]"]
                done = groups[end - 1][1]
            at = end or at + 1
        return "".join([*told, found[done:]])

    return pattern.sub(put, text)


def _is_iban(found: str) -> bool:
    compact = re.sub(r"[\s-]", "", found).upper()
    if not _IBAN_FORM.fullmatch(compact):
        return False
    from stdnum import iban

    return bool(iban.is_valid(compact))


def _is_card(found: str) -> bool:
    from stdnum import luhn

    digits = re.sub(r"\D", "", found)
    return bool(_NETWORKS.fullmatch(digits)) and bool(luhn.is_valid(digits))


def _mask_phones(text: str, regions: tuple[str, ...], counts: Counter[str]) -> str:
    from phonenumbers import Leniency, PhoneNumberMatcher

    if sum(character.isdigit() for character in text) < 7:
        return text
    spans: set[tuple[int, int]] = set()
    # Without a region only numbers with a + are found.
    everywhere = (None,) if re.search("[+\uff0b]", text) else ()
    for region in (*everywhere, *regions):
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING):
            overlaps = any(match.start < end and start < match.end for start, end in spans)
            if not overlaps and _is_phone(match.raw_string, text[max(0, match.start - _NEAR) : match.start]):
                spans.add((match.start, match.end))
    for start, end in sorted(spans, reverse=True):
        text = f"{text[:start]}[PHONE]{text[end:]}"
    counts["phone"] += len(spans)
    if not spans:
        del counts["phone"]
    return text


def _is_phone(found: str, before: str) -> bool:
    """Whether what may be a number to call is one, and no quantity or list of numbers."""
    if found.startswith(("+", "(+")):
        return True
    groups = re.findall(r"\d+", found)
    area = re.match(r"0\d|\(\d+\)", found)
    line = before.rpartition("\n")[2]
    called = bool(_CALLED.search(line))
    # Seven and more digits in a row, or two groups of them, are as likely a quantity unless something says that one is
    # called there.
    if len(groups) < 2 or (len(groups) == 2 and not area):
        return called
    # With nothing but spaces between them they are a list, unless something says that as well, or whose number it is: a
    # name right before them, or another number.
    listed = not area and not re.search(r"[^\d\s(]", found)
    named = line.split()[-1:]
    return not listed or called or "[PHONE]" in line or any(word[0].isupper() for word in named)


def _mask_secrets(line: str, counts: Counter[str]) -> str:
    if len(line) < 8:
        return line
    for forms in (mask_forms, mask_told):
        line, counted = forms(line)
        counts["secret"] += counted
    # The longest first: what one detector finds may be part of what another does.
    for secret in sorted(set(_secrets(line)), key=len, reverse=True):
        # Some detectors find only the beginning, such as two of the three parts of a JWT.
        line, count = re.subn(rf"{re.escape(secret)}(?:[\w+/=-]|\.(?=\w))*", "[SECRET]", line)
        counts["secret"] += count
    if not counts["secret"]:
        del counts["secret"]
    return line


def _secrets(line: str) -> Iterator[str]:
    # No secret has blanks in it, and the keyword detector takes time that grows with the cube of their number in a row.
    line = _BLANKS.sub(" ", line)
    tools = _detectors()
    for detector in tools["patterns"]:
        for found in _matches(detector, line):
            if len(found) >= 6 and not _MASK.search(found):
                yield found
    if _KEYWORD.search(line):
        for arguments in ({}, {"denylist_regex_to_group": tools["settings_file"]}):
            for found in tools["keyword"].analyze_string(line, **arguments):
                if _is_password(found):
                    yield found
        for pattern in (_TOLD, _CELL):
            yield from (_word(match[1]) for match in pattern.finditer(line) if _is_told(match[1]))
    for match in _TOKEN.finditer(line):
        if _is_random(match[0], tools["entropy"]):
            yield match[0]


def _matches(detector: Any, line: str) -> Iterator[str]:
    """What a detector finds. Where its pattern has a group for a prefix, `analyze_string` gives that prefix alone."""
    from detect_secrets.plugins.base import RegexBasedDetector

    if type(detector).analyze_string is not RegexBasedDetector.analyze_string:
        yield from detector.analyze_string(line)
        return
    for pattern in detector.denylist:
        for match in pattern.finditer(line):
            longest = max((group for group in match.groups() if group), key=len, default="")
            yield (longest if len(longest) >= 6 else match[0]).strip(" \t=:\"'")


def _is_told(found: str) -> bool:
    # Words of prose are joined by the other signs.
    return len(_word(found)) >= 6 and not is_reference(found) and _is_password(_word(found), r"\d!@#$%^&*+\\")


def _word(found: str) -> str:
    return found.rstrip("\"'`.,;:!?)")


def _is_password(found: str, signs: str = r"\d!@#$%^&*_+=/\\") -> bool:
    """Whether it is one word with digits or signs among its letters: prose speaks of secrets, too, and so does code."""
    if re.search(r"\s", found) or _MASK.search(found) or len(found) < 4 or is_reference(found):
        return False
    return bool(re.search(r"[A-Za-z]", found)) and bool(re.search(f"[{signs}]", found.strip("!*_")))


def _is_random(token: str, entropy: Callable[[str], float]) -> bool:
    """Whether letters and digits follow each other as in a key: often changing, of both cases, of high entropy."""
    token = max(token.split("/"), key=len)  # a path is no key
    changes = len(re.findall(r"(?<=\d)(?=[A-Za-z])|(?<=[A-Za-z])(?=\d)", token))
    mixed = re.search(r"[a-z]", token) and re.search(r"[A-Z]", token)
    return len(token) >= 20 and bool(mixed) and changes >= 4 and entropy(token) > _ENTROPY


@lru_cache(maxsize=1)
def _detectors() -> dict[str, Any]:
    """The detectors of detect-secrets; those for addresses of machines and for any quoted text are left out."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector
    from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString
    from detect_secrets.plugins.keyword import CONFIG_DENYLIST_REGEX_TO_GROUP, KeywordDetector

    left_out = {"IPPublicDetector", "PrivateKeyDetector"}
    classes: list[Any] = list(get_mapping_from_secret_type_to_class().values())
    patterns = [
        found()
        for found in sorted(classes, key=lambda found: found.__name__)
        if issubclass(found, RegexBasedDetector) and found.__name__ not in left_out
    ]
    return {
        "patterns": patterns,
        "keyword": KeywordDetector(),
        "settings_file": CONFIG_DENYLIST_REGEX_TO_GROUP,
        "entropy": Base64HighEntropyString().calculate_shannon_entropy,
    }
