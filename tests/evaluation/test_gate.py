"""A night is promoted only if every check passed, and a check passes only on a number that was measured."""

import json
import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sleep_pipeline.evaluation.gate import Decision, GateSettings, Metric, decide, evidence
from sleep_pipeline.evaluation.retention import Retention
from sleep_pipeline.evaluation.statistics import Estimate

GOOD: dict[str, Metric] = {
    "recall_gain": Estimate(0.6, 0.5, 0.7, 50),
    "forgetting_of_questions": Estimate(0.01, -0.01, 0.08, 100),
    "open_book_loss": Estimate(0.0, -0.03, 0.03, 50),
    "perplexity_increase": 0.02,
    "validation_passed": True,
}

SINCE_BASE: dict[str, Metric] = {
    "open_book_loss_since_base": Estimate(0.04, 0.01, 0.07, 384),
    "perplexity_increase_since_base": 0.1,
}


def failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def test_a_night_that_learned_and_forgot_nothing_is_promoted() -> None:
    decision = decide(GOOD, GateSettings())
    assert decision.promote
    assert decision.reasons == ()
    assert [check.name for check in decision.checks] == list(GOOD)


@pytest.mark.parametrize(
    ("name", "metric", "reason"),
    [
        ("recall_gain", Estimate(0.1, 0.0, 0.2, 50), r"\+0.100 \(\+0.000 to \+0.200\), not clearly above 0"),
        ("recall_gain", Estimate(1.0, 0.3, 1.0, 5), "rests on 5 questions; it takes 6"),
        ("recall_gain", 0.9, "has no interval"),
        ("forgetting_of_questions", Estimate(0.05, 0.0, 0.1, 50), "0.050, not below 0.05"),
        ("open_book_loss", 0.02, "0.020, not below 0.02"),
        ("perplexity_increase", 0.0201, r"\+2.01%, more than the 2.00% allowed"),
        ("validation_passed", False, "failed validation"),
    ],
)
def test_one_check_that_fails_rejects_the_night_and_says_why(name: str, metric: Metric, reason: str) -> None:
    decision = decide({**GOOD, name: metric}, GateSettings())
    assert not decision.promote
    assert failed(decision) == [name]
    assert re.search(reason, decision.reasons[0])


@pytest.mark.parametrize(
    ("name", "metric", "reason"),
    [
        ("open_book_loss_since_base", 0.05, "score since the base model is 0.050, not below 0.05"),
        ("perplexity_increase_since_base", 0.101, r"since the base model is \+10.10%, more than the 10.00% allowed"),
        ("open_book_loss_since_base", None, "since the base model was not measured"),
        ("perplexity_increase_since_base", float("nan"), "since the base model is not a finite number"),
    ],
)
def test_small_losses_do_not_add_up_for_ever(name: str, metric: Metric, reason: str) -> None:
    good = {**GOOD, **SINCE_BASE}
    assert decide(good, GateSettings()).promote
    assert {check.name for check in decide(good, GateSettings()).checks} == set(good)
    decision = decide({**good, name: metric}, GateSettings())
    assert failed(decision) == [name]
    assert re.search(reason, decision.reasons[0])


def test_losses_since_the_base_model_have_limits_of_their_own() -> None:
    limits = GateSettings(max_open_book_loss_since_base=0.04, max_perplexity_increase_since_base=0.05)
    assert failed(decide({**GOOD, **SINCE_BASE}, limits)) == list(SINCE_BASE)


@pytest.mark.parametrize("name", list(GOOD))
@pytest.mark.parametrize(
    "metric",
    [None, float("nan"), float("inf"), "0.0", {"value": None}, Estimate(float("nan"), 0.1, 0.2, 50)],
)
def test_what_was_not_measured_never_passes(name: str, metric: Any) -> None:
    decision = decide({**GOOD, name: metric}, GateSettings())
    assert not decision.promote
    assert failed(decision) == [name]


@pytest.mark.parametrize("name", list(GOOD))
def test_a_metric_that_is_absent_never_passes(name: str) -> None:
    decision = decide({key: metric for key, metric in GOOD.items() if key != name}, GateSettings())
    assert failed(decision) == [name]
    assert any(words in decision.reasons[0] for words in ("not measured", "not known"))


def test_a_gain_whose_interval_is_not_a_number_fails() -> None:
    assert failed(decide({**GOOD, "recall_gain": Estimate(0.5, float("nan"), 0.7, 50)}, GateSettings())) == [
        "recall_gain"
    ]


def test_a_number_is_no_verdict_on_the_data() -> None:
    assert failed(decide({**GOOD, "validation_passed": 1}, GateSettings())) == ["validation_passed"]


def test_metrics_may_come_from_json() -> None:
    plain = {name: asdict(metric) if isinstance(metric, Estimate) else metric for name, metric in GOOD.items()}
    assert decide(json.loads(json.dumps(plain)), GateSettings()) == decide(GOOD, GateSettings())


def test_limits_can_be_moved() -> None:
    forgetful = {**GOOD, "forgetting_of_questions": 0.2}
    assert not decide(forgetful, GateSettings()).promote
    assert decide(forgetful, GateSettings(max_forgetting=0.3)).promote


@pytest.mark.parametrize(("lost", "asked", "passes"), [(1, 12, True), (2, 12, False), (2, 24, False), (2, 41, True)])
def test_one_question_may_be_lost_however_few_there_are(lost: int, asked: int, passes: bool) -> None:
    metrics = {**GOOD, "forgetting_of_questions": Estimate(lost / asked, 0.0, 0.3, asked)}
    assert decide(metrics, GateSettings()).promote == passes
    assert not decide(metrics, GateSettings(max_forgetting=0)).promote


def life_of_noise(nights: int, seed: int, now: float = 0.93) -> Retention:
    """32 questions a night, each right with 0.93 whenever it is asked; after the last night with `now`."""
    rng = np.random.default_rng(seed)
    rates = [0.93] * (nights - 1) + [now]
    rows = [(rng.random((night + 1, 32)) < rate).astype(int).tolist() for night, rate in enumerate(rates)]
    return Retention(tuple(tuple(map(tuple, row)) for row in rows))


@pytest.mark.parametrize("nights", [20, 60, 120])
def test_a_long_life_that_forgot_nothing_passes_whatever_chance_does_to_its_answers(nights: int) -> None:
    for seed in range(3):
        retention = life_of_noise(nights, seed)
        metrics = {**GOOD, "forgetting_of_questions": evidence(retention, None, None, True)["forgetting_of_questions"]}
        assert decide(metrics, GateSettings()).promote
        if nights == 120:
            scores = retention.means()[:, :-1]
            assert np.mean(np.nanmax(scores[:-1], 0) - scores[-1]) > 0.06, "the best of many answers is above them"


def test_a_long_life_that_lost_ten_points_fails() -> None:
    for seed in range(3):
        metrics = evidence(life_of_noise(120, seed, now=0.83), None, None, True)
        decision = decide({**GOOD, "forgetting_of_questions": metrics["forgetting_of_questions"]}, GateSettings())
        assert failed(decision) == ["forgetting_of_questions"]


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.none() | st.booleans()
estimates = st.builds(Estimate, st.floats(), st.floats(), st.floats(), st.integers(0, 100))


@given(st.dictionaries(st.sampled_from([*GOOD, *SINCE_BASE, "other"]), numbers | estimates))
def test_any_decision_is_strict_json_and_comes_back_whole(metrics: dict[str, Any]) -> None:
    decision = decide(metrics, GateSettings())
    assert decision.promote == all(check.passed for check in decision.checks)
    assert Decision.from_json(json.loads(json.dumps(decision.to_json(), allow_nan=False))) == decision


@given(st.fixed_dictionaries({name: numbers | estimates for name in GOOD}))
def test_a_night_without_a_clear_gain_is_never_promoted(metrics: dict[str, Any]) -> None:
    gain = metrics["recall_gain"]
    if decide(metrics, GateSettings()).promote:
        assert isinstance(gain, Estimate) and gain.low > 0 and gain.samples >= 6


def test_the_evidence_of_a_night_is_read_from_its_answers() -> None:
    retention = Retention().append(1, [[1] * 8], before=[0] * 8).append(2, [[1] * 7 + [0], [1] * 9], before=[0] * 9)
    metrics = evidence(retention, ([1, 1, 1, 0], [1, 1, 0, 0]), (10.0, 10.5), True)
    values = {name: metric.value if isinstance(metric, Estimate) else metric for name, metric in metrics.items()}
    assert values == pytest.approx(
        {
            "recall_gain": 1.0,
            "forgetting_of_questions": 1 / 8,
            "open_book_loss": 0.25,
            "perplexity_increase": 0.05,
            "validation_passed": True,
        }
    )


def test_the_evidence_holds_the_losses_since_the_base_model_where_it_was_measured() -> None:
    known = evidence(Retention(), None, None, True, 0, ([1, 1, 1, 0], [1, 0, 0, 0]), (10.0, 11.0))
    loss, rise = (known[name] for name in SINCE_BASE)
    assert isinstance(loss, Estimate) and loss.value == 0.5
    assert rise == pytest.approx(0.1)
    assert SINCE_BASE.keys().isdisjoint(evidence(Retention(), None, None, True))


def test_the_first_night_can_pass_with_nothing_to_forget() -> None:
    retention = Retention().append(1, [[1] * 8], before=[0] * 8)
    assert decide(evidence(retention, ([1] * 8, [1] * 8), (10.0, 9.0), True), GateSettings()).promote


def test_a_night_of_which_nothing_is_known_fails_every_check() -> None:
    decision = decide(evidence(Retention(), None, None, None), GateSettings())
    assert failed(decision) == list(GOOD)


def test_a_misspelt_limit_is_an_error() -> None:
    with pytest.raises(ValidationError, match="max_forgeting"):
        GateSettings.model_validate({"max_forgeting": 0.1})
