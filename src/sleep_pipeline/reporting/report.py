"""The report of a night: one HTML file that needs nothing else, so that it can be mailed, printed or opened offline."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sleep_pipeline.evaluation.gate import Check
from sleep_pipeline.evaluation.statistics import Estimate
from sleep_pipeline.reporting.charts import bars, curve, duration, heat_map, percent, slots
from sleep_pipeline.reporting.data import Example, NightReport
from sleep_pipeline.reporting.markup import Child, Html, element, join, page, passage, table
from sleep_pipeline.reporting.style import STYLE

_CHECKS = {
    "recall_gain": "Recall gained",
    "forgetting_of_questions": "Earlier nights forgotten",
    # As nights of earlier releases call it.
    "forgetting": "Earlier nights forgotten",
    "open_book_loss": "Open-book skill lost",
    "open_book_loss_since_base": "Open-book skill lost since the base model",
    "perplexity_increase": "Held-out perplexity",
    "perplexity_increase_since_base": "Held-out perplexity since the base model",
    "validation_passed": "Data validation",
    "champion": "Grew from the model in use",
}
_MEASURES = {
    "accuracy": ("Recall of all nights now (ACC)", "share of each night's questions, mean over nights"),
    "accuracy_over_time": ("Recall over time", "mean of the above over the nights so far"),
    "backward_transfer": ("Backward transfer (BWT)", "now minus right after its own night, mean over earlier nights"),
    "forgetting": (
        "Forgetting, from the best",
        "best score so far minus now, mean over earlier nights; noise alone raises it",
    ),
    "forgetting_since_learned": (
        "Forgetting, since learned",
        "right after its own night minus now, mean over earlier nights",
    ),
    "forgetting_of_questions": (
        "Forgetting, question by question",
        "right after its own night minus now, mean over all earlier questions; the gate decides by it",
    ),
    "lost_last_night": ("Lost in this night", "before this night minus now, mean over earlier nights"),
    "relative_recall": ("Relative recall", "without the context right after a night, as a share of with it"),
    "recall_gain": ("Recall gained in this night", "on its own questions: after minus before"),
}
_SHOWN_AT_ONCE = 8
_PLACES, _REASONS = 3, 200
"""That are named of what was left out: duplicates have a reason each, and a folder may hold thousands."""


def render(report: NightReport) -> str:
    """Return the report as one HTML page; every text of a memory or a model is shown as text, whatever it contains."""
    body = element(
        "main",
        _header(report),
        _tiles(report),
        _why(report),
        _examples("Learned", report.learned, "Questions that this night taught the model to answer.", "learned"),
        _examples(
            "Forgotten", report.forgotten, "Questions that the model could answer before the night.", "forgotten"
        ),
        _retention(report),
        _history(report),
        _memory(report),
        _dreams(report),
        _memories(report),
        _time(report),
        _reproduce(report),
    )
    return page(f"Night {report.night}", body, STYLE)


def _section(title: str, *content: Child) -> Html:
    return element("section", element("h2", title), *content)


def _parent(report: NightReport) -> str:
    return _model_of(report.parent)


def _model_of(night: int) -> str:
    return f"night {night}" if night else "the base model"


def _in_use(report: NightReport) -> str:
    """Which model is used instead of this night's."""
    if report.in_use is None or report.in_use == report.parent:
        return f"still {_parent(report)}"
    return _model_of(report.in_use)


def _header(report: NightReport) -> Html:
    promoted = report.decision.promote
    badge = element("span", "promoted" if promoted else "rejected", class_=f"badge {'good' if promoted else 'bad'}")
    verdict = "It is the model in use from now on." if promoted else f"The model in use is {_in_use(report)}."
    return element(
        "header",
        element("h1", f"Night {report.night}", badge),
        element("p", f"Grew from {_parent(report)}; base model ", element("code", report.model), f". {verdict}"),
        element("p", "Ended ", element("time", report.time, datetime=report.time), ".", class_="note"),
    )


def _tiles(report: NightReport) -> Html | None:
    tiles: list[tuple[str, str]] = []
    if report.asked:
        gain, own = report.retention.gain(), report.retention.means()[-1, -1]
        asked = len(report.retention.scores[-1][-1])
        before = "" if gain is None else f"{_tile(own - gain.value)} → "
        tiles.append((f"{before}{_tile(own)}", f"of tonight's {asked} questions right without the context"))
        if len(report.retention) > 1:
            tiles.append((_tile(report.retention.forgetting_of_questions().value, 1), "of earlier nights forgotten"))
    if report.history and report.history[-1].open_book is not None:
        tiles.append((_tile(report.history[-1].open_book), "right with the context at hand"))
    tiles.append((str(report.memories.learned), "memories learned"))
    if report.phases:
        tiles.append((duration(sum(report.phases.values())), "of computing"))
    return element(
        "div",
        *(element("div", element("b", value), element("span", words), class_="tile") for value, words in tiles),
        class_="tiles",
    )


def _tile(share: float | None, digits: int = 0) -> str:
    """A percentage whose sign never stands alone on a line."""
    return percent(share, digits).replace(" ", "\N{NO-BREAK SPACE}")


def _value(check: Check) -> str:
    if check.value is None:
        return "–"
    if check.name == "validation_passed":
        return "passed" if check.value else "failed"
    return f"{check.value:.3f}"


def _interval(check: Check) -> str:
    return "–" if check.interval is None else f"{check.interval[0]:.3f} to {check.interval[1]:.3f}"


def _unbroken(text: str) -> Html:
    return element("span", text, class_="unbroken")


def _result(passed: bool) -> Html:
    return element("span", "✓ passed" if passed else "✗ failed", class_=f"result {'good' if passed else 'bad'}")


def _why(report: NightReport) -> Html:
    failed = sum(not check.passed for check in report.decision.checks)
    words = "All checks passed." if not failed else f"{failed} of {len(report.decision.checks)} checks failed."
    rows: list[list[Child]] = [
        [
            _CHECKS.get(check.name, check.name),
            _result(check.passed),
            _unbroken(_value(check)),
            _unbroken(_interval(check)),
            _unbroken(check.limit),
            check.reason,
        ]
        for check in report.decision.checks
    ]
    headings = ["Check", "Result", "Value", "95 % interval", "Limit", "Why"]
    return _section(
        "Why " + ("promoted" if report.decision.promote else "rejected"), element("p", words), table(headings, rows)
    )


def _folded(rows: list[list[Child]], show: Callable[[list[list[Child]]], Html], what: str) -> Html:
    """Return the first rows, and the others behind a click."""
    rest = rows[_SHOWN_AT_ONCE:]
    if not rest:
        return show(rows)
    more = element("details", element("summary", f"{len(rest)} more {what}"), show(rest))
    return join(show(rows[:_SHOWN_AT_ONCE]), more)


def _examples(title: str, examples: Sequence[Example], lead: str, what: str) -> Html:
    if not examples:
        return _section(title, element("p", f"No example of a question that was {what}.", class_="note"))
    rows: list[list[Child]] = [
        [
            passage(example.question),
            passage(example.answer),
            element("span", "right", class_="dim") if example.before is None else passage(example.before),
            passage(example.after),
            str(example.night),
        ]
        for example in examples
    ]
    headings = ["Question", "Right answer", "Before", "After", "Night"]
    return _section(title, element("p", lead), _folded(rows, lambda part: table(headings, part), "examples"))


def _estimate(estimate: Estimate | None) -> tuple[str, str, str]:
    if estimate is None:
        return "–", "–", "–"
    if not estimate.samples:
        return "–", "–", "0"
    interval = f"{percent(estimate.low, 1)} to {percent(estimate.high, 1)}" if estimate.low < estimate.high else "–"
    return percent(estimate.value, 1), interval, str(estimate.samples)


def _retention(report: NightReport) -> Html:
    title = "What was kept"
    if not len(report.retention):
        return _section(title, element("p", "No questions were asked.", class_="note"))
    rows: list[list[Child]] = []
    measures = report.retention.summary() if report.asked else {}
    for name, estimate in measures.items():
        label, meaning = _MEASURES[name]
        value, interval, samples = _estimate(estimate)
        rows.append([label, _unbroken(value), _unbroken(interval), samples, element("span", meaning, class_="dim")])
    return _section(
        title,
        element(
            "p",
            "Right answers in per cent, without the context: after each night (rows) to the questions of each night "
            "(columns). The framed cells are a night's own questions, right after it.",
        ),
        heat_map(report.retention),
        table(["Measure", "Value", "95 % interval", "Questions", "Meaning"], rows) if rows else None,
        element("p", "Nothing was asked about this night; the matrix is that of the nights before it.", class_="note")
        if not report.asked
        else None,
        element(
            "p",
            "Intervals are over the choice of questions, not over training runs; answers that are all "
            "alike tell none of a difference.",
            class_="note",
        ),
    )


def _tenths(share: float | None) -> str:
    return percent(share, 1)


def _unit(seconds: Sequence[float]) -> tuple[float, str]:
    """Return the unit in which the longest of some times is easiest to read, in seconds and by name."""
    longest = max(seconds, default=0.0)
    return (1.0, "s") if longest < 120 else (60.0, "min") if longest < 7200 else (3600.0, "h")


def _history(report: NightReport) -> Html | None:
    if not report.history:
        return None
    unit, name = _unit([point.seconds for point in report.history if point.seconds is not None])

    def time(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g} {name}"

    figures = [
        curve("Recall right after the night", [(p.night, p.recall) for p in report.history], percent, 1.0),
        curve("Forgetting of earlier nights", [(p.night, p.forgetting) for p in report.history], _tenths),
        curve("With the context at hand", [(p.night, p.open_book) for p in report.history], percent, 1.0),
        curve(
            "Time of a night",
            [(p.night, None if p.seconds is None else p.seconds / unit) for p in report.history],
            time,
        ),
    ]
    return _section("Night after night", element("div", *figures, class_="curves"))


def _memory(report: NightReport) -> Html | None:
    if not report.levels:
        return None
    words = "Experts of the memory, fastest level first; each number is the night that filled the slot."
    return _section("Slots of the memory", element("p", words), slots(report.levels, report.night))


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _dreams(report: NightReport) -> Html | None:
    if not report.dreams and not report.dreamer:
        return None
    rows: list[list[Child]] = [
        [dream.kind, passage(dream.text), _number(dream.score), _number(dream.reward)] for dream in report.dreams
    ]
    dreamt = max(report.dreams_dreamt, len(report.dreams))
    helped = max(report.dreams_helpful, len(report.dreams))
    words = f"{helped} of {dreamt} dreams made a copy of the model better."
    if helped > len(report.dreams):
        words += f" The best {len(report.dreams)} are shown."
    shown = _folded(rows, lambda part: table(["Kind", "Dream", "Score", "Reward"], part, numbers=(2, 3)), "dreams")
    dreamer = element("p", report.dreamer) if report.dreamer else None
    return _section("Dreams that helped", element("p", words), dreamer, shown if rows else None)


def _memories(report: NightReport) -> Html:
    memories = report.memories
    left_out = sum(map(len, memories.quarantined.values()))
    kinds = ", ".join(f"{count} {kind}" for kind, count in memories.kinds.items())
    words = (
        f"{memories.learned} learned{f' ({kinds})' if kinds else ''}, {memories.masked} of them with something private "
        f"masked. {left_out} of the whole folder are left out, on this night or since an earlier one."
    )
    frequent = sorted(memories.quarantined.items(), key=lambda item: -len(item[1]))
    reasons: list[list[Child]] = [
        [reason, str(len(places)), element("span", _some(places), class_="place")]
        for reason, places in frequent[:_REASONS]
    ]
    headings = ["Left out because", "Memories", "Where"]
    why = _folded(reasons, lambda part: table(headings, part, numbers=(1,)), "reasons")
    rest = (
        f"{len(frequent) - _REASONS} more reasons stand in the night's quarantine.parquet below data/02_intermediate."
    )
    nothing = _folded(
        [[place] for place in memories.unlearnable],
        lambda part: table(["Nothing could be learned of"], part, class_="plain"),
        "texts",
    )
    return _section(
        "Memories",
        element("p", words),
        why if reasons else None,
        element("p", rest, class_="note") if len(frequent) > _REASONS else None,
        nothing if memories.unlearnable else None,
    )


def _some(places: Sequence[str]) -> str:
    more = len(places) - _PLACES
    return ", ".join(places[:_PLACES]) + (f" and {more} more" if more > 0 else "")


def _time(report: NightReport) -> Html | None:
    if not report.phases:
        return None
    total = sum(report.phases.values())
    return _section(
        "Time",
        element(
            "p", f"{duration(total)} of computing; loading and saving, and training before a kill, are not counted."
        ),
        bars(report.phases),
    )


def _reproduce(report: NightReport) -> Html:
    facts = {"Base model": report.model, "Git commit": report.git_commit or "unknown", **report.environment}
    rows: list[list[Child]] = [[name, element("code", value)] for name, value in facts.items()]
    return _section(
        "Do it again",
        element("pre", report.command),
        table(["What", "Value"], rows, class_="plain"),
    )
