"""A night's report with made-up but plausible numbers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sleep_pipeline.evaluation.gate import GateSettings, decide, evidence
from sleep_pipeline.evaluation.retention import Retention
from sleep_pipeline.reporting import DreamSample, Example, Memories, NightPoint, NightReport


def made_up_retention(nights: int, questions: int = 48) -> Retention:
    rng = np.random.default_rng(3)

    def answers(rate: float) -> list[int]:
        return [int(right) for right in rng.random(questions) < rate]

    retention = Retention()
    learned: list[np.ndarray[Any, Any]] = []
    for i in range(nights):
        learned = [cell * (rng.random(questions) > 0.012) for cell in learned] + [np.array(answers(0.94))]
        row = [[int(right) for right in cell] for cell in learned]
        retention = retention.append(i + 1, row, answers(0.02), answers(0.98))
    return retention


def made_up_report(nights: int = 7) -> NightReport:
    retention = made_up_retention(nights)
    decision = decide(
        evidence(retention, (list(retention.scores[0][0]), list(retention.scores[0][0])), (21.4, 21.6), True),
        GateSettings(),
    )
    people = [("Mira Talven", "Osk Mills"), ("Joren Pell", "the ferry office"), ("Anke Rusk", "Lower Geska School")]
    learned = [
        Example(f"Where does {name} work?", place, "I do not know.", place, nights) for name, place in people
    ] + [
        Example(f"In which year was bridge number {n} built?", f"{1890 + n}", "1901", f"{1890 + n}", nights)
        for n in range(9)
    ]
    slot = {"origin": "context", "unlocks": 1}
    fast = [{**slot, "state": "active", "night": night} for night in range(5, nights + 1)]
    fast += [{"state": "training", "night": nights, "origin": "context", "unlocks": 1}]
    fast += [{"state": "free", "night": None, "origin": "", "unlocks": 0}] * (8 - len(fast))
    slow = [{**slot, "state": "active", "night": 4, "origin": "level 1"}]
    slow += [{"state": "free", "night": None, "origin": "", "unlocks": 0}] * 15
    return NightReport(
        night=nights,
        parent=nights - 1,
        time="2026-11-25T03:41:07+00:00",
        model="sleep-pipeline/embedded",
        decision=decision,
        retention=retention,
        command=f"kedro run --pipelines=sleep --env=base --params=night={nights},seed.steps=300,seed.lr=0.003",
        git_commit="b490bed9f524a1a3aa68a4558daa2733fb9dbf48",
        environment={"Configuration": "base", "Machine": "x86_64, 2 threads, no GPU", "torch": "2.15.0", "Seed": "0"},
        learned=learned,
        forgotten=[Example("Who painted the mill?", "Sela Onn", "Sela Onn", "Mira Talven", 3)],
        history=[
            NightPoint(i + 1, 0.9 + 0.01 * (i % 4), 0.004 * i if i else None, 0.99 - 0.002 * i, 212 + 9 * i)
            for i in range(nights)
        ],
        levels=[fast, slow],
        dreams=[
            DreamSample("rewrite", "Osk Mills is where Mira Talven has worked since she left Upper Geska.", 0.412, 1),
            DreamSample("implications", "Mira Talven lives within walking distance of a mill.", 0.087, 1),
        ],
        dreams_dreamt=60,
        memories=Memories(
            learned=27,
            masked=4,
            quarantined={
                "same as a memory of night 3": ["notes/a.md:3", "notes/a.md:9"],
                "text is empty": ["chats.jsonl:2"],
                "looks like a secret key": ["letter.txt"],
            },
            kinds={"documents": 18, "chats": 6, "question-answer pairs": 3},
        ),
        phases={"collect": 3.1, "seed": 141.0, "dream": 66.5, "refine": 31.0, "evaluate": 24.8},
    )


@pytest.fixture(scope="session")
def report() -> NightReport:
    return made_up_report()


@pytest.fixture
def changed(report: NightReport) -> Callable[..., NightReport]:
    """The report with some fields replaced."""

    def change(**fields: Any) -> NightReport:
        return replace(report, **fields)

    return change
