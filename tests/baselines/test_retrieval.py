"""In-context learning and InCA, which learn nothing but what to show."""

from typing import Any

import pytest
from made_up_streams import WordEmbedder, stream

from sleep_pipeline.baselines.icl import InContext
from sleep_pipeline.baselines.inca import InCA
from sleep_pipeline.baselines.labelled import text_bytes
from sleep_pipeline.evaluation.classification import Choice


class Recorder:
    """Stands in for `Answering` and keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def ask(
        self, model: Any, texts: Any, labels: Any, shown: Any = None, candidates: Any = None, freely: bool = False
    ) -> Any:
        self.asked.append({"labels": list(labels), "shown": shown, "candidates": candidates, "freely": freely})
        return [Choice(labels[0], 0.0)] * len(texts)


def test_icl_shows_the_most_similar_examples_of_all_tasks(tiny_model: Any) -> None:
    recorder, lived = Recorder(), stream()
    method = InContext(tiny_model, recorder, WordEmbedder(), shots=3)
    for task in lived.tasks:
        method.observe(task)
    texts = [one.text for task in lived.tasks for one in task.test]
    method.predict(texts, freely=True)
    (asked,) = recorder.asked
    assert asked["labels"] == list(lived.labels(2)) and asked["freely"] and asked["candidates"] is None
    for text, shown in zip(texts, asked["shown"], strict=True):
        assert [one.text.split()[0] for one in shown] == [text.split()[0]] * 3


def test_icl_keeps_its_examples_and_their_vectors(tiny_model: Any) -> None:
    lived = stream()
    method = InContext(tiny_model, Recorder(), WordEmbedder())
    method.observe(lived.tasks[0])
    assert method.stored == text_bytes(lived.tasks[0].train) + 8 * 5 * 4


def test_inca_lets_the_model_choose_among_the_nearest_classes(tiny_model: Any) -> None:
    recorder, lived = Recorder(), stream()
    method = InCA(tiny_model, recorder, WordEmbedder(), top_k=2, shots=2)
    for task in lived.tasks:
        method.observe(task)
    texts = [one.text for task in lived.tasks for one in task.test]
    method.predict(texts)
    (asked,) = recorder.asked
    for text, shown, candidates in zip(texts, asked["shown"], asked["candidates"], strict=True):
        nearest, other = (asked["labels"][place] for place in candidates)
        assert nearest == f"the {text.split()[0]}"
        assert [one.label for one in shown] == [nearest, other, nearest, other]


def test_inca_alone_decides_with_one_class(tiny_model: Any) -> None:
    lived = stream()
    method = InCA(tiny_model, Recorder(), WordEmbedder(), top_k=1)
    for task in lived.tasks:
        method.observe(task)
        for one in task.test:
            (choice,) = method.predict([one.text])
            assert choice.label == one.label and choice.score <= 0


def test_inca_keeps_statistics_and_a_few_examples(tiny_model: Any) -> None:
    few, many = stream(shots=4), stream(shots=40)
    sizes = []
    for lived in (few, many):
        method = InCA(tiny_model, Recorder(), WordEmbedder(), shots=1)
        for task in lived.tasks:
            method.observe(task)
        sizes.append(method.stored)
    assert sizes[0] == (4 * 5 + 5 * 5) * 8 + sum(len(f"{w} 0the {w}") for w in ("apple", "river", "music", "paper"))
    assert abs(sizes[1] - sizes[0]) <= 4


@pytest.mark.parametrize("shots", [1, 4])
def test_a_class_with_one_example_is_learned(tiny_model: Any, shots: int) -> None:
    lived = stream(shots=shots)
    method = InCA(tiny_model, Recorder(), WordEmbedder(), top_k=1)
    for task in lived.tasks:
        method.observe(task)
    asked = [one for task in lived.tasks for one in task.test]
    assert [choice.label for choice in method.predict([one.text for one in asked])] == [one.label for one in asked]


def test_before_the_first_task_nothing_can_be_asked(tiny_model: Any, answering: Any) -> None:
    for method in (InContext(tiny_model, answering, WordEmbedder()), InCA(tiny_model, answering, WordEmbedder())):
        with pytest.raises(ValueError, match="let the method observe a task first"):
            method.predict(["a"])
