import json
from collections.abc import Sequence
from typing import Any

import pytest
from made_up_streams import stream

from sleep_pipeline.baselines.labelled import Spent
from sleep_pipeline.baselines.running import run_stream
from sleep_pipeline.evaluation.classification import Choice
from sleep_pipeline.evaluation.retention import Retention
from sleep_pipeline.evaluation.tasks import ClassTask


class Forgetful:
    """Knows the labels of the last task alone by heart; speaks only when it is sure."""

    model: Any = None

    def __init__(self, incremental: bool = True) -> None:
        self.labels: list[str] = []
        self.spent, self.incremental = Spent(), incremental
        self.known: dict[str, str] = {}

    def observe(self, task: ClassTask) -> None:
        self.labels += task.labels
        self.known = {label.split()[1]: label for label in task.labels}
        self.spent.seconds += 2.0
        self.spent.tokens += 10

    def predict(self, texts: Sequence[str], freely: bool = False) -> list[Choice]:
        found = [next((label for word, label in self.known.items() if word in text), "") for text in texts]
        return [Choice(label or ("" if freely else self.labels[0]), 1.0 if label else 0.0) for label in found]

    @property
    def stored(self) -> int:
        return 100 * len(self.labels)


def test_a_stream_gives_the_matrix_and_what_was_spent() -> None:
    told: list[str] = []
    result = run_stream(Forgetful(), stream(), told.append)
    assert result.retention is not None and result.retention.means()[0, 0] == 1.0
    assert result.final[1] == (1, 1) and sum(result.final[0]) == 1, "the first label is its guess"
    assert result.final_freely == ((0, 0), (1, 1))
    assert (result.stored, result.seconds, result.tokens) == ((200, 400), (2.0, 2.0), (10, 10))
    assert result.labels == tuple(task.labels for task in stream().tasks)
    assert len(told) == 2


def test_figures_name_both_ways_to_answer_and_all_that_was_lost() -> None:
    figures = run_stream(Forgetful(), stream()).figures()
    assert figures["final_accuracy"].value == 0.75
    assert figures["final_accuracy_freely"].value == 0.5
    assert figures["forgetting"].value == figures["forgetting_since_learned"].value == 0.5
    assert figures["backward_transfer"].value == -0.5
    assert (figures["stored_bytes"], figures["seconds"], figures["tokens"]) == (400.0, 4.0, 20.0)


def test_out_of_scope_is_reported_apart() -> None:
    result = run_stream(Forgetful(), stream())
    assert result.out_of_scope is not None
    assert (result.out_of_scope.auroc, result.out_of_scope.refused, result.out_of_scope.texts) == (0.75, 1.0, 2)
    assert sum(map(len, result.final)) == 4


def test_a_method_that_answers_last_has_no_matrix() -> None:
    result = run_stream(Forgetful(incremental=False), stream())
    assert result.retention is None and "forgetting" not in result.figures()
    assert result.accuracy().value == 0.75


def test_a_result_is_json() -> None:
    result = run_stream(Forgetful(), stream())
    record = json.loads(json.dumps(result.to_json()))
    assert Retention.from_json(record["retention"]) == result.retention
    assert record["figures"]["final_accuracy"]["value"] == 0.75
    assert record["figures"]["final_accuracy"]["samples"] == 4


def test_a_method_that_was_used_before_is_charged_for_this_stream_alone() -> None:
    method = Forgetful()
    method.spent.seconds = 50.0
    assert run_stream(method, stream()).seconds == pytest.approx((2.0, 2.0))
