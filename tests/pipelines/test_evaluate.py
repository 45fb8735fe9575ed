"""Pure parts of the evaluation's nodes; whole nights are lived in test_night.py."""

from typing import Any

import pytest

from sleep_pipeline.evaluation.retention import Retention
from sleep_pipeline.evaluation.settings import EvaluationSettings
from sleep_pipeline.pipelines.evaluate.nodes import decide_night


@pytest.mark.parametrize(("wrong", "loss"), [(range(16, 32), 0.0), (range(4), 0.25)])
def test_a_night_that_was_asked_more_than_the_last_is_compared_where_both_were_asked(wrong: Any, loss: float) -> None:
    matrix = Retention().append(1, [[1] * 8], before=[0] * 8, open_book=[1] * 8)
    metrics = {
        "reading_answers_before": [1] * 16,
        "reading_answers": [0 if place in wrong else 1 for place in range(32)],
        "perplexity_before": 30.0,
        "perplexity": 30.0,
    }
    decision = decide_night(metrics, matrix.to_json(), {"validation_share": 1.0}, EvaluationSettings())
    found = {check["name"]: check for check in decision["checks"]}["open_book_loss"]
    assert found["value"] == pytest.approx(loss) and found["passed"] is (loss == 0)
