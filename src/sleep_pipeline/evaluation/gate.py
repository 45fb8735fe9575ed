"""Whether a night may become the new model: one pure function from metrics and limits to a decision with reasons.

A metric that is missing or not a number fails its check. Nothing is promoted by default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sleep_pipeline.evaluation.retention import Retention
from sleep_pipeline.evaluation.statistics import Estimate, paired_difference

Metric = Estimate | float | bool | Mapping[str, Any] | None

RECALL_GAIN = "recall_gain"
FORGETTING = "forgetting_of_questions"
OPEN_BOOK_LOSS = "open_book_loss"
OPEN_BOOK_LOSS_SINCE_BASE = "open_book_loss_since_base"
PERPLEXITY_INCREASE = "perplexity_increase"
PERPLEXITY_INCREASE_SINCE_BASE = "perplexity_increase_since_base"
VALIDATION = "validation_passed"


class GateSettings(BaseModel):
    """What a night must reach.

    Attributes:
        min_recall_gain: the lower end of the interval of closed-book recall, after minus before, must lie above it.
        max_forgetting: what earlier nights have lost since they were learned must lie below it, every question
            counting alike; but one question in all may be lost if it is above 0, since of fewer than twenty each would
            be too many.
        max_open_book_loss: open-book score, before minus after, must lie below it.
        max_perplexity_increase: perplexity on held-out text may rise by this share and no more.
        max_open_book_loss_since_base: open-book score of the model before any night, minus after this one, must lie
            below it: what each night may lose would otherwise add up for ever.
        max_perplexity_increase_since_base: perplexity may lie above that of the model before any night by this share
            and no more.
        min_questions: a gain over fewer questions counts for nothing. Over this few the interval is somewhat narrow:
            where nothing was learned, up to 4 % of nights would have a gain above 0 (four of six newly right and none
            lost suffice) instead of 2.5 %.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_recall_gain: float = Field(0.0, ge=-1, le=1)
    max_forgetting: float = Field(0.05, ge=0, le=1)
    max_open_book_loss: float = Field(0.02, ge=0, le=1)
    max_perplexity_increase: float = Field(0.02, ge=0)
    max_open_book_loss_since_base: float = Field(0.05, ge=0, le=1)
    max_perplexity_increase_since_base: float = Field(0.10, ge=0)
    min_questions: int = Field(6, ge=1)


@dataclass(frozen=True)
class Check:
    """One condition of the gate.

    Attributes:
        name: of the metric.
        value: measured; None if missing or not a number.
        interval: its 95 % interval, where it has one.
        limit: in words, as in `below 0.05`.
        passed: whether the condition holds.
        reason: why it holds or not, for people.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None
    limit: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Decision:
    """What the gate says of a night: `promote` exactly if every check passed."""

    promote: bool
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the night is not promoted; empty if it is."""
        return tuple(check.reason for check in self.checks if not check.passed)

    def to_json(self) -> dict[str, Any]:
        """Return the decision in JSON's types, lossless under `from_json`."""
        checks = [
            {**asdict(check), "interval": None if check.interval is None else list(check.interval)}
            for check in self.checks
        ]
        return {"promote": self.promote, "checks": checks}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Decision:
        """Return what `to_json` described."""
        checks = [
            Check(**{**check, "interval": None if check["interval"] is None else tuple(check["interval"])})
            for check in record["checks"]
        ]
        return cls(record["promote"], tuple(checks))


def evidence(
    retention: Retention,
    open_book: tuple[list[int], list[int]] | None,
    perplexity: tuple[float, float] | None,
    validation_passed: bool | None,
    seed: int = 0,
    open_book_since_base: tuple[list[int], list[int]] | None = None,
    perplexity_since_base: tuple[float, float] | None = None,
) -> dict[str, Metric]:
    """Return the metrics that `decide` wants.

    Args:
        retention: with tonight as its last night.
        open_book: scores (0 or 1 a question) with the context at hand, before tonight and after it, same questions.
        perplexity: on held-out text, before tonight and after it.
        validation_passed: whether the data of the night kept their contract.
        seed: of the intervals.
        open_book_since_base: as `open_book`, of the model before any night and after tonight; None where that was not
            kept, and then `decide` leaves it out.
        perplexity_since_base: as `perplexity`, likewise.
    """
    found: dict[str, Metric] = {
        RECALL_GAIN: retention.gain(),
        FORGETTING: retention.forgetting_of_questions() if len(retention) else None,
        OPEN_BOOK_LOSS: None if open_book is None else paired_difference(open_book[0], open_book[1], seed),
        PERPLEXITY_INCREASE: None if perplexity is None else _increase(*perplexity),
        VALIDATION: validation_passed,
    }
    if open_book_since_base is not None:
        found[OPEN_BOOK_LOSS_SINCE_BASE] = paired_difference(open_book_since_base[0], open_book_since_base[1], seed)
    if perplexity_since_base is not None:
        found[PERPLEXITY_INCREASE_SINCE_BASE] = _increase(*perplexity_since_base)
    return found


def _increase(before: float, after: float) -> float | None:
    return after / before - 1 if before > 0 else None


def decide(metrics: Mapping[str, Metric], thresholds: GateSettings) -> Decision:
    """Say whether the night is promoted, and why.

    Args:
        metrics: the names that `evidence` returns; an `Estimate`, its fields as a mapping (as read from JSON), a
            plain number, or for `validation_passed` a bool. Other names are ignored. The two comparisons with the model
            before any night are left out where their names are absent, since nights of earlier releases lack them.
        thresholds: the limits.
    """
    loss, rise = "loss of open-book score", "rise of held-out perplexity"
    checks = [
        _gain(metrics, thresholds),
        _forgetting(metrics, thresholds.max_forgetting),
        _below(metrics, OPEN_BOOK_LOSS, thresholds.max_open_book_loss, loss),
    ]
    if OPEN_BOOK_LOSS_SINCE_BASE in metrics:
        most = thresholds.max_open_book_loss_since_base
        checks.append(_below(metrics, OPEN_BOOK_LOSS_SINCE_BASE, most, f"{loss} since the base model"))
    checks.append(_at_most(metrics, PERPLEXITY_INCREASE, thresholds.max_perplexity_increase, rise))
    if PERPLEXITY_INCREASE_SINCE_BASE in metrics:
        most = thresholds.max_perplexity_increase_since_base
        checks.append(_at_most(metrics, PERPLEXITY_INCREASE_SINCE_BASE, most, f"{rise} since the base model"))
    checks.append(_validated(metrics))
    return Decision(all(check.passed for check in checks), tuple(checks))


@dataclass(frozen=True)
class _Reading:
    value: float | None
    interval: tuple[float, float] | None = None
    samples: int | None = None


def _finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)


def _read(metrics: Mapping[str, Metric], name: str) -> _Reading:
    metric = metrics.get(name)
    if isinstance(metric, Estimate):
        metric = asdict(metric)
    if not isinstance(metric, Mapping):
        return _Reading(float(metric) if metric is not None and _finite(metric) else None)
    value, low, high, samples = (metric.get(key) for key in ("value", "low", "high", "samples"))
    return _Reading(
        float(value) if value is not None and _finite(value) else None,
        (float(low), float(high)) if low is not None and high is not None and _finite(low) and _finite(high) else None,
        samples if isinstance(samples, int) else None,
    )


def _unknown(metrics: Mapping[str, Metric], name: str, limit: str, what: str) -> Check:
    why = "is not a finite number" if metrics.get(name) is not None else "was not measured"
    return Check(name, None, None, limit, False, f"The {what} {why}, so it cannot count as passed.")


def _gain(metrics: Mapping[str, Metric], thresholds: GateSettings) -> Check:
    reading, bound = _read(metrics, RECALL_GAIN), thresholds.min_recall_gain
    limit, what = f"lower end above {bound:g}", "gain in closed-book recall"
    if reading.value is None:
        return _unknown(metrics, RECALL_GAIN, limit, what)
    if reading.interval is None:
        reason = f"The {what}, {reading.value:+.3f}, has no interval, so it may be chance."
        return Check(RECALL_GAIN, reading.value, None, limit, False, reason)
    low, high = reading.interval
    if reading.samples is None or reading.samples < thresholds.min_questions:
        asked = "an unknown number of" if reading.samples is None else str(reading.samples)
        reason = f"The {what} rests on {asked} questions; it takes {thresholds.min_questions} to tell it from chance."
        return Check(RECALL_GAIN, reading.value, reading.interval, limit, False, reason)
    passed = low > bound
    reason = (
        f"The {what} is {reading.value:+.3f} ({low:+.3f} to {high:+.3f}), "
        f"{'clearly' if passed else 'not clearly'} above {bound:g}."
    )
    return Check(RECALL_GAIN, reading.value, reading.interval, limit, passed, reason)


def _below(metrics: Mapping[str, Metric], name: str, bound: float, what: str) -> Check:
    reading, limit = _read(metrics, name), f"below {bound:g}"
    if reading.value is None:
        return _unknown(metrics, name, limit, what)
    if reading.samples == 0 and reading.value == 0 < bound:
        return Check(name, 0.0, None, limit, True, f"The {what} is 0: there was nothing to lose yet.")
    passed = reading.value < bound
    reason = f"The {what} is {reading.value:.3f}, {'below' if passed else 'not below'} {bound:g}."
    return Check(name, reading.value, reading.interval, limit, passed, reason)


def _forgetting(metrics: Mapping[str, Metric], bound: float) -> Check:
    what = "forgetting of earlier nights since they were learned"
    check, reading = _below(metrics, FORGETTING, bound, what), _read(metrics, FORGETTING)
    if check.passed or reading.value is None or not reading.samples or not 0 < bound:
        return check
    if reading.value * reading.samples >= 1.5:
        return check
    reason = f"The {what} is one question of {reading.samples}, which may be lost."
    return Check(FORGETTING, reading.value, reading.interval, check.limit, True, reason)


def _at_most(metrics: Mapping[str, Metric], name: str, bound: float, what: str) -> Check:
    reading, limit = _read(metrics, name), f"at most {bound:.3g}"
    if reading.value is None:
        return _unknown(metrics, name, limit, what)
    passed = reading.value <= bound
    reason = f"The {what} is {reading.value:+.2%}, {'within' if passed else 'more than'} the {bound:.2%} allowed."
    return Check(name, reading.value, reading.interval, limit, passed, reason)


def _validated(metrics: Mapping[str, Metric]) -> Check:
    passed = metrics.get(VALIDATION)
    if not isinstance(passed, bool):
        return Check(VALIDATION, None, None, "passed", False, "It is not known whether the data passed validation.")
    reason = f"The data of the night {'passed' if passed else 'failed'} validation."
    return Check(VALIDATION, float(passed), None, "passed", passed, reason)
