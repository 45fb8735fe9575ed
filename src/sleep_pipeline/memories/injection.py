"""Flags text that speaks to the model rather than to a reader; a heuristic that finds the plain cases, in English."""

from __future__ import annotations

import re

_TOLD = r"(?:instructions?|prompts?|rules?|directions?|guidelines|context|messages?)"
_ORDERS = re.compile(
    "|".join(
        (
            rf"\b(?:ignore|disregard|forget|override|bypass)\b(?:\s+\w+){{0,3}}?\s+"
            rf"(?:previous|prior|above|earlier|preceding|system|your|foregoing)\b(?:\s+\w+){{0,2}}?\s+{_TOLD}\b",
            r"\byou are (?:now|no longer) (?:an? |the |in )?(?:\w+ )?"
            r"(?:ai|assistant|chat ?bot|model|hacker|jailbroken|unrestricted|unfiltered|root|admin)\b",
            r"\b(?:reveal|print|show|repeat|output|leak)\b(?:\s+\w+){0,3}?\s+system prompt\b",
            r"\b(?:new|updated) (?:system )?instructions?\s*:",
            r"\b(?:from now on|henceforth),? (?:you (?:must|will|shall|are)|act as|respond|answer|pretend)\b",
            r"\b(?:do not|don't|never) (?:tell|inform|mention (?:this|it) to|reveal this to) the user\b",
            r"\bpretend (?:to be|that you are|you are) (?:an? )?(?:\w+ )?"
            r"(?:ai|assistant|model|system|developer|admin)\b",
            r"\b(?:developer|jailbreak|dan|god) mode\b.{0,30}\b(?:enabled|on|activated)\b",
            r"^[ \t#]*(?:system|assistant)[ \t]*(?:prompt|message|override)[ \t]*:",
        )
    ),
    re.I | re.M,
)
# The marks by which chat templates tell the turns apart; in a memory they would forge one.
_CONTROL = re.compile(r"<\|[a-z_]{2,24}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<｜[^｜]{1,24}｜>", re.I)
# Tag characters, bidirectional overrides and the like: seen by a tokenizer and by no reader.
_HIDDEN = re.compile("[\U000e0000-\U000e007f\u202a-\u202e\u2066-\u2069]")


def injection_flags(text: str) -> tuple[str, ...]:
    """`prompt_injection`, `control_tokens` and `hidden_characters`, as far as they apply."""
    patterns = {"prompt_injection": _ORDERS, "control_tokens": _CONTROL, "hidden_characters": _HIDDEN}
    return tuple(name for name, pattern in patterns.items() if pattern.search(text))
