"""Skills of reading by rule rather than by sense: needles, classes, lexicons, stories, sums and grids.

Each function draws one puzzle as an `Example`; train and test puzzles share neither names, subjects nor wording where
there is a choice of wording, and every answer follows from the text alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from sleep_pipeline.corpora.names import NameGenerator, Split
from sleep_pipeline.corpora.skills import Example, conversation


def _names(rng: random.Random, split: Split) -> NameGenerator:
    return NameGenerator(random.Random(rng.getrandbits(64)), split)


_NEEDLE_NOUNS = (
    "code key number locker pin badge ticket seat shelf box score label tag rank slot password token address record "
    "place entry size position card file folder page line sign mark secret"
).split()
_NEEDLE_KINDS = ("", "", "", "", "special ", "secret ", "new ", "old ", "right ", "first ", "lucky ")
_NEEDLE_LINES: dict[Split, tuple[str, ...]] = {
    "train": (
        "The {n} of {k} is {v}.",
        "The {n} for {k} is {v}.",
        "{k}: {v}",
        "{k} has the {n} {v}.",
        "{k} = {v}",
        "{k} -> {v}",
        "{k}, {v}",
        "{k}'s {n} is {v}.",
        "{v} is the {n} of {k}.",
        "{v} belongs to {k}.",
        "The {n} {v} belongs to {k}.",
        "{k} got {v}.",
        "{k} was given the {n} {v}.",
        "For {k} it is {v}.",
        "You find {k} under {v}.",
        "{k} is kept under the {n} {v}.",
        "{k} stands at {v}.",
        "One of the {n}s for {k} is: {v}.",
        "- {k} with {n} {v}",
        "{v} goes to {k}.",
        "Look for {k} at {v}.",
    ),
    "test": ("{k} is filed under {v}.", "The magic number for {k} is {v}."),
}
_NEEDLE_QUESTIONS: dict[Split, tuple[str, ...]] = {
    "train": (
        "What is the {n} of {k}?",
        "What is the {n} for {k}?",
        "Which {n} does {k} have?",
        "Give the {n} for {k}.",
        "{k}?",
        "{k} = ?",
        "Tell me the {n} of {k}.",
        "Which {n} belongs to {k}?",
        "Under which {n} do you find {k}?",
        "Find {k}.",
        "Look up {k}.",
        "What does the text give for {k}?",
        "What is {k}'s {n}?",
        "What belongs to {k}?",
        "At which {n} is {k} kept?",
        "What is the {n} for {k} in the text?",
        "Which {n} was {k} given?",
        "What stands beside {k}?",
        "I need the {n} of {k}.",
    ),
    "test": ("Under which number is {k} filed?", "What is the magic number for {k}?"),
}


def needles(rng: random.Random, split: Split, keys: int | None = 32, turns: int = 1) -> Example:
    """Find the value of one key among many; `keys=None` draws how many, 2 to 32, few as often as many.

    Any training question goes with any training line; in the test split each line has the question of its own.
    """
    names = _names(rng, split)
    count = keys or round(2 * 16 ** rng.random())
    noun = rng.choice(_NEEDLE_KINDS) + rng.choice(_NEEDLE_NOUNS)
    place = rng.randrange(len(_NEEDLE_LINES[split]))
    line = _NEEDLE_LINES[split][place]
    question = _NEEDLE_QUESTIONS["test"][place] if split == "test" else rng.choice(_NEEDLE_QUESTIONS["train"])
    words = rng.random() < 0.2
    table = {names.short_name(): names.word() if words else str(rng.randint(100, 9999)) for _ in range(count)}
    joint = "\n" if rng.random() < 0.5 or not line.endswith(".") else " "
    text = joint.join(line.format(k=key, v=value, n=noun) for key, value in table.items())
    asked = rng.sample(sorted(table), min(turns, count))
    return Example("needles", conversation(text, [(question.format(k=key, n=noun), table[key]) for key in asked]))


@lru_cache(maxsize=1)
def _topics() -> dict[str, Any]:
    text = resources.files("sleep_pipeline.corpora").joinpath("topics.yml").read_text(encoding="utf-8")
    topics: dict[str, Any] = yaml.safe_load(text)
    return topics


@lru_cache(maxsize=1)
def _common_words() -> tuple[str, ...]:
    """Two thousand English words, the commonest first; none belongs to a held-out subject."""
    return tuple(resources.files("sleep_pipeline.corpora").joinpath("common_words.txt").read_text("utf-8").split())


def _any_common(rng: random.Random) -> str:
    """An English word, the common ones more often than the rare."""
    words = _common_words()
    return words[int(len(words) ** rng.random()) - 1]


def _own_carrier(rng: random.Random) -> str:
    """A sentence of any English words with gaps as the known ones have."""
    sentence = [_any_common(rng) for _ in range(rng.randint(2, 7))]
    gaps = rng.choice((["{b}"], ["{a}", "{b}"], ["{b}", "{c}"]))
    for gap in gaps:
        sentence.insert(rng.randint(0, len(sentence)), gap)
    return " ".join(sentence)


@lru_cache(maxsize=1)
def _frames() -> dict[str, list[str]]:
    return {part: [piece.strip() for piece in text.split("|")] for part, text in _topics()["frames"].items()}


def _put_together(rng: random.Random) -> str:
    """A sentence with gaps as the known ones have, of parts of ordinary sentences."""
    frames = _frames()
    if rng.random() < 0.4:
        sentence = [rng.choice(frames["things"])]
    else:
        sentence = [rng.choice(frames["openings"]), "{a}", rng.choice(frames["objects"])]
    if rng.random() < 0.4:
        sentence.append(rng.choice(frames["endings"]))
    return " ".join(sentence)


@lru_cache(maxsize=1)
def _any_words() -> tuple[str, ...]:
    """The words of all subjects and sentences that training knows."""
    table = _topics()
    banks = [word for bank in table["subjects"]["train"].values() for words in bank.values() for word in words]
    carriers = [word for carrier in table["carriers"]["train"] for word in carrier.split() if word.isalpha()]
    return tuple(sorted({*banks, *carriers, *table["subjects"]["train"]}))


# A heading, an example line and a question about one.
_Form = tuple[str, str, str]
_CLASSIFY_FORMS: dict[Split, tuple[_Form, ...]] = {
    "train": (
        ("", "{u} -> {y}", "{u} ->"),
        ("Label every utterance.\n", "{u} => {y}", "{u} =>"),
        ("Utterances and their labels:\n", '"{u}": {y}', '"{u}":'),
        ("", "Utterance: {u}\nLabel: {y}", "Utterance: {u}\nLabel:"),
        ("Examples.\n", "{u} | {y}", "{u} |"),
        ("These are classified utterances.\n", "{y}: {u}", "Which label fits: {u}"),
        ("", "{u} # {y}", "{u} #"),
        ("Sorted sentences:\n", "{u} ({y})", "Sort this: {u}"),
        ("", "Text: {u} Class: {y}", "Text: {u} Class:"),
        ("Every line has its class at the end.\n", "{u}: {y}", "{u}:"),
        ("What people said, by subject.\n", "{y} <- {u}", "Which subject: {u}"),
        ("", "{u} -> {y}", "Classify: {u}"),
        ("Labelled sentences:\n", "{u} -> {y}", "{u} ->"),
        ("Here are examples with labels.\n", '"{u}" is {y}.', '"{u}" is what?'),
        ("", "Q: {u}\nA: {y}", "Q: {u}\nA:"),
        ("Learn from these.\n", "{u} = {y}", "{u} ="),
    ),
    "test": (("Classified utterances:\n", "{u} -> {y}", "{u} ->"),),
}
_BETWEEN = (*"-> => : | # = :: ~ --> is means / , ; >> ... * to".split(), "goes to")


def _classify_form(rng: random.Random, split: Split) -> _Form:
    """One of the known forms, or for training as often a new one: any heading with any mark between the two parts."""
    known = _CLASSIFY_FORMS[split]
    if split == "test" or rng.random() < 0.4:
        return rng.choice(known)
    mark = rng.choice(_BETWEEN)
    close = mark in (":", ",", ";") or (not mark[0].isalpha() and rng.random() < 0.2)
    between = f"{mark} " if close else f" {mark} "
    heading = rng.choice(known)[0]
    if rng.random() < 0.5:
        heading = " ".join(_any_common(rng) for _ in range(rng.randint(1, 5))).capitalize() + rng.choice((":\n", ".\n"))
    if rng.random() < 0.2:
        _, _, question = rng.choice([form for form in known if form[1].startswith("{y}")])
        return heading, f"{{y}}{between}{{u}}", question
    return heading, f"{{u}}{between}{{y}}", f"{{u}}{between}".rstrip()


def classification(
    rng: random.Random, split: Split, classes: int | None = 5, shots: int | None = 4, turns: int = 1
) -> Example:
    """Give an utterance the label of the labelled utterances that it resembles.

    A query shares a content word with at least one example of its class and none with the other classes' examples.
    In a third of the tasks the labels are invented words, so that the sense of a label is of no help. In training, four
    tasks of ten have invented content words, three any English words and two words that belong to other subjects, so
    that nothing but the examples is of help. Most training tasks have a few sentences of their own, made of any English
    words or put together of parts of ordinary ones, so that lines of different classes often differ in a word or two
    alone; in the others every second sentence has some of its words put for any words. Most have a form of their own,
    too: which words tell the classes apart, and where the label stands, must be seen from the examples and cannot be
    known by heart.
    """
    table = _topics()
    classes = classes or rng.randint(2, 6)
    shots = shots or rng.randint(1, 4)
    subjects = rng.sample(sorted(table["subjects"][split]), classes)
    names = _names(rng, split)
    kind = rng.random()
    labels = {subject: names.word() if kind < 1 / 3 else subject for subject in subjects}
    if split == "train" and kind > 2 / 3:
        labels = dict(zip(subjects, rng.sample(_any_words(), classes), strict=True))
    banks = {subject: table["subjects"][split][subject] for subject in subjects}
    strange = rng.random() if split == "train" else 1.0
    if strange < 0.4:
        banks = {s: {use: [names.word() for _ in words] for use, words in banks[s].items()} for s in subjects}
    elif strange < 0.7:
        common = iter(rng.sample(_common_words(), sum(len(words) for s in subjects for words in banks[s].values())))
        banks = {s: {use: [next(common) for _ in words] for use, words in banks[s].items()} for s in subjects}
    elif strange < 0.9:
        pool = {
            use: sorted({w for bank in table["subjects"][split].values() for w in bank[use]}) for use in ("do", "see")
        }
        drawn = {use: iter(rng.sample(words, len(words))) for use, words in pool.items()}
        banks = {s: {use: [next(drawn[use]) for _ in words] for use, words in banks[s].items()} for s in subjects}
    seen: dict[str, set[str]] = {subject: set() for subject in subjects}
    carriers = table["carriers"][split]
    sort = rng.random() if split == "train" else 1.0
    if own := sort < 0.75:
        carriers = [(_own_carrier if sort < 0.25 else _put_together)(rng) for _ in range(rng.randint(2, 10))]

    def utter(subject: str, words: list[str] | None = None) -> tuple[str, set[str]]:
        bank = banks[subject]
        carrier = rng.choice(carriers)
        if split == "train" and not own and rng.random() < 0.5:
            carrier = " ".join(
                word if "{" in word or rng.random() < 0.6 else rng.choice(_any_words()) for word in carrier.split()
            )
        things = rng.sample([w for w in bank["see"] if words is None or w in words] or bank["see"], 1)
        things += rng.sample([w for w in bank["see"] if w not in things], 1)
        verb = rng.choice(bank["do"])
        used = {word for gap, word in (("{a}", verb), ("{b}", things[0]), ("{c}", things[1])) if gap in carrier}
        return carrier.format(a=verb, b=things[0], c=things[1]), used

    lines: list[tuple[str, str]] = []
    for subject in subjects:
        for _ in range(shots):
            utterance, used = utter(subject)
            seen[subject] |= used
            lines.append((utterance, labels[subject]))
    rng.shuffle(lines)
    head, form, query_form = _classify_form(rng, split)
    text = head + "\n".join(form.format(u=utterance, y=label) for utterance, label in lines)
    queries: list[tuple[str, str]] = []
    while len(queries) < turns:
        subject = rng.choice(subjects)
        utterance, used = utter(subject, sorted(seen[subject]))
        others = set().union(*(seen[other] for other in subjects if other != subject))
        if used & seen[subject] and not used & others:
            queries.append((query_form.format(u=utterance), labels[subject]))
    return Example("classification", conversation(text, queries))


_ENGLISH: dict[str, tuple[str, ...]] = {
    "noun": tuple(
        "dog house tree river child king bird stone road fish boat star friend bread horse mountain book fire garden "
        "bridge wolf tower forest lake apple".split()
    ),
    "adjective": tuple("big small old new red white good fast happy cold strong quiet young dark".split()),
    "verb": tuple("sees finds likes builds follows carries wants hears loves takes watches brings".split()),
}
_TRANSLATE: dict[Split, tuple[str, ...]] = {
    "train": ("Translate: {p}", "What does this mean: {p}", "Put into English: {p}", "{p} in English?"),
    "test": ("Translate into English: {p}",),
}


def translation(rng: random.Random, split: Split) -> Example:
    """Translate a phrase of an invented language whose lexicon and word order are in the text.

    The language puts its adjective after the noun in half of the tasks, and says so.
    """
    names = _names(rng, split)
    lexicon = {
        kind: {word: names.word() for word in rng.sample(words, {"noun": 5, "adjective": 3, "verb": 3}[kind])}
        for kind, words in _ENGLISH.items()
    }
    entries = [(foreign, english) for words in lexicon.values() for english, foreign in words.items()]
    rng.shuffle(entries)
    after = rng.random() < 0.5

    def phrase() -> tuple[list[str], list[str]]:
        noun = rng.choice(sorted(lexicon["noun"]))
        if rng.random() < 0.5:
            return [noun], [lexicon["noun"][noun]]
        adjective = rng.choice(sorted(lexicon["adjective"]))
        foreign = [lexicon["adjective"][adjective], lexicon["noun"][noun]]
        return [adjective, noun], foreign[::-1] if after else foreign

    english, foreign = phrase()
    if rng.random() < 0.7:
        verb = rng.choice(sorted(lexicon["verb"]))
        english_object, foreign_object = phrase()
        english = [*english, verb, *english_object]
        foreign = [*foreign, lexicon["verb"][verb], *foreign_object]
    rule = f"The adjective comes {'after' if after else 'before'} the noun."
    text = rule + "\n" + "\n".join(f"{word} = {meaning}" for word, meaning in entries)
    prompt = rng.choice(_TRANSLATE[split]).format(p=" ".join(foreign))
    return Example("translation", conversation(text, [(prompt, " ".join(english))]))


_PLACES = "kitchen garden office hallway bathroom bedroom cellar attic school park".split()
_THINGS = "ball apple letter lamp key cup hat coin book rope".split()
_MOVES: dict[Split, tuple[str, ...]] = {
    "train": (
        "{p} went to the {r}.",
        "{p} moved to the {r}.",
        "{p} walked to the {r}.",
        "{p} travelled to the {r}.",
    ),
    "test": ("{p} walked back to the {r}.", "{p} journeyed to the {r}.", "{p} moved on to the {r}."),
}
_TAKES: dict[Split, tuple[str, ...]] = {
    "train": ("{p} took the {t}.", "{p} picked up the {t}.", "{p} got the {t}."),
    "test": ("{p} took the {t} there.", "{p} picked up the {t} there."),
}
_DROPS: dict[Split, tuple[str, ...]] = {
    "train": ("{p} dropped the {t}.", "{p} left the {t}.", "{p} put down the {t}."),
    "test": ("{p} put down the {t} there.", "{p} dropped the {t} there."),
}


def stories(rng: random.Random, split: Split) -> Example:
    """Follow who went where with what, as the first bAbI tasks ask."""
    names = _names(rng, split)
    people = [names.word(2).capitalize() for _ in range(rng.randint(2, 4))]
    place: dict[str, str] = {}
    holder: dict[str, str | None] = {}
    lying: dict[str, str] = {}
    lines: list[str] = []
    for _ in range(rng.randint(4, 10)):
        person = rng.choice(people)
        held = [thing for thing, who in holder.items() if who == person]
        move = rng.random()
        if person not in place or move < 0.5:
            place[person] = rng.choice([room for room in _PLACES if room != place.get(person)])
            lines.append(rng.choice(_MOVES[split]).format(p=person, r=place[person]))
        elif held and move < 0.75:
            holder[held[0]] = None
            lying[held[0]] = place[person]
            lines.append(rng.choice(_DROPS[split]).format(p=person, t=held[0]))
        else:
            free = [t for t in _THINGS if t not in holder or (holder[t] is None and lying[t] == place[person])]
            thing = rng.choice(free)
            holder[thing] = person
            lines.append(rng.choice(_TAKES[split]).format(p=person, t=thing))
    if holder and rng.random() < 0.5:
        thing = rng.choice(sorted(holder))
        owner = holder[thing]
        if owner and rng.random() < 0.4:
            question, answer = f"Who has the {thing}?", owner
        else:
            question, answer = f"Where is the {thing}?", place[owner] if owner else lying[thing]
    else:
        person = rng.choice(sorted(place))
        question, answer = f"Where is {person}?", place[person]
    return Example("stories", conversation("\n".join(lines), [(question, answer)]))


def arithmetic(rng: random.Random, split: Split) -> Example:
    """Add or subtract two numbers below 1000, digit by digit from the right, then state the result.

    Which split a sum belongs to is a function of its two numbers as they are asked, so no test sum is ever trained on.
    """
    minus = rng.random() < 0.5
    while True:
        a, b = rng.randint(0, 999), rng.randint(0, 999)
        if minus and a < b:
            a, b = b, a
        if ((a * 31 + b * 17) % 10 < 2) == (split == "test"):
            break
    steps, carry = [], 0
    for x, y in zip(f"{a:03d}"[::-1], f"{b:03d}"[::-1], strict=True):
        if minus:
            value = int(x) - int(y) - carry
            steps.append(f"{x} - {y} - {carry} = {value % 10}" + (" borrow" if value < 0 else ""))
            carry = int(value < 0)
        else:
            value = int(x) + int(y) + carry
            steps.append(f"{x} + {y} + {carry} = {value % 10}" + (" carry" if value > 9 else ""))
            carry = int(value > 9)
    result = a - b if minus else a + b
    answer = "\n".join(steps) + f"\nAnswer: {result}"
    sign = "-" if minus else "+"
    return Example("arithmetic", conversation("Work in steps.", [(f"{a} {sign} {b} = ?", answer)]))


def _grid_rules(rng: random.Random) -> Callable[[list[int]], list[int]]:
    """One of the 1-D rules, its parameters drawn."""
    step = rng.choice((1, 2, 3))
    old, new = rng.sample(range(1, 10), 2)

    def shift(row: list[int]) -> list[int]:
        return [0] * step + row[:-step]

    def rotate(row: list[int]) -> list[int]:
        return row[step:] + row[:step]

    def mirror(row: list[int]) -> list[int]:
        return row[::-1]

    def recolour(row: list[int]) -> list[int]:
        return [new if cell else 0 for cell in row]

    def replace(row: list[int]) -> list[int]:
        return [new if cell == old else cell for cell in row]

    def fill(row: list[int]) -> list[int]:
        marks = [i for i, cell in enumerate(row) if cell]
        return [row[marks[0]] if marks[0] <= i <= marks[-1] else 0 for i in range(len(row))]

    def gravity(row: list[int]) -> list[int]:
        kept = [cell for cell in row if cell]
        return [0] * (len(row) - len(kept)) + kept

    return rng.choice((shift, rotate, mirror, recolour, replace, fill, gravity))


def _grid_row(rng: random.Random, width: int) -> list[int]:
    """A row with one block of colour, two marks, or scattered cells; never empty."""
    row = [0] * width
    style = rng.random()
    if style < 0.5:
        length = rng.randint(2, width // 2)
        start = rng.randint(0, width - length)
        row[start : start + length] = [rng.randint(1, 9)] * length
    else:
        colours = [rng.randint(1, 9)] * 2 if style < 0.75 else [rng.randint(1, 9) for _ in range(3)]
        for place, colour in zip(rng.sample(range(width), len(colours)), colours, strict=True):
            row[place] = colour
    return row


def grids(rng: random.Random, split: Split) -> Example:
    """Continue a 1-D grid pattern from three examples. Train rows are even, test rows odd in width."""
    width = rng.choice((6, 8, 10) if split == "train" else (7, 9))
    rule = _grid_rules(rng)
    rows = [_grid_row(rng, width) for _ in range(4)]
    shown = [f"{' '.join(map(str, row))} -> {' '.join(map(str, rule(row)))}" for row in rows]
    question, answer = shown[-1].split(" -> ")
    return Example("grids", conversation("\n".join(shown[:-1]), [(question + " ->", answer)]))


PUZZLE_SKILLS: dict[str, Callable[[random.Random, Split], Example]] = {
    "needles": needles,
    "classification": classification,
    "translation": translation,
    "stories": stories,
    "arithmetic": arithmetic,
    "grids": grids,
}
