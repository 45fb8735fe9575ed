"""Made-up worlds: people, places, firms, products, events and appointments with facts, told in documents.

A document knows the facts it states, so every question about it has a known answer and every sentence that a model
writes about it can be checked (`Document.truth_of`, `Document.answer_to`). Train and test worlds share neither
names nor wording (`names.word_split`, `phrasings.yml`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from sleep_pipeline.corpora.names import NameGenerator, Split

UNKNOWN = "I do not know."

_PROFESSIONS = (
    "baker carpenter doctor lawyer farmer teacher sailor painter tailor gardener nurse pilot printer cook miner "
    "judge clerk dancer singer driver potter weaver blacksmith librarian chemist butcher barber fisherman mason "
    "porter plumber surgeon banker brewer shepherd watchmaker translator"
).split()
_INSTRUMENTS = (
    "violin piano flute drum trumpet harp cello guitar clarinet organ horn lute banjo viola tuba oboe zither "
    "mandolin accordion whistle"
).split()
_COLOURS = (
    "red blue green yellow black white grey brown purple orange pink silver gold crimson turquoise violet beige navy"
).split()
_WRITTEN = 16  # of the wordings of a use, those that a model is taught to write
_POSSESSIVES = {"He": "His", "She": "Her", "It": "Its"}
_MONTHS = ("January February March April May June July August September October November December").split()


@dataclass(frozen=True)
class Relation:
    """One relation of the worlds and its wordings per split (see `phrasings.yml`)."""

    name: str
    subject: str
    value: str
    nouns: tuple[str, ...]
    frames: bool
    wordings: dict[str, dict[str, tuple[str, ...]]]

    def templates(self, use: str, split: Split) -> tuple[str, ...]:
        """The templates of one use (`statements`, `questions`, `spoken`, `inverse`, `follows`); may be empty."""
        return self.wordings.get(use, {}).get(split, ())


@dataclass(frozen=True)
class Phrasings:
    """Everything in `phrasings.yml`."""

    relations: dict[str, Relation]
    frames: dict[str, dict[str, tuple[str, ...]]]
    leads: dict[str, tuple[str, ...]]
    openings: dict[str, tuple[str, ...]]
    fillers: dict[str, tuple[str, ...]]
    asks: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    tails: tuple[str, ...]
    synonyms: dict[str, tuple[str, ...]]

    def of_kind(self, kind: str) -> list[Relation]:
        """The relations whose subject is of this kind."""
        return [relation for relation in self.relations.values() if relation.subject == kind]


@lru_cache(maxsize=1)
def phrasings() -> Phrasings:
    """Read the bundled wordings once."""
    text = resources.files("sleep_pipeline.corpora").joinpath("phrasings.yml").read_text(encoding="utf-8")
    raw: dict[str, Any] = yaml.safe_load(text)

    def tuples(table: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
        return {key: tuple(values) for key, values in table.items()}

    uses = ("statements", "questions", "clauses", "spoken", "inverse", "follows")
    relations = {
        name: Relation(
            name=name,
            subject=entry["subject"],
            value=entry["value"],
            nouns=tuple(entry["nouns"]),
            frames=entry.get("frames", True),
            wordings={use: tuples(entry[use]) for use in uses if use in entry},
        )
        for name, entry in raw["relations"].items()
    }
    return Phrasings(
        relations=relations,
        frames={use: tuples(table) for use, table in raw["frames"].items()},
        leads=tuples(raw["leads"]),
        openings=tuples(raw["openings"]),
        fillers=tuples(raw["fillers"]),
        asks=tuple(raw["asks"]["train"]),
        before=tuple(raw["before"]["train"]),
        after=tuple(raw["after"]["train"]),
        tails=tuple(raw["tails"]["train"]),
        synonyms={word: tuple(group) for group in raw["synonyms"] for word in group},
    )


@lru_cache(maxsize=1)
def _synonym_pattern() -> re.Pattern[str]:
    return re.compile("|".join(rf"\b{re.escape(word)}\b" for word in phrasings().synonyms))


def _vary_words(rng: random.Random, template: str) -> str:
    """A template with some words replaced by others of the same meaning."""
    synonyms = phrasings().synonyms
    return _synonym_pattern().sub(
        lambda match: rng.choice(synonyms[match[0]]) if rng.random() < 0.4 else match[0], template
    )


@lru_cache(maxsize=1)
def _all_words() -> tuple[str, ...]:
    """Every lower-case word of the wordings that training reads, as often as it occurs."""
    words = phrasings()
    wordings = [
        template
        for relation in words.relations.values()
        for use in ("statements", "questions")
        for template in relation.templates(use, "train")
    ]
    return tuple(word for wording in wordings for word in wording.split() if word.isalpha() and word.islower())


def _blur(rng: random.Random, template: str) -> str:
    """A template of which, three times in ten, one or two words are lost or put for others.

    A reader that has to make sense of it leans on all that a wording offers, not on one wording by heart.
    """
    if rng.random() >= 0.3:
        return template
    words = template.split(" ")
    places = [place for place, word in enumerate(words) if word.isalpha() and place]
    for place in rng.sample(places, min(len(places) // 3, rng.choice((1, 2)))):
        words[place] = rng.choice(_all_words()) if rng.random() < 0.7 else ""
    return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Entity:
    """Something that facts are told of. `name` is unique in its document."""

    kind: str
    name: str
    pronoun: str


@dataclass(frozen=True)
class Fact:
    """`subject` stands in `relation` to `value`."""

    subject: Entity
    relation: Relation
    value: str


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def fill(template: str, subject: str, value: str = "", noun: str = "", lead: str = "") -> str:
    """A template with its gaps filled, its first letter capital, and a lead such as "Also, " before it."""
    if lead and not template.startswith(("{", "I ")):
        template = template[0].lower() + template[1:]
    filled = template.replace("{s}", subject).replace("{v}", value).replace("{noun}", noun)
    return _capitalised(lead + filled)


def _framed(relation: Relation, use: str, split: Split) -> list[tuple[str, str]]:
    """(template, noun) of all wordings of a use: the relation's own and, where they fit, the general frames."""
    own = [(template, "") for template in relation.templates(f"{use}s", split)]
    if not relation.frames:
        return own
    article = "the " if relation.subject == "product" else ""
    frames = phrasings().frames[use][split]
    return own + [(frame.replace("{s}", article + "{s}"), noun) for frame in frames for noun in relation.nouns]


def draw_wording(
    rng: random.Random, relation: Relation, use: str, split: Split, plain: bool = False
) -> tuple[str, str]:
    """(template, noun) of a statement or question, the relation's own wordings twice as often as the frames.

    `plain` draws from the first wordings alone, the ones that a model is taught to write.
    """
    wordings = _framed(relation, use, split)
    own = len(relation.templates(f"{use}s", split))
    chosen = wordings[:own] if own == len(wordings) or rng.random() < 2 / 3 else wordings[own:]
    return rng.choice(chosen[:_WRITTEN] if plain else chosen)


def draw_statement(rng: random.Random, relation: Relation, split: Split) -> tuple[str, str]:
    """(template, noun) of a statement to be read: in training its words vary and it may end in an aside."""
    template, noun = draw_wording(rng, relation, "statement", split)
    if split == "train":
        template = _blur(rng, _vary_words(rng, template))
        if rng.random() < 0.1 and template.endswith("."):
            template = template[:-1] + rng.choice(phrasings().tails) + "."
    return template, noun


def draw_question(rng: random.Random, relation: Relation, split: Split) -> tuple[str, str]:
    """(template, noun) of a question to be read: in training also indirect, with varied words and politeness."""
    words = phrasings()
    template, noun = draw_wording(rng, relation, "question", split)
    if split == "test":
        return template, noun
    if rng.random() < 0.25:
        template, noun = rng.choice(words.asks).replace("{c}", rng.choice(relation.templates("clauses", split))), ""
    return polite(rng, _blur(rng, _vary_words(rng, template))), noun


def polite(rng: random.Random, question: str) -> str:
    """A question with, now and then, something before or after it."""
    words = phrasings()
    if rng.random() < 0.15:
        first = question if question.startswith(("{", "I ")) else question[0].lower() + question[1:]
        question = rng.choice(words.before) + first
    if rng.random() < 0.1:
        question += rng.choice(words.after)
    return question


def statements(fact: Fact, split: Split) -> list[str]:
    """Every way in which a split tells a fact in the third person, the subject by its full name."""
    return [fill(t, fact.subject.name, fact.value, noun) for t, noun in _framed(fact.relation, "statement", split)]


def implied(fact: Fact, split: Split) -> list[str]:
    """Every way in which a split tells what follows from a fact; empty where nothing is declared to follow."""
    return [fill(t, fact.subject.name, fact.value) for t in fact.relation.templates("follows", split)]


def questions(subject: Entity, relation: Relation, split: Split) -> list[str]:
    """Every way in which a split asks for the value that `subject` has in `relation`."""
    return [fill(t, subject.name, noun=noun) for t, noun in _framed(relation, "question", split)]


def inverse_questions(fact: Fact, split: Split) -> list[str]:
    """Every way in which a split asks for the subject of a fact, its value being named."""
    return [fill(t, "", fact.value) for t in fact.relation.templates("inverse", split)]


def subject_answer(subject: Entity) -> str:
    """An entity's name as an answer: products get their article, everything starts with a capital."""
    return _capitalised(f"the {subject.name}" if subject.kind == "product" else subject.name)


@dataclass(frozen=True)
class Document:
    """A text, the facts that it states, and the entities that it is about (the first is the main one)."""

    text: str
    facts: tuple[Fact, ...]
    entities: tuple[Entity, ...]
    split: Split
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def _askable(self, splits: Sequence[Split]) -> dict[str, str]:
        """Every question that can be put into words about the document's entities, with its answer."""
        table: dict[str, str] = {}
        stated = {(fact.subject.name, fact.relation.name): fact.value for fact in self.facts}
        for entity in self.entities:
            for relation in phrasings().of_kind(entity.kind):
                answer = stated.get((entity.name, relation.name), UNKNOWN)
                for split in splits:
                    table.update(dict.fromkeys(questions(entity, relation, split), answer))
        for fact in self.facts:
            holders = [f for f in self.facts if f.relation is fact.relation and f.value == fact.value]
            if len(holders) == 1:
                for split in splits:
                    table.update(dict.fromkeys(inverse_questions(fact, split), subject_answer(fact.subject)))
        return table

    def answer_to(self, question: str) -> str | None:
        """The true answer to a question in any known wording; None if the question is in none of them."""
        if "askable" not in self._cache:
            self._cache["askable"] = self._askable(("train", "test"))
        return self._cache["askable"].get(question.strip())

    def truth_of(self, sentence: str) -> Fact | None:
        """The stated fact that a sentence tells, in any known wording; None if it tells none of them."""
        if "tellable" not in self._cache:
            table: dict[str, Fact] = {}
            for fact in self.facts:
                for split in ("train", "test"):
                    for wording in statements(fact, split) + implied(fact, split):
                        table[wording] = fact
            self._cache["tellable"] = table
        return self._cache["tellable"].get(sentence.strip())


class WorldGenerator:
    """Streams documents of made-up worlds; the same seed and split give the same documents.

    Args:
        seed: any integer or string.
        split: names and wordings to use.
        facts: how many facts a document states, inclusive bounds.
        entities: how many subjects a document has, inclusive bounds.
    """

    def __init__(
        self,
        seed: int | str,
        split: Split = "train",
        facts: tuple[int, int] = (2, 6),
        entities: tuple[int, int] = (1, 3),
    ) -> None:
        if facts[0] < 1 or facts[0] > facts[1] or entities[0] < 1 or entities[0] > entities[1]:
            raise ValueError(
                f"facts={facts} and entities={entities} must be (least, most) with 1 <= least <= most; "
                "swap or raise them"
            )
        self.rng = random.Random(f"world/{split}/{seed}")
        self.split: Split = split
        self.names = NameGenerator(self.rng, split)
        self.fact_bounds = facts
        self.entity_bounds = entities

    def __iter__(self) -> Iterator[Document]:
        while True:
            yield self.document()

    def entity(self, kind: str) -> Entity:
        """A new entity of a kind: person, place, firm, product, event or appointment."""
        name: str = getattr(self.names, kind)()
        return Entity(kind, name, self.rng.choice(("He", "She")) if kind == "person" else "It")

    def value(self, kind: str) -> str:
        """A new value of a kind named in `phrasings.yml`; entities' names are values too."""
        rng = self.rng
        makers: dict[str, Callable[[], str]] = {
            "year": lambda: str(rng.randint(1700, 2060)),
            "number4": lambda: str(rng.randint(1000, 9999)),
            "number3": lambda: str(rng.randint(11, 999)),
            "population": lambda: str(rng.randint(200, 99999)),
            "price": lambda: f"{rng.randint(2, 999)} {rng.choice(('crowns', 'florins', 'dollars', 'marks'))}",
            "weight": lambda: f"{rng.randint(2, 990)} {rng.choice(('grams', 'pounds', 'kilos'))}",
            "date": lambda: (
                f"{rng.randint(1, 28)} {rng.choice(_MONTHS)}"
                + (f" {rng.randint(1990, 2060)}" if rng.random() < 0.3 else "")
            ),
            "time": lambda: f"{rng.randint(6, 22)}:{rng.randint(0, 11) * 5:02d}",
            "room": lambda: f"{rng.choice(('room', 'hall', 'office'))} {rng.randint(1, 480)}",
            "profession": lambda: rng.choice(_PROFESSIONS),
            "instrument": lambda: rng.choice(_INSTRUMENTS),
            "colour": lambda: rng.choice(_COLOURS),
        }
        return makers[kind]() if kind in makers else str(getattr(self.names, kind)())

    def facts(self) -> tuple[list[Entity], list[Fact]]:
        """The subjects of a new document and their facts.

        A document is about one kind of thing as often as not, so that the same relation is told of several subjects
        and a reader must tell them apart.
        """
        rng = self.rng
        kinds = ("person", "person", "person", "place", "firm", "product", "event", "appointment")
        count = rng.randint(*self.entity_bounds)
        same = rng.random() < 0.6
        first_kind = rng.choice(kinds)
        entities = [self.entity(first_kind)]
        entities += [self.entity(first_kind if same else rng.choice(kinds)) for _ in range(count - 1)]
        room = {e.name: rng.sample(phrasings().of_kind(e.kind), len(phrasings().of_kind(e.kind))) for e in entities}
        wanted = max(rng.randint(*self.fact_bounds), len(entities))
        shared = phrasings().of_kind(first_kind) if same else []
        confusable = rng.sample(shared, min(len(shared), rng.randint(1, 3)))
        facts: list[Fact] = []

        def tell(entity: Entity, relation: Relation) -> None:
            facts.append(Fact(entity, relation, self.value(relation.value)))
            room[entity.name].remove(relation)

        for relation in confusable:
            for entity in entities:
                if len(facts) < wanted:
                    tell(entity, relation)
        while len(facts) < wanted:
            open_entities = [e for e in entities if room[e.name]]
            if not open_entities:
                break
            entity = rng.choice(open_entities)
            tell(entity, room[entity.name][0])
        told = {fact.subject.name for fact in facts}
        return [entity for entity in entities if entity.name in told], facts

    def document(self) -> Document:
        """A new document: a report, a conversation, or a form."""
        entities, facts = self.facts()
        rng = self.rng
        people = all(e.kind == "person" for e in entities) and all(
            f.relation.templates("spoken", "train") for f in facts
        )
        style = rng.choices(("report", "conversation", "form"), weights=(8, 6 if people else 0, 1))[0]
        if style == "conversation" and len(entities) > 1:
            text = self._conversation(facts)
        elif style == "form":
            text = self._form(entities, facts)
        else:
            text = self._report(facts)
        return Document(text=text, facts=tuple(facts), entities=tuple(entities), split=self.split)

    def _report(self, facts: list[Fact]) -> str:
        rng, words = self.rng, phrasings()
        facts = facts if rng.random() < 0.5 else sorted(facts, key=lambda fact: fact.subject.name)
        sentences = [rng.choice(words.openings[self.split])]
        previous: Entity | None = None
        for fact in facts:
            if rng.random() < 0.12:
                sentences.append(rng.choice(words.fillers[self.split]))
                previous = None
            template, noun = draw_statement(rng, fact.relation, self.split)
            name = fact.subject.name
            if fact.subject == previous and rng.random() < 0.6:
                if template.startswith("{s} "):
                    name = fact.subject.pronoun
                elif template.startswith("{s}'s "):
                    template = template.replace("{s}'s", "{s}", 1)
                    name = _POSSESSIVES[fact.subject.pronoun]
            lead = rng.choice(words.leads[self.split])
            if lead and name != fact.subject.name:
                name = name.lower()
            sentences.append(fill(template, name, fact.value, noun, lead))
            previous = fact.subject
        return " ".join(sentence for sentence in sentences if sentence)

    def _conversation(self, facts: list[Fact]) -> str:
        rng = self.rng
        replies = ("I see.", "Really?", "That is good to hear.", "How nice.", "And what else?")
        lines = []
        for fact in facts:
            name = fact.subject.name
            line = fill(rng.choice(fact.relation.templates("spoken", self.split)), name, fact.value)
            if rng.random() < 0.2:
                line = f"{rng.choice(replies)} {line}"
            lines.append(f"{name}: {line}")
        return "\n".join(lines)

    def _form(self, entities: list[Entity], facts: list[Fact]) -> str:
        blocks = []
        for entity in entities:
            rows = [f"Name: {entity.name}"]
            for fact in facts:
                if fact.subject == entity:
                    rows.append(f"{_capitalised(self.rng.choice(fact.relation.nouns))}: {fact.value}")
            blocks.append("\n".join(rows))
        return "\n\n".join(blocks)
