"""A task as it is lived: its classes in an order drawn by seed, a few at a time."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sleep_pipeline.evaluation.tasks.data import Example, LabelledData, TaskError


@dataclass(frozen=True)
class ClassTask:
    """Some classes with their examples.

    Attributes:
        number: from 1.
        labels: in words, in the order drawn.
        train: to be learned, shuffled.
        validation: to choose settings by.
        test: to be asked.
        of: tasks of the stream; 0 where nobody knows how many will come.
    """

    number: int
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    of: int = 0


@dataclass(frozen=True)
class ClassStream:
    """The tasks in order, and what belongs to none.

    Attributes:
        name: of the data.
        version: of the declaration.
        seed: that drew the order.
        tasks: each with classes of its own.
        out_of_scope: test texts that belong to no class.
    """

    name: str
    version: int
    seed: int
    tasks: tuple[ClassTask, ...]
    out_of_scope: tuple[str, ...]

    def labels(self, until: int) -> tuple[str, ...]:
        """Labels of the first tasks, `until` of them."""
        return tuple(label for task in self.tasks[:until] for label in task.labels)


def class_stream(data: LabelledData, seed: int, tasks: int | None = None, classes: int | None = None) -> ClassStream:
    """Deal a task's classes out.

    Args:
        data: as loaded.
        seed: of the order of classes and examples.
        tasks: parts; as declared if left out.
        classes: of a part; as declared if left out. Give both to run with fewer.

    Raises:
        TaskError: the data's classes are fewer than asked, or not those of the declaration.
    """
    declaration = data.declaration
    whole = tasks is None and classes is None
    tasks = tasks or declaration.tasks
    classes = classes or declaration.classes // declaration.tasks
    have = len(data.labels)
    if tasks * classes > have or (whole and tasks * classes != have):
        raise TaskError(
            f"{declaration.name}: the training rows have {have} classes, and {tasks} tasks of {classes} need "
            f"{tasks * classes}; get {declaration.obtain}, or set the number of tasks and of classes in each"
        )
    order = random.Random(f"{declaration.name}/classes/{seed}").sample(data.labels, have)[: tasks * classes]
    dealt = []
    for number in range(tasks):
        labels = tuple(order[number * classes : (number + 1) * classes])
        mine = set(labels)
        train, validation, test = (
            [one for one in part if one.label in mine] for part in (data.train, data.validation, data.test)
        )
        if untested := sorted(mine - {one.label for one in test}):
            raise TaskError(
                f"{declaration.name}: the class {untested[0]!r} has no test row (where validation rows are asked, none "
                f"of these), so nobody could say whether it was learned; get {declaration.obtain}, or give it one (for "
                "validation, a second training text to hold out will do where no rows are published)"
            )
        random.Random(f"{declaration.name}/examples/{seed}/{number}").shuffle(train)
        dealt.append(ClassTask(number + 1, labels, tuple(train), tuple(validation), tuple(test), tasks))
    return ClassStream(declaration.name, declaration.version, seed, tuple(dealt), data.out_of_scope)


def asked_on_validation(data: LabelledData) -> LabelledData:
    """The data with the validation rows as its questions, so that settings are chosen without a look at the test rows.

    Where none are published, a tenth of each class's training texts are the questions, the same ones every time, and
    are not trained on; a class of one text has none. Texts out of scope are those of the validation rows, too, if any.

    Raises:
        TaskError: no class has a row to spare.
    """
    if data.validation:
        return replace(data, validation=(), test=data.validation, out_of_scope=data.out_of_scope_validation)
    texts: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for place, one in enumerate(data.train):
        texts[one.label].setdefault(" ".join(one.text.split()).casefold(), []).append(place)
    held_out: set[int] = set()
    for label, own in texts.items():
        count = min(math.ceil(len(own) / 10), len(own) - 1)
        for places in random.Random(f"{data.declaration.name}/validation/{label}").sample(list(own.values()), count):
            held_out.update(places)
    if not held_out:
        raise TaskError(
            f"{data.declaration.name} has no validation rows, and no class has a second training row to hold out: "
            "ask test"
        )
    train, questions = (
        tuple(one for place, one in enumerate(data.train) if (place in held_out) == asked) for asked in (False, True)
    )
    return replace(data, train=train, test=questions, out_of_scope=data.out_of_scope_validation)


def beginnings(data: LabelledData, words: int) -> LabelledData:
    """The data with no more than so many words of each text."""

    def cut(text: str) -> str:
        told = text.split()
        return " ".join(told[:words]) if len(told) > words else text

    def all_cut(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(replace(one, text=cut(one.text)) for one in examples)

    return replace(
        data,
        train=all_cut(data.train),
        validation=all_cut(data.validation),
        test=all_cut(data.test),
        out_of_scope=tuple(map(cut, data.out_of_scope)),
        out_of_scope_validation=tuple(map(cut, data.out_of_scope_validation)),
    )


def fewer_questions(data: LabelledData, per_class: int) -> LabelledData:
    """The data with at most so many test rows of each class, and as large a share of the out-of-scope texts.

    The same rows every time, so that all methods and seeds speak of the same questions.
    """
    name = data.declaration.name
    places: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(data.test):
        places[one.label].append(place)
    kept = set()
    for label, own in places.items():
        kept.update(random.Random(f"{name}/questions/{label}").sample(own, min(per_class, len(own))))
    outside = data.out_of_scope
    count = math.ceil(len(outside) * len(kept) / len(data.test))
    chosen = sorted(random.Random(f"{name}/questions").sample(range(len(outside)), count))
    return replace(
        data,
        test=tuple(one for place, one in enumerate(data.test) if place in kept),
        out_of_scope=tuple(outside[place] for place in chosen),
    )
