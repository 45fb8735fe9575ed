"""Typed settings of Collect; nothing here loads more than pydantic."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

Kind = Literal["text", "chat", "qa", "label"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MaskSettings(_Settings):
    """What is masked before a memory is written anywhere.

    Attributes:
        secrets: keys, tokens and passwords become `[SECRET]`.
        emails: e-mail addresses become `[EMAIL]`.
        phones: telephone numbers become `[PHONE]`.
        cards: payment card numbers become `[CARD]`.
        ibans: bank accounts become `[IBAN]`.
        ssns: social security numbers of the USA become `[SSN]`.
        files: pictures and other files that are written into a text (`data:image/png;base64,...`) become what the text
            says they show, or `[FILE]`.
        phone_regions: countries (two letters) whose national ways of writing a number are known; a number that begins
            with + is found wherever it is from. More regions find more numbers, and more that are none.
    """

    secrets: bool = True
    emails: bool = True
    phones: bool = True
    cards: bool = True
    ibans: bool = True
    ssns: bool = True
    files: bool = True
    phone_regions: tuple[str, ...] = ("US", "GB", "DE")

    @field_validator("phone_regions")
    @classmethod
    def _known_regions(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        from phonenumbers import SUPPORTED_REGIONS

        if unknown := sorted(set(regions) - SUPPORTED_REGIONS):
            raise ValueError(f"phone_regions={unknown} are no countries; give two capital letters such as US or GB")
        return regions


class DuplicateSettings(_Settings):
    """When two memories count as the same.

    Attributes:
        threshold: least Jaccard similarity of their shingles; 1 drops only what differs in case and punctuation.
        shingle: words a shingle; longer ones make the comparison stricter.
        permutations: of MinHash, which finds what to compare where `keep_changed_facts` is off; more miss fewer
            duplicates and cost time in proportion.
        seed: of the permutations.
        keep_changed_facts: keep a near-duplicate that brings a word which the other lacks: a correction is news, even
            in an otherwise equal text.
    """

    threshold: float = Field(0.85, gt=0, le=1)
    shingle: PositiveInt = 3
    permutations: PositiveInt = Field(128, ge=16)
    seed: int = Field(1, ge=0)
    keep_changed_facts: bool = True


class CollectSettings(_Settings):
    """How a night's memories are collected.

    Attributes:
        max_line_bytes: longest line of a file, and largest row of a table or passage of a text; what is longer goes to
            quarantine (a long text is cut). It bounds the memory that reading takes. In a `.json` file it is the most
            that a row may say; with what stands around that, as in exports, a row may be 16 times as large.
        max_depth: folders within folders that are entered.
        rereads: how often a file is read again that changed while it was read, before it is left for the next night.
        text_passages: what a passage of a `.md` or `.txt` file is: `section` (a Markdown heading with what belongs to
            it; in a text, what stands between rules or several empty lines), `paragraph`, or the whole `file`. In a
            file that grows, only passages that are new go into the next night, and of one that has grown its new end.
        keep_headings: a Markdown passage begins with the headings above it; a very small model reads better without.
        outside_links: read files through links that leave the folder.
        excerpt: characters of a rejected row that are shown, masked.
        mask: what is masked.
        injection: text that reads like an attack on the model is flagged, put into quarantine, or not looked for.
        duplicates: when two memories count as the same.
        context_tokens: longest context that a teacher reads, in tokens of the model.
        together: kinds of which several memories of a file share a context.
        probe_share: share of the questions that is held out of all training.
        probe_salt: another salt holds out other questions.
        max_bad_share: a larger share of bad rows stops the night.
        at_most: new memories that a night takes; those of earlier days first, otherwise by the names of their files and
            by line. The rest stays new for the next night. None takes all.
    """

    max_line_bytes: PositiveInt = 2**20
    max_depth: PositiveInt = 32
    rereads: int = Field(2, ge=0)
    text_passages: Literal["section", "paragraph", "file"] = "section"
    keep_headings: bool = True
    outside_links: bool = False
    excerpt: PositiveInt = 80
    mask: MaskSettings = MaskSettings()
    injection: Literal["flag", "quarantine", "ignore"] = "flag"
    duplicates: DuplicateSettings = DuplicateSettings()
    context_tokens: PositiveInt = 512
    together: tuple[Kind, ...] = ("qa", "label")
    probe_share: float = Field(0.2, ge=0, le=1)
    probe_salt: str = "probes"
    max_bad_share: float = Field(0.5, ge=0, le=1)
    at_most: PositiveInt | None = None
