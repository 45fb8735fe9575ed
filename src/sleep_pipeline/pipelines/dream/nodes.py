"""Nodes of the `dream` pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleep_pipeline.datasets import Pretrained
from sleep_pipeline.dreaming.settings import DREAMER, DreamingSettings
from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.night_dreamer import DreamerPart, form_of, kept_dreamer, mix_of, open_dreamer
from sleep_pipeline.night_model import MachineSettings, MemorySettings, open_model
from sleep_pipeline.night_number import folder_of
from sleep_pipeline.pipelines.seed.nodes import FOR_DREAMS, own_seed, parent_checkpoint
from sleep_pipeline.seeding.settings import SeedingSettings
from sleep_pipeline.tracking import active_sink

if TYPE_CHECKING:
    from sleep_pipeline.dreaming.dreamer import ImprovedNight

# Kedro evaluates the annotations of nodes when a command starts, so these stand for types whose import is slow.
Table = Any  # pandas.DataFrame
Lessons = Any  # dict[str, list[Lesson]]

_OLDER = 16


def dream_night(
    seeded_model: Path,
    contexts: Table,
    teacher_samples: Table,
    probes: Table,
    collect: CollectSettings,
    model: str,
    machine: MachineSettings,
    memory: MemorySettings,
    seeding: SeedingSettings,
    dreaming: DreamingSettings,
    night: int,
    random_seed: int,
    models_folder: Path,
    primary_folder: Path,
    probes_folder: Path,
) -> tuple[Table, Lessons, dict[str, Any], str, Pretrained]:
    """Dream of tonight's memories with the expert as it is, and try the dreams on isolated copies.

    With `dreaming.rest_em.rounds` above 0 the dreamer's adapter, as the parent's night left it, takes part and gets
    better at dreaming. The dreams that its last kept round tried are the night's, so that nothing is dreamt or tried
    twice (see `dreaming.dreamer.dream_and_improve`).

    No dream learns a question that is asked of the model on some night, or that judges dreams: dreams are of earlier
    nights, too.

    Returns:
        Every dream with what became of it; lessons of those that helped; a summary; a page for people; and the dreamer
        for the night's checkpoint, which is the parent's where it did not get better, and nothing where there is none.
    """
    import time
    from contextlib import nullcontext

    import pandas as pd

    from sleep_pipeline.dreaming.dreamer import dream_and_improve
    from sleep_pipeline.dreaming.night import dream_night as dream
    from sleep_pipeline.dreaming.tau import Probe
    from sleep_pipeline.evaluation.probes import asked_earlier, given_probes
    from sleep_pipeline.memories.contexts import is_held_out, plain_question
    from sleep_pipeline.memory import base_view, state_of, teacher_view
    from sleep_pipeline.registry import NightRegistry
    from sleep_pipeline.seeding.lessons import read_beliefs
    from sleep_pipeline.seeding.teacher import said_again
    from sleep_pipeline.validation.rows import validate_rows

    began = time.perf_counter()
    parent = parent_checkpoint(models_folder, night)
    handed_on = kept_dreamer(parent)
    opened = open_model(model, machine, memory, seeding.replay, seeded_model)
    texts = list(contexts["text"])
    held = teacher_samples[teacher_samples["use"] == FOR_DREAMS].drop_duplicates(["context", "question"])
    judging = [
        Probe(int(context), question, answer)
        for context, question, answer in zip(held["context"], held["question"], held["answer"], strict=True)
    ]
    if not dreaming.dreams.dreams or not judging or state_of(opened.model).table.sleep is None:
        why = "dreaming is off" if not dreaming.dreams.dreams else "nothing was learned that dreams could be judged by"
        nothing = {"dreams": 0, "rewarded": 0, "seconds": {}, "says": why}
        return _nothing(), {"tonight": []}, nothing, _page([], night), _checkpoint(handed_on, night)
    earlier = [number.number for number in NightRegistry(models_folder).lineage()]
    older = [
        text
        for number in earlier
        for text in pd.read_parquet(primary_folder / folder_of(number) / "contexts.parquet")["text"]
    ]
    own = own_seed(random_seed, night)
    questions = [
        *probes["question"],
        *(given.probe.question for given in given_probes(probes_folder, collect.mask)),
        *(probe.question for probe in asked_earlier(models_folder, primary_folder)),
    ]
    asked = {plain_question(question) for question in questions}

    def withheld(question: str) -> bool:
        return plain_question(question) in asked or is_held_out(question, collect.probe_share, collect.probe_salt)

    given = (opened.tokenizer, texts, judging, dreaming, own, older[-_OLDER:], True)
    dreamer = improved = None
    if dreaming.rest_em.rounds:
        dreamer = open_dreamer(opened.model, dreaming.rest_em, parent, own)
        improved = dream_and_improve(opened.model, dreamer, *given, withheld=withheld, mix=mix_of(handed_on))
    report = improved.report if improved is not None else dream(opened.model, *given, withheld=withheld)
    records = report.records()
    frame = pd.DataFrame(records) if records else _nothing()[["text"]]
    frame.insert(0, "id", [f"{night}-{number}" for number in range(len(frame))])
    checked = validate_rows(frame, "dreams", max_bad_share=0.5)
    sources, samples = report.lessons()
    teacher = teacher_view if seeding.teacher.experts else base_view
    asking = {prompt.kind for prompt in dreaming.dreams.prompts if prompt.form == "pairs"}
    with nullcontext() if dreamer is None else dreamer.disable_adapter(), teacher(opened.model):
        if seeding.teacher.learn == "replies":
            pairs = [sample for sample in samples if sample.kind in asking]
            told = [sample for sample in samples if sample.kind not in asking]
            again = said_again(opened.model, opened.tokenizer, sources, pairs, seeding.teacher, own, progress=True)
            samples = told + again
        lessons = read_beliefs(
            opened.model, opened.tokenizer, sources, samples, seeding.teacher.top_k, seeding.teacher.reading_rows
        )
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
    part: DreamerPart | None = handed_on
    if dreamer is not None and improved is not None:
        rounds = _rounds(improved)
        summary["rest_em"] = rounds
        counts |= {f"rest_em/{name}": float(value) for name, value in rounds.items() if name != "says"}
        if improved.changed and improved.rest_em is not None:
            part = DreamerPart(dreamer, form_of(dreaming.rest_em, improved.rest_em.mix))
    active_sink().log_metrics({f"dream/{name}": value for name, value in counts.items()}, step=night)
    page = _page(records, night, dreaming.tau.kind == "questions")
    return checked.good, {"tonight": lessons}, summary, page, _checkpoint(part, night)


def _rounds(improved: ImprovedNight) -> dict[str, Any]:
    """What became of the dreamer, for the summary."""
    found = improved.rest_em
    if found is None:
        return {"rounds": 0, "says": improved.skipped}
    return {
        "rounds": len(found.rounds),
        "before": found.before,
        "after": found.after,
        "dropped": found.dropped,
        "idle": found.idle,
        "trained_on": len(improved.trained_on),
        "held_out": len(improved.held_out),
        "says": found.summary(),
    }


def _checkpoint(dreamer: DreamerPart | None, night: int) -> Pretrained:
    """The dreamer, or none, as a folder that is whole or not there."""
    manifest: dict[str, Any] = {"kind": "dreamer", "night": night}
    return Pretrained((), manifest) if dreamer is None else Pretrained((dreamer,), manifest | {DREAMER: dreamer.form})


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
