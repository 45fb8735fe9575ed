"""What `retention.py` keeps of one method's nights, and the figures, the table and the picture that come of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sleep_pipeline.evaluation.retention import Retention
from sleep_pipeline.evaluation.statistics import Estimate, seeds_and_questions
from sleep_pipeline.reporting.retention import retention_plot


@dataclass(frozen=True)
class Life:
    """One method's nights with one seed.

    Attributes:
        retention: all answers.
        reading: share of unseen documents' questions that are right with the document, before the first night and
            after each.
        invented: the same without the document.
        seconds: of each night, asking aside.
        stored: bytes kept after the last.
        details: what else is known of each night.
        perplexity: on ordinary English, as `reading`; empty if it was not measured.
    """

    retention: Retention
    reading: list[float]
    invented: list[float]
    seconds: list[float]
    stored: int
    details: list[dict[str, float]]
    perplexity: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the whole in JSON's types."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**own, "retention": self.retention.to_json()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Life:
        """Take back what `to_json` gave, which may have its commit beside it."""
        own = {name: value for name, value in record.items() if name != "commit"}
        return cls(**{**own, "retention": Retention.from_json(record["retention"])})


MEASURES = {
    "final_accuracy": ("accuracy", "share"),
    "relative_recall": ("relative_recall", "share of the base model's answers with the documents"),
    "forgetting": ("forgetting", "share, max minus last"),
    "forgetting_since_learned": ("forgetting_since_learned", "share, first minus last"),
    "backward_transfer": ("backward_transfer", "share"),
}
"""Names of figures, with those of `Retention` and their units."""
BOTH = "seeds and questions, 95 %"
SEEDS = "least and greatest seed"


def figures(name: str, lives: Sequence[Life]) -> dict[str, Any]:
    """Means over seeds, with their interval and what that is of."""
    found: dict[str, Any] = {}
    kept = [life.retention for life in lives]
    for measure, (own, unit) in MEASURES.items():
        unknown = measure == "relative_recall" and any(life.relative_recall() is None for life in kept)
        if unknown or (min(map(len, kept)) < 2 and measure not in ("final_accuracy", "relative_recall")):
            continue
        estimate = Retention.over_lives(kept, own)
        interval = [estimate.low, estimate.high]
        found[f"{name}.{measure}"] = {"value": estimate.value, "unit": unit, "interval": interval, "interval_of": BOTH}
    measures: dict[str, tuple[list[float], str]] = {
        "reading_change": ([life.reading[-1] - life.reading[0] for life in lives], "share, with unseen documents"),
        "perplexity_change": (
            [life.perplexity[-1] / life.perplexity[0] - 1 for life in lives if life.perplexity],
            "share of the base model's, on ordinary English",
        ),
        "invented": ([life.invented[-1] for life in lives], "share right without ever having seen the document"),
        "seconds_a_night": ([statistics.mean(life.seconds) for life in lives], "s"),
        "seconds_last_over_second": (
            [life.seconds[-1] / life.seconds[min(1, len(life.seconds) - 1)] for life in lives],
            "ratio",
        ),
        "stored_bytes": ([float(life.stored) for life in lives], "bytes"),
    }
    for measure, (values, unit) in measures.items():
        if values:
            interval = [min(values), max(values)]
            whole = {"value": statistics.mean(values), "unit": unit, "interval": interval, "interval_of": SEEDS}
            found[f"{name}.{measure}"] = whole
    return found


def margin(lives: dict[str, dict[str, Any]], rivals: Sequence[str]) -> dict[str, Any]:
    """Sleep's final accuracy minus that of the rival over which it has the least margin, on the same questions.

    Of the seeds that both have lived, whose questions are other ones.
    """
    mine = lives.get("sleep", {})
    found: list[tuple[float, str, Estimate]] = []
    for name in rivals:
        seeds = sorted(mine.keys() & lives.get(name, {}).keys())
        if seeds:
            own, others = ([last_answers(of[seed], seed) for seed in seeds] for of in (mine, lives[name]))
            estimate = seeds_and_questions(own, others)
            found.append((estimate.value, f"{name}, seeds {', '.join(seeds)}", estimate))
    if not found:
        return {}
    value, rival, estimate = min(found, key=lambda one: one[:2])
    unit, interval = f"share, final accuracy above {rival}", [estimate.low, estimate.high]
    return {"sleep.margin_over_best_rival": {"value": value, "unit": unit, "interval": interval, "interval_of": BOTH}}


def last_answers(life: dict[str, Any], seed: str) -> dict[str, str]:
    """All answers after a life's last night, by the night that they are about."""
    return {
        f"night {night + 1} of seed {seed}": "".join(map(str, answers))
        for night, answers in enumerate(life["retention"]["scores"][-1])
    }


COLUMNS = {
    "final_accuracy": "right after the last night",
    "relative_recall": "recall after its night, of the teacher's",
    "forgetting": "forgetting, max minus last",
    "reading_change": "reading",
    "perplexity_change": "perplexity",
    "seconds_a_night": "s a night",
    "stored_bytes": "MB kept",
}


def table(record: dict[str, Any]) -> str:
    """The methods of a file in Markdown: means over the seeds, with the intervals of the figures."""
    figures, lives = record["figures"], record["lives"]
    lines = [f"| method (seeds) | {' | '.join(COLUMNS.values())} |", f"|---|{'---|' * len(COLUMNS)}"]
    for name in sorted(lives, key=lambda name: -figures[f"{name}.final_accuracy"]["value"]):
        cells = [f"{name} ({len(lives[name])})"]
        for measure in COLUMNS:
            figure = figures.get(f"{name}.{measure}")
            if figure is None:
                cells.append("")
                continue
            scale, digits = {"seconds_a_night": (1, 0), "stored_bytes": (1e-6, 1)}.get(measure, (1, 3))
            value, low, high = (scale * number for number in (figure["value"], *figure["interval"]))
            cells.append(f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def show(record: dict[str, Any], as_table: bool, figure: Path | None) -> None:
    """Print the table, draw the picture."""
    if as_table:
        print(table(record))
    if figure is not None:
        found = record["figures"]
        best = sorted(record["lives"], key=lambda name: -found[f"{name}.final_accuracy"]["value"])
        kept = {name: [Life.from_json(life).retention for life in record["lives"][name].values()] for name in best}
        protocol = record["protocol"]
        title = f"{protocol['nights']} nights of {protocol['documents'] * protocol['facts']} questions, embedded model"
        figure.parent.mkdir(parents=True, exist_ok=True)
        retention_plot(kept, title).savefig(figure, dpi=150)
