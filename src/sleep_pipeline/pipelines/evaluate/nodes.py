"""Nodes of the `evaluate` pipeline."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sleep_pipeline.evaluation.settings import EvaluationSettings, HarnessSettings
from sleep_pipeline.hardware import software
from sleep_pipeline.night_model import MachineSettings, MemorySettings, NightModel, open_model
from sleep_pipeline.night_number import folder_of
from sleep_pipeline.seeding.settings import SeedingSettings
from sleep_pipeline.tracking import night_sink

logger = logging.getLogger(__name__)

# Kedro evaluates the annotations of nodes when a command starts, so these stand for types whose import is slow.
Table = Any  # pandas.DataFrame

PROBES, METRICS, RETENTION = "probes.parquet", "metrics.json", "retention.json"


def _manifest(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    return found


def evaluate_night(
    night_model: Path,
    probes: Table,
    seed_summary: dict[str, Any],
    seeded_model: Path,
    dream_summary: dict[str, Any],
    model: str,
    machine: MachineSettings,
    memory: MemorySettings,
    seeding: SeedingSettings,
    evaluation: EvaluationSettings,
    night: int,
    models_folder: Path,
    raw_folder: Path,
    primary_folder: Path,
    reporting_folder: Path,
) -> tuple[dict[str, Any], dict[str, Any], Table]:
    """Ask every night's probes without their memories, and see what else has changed.

    Returns:
        Metrics of the night; the matrix R with the answers behind it; every answer of tonight.

    Raises:
        TextsError: the texts that the model must go on predicting cannot be had.
    """
    import pandas as pd

    from sleep_pipeline.evaluation.retention import Retention
    from sleep_pipeline.evaluation.texts import ordinary_texts
    from sleep_pipeline.registry import NightRegistry
    from sleep_pipeline.waking import view_before

    texts = ordinary_texts(evaluation.texts, raw_folder)
    began = time.perf_counter()
    manifest = _manifest(night_model)
    parent = int(manifest["parent"])
    opened = open_model(model, machine, memory, seeding.replay, night_model)
    retention = _of_night(reporting_folder, parent, RETENTION)
    before = Retention.from_json(retention) if retention else Retention()
    tables = [pd.read_parquet(primary_folder / folder_of(number) / PROBES) for number in before.nights]
    last = before.scores[-1] if len(before) else ()
    answers = [
        # What an earlier night's probes were answered with just before tonight.
        _answers(opened, table, number, evaluation).assign(before=list(known))
        for table, number, known in zip(tables, before.nights, last, strict=True)
    ]
    tonight = _answers(opened, probes, night, evaluation)
    rows = [list(table["right"]) for table in (*answers, tonight) if len(table)]
    after = before
    if len(probes):
        after = before.append(night, rows, before=list(probes["before"]), open_book=list(probes["open_book"]))
    earlier = _of_night(reporting_folder, parent, METRICS)

    def parent_view() -> AbstractContextManager[None]:
        return view_before(opened.model, night, parent, NightRegistry(models_folder))()

    metrics = _scores(after, tonight, probes) | _skills(opened, earlier, evaluation, texts, parent_view)
    metrics |= {"night": night, "parent": parent, "lessons": manifest["lessons"], "slot": manifest["slot"]}
    harness = _harness(opened, earlier, evaluation.harness, parent_view)
    if harness:
        metrics["harness"] = harness
    metrics["dreams"] = {name: value for name, value in dream_summary.items() if isinstance(value, int)}
    metrics["seconds"] = {
        **seed_summary["seconds"],
        "training": _manifest(seeded_model).get("seconds", 0.0),
        **dream_summary["seconds"],
        "refining": manifest["seconds"],
        "evaluating": time.perf_counter() - began,
    }
    flat = {f"night/{name}": value for name, value in metrics.items() if isinstance(value, float)}
    flat["night/seconds"] = sum(metrics["seconds"].values())
    if harness:
        flat |= harness["scores"] | {f"{name}_before": value for name, value in harness["before"].items()}
    night_sink().log_metrics(flat | _values("night", metrics), step=night)
    replies = pd.concat([*answers, tonight], ignore_index=True)
    # What was not measured has no number, rather than one that is none.
    return {name: value for name, value in metrics.items() if value is not None}, after.to_json(), replies


def _values(prefix: str, metrics: dict[str, Any]) -> dict[str, float]:
    return {
        f"{prefix}/{name}": float(item["value"])
        for name, item in metrics.items()
        if isinstance(item, dict) and item.get("value") is not None
    }


def _of_night(reporting_folder: Path, night: int, name: str) -> dict[str, Any] | None:
    """What a night's reports say; None for the base model."""
    if not night:
        return None
    path = reporting_folder / folder_of(night) / name
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _answers(opened: NightModel, table: Table, night: int, evaluation: EvaluationSettings) -> Table:
    """A night's probes with what the model says to them now, without their memories."""
    from sleep_pipeline.evaluation.probes import Probe, ask, grade

    probes = [Probe(question, answer) for question, answer in zip(table["question"], table["answer"], strict=True)]
    replies = ask(
        opened.model,
        opened.tokenizer,
        probes,
        open_book=False,
        max_new_tokens=evaluation.max_new_tokens,
        batch_size=evaluation.batch_size,
    )
    return table.drop(columns=["context"]).assign(
        night=night, reply=replies, right=grade(replies, probes, evaluation.match)
    )


def _scores(retention: Any, tonight: Table, probes: Table) -> dict[str, Any]:
    """What is known of the memories, tonight's and those of earlier nights."""
    from dataclasses import asdict

    from sleep_pipeline.evaluation.statistics import mean_interval

    metrics: dict[str, Any] = {"probes": len(probes)}
    if len(probes):
        metrics |= {
            "recall": asdict(mean_interval(list(tonight["right"]))),
            "recall_before": asdict(mean_interval(list(probes["before"]))),
            "open_book": asdict(mean_interval(list(probes["open_book"]))),
        }
    # Without a question of tonight the matrix is still that of the night before, and says nothing of this one.
    summary = retention.summary() if len(retention) and len(probes) else {}
    return metrics | {name: None if estimate is None else asdict(estimate) for name, estimate in summary.items()}


def _skills(
    opened: NightModel,
    earlier: dict[str, Any] | None,
    evaluation: EvaluationSettings,
    texts: Sequence[str],
    parent_view: Callable[[], AbstractContextManager[None]],
) -> dict[str, Any]:
    """What no night should cost, reading and plain English: now, before the night, and before all nights.

    Args:
        opened: the night's model.
        earlier: metrics of its parent; None if that is the base model.
        evaluation: settings.
        texts: of plain English.
        parent_view: in which the model is its parent, which is asked for only where the parent was not measured on
            these texts, or not asked and judged in tonight's way.
    """
    from dataclasses import asdict

    from sleep_pipeline.evaluation.language import language_fit
    from sleep_pipeline.evaluation.probes import ask, grade, reading_probes
    from sleep_pipeline.evaluation.statistics import mean_interval
    from sleep_pipeline.evaluation.texts import texts_digest
    from sleep_pipeline.memory import base_view

    questions = reading_probes(evaluation.reading_questions)

    def reading() -> list[int]:
        replies = ask(opened.model, opened.tokenizer, questions, True, evaluation.max_new_tokens, evaluation.batch_size)
        return grade(replies, questions, evaluation.match)

    def perplexity() -> float:
        return language_fit(opened.model, opened.tokenizer, texts).perplexity

    read, fit, digest = reading(), perplexity(), texts_digest(texts)
    known = earlier or {}
    base = dict(known.get("base", {}))
    # Nights of earlier releases do not say which texts they were measured on.
    same_texts = known.get("texts_digest") == digest
    asked = evaluation.asked()
    same_way = known.get("asked") == asked
    with base_view(opened.model):
        if "reading" not in base or not same_way:
            base["reading"] = reading()
        if "perplexity" not in base or not same_texts:
            base["perplexity"] = perplexity()
    if earlier is None:
        read_before, fit_before = base["reading"], base["perplexity"]
    else:
        # The questions are always the same ones in the same order; the last night may have been asked fewer or more.
        read_before = earlier["reading_answers"][: len(read)]
        if not same_way:
            logger.warning(
                "night %d was not asked and judged as tonight (evaluation.match, evaluation.max_new_tokens), or does "
                "not say so: its reading is measured again, and recall of the nights before is not comparable",
                earlier["night"],
            )
            with parent_view():
                read_before = reading()
        if same_texts:
            fit_before = earlier["perplexity"]
        else:
            logger.warning(
                "night %d was not measured on the texts of tonight (evaluation.texts), or does not say so: its "
                "perplexity is measured again on these",
                earlier["night"],
            )
            with parent_view():
                fit_before = perplexity()
    return {
        "reading": asdict(mean_interval(read)),
        "reading_answers": read,
        "reading_answers_before": read_before,
        "perplexity": fit,
        "perplexity_before": fit_before,
        "base": base,
        "texts_digest": digest,
        "asked": asked,
    }


def _harness(
    opened: NightModel,
    earlier: dict[str, Any] | None,
    settings: HarnessSettings,
    parent_view: Callable[[], AbstractContextManager[None]],
) -> dict[str, Any]:
    """Scores in the tasks of lm-evaluation-harness after the night and before it; see `_skills`."""
    from sleep_pipeline.evaluation.harness import harness_scores
    from sleep_pipeline.memory import base_view

    if not settings.tasks:
        return {}
    asked = settings.model_dump(mode="json", exclude={"batch_size"}, exclude_none=True)
    scores = harness_scores(opened.model, opened.tokenizer, settings)
    if earlier is not None and (known := earlier.get("harness", {})).get("asked") == asked:
        before = known["scores"]
    else:
        with base_view(opened.model) if earlier is None else parent_view():
            before = harness_scores(opened.model, opened.tokenizer, settings)
    return {"asked": asked, "scores": scores, "before": before}


def decide_night(
    metrics: dict[str, Any], retention: dict[str, Any], seed_summary: dict[str, Any], evaluation: EvaluationSettings
) -> dict[str, Any]:
    """Whether the night becomes the model that the next one grows from, and why."""
    from sleep_pipeline.evaluation.gate import RECALL_GAIN, decide, evidence
    from sleep_pipeline.evaluation.retention import Retention

    read, fit = metrics["reading_answers"], metrics["perplexity"]
    base = metrics.get("base", {})
    found = evidence(
        Retention.from_json(retention),
        open_book=_together(metrics["reading_answers_before"], read),
        perplexity=(metrics["perplexity_before"], fit),
        validation_passed=seed_summary["validation_share"] >= 1 - evaluation.max_invalid_share,
        open_book_since_base=_together(base["reading"], read) if "reading" in base else None,
        perplexity_since_base=(base["perplexity"], fit) if "perplexity" in base else None,
    )
    if metrics.get("probes") == 0:
        found[RECALL_GAIN] = None
    return decide(found, evaluation.gate).to_json()


def _together(before: list[int], after: list[int]) -> tuple[list[int], list[int]]:
    """Answers to the questions that were asked both times; one list is the beginning of the other's questions."""
    count = min(len(before), len(after))
    return before[:count], after[:count]


def register_night(
    night_model: Path,
    decision: dict[str, Any],
    metrics: dict[str, Any],
    memories: Table,
    night: int,
    models_folder: Path,
) -> dict[str, Any]:
    """Enter the night into the register, and promote or reject it. Doing so again changes nothing.

    A night that grew from another one than the present champion, since somebody rolled back meanwhile, is rejected, and
    its memories are new for the next one.
    """
    import shutil
    from dataclasses import asdict
    from datetime import UTC, datetime

    from sleep_pipeline.evaluation.gate import FORGETTING, Decision
    from sleep_pipeline.registry import BASE, Night, NightRegistry, manifest_digest

    registry = NightRegistry(models_folder)
    scores = {
        name: metrics[name]["value"] if isinstance(metrics.get(name), dict) else metrics.get(name)
        for name in ("recall", "open_book", "relative_recall", FORGETTING, "accuracy", "reading", "perplexity")
    }
    known = registry.nights().get(night)
    live = [BASE, *(each.number for each in registry.lineage())]
    if night not in live and metrics["parent"] != live[-1]:
        decision = _overtaken(decision, night, metrics["parent"], live[-1])
    registry.register(
        Night(
            number=night,
            parent=metrics["parent"],
            checkpoint=night_model.name,
            manifest_digest=manifest_digest(night_model),
            time=known.time if known else datetime.now(UTC).isoformat(timespec="seconds"),
            decision=decision,
            scores=scores,
            memories=tuple(memories["digest"]),
        )
    )
    champion = registry.champion()
    if decision["promote"]:
        registry.promote(night)
        logger.info("night %d is promoted: the next night grows from it", night)
    elif champion is None or champion.number != night:
        registry.reject(night)
        reasons = " ".join(Decision.from_json(decision).reasons)
        logger.warning("night %d is rejected, and its memories are new again: %s", night, reasons)
    # Checkpoints of its training, by which it would have gone on.
    shutil.rmtree(models_folder / "progress" / folder_of(night), ignore_errors=True)
    return asdict(registry.night(night)) | {"aliases": registry.aliases()}


def _overtaken(decision: dict[str, Any], night: int, parent: int, champion: int) -> dict[str, Any]:
    """The decision on a night whose parent is the champion no more."""
    from dataclasses import replace

    from sleep_pipeline.evaluation.gate import Check, Decision

    found = Decision.from_json(decision)
    reason = (
        f"night {night} grew from night {parent}, and the champion is night {champion} now (0 is the base model): it "
        "would bring back what was rolled back, so its memories are learned again by the next night"
    )
    check = Check("champion", None, None, "as when the night began", False, reason)
    return replace(found, promote=False, checks=(*found.checks, check)).to_json()


def write_report(
    registered: dict[str, Any],
    metrics: dict[str, Any],
    retention: dict[str, Any],
    decision: dict[str, Any],
    replies: Table,
    quarantine: Table,
    collect_summary: dict[str, Any],
    dreams: Table,
    seed_summary: dict[str, Any],
    dream_summary: dict[str, Any],
    night_model: Path,
    model: str,
    evaluation: EvaluationSettings,
    reporting_folder: Path,
) -> tuple[str, str]:
    """The night for people: a page that opens offline, and the model card of its checkpoint."""
    from sleep_pipeline.evaluation.gate import Decision
    from sleep_pipeline.evaluation.retention import Retention
    from sleep_pipeline.memories.records import places_by_reason, rejected_from_frame
    from sleep_pipeline.reporting import Memories, NightReport, model_card, render
    from sleep_pipeline.run_environment import night_command
    from sleep_pipeline.tracking.git import git_state

    night, parent = int(registered["number"]), int(registered["parent"])
    manifest = _manifest(night_model)
    git = git_state(Path(__file__).parent)
    commit = git.code if git else None
    command = night_command(night)
    seconds = metrics["seconds"]
    learned, forgotten = _examples(replies, night, evaluation.examples)
    report = NightReport(
        night=night,
        parent=parent,
        time=registered["time"],
        model=model,
        decision=Decision.from_json(registered["decision"]),
        retention=Retention.from_json(retention),
        command=command,
        git_commit=commit,
        environment=software(),
        learned=learned,
        forgotten=forgotten,
        history=_history(reporting_folder, metrics),
        levels=_levels(night_model),
        dreams=_helpful(dreams, evaluation.examples),
        dreams_dreamt=dream_summary["dreams"],
        dreams_helpful=dream_summary.get("rewarded", 0),
        in_use=int(registered["aliases"].get("champion", 0)),
        dreamer=dream_summary.get("rest_em", {}).get("says", ""),
        memories=Memories(
            learned=collect_summary["memories"],
            masked=collect_summary["masked"],
            quarantined=places_by_reason(rejected_from_frame(quarantine)),
            kinds=collect_summary["kinds"],
            unlearnable=tuple(seed_summary.get("unlearnable", ())),
        ),
        phases=seconds,
    )
    scores = {name: value for name, value in metrics.items() if isinstance(value, dict) and "value" in value}
    card = model_card(
        {
            **manifest,
            "scores": scores,
            "decision": registered["decision"],
            "memories": collect_summary["memories"],
            "command": command,
            "git_commit": commit,
            "seconds": sum(seconds.values()),
            "finished": registered["time"],
            "software": software(),
        }
    )
    return render(report), card


def _helpful(dreams: Table, most: int) -> list[Any]:
    """The dreams that helped, best first."""
    from sleep_pipeline.reporting import DreamSample

    if "reward" not in dreams:
        return []
    best = dreams[dreams["reward"] == 1].sort_values("score", ascending=False).head(most)
    return [DreamSample(row.kind, row.text, float(row.score), float(row.reward)) for row in best.itertuples()]


def _examples(replies: Table, night: int, most: int) -> tuple[list[Any], list[Any]]:
    """Questions of tonight that the model can answer now, and those of earlier nights that it no longer can."""
    from sleep_pipeline.reporting import Example

    def examples(rows: Table) -> list[Any]:
        return [
            Example(row.question, row.answer, row.before_reply, row.reply, int(row.night))
            for row in rows.head(most).itertuples()
        ]

    own = replies[replies["night"] == night]
    earlier = replies[replies["night"] != night]
    lost = earlier[(earlier["right"] == 0) & (earlier["before"] == 1)]
    lost = lost.assign(before_reply=None)
    return examples(own[(own["right"] == 1) & (own["before"] == 0)]), examples(lost)


def _history(reporting_folder: Path, metrics: dict[str, Any]) -> list[Any]:
    """The night and its ancestors, oldest first, as points of the curves.

    Forgetting is drawn as the mean over nights, which those of earlier releases have measured as well.
    """
    from sleep_pipeline.reporting import NightPoint

    def value(found: dict[str, Any], name: str) -> float | None:
        item = found.get(name)
        return item["value"] if isinstance(item, dict) and item.get("samples", 1) else None

    points = []
    found: dict[str, Any] | None = metrics
    while found is not None:
        points.append(
            NightPoint(
                found["night"],
                value(found, "recall"),
                value(found, "forgetting_since_learned"),
                value(found, "reading"),
                sum(found["seconds"].values()),
            )
        )
        found = _of_night(reporting_folder, found["parent"], METRICS)
    return points[::-1]


def _levels(night_model: Path) -> list[list[dict[str, Any]]]:
    """The slots of the memory, as its configuration records them."""
    config = json.loads((night_model / "adapter_config.json").read_text(encoding="utf-8"))
    levels: list[list[dict[str, Any]]] = (config["state"] or {}).get("levels", [])
    return levels
