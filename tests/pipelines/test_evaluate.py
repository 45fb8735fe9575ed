"""Pure parts of the evaluation's nodes; whole nights are lived in test_night.py."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sleep_pipeline.evaluation.probes import reading_probes
from sleep_pipeline.evaluation.retention import Retention
from sleep_pipeline.evaluation.settings import EvaluationSettings
from sleep_pipeline.evaluation.texts import texts_digest
from sleep_pipeline.pipelines.evaluate.nodes import _history, _skills, decide_night


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


def decided(**metrics: Any) -> dict[str, Any]:
    """The checks of a night that lost nothing against its parent."""
    matrix = Retention().append(1, [[1] * 8], before=[0] * 8, open_book=[1] * 8)
    now = {"reading_answers": [1] * 15 + [0], "perplexity": 30.0}
    before = {"reading_answers_before": [1] * 15 + [0], "perplexity_before": 30.0}
    found = decide_night(
        {**now, **before, **metrics}, matrix.to_json(), {"validation_share": 1.0}, EvaluationSettings()
    )
    return {check["name"]: check for check in found["checks"]}


def test_what_many_nights_lost_together_is_held_against_the_base_model() -> None:
    checks = decided(base={"reading": [1] * 20, "perplexity": 27.0})
    assert checks["open_book_loss_since_base"]["value"] == pytest.approx(1 / 16)
    assert checks["perplexity_increase_since_base"]["value"] == pytest.approx(1 / 9)
    assert [name for name, check in checks.items() if not check["passed"]] == [
        "open_book_loss_since_base",
        "perplexity_increase_since_base",
    ]


def test_metrics_that_do_not_tell_of_the_base_model_are_decided_without_it() -> None:
    checks = decided()
    assert all(check["passed"] for check in checks.values())
    assert not [name for name in checks if name.endswith("since_base")]


@pytest.mark.parametrize(("samples", "shown"), [(0, None), (9, 0.0)])
def test_a_night_without_one_before_it_is_not_drawn_as_if_it_had_forgotten_nothing(
    tmp_path: Path, samples: int, shown: float | None
) -> None:
    forgetting = {"value": 0.0, "low": 0.0, "high": 0.0, "samples": samples}
    (point,) = _history(tmp_path, {"night": 1, "parent": 0, "seconds": {}, "forgetting_since_learned": forgetting})
    assert point.forgetting == shown


def test_a_night_of_which_nothing_was_asked_is_not_promoted_on_what_the_last_one_gained() -> None:
    gain = decided(probes=0)["recall_gain"]
    assert gain["value"] is None and not gain["passed"] and "was not measured" in gain["reason"]
    assert decided(probes=8)["recall_gain"]["passed"]


TEXTS = ["It rained."]
FITS = {"night": 33.0, "parent": 32.0, "base": 30.0}
ASKED = {"match": EvaluationSettings().match, "max_new_tokens": EvaluationSettings().max_new_tokens}
EARLIER = {
    "night": 1,
    "asked": ASKED,
    "reading_answers": [1, 0, 1, 1],
    "perplexity": 10.0,
    "base": {"reading": [1, 1, 1, 1], "perplexity": 9.0},
}


@pytest.fixture
def skills(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`_skills` of a model that answers everything right and whose perplexity is that of the view it is in."""
    state = ["night"]

    def view(name: str) -> AbstractContextManager[None]:
        @contextmanager
        def viewed() -> Iterator[None]:
            state.append(name)
            yield
            state.pop()

        return viewed()

    def right(model: Any, tokenizer: Any, probes: Any, *_: Any) -> list[str]:
        return [probe.answer for probe in probes]

    monkeypatch.setattr("sleep_pipeline.memory.base_view", lambda model: view("base"))
    monkeypatch.setattr("sleep_pipeline.evaluation.probes.ask", right)
    monkeypatch.setattr(
        "sleep_pipeline.evaluation.language.language_fit", lambda *_: SimpleNamespace(perplexity=FITS[state[-1]])
    )
    opened: Any = SimpleNamespace(model="model", tokenizer="tokenizer")
    settings = EvaluationSettings(reading_questions=4)
    return lambda earlier: _skills(opened, earlier, settings, TEXTS, lambda: view("parent"))


def test_the_parents_numbers_hold_where_it_was_measured_on_the_same_texts(skills: Any) -> None:
    found = skills({**EARLIER, "texts_digest": texts_digest(TEXTS)})
    assert (found["perplexity"], found["perplexity_before"]) == (33.0, 10.0)
    assert found["base"] == EARLIER["base"]
    assert found["reading_answers_before"] == [1, 0, 1, 1]
    assert found["texts_digest"] == texts_digest(TEXTS)


@pytest.mark.parametrize("told", [{"texts_digest": texts_digest(["The harbour lay still."])}, {}])
def test_on_other_texts_the_parent_and_the_base_model_are_measured_again(skills: Any, told: dict[str, str]) -> None:
    found = skills({**EARLIER, **told})
    assert (found["perplexity"], found["perplexity_before"]) == (33.0, 32.0)
    assert found["base"] == {"reading": [1, 1, 1, 1], "perplexity": 30.0}


@pytest.mark.parametrize("asked", [{**ASKED, "match": "contains"}, {**ASKED, "max_new_tokens": 5}, None])
def test_a_parent_that_was_judged_in_another_way_reads_again(skills: Any, asked: Any, caplog: Any) -> None:
    with caplog.at_level("WARNING"):
        found = skills({**EARLIER, "asked": asked, "texts_digest": texts_digest(TEXTS)})
    assert found["reading_answers_before"] == [1, 1, 1, 1] and found["asked"] == ASKED
    assert found["perplexity_before"] == 10.0
    assert "not asked and judged as tonight" in caplog.text


def test_before_the_first_night_there_is_the_base_model(skills: Any) -> None:
    found = skills(None)
    assert found["perplexity_before"] == found["base"]["perplexity"] == 30.0
    assert found["reading_answers_before"] == found["base"]["reading"] == [1] * len(reading_probes(4))


def test_a_parent_that_does_not_tell_of_the_base_model_is_no_obstacle(skills: Any) -> None:
    earlier = {name: value for name, value in EARLIER.items() if name != "base"}
    assert skills(earlier)["base"] == {"reading": [1, 1, 1, 1], "perplexity": 30.0}


@pytest.mark.parametrize("passes", [True, False])
def test_a_night_whose_parent_was_rolled_back_meanwhile_is_rejected(tmp_path: Path, passes: bool, caplog: Any) -> None:
    import pandas as pd

    from sleep_pipeline.pipelines.evaluate.nodes import register_night
    from sleep_pipeline.registry import MANIFEST, NightRegistry

    def enter(number: int, parent: int) -> dict[str, Any]:
        checkpoint = tmp_path / f"night_{number:03d}"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / MANIFEST).write_text(str(number), encoding="utf-8")
        memories = pd.DataFrame({"digest": [f"m{number}"]})
        return register_night(
            checkpoint, {"promote": passes or number < 3, "checks": []}, {"parent": parent}, memories, number, tmp_path
        )

    with caplog.at_level("INFO", "sleep_pipeline"):
        enter(1, 0)
        enter(2, 1)
        registry = NightRegistry(tmp_path)
        registry.rollback()
        told = enter(3, 2)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "WARNING"]
    assert told["status"] == "rejected" and not told["decision"]["promote"]
    assert "the champion is night 1 now" in told["decision"]["checks"][-1]["reason"]
    assert registry.known_memories() == {"m1"}
    assert enter(3, 2) == told, "again changes nothing"
    assert registry.aliases()["champion"] == 1
