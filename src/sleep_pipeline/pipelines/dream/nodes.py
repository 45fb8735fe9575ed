"""Nodes of the `dream` pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sleep_pipeline.dreaming.settings import DreamingSettings
from sleep_pipeline.night_model import MachineSettings, MemorySettings, open_model
from sleep_pipeline.night_number import folder_of
from sleep_pipeline.pipelines.seed.nodes import FOR_DREAMS, own_seed
from sleep_pipeline.seeding.settings import SeedingSettings
from sleep_pipeline.tracking import active_sink

# Kedro evaluates the annotations of nodes when a command starts, so these stand for types whose import is slow.
Table = Any  # pandas.DataFrame
Lessons = Any  # dict[str, list[Lesson]]

_OLDER = 16


def dream_night(
    seeded_model: Path,
    contexts: Table,
    teacher_samples: Table,
    model: str,
    machine: MachineSettings,
    memory: MemorySettings,
    seeding: SeedingSettings,
    dreaming: DreamingSettings,
    night: int,
    random_seed: int,
    models_folder: Path,
    primary_folder: Path,
) -> tuple[Table, Lessons, dict[str, Any], str]:
    """Dream of tonight's memories with the expert as it is, and try the dreams on isolated copies.

    Returns:
        Every dream with what became of it; lessons of those that helped; a summary; and a page for people.
    """
    import time

    import pandas as pd

    from sleep_pipeline.dreaming.night import dream_night as dream
    from sleep_pipeline.dreaming.tau import Probe
    from sleep_pipeline.memory import state_of, teacher_view
    from sleep_pipeline.registry import NightRegistry
    from sleep_pipeline.seeding.lessons import read_beliefs
    from sleep_pipeline.validation.rows import validate_rows

    began = time.perf_counter()
    opened = open_model(model, machine, memory, seeding.replay, seeded_model)
    texts = list(contexts["text"])
    held = teacher_samples[teacher_samples["use"] == FOR_DREAMS].drop_duplicates(["context", "question"])
    probes = [
        Probe(int(context), question, answer)
        for context, question, answer in zip(held["context"], held["question"], held["answer"], strict=True)
    ]
    if not dreaming.dreams.dreams or not probes or state_of(opened.model).table.sleep is None:
        why = "dreaming is off" if not dreaming.dreams.dreams else "nothing was learned that dreams could be judged by"
        return _nothing(), {"tonight": []}, {"dreams": 0, "rewarded": 0, "seconds": {}, "says": why}, _page([], night)
    earlier = [number.number for number in NightRegistry(models_folder).lineage()]
    older = [
        text
        for number in earlier
        for text in pd.read_parquet(primary_folder / folder_of(number) / "contexts.parquet")["text"]
    ]
    report = dream(
        opened.model,
        opened.tokenizer,
        texts,
        probes,
        dreaming,
        own_seed(random_seed, night),
        older[-_OLDER:],
        progress=True,
    )
    frame = pd.DataFrame(report.records())
    frame.insert(0, "id", [f"{night}-{number}" for number in range(len(frame))])
    checked = validate_rows(frame, "dreams", max_bad_share=0.5)
    sources, samples = report.lessons()
    with teacher_view(opened.model):
        lessons = read_beliefs(opened.model, opened.tokenizer, sources, samples, seeding.teacher.top_k)
    summary = {
        "dreams": report.asked,
        "usable": len(checked.good),
        "tried": len(report.tried),
        "rewarded": len(report.rewarded),
        "lessons": len(lessons),
        "dropped": dict(report.dropped),
        "random_experts": report.random_experts,
        "says": report.summary(),
        "seconds": {"dreaming": time.perf_counter() - began},
    }
    counts = {name: float(value) for name, value in summary.items() if isinstance(value, int)}
    active_sink().log_metrics({f"dream/{name}": value for name, value in counts.items()}, step=night)
    return checked.good, {"tonight": lessons}, summary, _page(report.records(), night, dreaming.tau.kind == "questions")


def _nothing() -> Table:
    import pandas as pd

    return pd.DataFrame({"id": pd.Series(dtype="string"), "text": pd.Series(dtype="string")})


def _page(records: list[dict[str, Any]], night: int, shares: bool = True) -> str:
    """Every dream beside what it is about."""
    from sleep_pipeline.reporting import DreamRow, render_dreams

    rows = [
        DreamRow(
            kind=record["kind"],
            context=record["source"],
            text=record["text"],
            score=record["score"],
            kept=record["kept"],
            before=record["before"],
            after=record["after"],
            reward=record["reward"],
        )
        for record in records
    ]
    return render_dreams(rows, night, shares)
