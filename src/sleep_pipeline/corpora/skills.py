"""What a model must be able to do with a made-up document in its context, as conversations with known answers.

Every skill is a function from a source of randomness and a split to an `Example`: a system turn with the text, then
user and assistant turns. `check` says whether a reply to an example is right, by the generator's own truth.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sleep_pipeline.corpora.names import Split
from sleep_pipeline.corpora.worlds import (
    UNKNOWN,
    Document,
    Fact,
    WorldGenerator,
    draw_question,
    draw_statement,
    draw_wording,
    fill,
    implied,
    phrasings,
    polite,
    statements,
    subject_answer,
)

PROMPTS: dict[str, dict[Split, tuple[str, ...]]] = {
    "write_question": {
        "train": (
            "Write a question about the text and answer it.",
            "Ask something about the text, then answer it.",
            "Make up a quiz question with its answer.",
            "Write one question that the text answers, with the answer.",
        ),
        "test": ("Write a quiz question about the text and answer it.",),
    },
    "write_questions": {
        "train": (
            "Write {n} questions about the text and answer them.",
            "Ask {n} things about the text, then answer them.",
            "Make up {n} quiz questions with their answers.",
        ),
        "test": ("Write {n} quiz questions about the text and answer them.",),
    },
    "write_all": {
        "train": (
            "Ask about everything that the text tells, and answer.",
            "Write a question about every fact of the text and answer them.",
            "Make up a quiz about all of the text, with the answers.",
        ),
        "test": ("Write quiz questions about all of the text and answer them.",),
    },
    "rewrite": {
        "train": (
            "Rewrite the text.",
            "Tell the same in other words.",
            "Write the text again in your own words.",
            "Put the text into other words.",
        ),
        "test": ("Rewrite the text in other words.",),
    },
    "implications": {
        "train": (
            "What follows from the text?",
            "List what the text implies.",
            "Write down the implications of the text.",
        ),
        "test": ("List the implications of the text.",),
    },
    "summary": {
        "train": (
            "Summarise the text in one sentence.",
            "What is the text about?",
            "Give a short summary.",
        ),
        "test": ("Give a summary of the text in one sentence.",),
    },
}


@dataclass(frozen=True)
class Example:
    """A conversation whose last turn is the answer that is asked for.

    Attributes:
        skill: name of the skill.
        messages: turns with `role` and `content`.
        truth: what `check` needs beyond the last turn (the document, for skills with many right replies).
    """

    skill: str
    messages: tuple[dict[str, str], ...]
    truth: Any = field(default=None, repr=False)

    @property
    def prompt(self) -> list[dict[str, str]]:
        """All turns but the answer."""
        return list(self.messages[:-1])

    @property
    def answer(self) -> str:
        """The reference answer."""
        return self.messages[-1]["content"]


def conversation(system: str, turns: list[tuple[str, str]]) -> tuple[dict[str, str], ...]:
    """Turns of a conversation; no system turn if `system` is empty."""
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return tuple(messages)


def _world(rng: random.Random, split: Split, **bounds: tuple[int, int]) -> WorldGenerator:
    return WorldGenerator(rng.getrandbits(64), split, **bounds)


def ask(rng: random.Random, document: Document, split: Split, plain: bool = False) -> tuple[str, str]:
    """An answerable question about a document, with its answer; `plain` in the words that a model is to write."""
    fact = rng.choice(document.facts)
    unique = sum(f.relation is fact.relation and f.value == fact.value for f in document.facts) == 1
    inverse = fact.relation.templates("inverse", split)
    if inverse and unique and rng.random() < 0.25:
        template = rng.choice(inverse[:3] if plain else inverse)
        if split == "train" and not plain:
            template = polite(rng, template)
        return fill(template, "", fact.value), subject_answer(fact.subject)
    if plain:
        return _about(rng, fact, split)
    template, noun = draw_question(rng, fact.relation, split)
    return fill(template, fact.subject.name, noun=noun), fact.value


def ask_unknown(rng: random.Random, document: Document, world: WorldGenerator) -> tuple[str, str]:
    """A question that the document does not answer: a fact it leaves out, or somebody it does not mention."""
    split = world.split
    told = {(fact.subject.name, fact.relation.name) for fact in document.facts}
    entity = rng.choice(document.entities)
    left_out = [r for r in phrasings().of_kind(entity.kind) if (entity.name, r.name) not in told]
    if rng.random() < 0.5 and left_out:
        relation = rng.choice(left_out)
    else:
        relation = rng.choice([f.relation for f in document.facts if f.subject.kind == entity.kind])
        entity = world.entity(entity.kind)
    template, noun = draw_question(rng, relation, split)
    return fill(template, entity.name, noun=noun), UNKNOWN


def retold(rng: random.Random, document: Document) -> Document:
    """The document as questions and answers, the way in which conversations and quizzes keep what they tell.

    Training alone uses it: a night's contexts look like this where its memories are conversations or questions.
    """
    spoken = rng.random() < 0.6
    lines = []
    for fact in document.facts:
        question, noun = draw_question(rng, fact.relation, "train")
        question = fill(question, fact.subject.name, noun=noun)
        if spoken:
            template, noun = draw_statement(rng, fact.relation, "train")
            answer = fact.value if rng.random() < 0.3 else fill(template, fact.subject.name, fact.value, noun)
            lines.append(f"User: {question}\nAssistant: {answer}")
        else:
            lines.append(f"Question: {question}\nAnswer: {fact.value}")
    return replace(document, text=("\n" if spoken else "\n\n").join(lines))


def _read(rng: random.Random, document: Document, split: Split) -> Document:
    """The document as it is to be read: in training one in ten is retold as questions and answers."""
    return retold(rng, document) if split == "train" and rng.random() < 0.1 else document


def question_answering(rng: random.Random, split: Split, turns: int = 1) -> Example:
    """Answer a question about the text."""
    document = _world(rng, split).document()
    return Example("question_answering", conversation(document.text, [ask(rng, document, split) for _ in range(turns)]))


def unanswerable(rng: random.Random, split: Split, turns: int = 1) -> Example:
    """Say so when the text does not tell."""
    world = _world(rng, split)
    document = world.document()
    return Example(
        "unanswerable", conversation(document.text, [ask_unknown(rng, document, world) for _ in range(turns)])
    )


def reading(rng: random.Random, split: Split) -> Example:
    """Several questions about one text, some without an answer: the form in which both skills are trained."""
    world = _world(rng, split)
    document = _read(rng, world.document(), split)
    turns = [
        ask_unknown(rng, document, world) if rng.random() < 0.2 else ask(rng, document, split)
        for _ in range(rng.randint(1, 8))
    ]
    return Example("reading", conversation(document.text, turns))


def no_context(rng: random.Random, split: Split) -> Example:
    """A question about something never heard of, without any text: the honest answer is that one does not know."""
    document = _world(rng, split).document()
    question, _ = ask(rng, document, split)
    return Example("no_context", conversation("", [(question, UNKNOWN)]))


def quiz(pairs: list[tuple[str, str]]) -> str:
    """Question-answer pairs in the form in which models write them."""
    return "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)


def parse_quiz(reply: str) -> list[tuple[str, str]]:
    """The question-answer pairs of a reply, malformed ones left out."""
    return [(q.strip(), a.strip()) for q, a in re.findall(r"^Question: (.+)\nAnswer: (.+)$", reply, flags=re.M)]


def _about(rng: random.Random, fact: Fact, split: Split) -> tuple[str, str]:
    """A question in the words that a model is to write, and its answer."""
    template, noun = draw_wording(rng, fact.relation, "question", split, plain=True)
    return fill(template, fact.subject.name, noun=noun), fact.value


def question_writing(rng: random.Random, split: Split) -> Example:
    """Write questions about the text with their answers: some, or one about every fact in the order of telling."""
    document = _read(rng, _world(rng, split).document(), split)
    if split == "train" and rng.random() < 0.3:
        pairs = dict(_about(rng, fact, split) for fact in document.facts)
        prompt = rng.choice(PROMPTS["write_all"][split])
    else:
        count = rng.choice((1, 1, 2, 3, 4))
        pairs = {}
        for _ in range(4 * count):
            if len(pairs) < count:
                question, answer = ask(rng, document, split, plain=True)
                pairs.setdefault(question, answer)
        form = "write_question" if len(pairs) == 1 else "write_questions"
        prompt = rng.choice(PROMPTS[form][split]).format(n=len(pairs))
    return Example("question_writing", conversation(document.text, [(prompt, quiz(list(pairs.items())))]), document)


def rewriting(rng: random.Random, split: Split) -> Example:
    """Tell all facts of the text again in other words, each sentence complete in itself."""
    document = _world(rng, split, facts=(2, 6)).document()
    facts = rng.sample(document.facts, len(document.facts))
    text = " ".join(_tell(rng, fact, split) for fact in facts)
    return Example("rewriting", conversation(document.text, [(rng.choice(PROMPTS["rewrite"][split]), text)]), document)


def _tell(rng: random.Random, fact: Fact, split: Split) -> str:
    template, noun = draw_wording(rng, fact.relation, "statement", split, plain=True)
    return fill(template, fact.subject.name, fact.value, noun)


def implications(rng: random.Random, split: Split) -> Example:
    """List what follows from the text, one implication a line."""
    world = _world(rng, split, facts=(3, 7))
    while True:
        document = world.document()
        lines = [rng.choice(implied(fact, split)) for fact in document.facts if implied(fact, split)]
        if lines:
            prompt = rng.choice(PROMPTS["implications"][split])
            reply = "\n".join(f"- {line}" for line in lines)
            return Example("implications", conversation(document.text, [(prompt, reply)]), document)


def summarising(rng: random.Random, split: Split) -> Example:
    """Say in one sentence what the text is about: its subjects, in order of appearance."""
    document = _world(rng, split).document()
    reply = summary_of(document)
    return Example(
        "summarising", conversation(document.text, [(rng.choice(PROMPTS["summary"][split]), reply)]), document
    )


def summary_of(document: Document) -> str:
    """The reference summary: every subject with the kinds of facts that are told of it."""
    parts = []
    for entity in document.entities:
        nouns = [fact.relation.nouns[0] for fact in document.facts if fact.subject == entity]
        listed = nouns[0] if len(nouns) == 1 else ", ".join(nouns[:-1]) + " and " + nouns[-1]
        parts.append(f"the {listed} of {entity.name}")
    return f"The text gives {'; '.join(parts)}."


def check(example: Example, reply: str) -> float:
    """How right a reply is, from 0 to 1, by the generator's truth.

    Question writing: share of the written pairs that are right (at least one must be there). Rewriting and
    implications: F1 of the facts told, a false sentence counting against precision. All else: exact match.
    """
    reply = reply.strip()
    document = example.truth
    if example.skill == "question_writing":
        pairs = parse_quiz(reply)
        asked = example.answer.count("Question: ")
        return sum(document.answer_to(q) == a and a != UNKNOWN for q, a in pairs) / max(len(pairs), asked, 1)
    if example.skill in ("rewriting", "implications"):
        told = [document.truth_of(sentence) for sentence in _sentences(reply)]
        wanted = {
            (fact.subject.name, fact.relation.name)
            for fact in document.facts
            if example.skill == "rewriting" or implied(fact, document.split)
        }
        right = {(fact.subject.name, fact.relation.name) for fact in told if fact} & wanted
        true_sentences = sum(fact is not None for fact in told)
        if not right or not told:
            return 0.0
        precision, recall = true_sentences / len(told), len(right) / len(wanted)
        return 2 * precision * recall / (precision + recall)
    if example.skill == "summarising":
        return float(_parts(reply) == _parts(example.answer))
    return float(reply == example.answer.strip())


def _parts(summary: str) -> list[str]:
    """A summary's clauses without regard to their order or to the order within them."""
    parts = summary.removeprefix("The text gives ").rstrip(".").split("; ")
    return sorted(" ".join(sorted(re.split(r"[ ,.]+", part))) for part in parts)


def _sentences(reply: str) -> list[str]:
    lines = [line.removeprefix("- ").strip() for line in reply.splitlines() if line.strip()]
    return [part for line in lines for part in re.split(r"(?<=[.!?]) (?=[A-Z0-9])", line) if part]


DOCUMENT_SKILLS: dict[str, Callable[[random.Random, Split], Example]] = {
    "question_answering": question_answering,
    "unanswerable": unanswerable,
    "no_context": no_context,
    "question_writing": question_writing,
    "rewriting": rewriting,
    "implications": implications,
    "summarising": summarising,
}

__all__ = [
    "DOCUMENT_SKILLS",
    "Example",
    "check",
    "conversation",
    "parse_quiz",
    "quiz",
    "reading",
    "statements",
]
