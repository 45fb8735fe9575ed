from dataclasses import replace

import pytest

from sleep_pipeline.baselines.benchmark import stream_of
from sleep_pipeline.baselines.settings import BenchmarkSettings
from sleep_pipeline.evaluation.tasks import (
    Example,
    LabelledData,
    TaskError,
    asked_on_validation,
    beginnings,
    class_stream,
    declared,
    fewer_questions,
    in_words,
)
from sleep_pipeline.evaluation.tasks.labels import words_of


def made_up(classes: int = 6, shots: int = 3) -> LabelledData:
    labels = tuple(f"class {n}" for n in range(classes))
    train = tuple(Example(f"{label} says {shot}", label) for shot in range(shots) for label in labels)
    test = tuple(Example(f"{label} asks", label) for label in labels)
    declaration = declared("clinc150").model_copy(update={"classes": 6, "tasks": 3})
    return LabelledData(declaration, labels, train, (), test, ("what",), ())


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("card_arrival", "card arrival"),
        ("Refund_not_showing_up", "refund not showing up"),
        ("reverted_card_payment?", "reverted card payment"),
        ("FootballLeagueSeason", "football league season"),
        ("BritishRoyalty", "british royalty"),
        ("NCAATeam", "ncaa team"),
        ("oos", "oos"),
    ],
)
def test_class_names_become_words(label: str, words: str) -> None:
    assert in_words(label) == words


def test_a_class_name_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="'__' has no letters"):
        words_of(["a", "__"])


def test_every_class_comes_once_with_all_of_its_examples() -> None:
    data = made_up()
    stream = class_stream(data, seed=0)
    assert sorted(stream.labels(3)) == sorted(data.labels)
    assert stream.labels(1) == stream.tasks[0].labels and len(stream.labels(2)) == 4
    for task in stream.tasks:
        assert {one.label for one in task.train} == {one.label for one in task.test} == set(task.labels)
    assert sorted(one.text for task in stream.tasks for one in task.train) == sorted(one.text for one in data.train)
    assert stream.out_of_scope == ("what",)


def test_the_seed_alone_decides_the_order() -> None:
    data = made_up()
    assert class_stream(data, seed=3) == class_stream(data, seed=3)
    assert len({class_stream(data, seed=seed).labels(3) for seed in range(8)}) > 1


def test_fewer_tasks_take_the_first_of_the_same_order() -> None:
    data = made_up()
    whole, first = class_stream(data, 1).tasks, class_stream(data, 1, tasks=2, classes=2).tasks
    assert first == tuple(replace(task, of=2) for task in whole[:2])
    assert {task.of for task in whole} == {len(whole)}


def test_data_that_lacks_classes_is_refused() -> None:
    with pytest.raises(TaskError, match=r"have 5 classes, and 3 tasks of 2 need 6; get data_full\.json"):
        class_stream(made_up(classes=5), seed=0)


def test_a_class_that_cannot_be_tested_is_refused() -> None:
    data = made_up()
    lacking = LabelledData(data.declaration, data.labels, data.train, (), data.test[1:], (), ())
    with pytest.raises(TaskError, match="'class 0' has no test row"):
        class_stream(lacking, seed=0)


def test_a_class_with_one_example_is_a_class() -> None:
    stream = class_stream(made_up(shots=1), seed=0)
    assert [len(task.train) for task in stream.tasks] == [2, 2, 2]


def test_of_long_texts_the_beginning_is_read_everywhere() -> None:
    data = replace(
        made_up(), validation=(Example("a\n b c d", "class 0"),), out_of_scope_validation=("a  b", "a b c d")
    )
    cut = beginnings(data, 3)
    assert cut.train[0].text == "class 0 says" and cut.train[0].label == data.train[0].label
    assert cut.test == data.test, "texts of three words stay as they are"
    assert cut.validation == (Example("a b c", "class 0"),)
    assert (cut.out_of_scope, cut.out_of_scope_validation) == (("what",), ("a  b", "a b c"))


@pytest.mark.parametrize(("asked", "read"), [(None, 48), (5, 5), (0, 60)])
def test_articles_are_read_as_far_as_declared_unless_a_run_says_otherwise(asked: int | None, read: int) -> None:
    data = made_up()
    articles = tuple(replace(one, text=" ".join([one.text, *["word"] * 56])) for one in data.train)
    declaration = declared("dbpedia").model_copy(update={"classes": 6, "tasks": 3})
    stream = stream_of(
        BenchmarkSettings(task="dbpedia", text_words=asked), replace(data, declaration=declaration, train=articles)
    )
    assert {len(one.text.split()) for task in stream.tasks for one in task.train} == {read}


def test_fewer_questions_are_as_many_of_each_class_and_the_same_every_time() -> None:
    asked = tuple(Example(f"{n} asks {label}", f"class {label}") for n in range(4) for label in range(6))
    data = replace(made_up(), test=asked, out_of_scope=tuple(f"what {n}" for n in range(9)))
    fewer = fewer_questions(data, 2)
    assert [sum(one.label == label for one in fewer.test) for label in data.labels] == [2] * 6
    assert len(fewer.out_of_scope) == 5
    assert [one for one in data.test if one in fewer.test] == list(fewer.test), "in their order"
    assert fewer_questions(data, 2) == fewer
    assert fewer.train == data.train
    assert fewer_questions(data, 9) == data


def test_published_validation_rows_are_asked_in_place_of_test_rows() -> None:
    published = tuple(Example(f"is it {label}", label) for label in made_up().labels)
    asked = asked_on_validation(replace(made_up(), validation=published))
    assert asked.test == published
    assert asked.train == made_up().train


def test_without_validation_rows_a_tenth_of_each_class_is_held_out_of_training() -> None:
    data = made_up(shots=20)
    asked = asked_on_validation(data)
    assert [sum(one.label == label for one in asked.test) for label in data.labels] == [2] * 6
    assert sorted(one.text for one in (*asked.train, *asked.test)) == sorted(one.text for one in data.train)
    assert asked_on_validation(data) == asked


def test_a_text_that_stands_twice_is_not_both_asked_and_trained_on() -> None:
    data = made_up(shots=20)
    twice = tuple(replace(one, text=one.text.upper()) for one in data.train)
    asked = asked_on_validation(replace(data, train=(*data.train, *twice)))
    assert [sum(one.label == label for one in asked.test) for label in data.labels] == [4] * 6
    assert not {one.text.lower() for one in asked.test} & {one.text.lower() for one in asked.train}


def test_where_nothing_can_be_held_out_the_test_rows_must_be_asked() -> None:
    with pytest.raises(TaskError, match="no class has a second training row to hold out: ask test"):
        asked_on_validation(made_up(shots=1))


def test_a_class_that_no_validation_row_asks_about_is_named_with_the_remedy() -> None:
    data = made_up()
    lone = replace(data, train=data.train[: 2 * len(data.labels)][:-1])
    with pytest.raises(TaskError, match=r"'class 5' has no test row \(where validation .* a second training text"):
        class_stream(asked_on_validation(lone), seed=0)
