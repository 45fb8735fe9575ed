"""Passwords, PINs and social security numbers as people tell them to each other, which have no form of a secret.

A password may be any word, so the words around it decide. Where a clause names a password and goes on with `is`, `was`,
a colon or an equals sign, the next word is one if the clause ends with it, or continues with `and`, `but`, `or`, `so`,
`for` or `please`; but not if it is one of the words that say how a password is, where, or what to do about it: those of
a list, and participles and adjectives by their endings. "The wifi password is sunflower" tells one; "the password is
wrong", "is required" and "is on the door" do not. So a password such as "wrong" stays, and "the password is history" is
masked. Only a passphrase has several words, and names of variables and types in code are none. Six digits behind "PIN
code" are an Indian address unless `is` or `was` stands between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_NAMES = r"(?:passwo?rd|passwd|pass[ -]?phrase|pass[ -]?code|pwd|pw|passwort|kennwort)"
_OF = r"(?:\s+(?:for|of|to|on|für|von|zum|zur)(?:\s+[\w'’-]+(?:[@.][\w-]+)*){1,4}?)?"
_NOW = r"(?:\s+(?:now|still|just|simply|again|jetzt))?"
_SAYS = rf"(?:\s*[*_\"'`]{{0,3}}\s*(?P<set>[:=：])|\s+(?P<is>is|was|ist|war|lautet){_NOW}\s*[:：]?)"
_OPEN = r"[ \t]*[*_]{0,3}[ \t]*[\"'`“„‘]?"
# In code a name stands where people write the password.
_NO_NAME = r"(?(set)(?!\w*(?:passwo?rd|passwd|passphrase|passcode|pwd|secret|credential)))"
# Behind a quote it may be JSON that ends.
_ENDS = r"[\"'`*_”“’]{0,3}(?:[.!?,;)\]]+[\"'`”“’]?[,;)\]}]*(?:\s|$)|(?<=[\"'`])[}\]]+,?(?:\s|$)|\s*(?:\||$)"
_CELL = r"\s*[*_`]{0,3}\s*\|(?=[\s*_`]*\d+[*_`]{0,3}\s*(?:\||$))"

_PASSWORD = re.compile(
    rf"\b{_NAMES}{_OF}{_SAYS}{_OPEN}{_NO_NAME}(?P<secret>[^\W_][\w@#$%&+-]{{2,63}})"
    rf"(?={_ENDS}|\s+(?:and|but|or|so|for|please|und|aber)\b))",
    re.I | re.M,
)
_PHRASE = re.compile(
    rf"\bpass[ -]?phrase{_OF}{_SAYS}{_OPEN}(?P<secret>[^\W\d_]{{2,20}}(?:[ -][^\W\d_]{{2,20}}){{3,11}})(?={_ENDS}))",
    re.I | re.M,
)
_PIN = re.compile(
    rf"\bpin(?:(?P<code>[ -]?code)|[ -]?(?:number|no\.?|nummer))?{_OF}(?:{_SAYS}|{_CELL}|(?<=code)|(?<=number)){_OPEN}"
    r"(?(code)(?(is)|(?![1-9]\d{5}(?!\d))))(?P<secret>\d{4,8})(?![\w-]|[.,:/]\d)",
    re.I,
)
# What is asked for is at the question's end: "What is a password manager?" asks for none, nor does who changed it.
_ASKS = re.compile(
    r"\b(?:what|tell|give|remind|send|know|was ist|was war|wie)\b"
    r"(?:(?!\b(?:who|when|where|why|how|happen|chang|reset|forg[eo]t|steal|stole))[^.!?\n]){0,80}?"
    rf"(?<!\ba )\b(?:pin(?:[ -]?(?:code|number|no\.?|nummer))?|(?P<name>{_NAMES})){_OF}"
    r"(?:\s+(?:again|now|please|jetzt|nochmal))?\s*(?:[?.!,]|$)",
    re.I | re.M,
)
# Of the words that say something about a password. Endings stand for the many participles and adjectives.
_SAID_OF_ONE = frozenset(
    """
    a an the this that these those my your his her its our their no not none nobody nothing never always only also
    very too here there where what which who how now then below above same different another other else unknown known
    new old own wrong right correct incorrect false true ok okay fine good bad best better worse weak weaker weakest
    strong stronger short shorter long longer longest simple complex easy hard nice great safe safer unsafe secure
    insecure secret private public hidden visible empty blank null missing absent random unique common default
    optional mandatory necessary essential important sensitive case-sensitive case valid invalid active inactive
    obsolete temporary permanent identical equal forgotten written given taken shown broken stolen chosen lost kept
    sent set reset set-up left gone sold told due up down out off on in at to key everything something anything it
    them us me you obvious clear confidential plaintext plain text string number numeric alphanumeric digits
    characters letters sufficient insufficient enough critical falsch richtig nötig unbekannt leer geheim sicher
    unsicher kurz lang schwach stark gleich neu alt kein keins keine hier dort notwendig ungültig gültig abgelaufen
    vergessen erforderlich yes tbd n/a na todo example user username login email pending working expiring annoying
    coming loading changing strange silly stupid funny ridiculous ugly likely ready mine yours hers theirs ours
    tips basics policy rules requirements help hint neither either both
    str bytes int bool float any optional secretstr self input
    """.split()
)
_ENDINGS = re.compile(r".{2,}(?:ed|able|ible|less|ful|ous)", re.I)
_BETWEEN = frozenset(
    """
    a an the to of in on at is are was for with by from as it its you your my we our us he she they this that these
    those when where which who what if not and or but be been can may must should will would has have had
    """.split()
)

_SSN_NAMES = (
    r"(?:SSN|ITIN|social[ -]security[ -](?:number|no\.?|num\.?|nr\.?|#)"
    r"|social[ -]security(?:[ ]card)?(?=\s*[:：#=]|\s+is\b))"
)
_SSN_TOLD = re.compile(
    rf"\b{_SSN_NAMES}s?[^\d\n]{{0,24}}(?<![\w.-])(?P<secret>\d{{3}}([ -]?)\d{{2}}\2\d{{4}})(?![\w-]|[.,]\d)", re.I
)
_SSN = re.compile(r"(?<![\w.,/+-])(?P<secret>\d{3}-\d{2}-\d{4})(?![\w/-]|[.,]\d)")


def _is_word_for_one(found: str) -> bool:
    """Whether a word is a password rather than said of one."""
    if found.isdigit():
        return len(found) >= 4
    return found.lower() not in _SAID_OF_ONE and not (found.isalpha() and _ENDINGS.fullmatch(found))


def _is_phrase(found: str) -> bool:
    words = re.split(r"[ -]", found.lower())
    return not any(word in _BETWEEN for word in words) and sum(word in _SAID_OF_ONE for word in words) <= 1


def mask_told(line: str) -> tuple[str, int]:
    """The line with `[SECRET]` in the place of every password and PIN that its words announce, and how many."""
    count = 0
    for pattern, is_one in ((_PHRASE, _is_phrase), (_PASSWORD, _is_word_for_one), (_PIN, str.isdigit)):
        line, found = put_mark(line, pattern, is_one, "[SECRET]")
        count += found
    return line, count


def asked_for(text: str) -> str | None:
    """By which name a text asks for a password or a PIN, as in "What is the wifi password?"; None if it does not."""
    found = _ASKS.search(text)
    return None if found is None else found["name"] or "PIN"


def mask_ssns(text: str) -> tuple[str, int]:
    """The text with `[SSN]` in the place of US social security numbers, and how many there were.

    Whatever is told to be one is one, in groups of 3, 2 and 4 digits or without; where nothing tells it, only what has
    hyphens between its groups and is ever given out.
    """
    text, told = put_mark(text, _SSN_TOLD, lambda found: True, "[SSN]")
    text, alone = put_mark(text, _SSN, _is_given_out, "[SSN]")
    return text, told + alone


def _is_given_out(found: str) -> bool:
    from stdnum.us import itin, ssn

    return bool(ssn.is_valid(found)) or bool(itin.is_valid(found))


def put_mark(line: str, pattern: re.Pattern[str], is_one: Callable[[str], bool], mark: str) -> tuple[str, int]:
    """The line with the mark in the place of every `secret` of the pattern that is one, and how many there were."""
    told, done = [], 0
    for match in pattern.finditer(line):
        if is_one(match["secret"]):
            told += [line[done : match.start("secret")], mark]
            done = match.end("secret")
    return "".join([*told, line[done:]]), len(told) // 2
