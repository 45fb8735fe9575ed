"""Secrets by their form: the mark of an issuer, a header, an address, the name of a field, or how people tell them.

detect-secrets looks for the forms of program code. These are those of notes, chats and logs that it lets through.
A name alone proves nothing, since prose speaks of tokens and keys: what stands behind it must look like one.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

_MASK = re.compile(r"\[[A-Z]+\]")
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T_ ]|$)")
_PLACEHOLDERS = frozenset("none null true false string text required optional hidden missing".split())

_ISSUED = re.compile(
    r"""(?<![A-Za-z0-9])(?P<secret>
      hf_[A-Za-z0-9]{30,} | api_org_[A-Za-z0-9]{30,}                  # Hugging Face
    | gh[pousr]_[A-Za-z0-9]{30,} | github_pat_\w{22,}                 # GitHub
    | gl(?:pat|ptt|dt|rt|cbt|ft|soat|agent|oas)-[\w-]{20,}            # GitLab
    | xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{10,} | xapp-[A-Za-z0-9-]{10,}  # Slack
    | [sr]k_(?:live|test)_[A-Za-z0-9]{16,} | whsec_[A-Za-z0-9+/]{24,}={0,2}  # Stripe
    | sk-(?:ant|proj|or|svcacct|admin|lf|None)-[\w-]{20,} | sk-[A-Za-z0-9]{20,}  # Anthropic, OpenAI and their like
    | (?:gsk|r8|fw|tvly|nvapi|xai|pplx)[_-][A-Za-z0-9_-]{30,}         # other hosts of models
    | (?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])              # AWS
    | AIza[\w-]{30,} | GOCSPX-[\w-]{20,} | ya29\.(?=[\w.-]{15})[\w-]+(?:\.[\w-]+)* | 1//0[\w-]{30,}  # Google
    | npm_[A-Za-z0-9]{30,} | pypi-[\w-]{50,} | dckr_pat_[\w-]{20,}    # registries of packages
    | SG\.[\w-]{16,}\.[\w-]{16,}                                      # SendGrid
    | do[opr]_v1_[a-f0-9]{40,} | shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32} | hv[sbr]\.[\w-]{20,}  # and some others
    | eyJ[\w-]{8,}(?:\.{1,2}[\w-]{4,})+                               # JSON web tokens
    )""",
    re.X,
)
_GIVEN = r"\\?[\"']?\s*(?::=|=>|[:=：])\s*\\?[\"'`]?"
_CODE = r"(?P<secret>[\w.~+/=-]{15,}[\w~+/=-])"
_AUTHORIZED = re.compile(
    rf"\bauthorization{_GIVEN}(?:bearer|token|oauth|api-?key|bot|jwt|negotiate)\s+{_CODE}", re.I | re.A
)
_AUTHORIZED_BARE = re.compile(rf"\bauthorization{_GIVEN}{_CODE}", re.I | re.A)
_BEARER = re.compile(rf"(?<![\w-])bearer\s+{_CODE}", re.I | re.A)
_BASIC = re.compile(r"\bbasic\s+(?P<secret>[A-Za-z0-9+/]{2,}={0,2})(?![\w+/=])", re.I | re.A)
# What follows the colon is a port where it is digits up to a slash; a password with an @ ends at the last one.
_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,30}://[^\s:/@?#\[\]<>\"']{0,200}:(?!\d{1,5}[/?#])"
    r"(?P<secret>[^\s@<>\"]{1,500}(?:@[^\s@/:,;<>\"']{1,100}(?=@))*)@",
    re.I,
)

_PASSWORDS = r"(?:passwo?rd|passwd|passphrase|passcode|pwd|client[ _-]?secret)"
_TOKENS = r"(?:token|secret|(?:api|access|auth|private|account|secret|signing|encryption)[ _-]?key)"
_VALUE = r"(?P<secret>[^\s&#\"'<>`]{0,500}[^\s&#\"'<>`.,;:)\]}])"
_PARAMETER_PASSWORD = re.compile(rf"[?&#;][\w.-]{{0,30}}{_PASSWORDS}={_VALUE}", re.I)
_PARAMETER = re.compile(
    rf"[?&#;](?:[\w.-]{{0,30}}{_TOKENS}|(?:[\w.-]{{0,30}}[_.-])?(?:key|sig|signature|auth|jwt|code|hmac))={_VALUE}",
    re.I,
)
_FIELD_PASSWORD = re.compile(
    rf"{_PASSWORDS}\\?[\"']\s*(?::|=>)\s*(?P<quote>\\?[\"'])(?P<secret>(?:(?!(?P=quote))[^\n]){{4,200}})(?P=quote)",
    re.I,
)
# The name of a function that is called is no value.
_FIELD = re.compile(
    rf"{_TOKENS}(?:{_GIVEN}|>)"
    r"(?P<secret>[^\s\"'`<>,;&(){}\[\]\\]{7,500}[^\s\"'`<>,;&(){}\[\]\\.:!?])(?![\w(]|\.\w)",
    re.I,
)
# A line that sets a password and says nothing else, as in settings and environments.
_SETTING = re.compile(
    rf"^[ \t]*(?:export[ \t]+|-[ \t]+)?[\w.-]{{0,40}}{_PASSWORDS}[\w.-]{{0,20}}(?:[ \t]*[=：][ \t]*|:[ \t]+)"
    r"[\"']?(?P<secret>[^\s\"'<>$]{3,200})[\"']?[ \t]*$",
    re.I | re.M,
)
_NAME = r"[A-Za-z_$][\w$]*"
# Brackets behind which more follows are no call.
_REFERENCE = re.compile(
    rf"""https?://
    | \$\{{?(?:[A-Z]+(?:_[A-Z0-9]+)*|[a-z]+(?:_[a-z]+)+)[^\w!@#%^&*+]*$  # a variable of a shell
    | (?=[^_]*_)[A-Za-z_]+(?:\.[A-Za-z_]+)+[;,)\]}}]*$                  # an attribute
    | (?!.*[)\]][\w!@#$%^&*+])(?:
        {_NAME}(?:\.{_NAME})*[\[(](?:$|["')\]]|{_NAME}[.=,(\[)\]])     # a call, or a place in a mapping
      | {_NAME}(?:\.{_NAME})+\(\d+\)
      )
    """,
    re.X,
)
_CURL = re.compile(
    r"\b(?:curl|wget|http)\b[^\n]{0,300}?\s(?:-u|--user)[ =][\"']?[^\s:\"']{1,100}:(?P<secret>[^\s\"']{1,200})"
)
_MYSQL = re.compile(r"\bmysql(?:dump|admin)?\b[^\n]{0,300}?\s-p(?P<secret>[^\s\"'-][^\s\"']{2,200})")
_WEBHOOK = re.compile(
    r"\bhttps://(?:(?:\w+\.)?discord(?:app)?\.com/api/webhooks|hooks\.slack\.com/services)/(?P<secret>[\w/-]{10,300})",
    re.I,
)
_TOLD = re.compile(
    r"\b(?:token|secret|key)\s+(?:is|was)(?:\s*:)?\s+[\"'`]?(?P<secret>[\w.~+=-][\w.~+/=-]{8,}[\w~+/=-])(?![\w@])",
    re.I | re.A,
)


def _always(found: str) -> bool:
    return True


def _is_password(found: str) -> bool:
    return len(found) >= 4 and found.count(" ") <= 1 and found.lower() not in _PLACEHOLDERS


def is_reference(found: str) -> bool:
    """Whether it is a link, or what code says in the place of a secret, such as a call: where one is, and not which."""
    return bool(_REFERENCE.match(found))


def _is_set(found: str) -> bool:
    return _is_password(found) and not is_reference(found)


def _is_code(found: str) -> bool:
    """Whether letters and digits are mixed, or there are many: a word or a date is none, nor is an address."""
    digits, letters = sum(map(str.isdigit, found)), any(map(str.isalpha, found))
    if "://" in found or found.startswith("$") or _DATE.match(found):
        return False
    return (digits >= 2 and letters and len(found) >= 8) or (digits >= 3 and len(found) >= 16)


def _is_opaque(found: str) -> bool:
    """Whether it is a code, or letters that no name of a page has: very many in a row, or of both cases in turn."""
    turns = len(re.findall(r"[a-z][A-Z]", found))
    return _is_code(found) or (found.isalnum() and (len(found) >= 24 or (len(found) >= 16 and turns >= 3)))


def _is_long_code(found: str) -> bool:
    return _is_code(found) and any(map(str.isalpha, found)) and sum(map(str.isdigit, found)) >= 3


def _is_user_and_password(found: str) -> bool:
    """Whether it is `user:password` in base64."""
    try:
        told = base64.b64decode(found, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return False
    return ":" in told and told.isprintable()


_FORMS: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
    (_ISSUED, _always),
    (_ADDRESS, _always),
    (_AUTHORIZED, _always),
    (_AUTHORIZED_BARE, _is_long_code),
    (_BEARER, _is_long_code),
    (_BASIC, _is_user_and_password),
    (_PARAMETER_PASSWORD, _always),
    (_PARAMETER, _is_opaque),
    (_FIELD_PASSWORD, _is_password),
    (_SETTING, _is_set),
    (_CURL, _always),
    (_MYSQL, _always),
    (_WEBHOOK, _always),
    (_FIELD, _is_code),
    (_TOLD, _is_long_code),
)


def mask_forms(line: str, mark: str = "[SECRET]") -> tuple[str, int]:
    """The line with a mark in the place of every secret that its form betrays, and how many there were.

    Args:
        line: or a few thousand characters of one; the patterns are bounded, not linear.
        mark: capitals in brackets, which are never masked again.
    """
    count = 0
    for pattern, is_one in _FORMS:
        told, done = [], 0
        for match in pattern.finditer(line):
            if _MASK.fullmatch(match["secret"]) or not is_one(match["secret"]):
                continue
            told += [line[done : match.start("secret")], mark]
            done = match.end("secret")
        count += len(told) // 2
        line = "".join([*told, line[done:]])
    return line, count
