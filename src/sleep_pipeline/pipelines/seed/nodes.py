"""Nodes of the `seed` pipeline."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sleep_pipeline.datasets import Pretrained
from sleep_pipeline.evaluation.settings import EvaluationSettings
from sleep_pipeline.memories.settings import CollectSettings, MaskSettings
from sleep_pipeline.night_model import MachineSettings, MemorySettings, NightModel, open_model
from sleep_pipeline.night_questions import too_few_questions
from sleep_pipeline.run_environment import environment_option, night_command
from sleep_pipeline.seeding.settings import SeedingSettings
from sleep_pipeline.tracking import active_sink, night_sink

logger = logging.getLogger(__name__)

# Kedro evaluates the annotations of nodes when a command starts, so these stand for types whose import is slow.
Table = Any  # pandas.DataFrame
Lessons = Any  # dict[str, list[Lesson]]

TO_LEARN, TO_ASK, FOR_DREAMS = "learn", "ask", "dreams"
"""What a teacher's sample is used for: learned, asked after the night, or asked of the copies that try dreams."""

_SAMPLE_COLUMNS = ("context", "kind", "question", "answer", "agreement", "excerpt", "reply")


def own_seed(random_seed: int, night: int) -> int:
    """The seed of one night of a life."""
    return 7919 * random_seed + night


def parent_checkpoint(models_folder: Path, night: int) -> Path | None:
    """Folder of the model that a night grows from, the champion; None for the base model.

    Raises:
        RegistryError: the night is registered, so later ones may stand on it.
    """
    from sleep_pipeline.registry import NightRegistry, RegistryError

    registry = NightRegistry(models_folder)
    if night in registry.nights():
        raise RegistryError(
            f"night {night} is registered, and what stands on it would lose its ground if it were lived again: run its "
            f"memories as night {registry.next_night()}, after `sleep-pipeline rollback{environment_option()}` if it "
            "was promoted"
        )
    champion = registry.champion()
    return None if champion is None else registry.checkpoint(champion.number)


def champion_number(models_folder: Path) -> int:
    """The night that the next one grows from; `BASE` for none."""
    from sleep_pipeline.registry import BASE, NightRegistry

    champion = NightRegistry(models_folder).champion()
    return BASE if champion is None else champion.number


def sample_lessons(
    contexts: Table,
    memories: Table,
    model: str,
    machine: MachineSettings,
    memory: MemorySettings,
    seeding: SeedingSettings,
    collect: CollectSettings,
    evaluation: EvaluationSettings,
    night: int,
    random_seed: int,
    models_folder: Path,
    primary_folder: Path,
    probes_folder: Path,
) -> tuple[Table, Lessons, Table, dict[str, Any]]:
    """Let the teacher write about every context, hold some of it out as probes, and read its beliefs.

    Questions that memories themselves answer are learned in their own words, and never held out.

    Returns:
        All samples, with what each is used for; the lessons by pool; the probes with what the model answers to them
        before the night, with and without their contexts; and a summary.

    Raises:
        ProbeError: a question that people wrote cannot be read.
        WindowError: a context, or a document that the model makes up, does not fit into its window with a reply.
    """
    import pandas as pd

    from sleep_pipeline.evaluation.probes import asked_earlier, given_probes
    from sleep_pipeline.generation.sampler import WindowError
    from sleep_pipeline.memories.contexts import contexts_from_frame, plain_question
    from sleep_pipeline.memory import state_of
    from sleep_pipeline.seeding.answers import given_pairs
    from sleep_pipeline.seeding.night import gather
    from sleep_pipeline.validation.rows import validate_rows

    read = contexts_from_frame(contexts)
    # What people wrote can be wrong, so it is read before anything is computed.
    by_people = {
        (probe.question, probe.answer)
        for probe in asked_earlier(models_folder, primary_folder)
        if probe.origin == "given"
    }
    given, unmatched = _given(read, memories, probes_folder, collect.mask, night, by_people)
    own = own_seed(random_seed, night)
    opened = open_model(model, machine, memory, seeding.replay, parent_checkpoint(models_folder, night), random_seed)
    texts = [context.text for context in read]
    asked = {plain_question(question.probe.question) for question in given_probes(probes_folder, collect.mask)}
    asked |= {plain_question(question) for question, _ in by_people}
    told = {plain_question(question) for text in texts for question, _ in given_pairs(text)}

    def use(question: str) -> str:
        words = plain_question(question)
        return TO_ASK if words in asked else TO_LEARN if words in told else _use(question, collect)

    try:
        gathered = gather(
            opened.model,
            opened.tokenizer,
            texts,
            seeding,
            own,
            progress=True,
            withheld=lambda question: use(question) != TO_LEARN,
        )
    except WindowError as error:
        longest = max((context.tokens for context in read), default=0)
        raise WindowError(
            f"{error}. The longest text of night {night} has {longest} tokens: lower collect.context_tokens and cut "
            f"all texts anew with `{night_command(night, 'make_contexts_node')}`, lower seeding.replay.document_tokens "
            "where a made-up document is what does not fit, or lower seeding.teacher.max_new_tokens"
        ) from error
    rows = [
        {name: getattr(sample, name) for name in _SAMPLE_COLUMNS} | {"use": use(sample.question)}
        for sample in gathered.data.samples
    ]
    checked = validate_rows(pd.DataFrame(rows, columns=[*_SAMPLE_COLUMNS, "use"]), "teacher_samples", max_bad_share=0.5)
    samples, kept = checked.good, set(checked.good.index)
    tonight = [lesson for at, lesson in enumerate(gathered.lessons) if at in kept and rows[at]["use"] == TO_LEARN]
    own_words = samples.loc[[plain_question(question) not in asked for question in samples["question"]]]
    probes = given + _held_out(own_words, texts, evaluation)
    frame = _asked(opened, probes, evaluation)
    nothing = [read[index].source for index in gathered.data.unlearnable]
    summary = {
        "samples": len(samples),
        "lessons": len(tonight),
        "open_book_lessons": len(gathered.open_book),
        "probes": len(frame),
        "probes_unmatched": len(unmatched),
        "unmatched": unmatched,
        "dropped": {**gathered.data.dropped, "fails validation": len(checked.bad)},
        "unlearnable": nothing,
        "seconds": gathered.seconds,
        "validation_share": checked.success_share,
        "base_digest": state_of(opened.model).config.base_digest,
        "parent": champion_number(models_folder),
    }
    if nothing:
        logger.warning(
            "nothing could be learned of %d of %d texts (%s%s): what the teacher wrote about them was cut off, not in "
            "the form asked for, or not what it would say again",
            len(nothing),
            len(read),
            ", ".join(nothing[:3]),
            ", ..." if len(nothing) > 3 else "",
        )
    if few := too_few_questions(night, len(frame), evaluation.gate.min_questions):
        logger.warning("%s", few)
    night_sink().log_metrics({"night/probes_unmatched": len(unmatched)}, step=night)
    return samples, {"tonight": tonight, "open_book": gathered.open_book}, frame, summary


def _use(question: str, collect: CollectSettings) -> str:
    """By the question's words alone, so that a question is never learned on one night and asked on another.

    Dreams are judged by other questions than the night: what is chosen by a question says nothing of it afterwards.
    """
    from sleep_pipeline.memories.contexts import is_held_out

    if not is_held_out(question, collect.probe_share, collect.probe_salt):
        return TO_LEARN
    return FOR_DREAMS if is_held_out(question, 0.5, f"{collect.probe_salt}/dreams") else TO_ASK


def _given(
    read: Sequence[Any],
    memories: Table,
    probes_folder: Path,
    masks: MaskSettings,
    night: int,
    asked: Collection[tuple[str, str]],
) -> tuple[list[Any], list[str]]:
    """What people ask about tonight's memories; and the places of what neither tonight nor an earlier night asks.

    Args:
        read: tonight's contexts.
        memories: of tonight.
        probes_folder: with the questions about all nights.
        masks: what is masked in them, as in the memories.
        night: its number.
        asked: questions, with their answers, that earlier nights have asked.
    """
    from sleep_pipeline.evaluation.probes import MemoryPlaces, Probe, given_probes
    from sleep_pipeline.memories.reading import day_of
    from sleep_pipeline.memories.records import memories_from_frame

    places = MemoryPlaces(memories_from_frame(memories))
    parts: dict[str, list[str]] = {}
    for context in read:
        for id in context.memory_ids:
            parts.setdefault(id, []).append(context.text)
    probes, unmatched = [], []
    for given in given_probes(probes_folder, masks):
        question, answer = given.probe.question, given.probe.answer
        if (question, answer) in asked:
            # That night goes on asking it; what stands at its line now may be new, as on top of a diary.
            continue
        memory = places.at(given.source, given.line)
        if memory is not None and memory.id in parts:
            # A long memory is read in parts, of which one tells.
            whole = parts[memory.id]
            telling = (part for part in whole if answer.casefold() in part.casefold())
            probes.append(Probe(question, answer, next(telling, whole[0]), "given"))
        elif day_of(given.source) <= night:
            unmatched.append(str(given))
    if unmatched:
        logger.warning(
            "%d questions in %s were asked on no night so far, and their sources name no memory of tonight: %s. "
            "Correct the file and line in their sources; a question that came after its memory was learned is too "
            "late, and one whose memory is in quarantine, or beyond collect.at_most, waits for it",
            len(unmatched),
            probes_folder,
            "; ".join(unmatched[:3]) + ("; ..." if len(unmatched) > 3 else ""),
        )
    return probes, unmatched


def _held_out(samples: Table, texts: Sequence[str], evaluation: EvaluationSettings) -> list[Any]:
    """What the teacher asked and the night does not learn."""
    from sleep_pipeline.evaluation.probes import Probe

    own = samples[samples["use"] == TO_ASK].drop_duplicates(["context", "question"])
    if len(own) > evaluation.teacher_probes:
        own = own.sample(evaluation.teacher_probes, random_state=0).sort_index()
    return [
        Probe(question, answer, texts[context], "teacher")
        for context, question, answer in zip(own["context"], own["question"], own["answer"], strict=True)
    ]


def _asked(opened: NightModel, probes: list[Any], evaluation: EvaluationSettings) -> Table:
    import pandas as pd

    from sleep_pipeline.evaluation.probes import ask, grade

    columns: dict[str, list[Any]] = {
        "question": [probe.question for probe in probes],
        "answer": [probe.answer for probe in probes],
        "context": [probe.context for probe in probes],
        "origin": [probe.origin for probe in probes],
    }
    for name, open_book in (("open_book", True), ("before", False)):
        replies = ask(
            opened.model, opened.tokenizer, probes, open_book, evaluation.max_new_tokens, evaluation.batch_size
        )
        columns[f"{name}_reply"] = list(replies)
        columns[name] = list(grade(replies, probes, evaluation.match))
    return pd.DataFrame(columns)


def train_expert(
    lessons: Lessons,
    model: str,
    machine: MachineSettings,
    memory: MemorySettings,
    seeding: SeedingSettings,
    night: int,
    random_seed: int,
    seed_summary: dict[str, Any],
    models_folder: Path,
    seed_progress_folder: Path,
) -> tuple[Pretrained, Table, Table]:
    """Train tonight's expert on the lessons, with replay, or go on with a run that was cut short.

    Returns:
        The memory in the middle of its sleep, the expert not yet active; metrics; and what the student said itself.
        Without a lesson the memory is as it was, and the night goes on.

    Raises:
        ValueError: the lessons are of another base model: their tokens and beliefs would mean nothing to this one.
        RegistryError: the champion is another than when they were sampled.
    """
    import pandas as pd

    from sleep_pipeline.memory import CONTEXT, Consolidation, state_of
    from sleep_pipeline.registry import RegistryError
    from sleep_pipeline.seeding.night import learn, learns_along, make_room

    own = own_seed(random_seed, night)
    opened = open_model(model, machine, memory, seeding.replay, parent_checkpoint(models_folder, night), random_seed)
    taught_by, base = seed_summary.get("base_digest"), state_of(opened.model).config.base_digest
    if taught_by not in (None, base):
        raise ValueError(
            f"the lessons of night {night} are those of another base model than {model}, which was changed since they "
            f"were sampled: name the one before, or sample anew with `{night_command(night, 'make_contexts_node')}`"
        )
    parent = champion_number(models_folder)
    if seed_summary.get("parent", parent) != parent:
        raise RegistryError(
            f"what night {night} learns was sampled on night {seed_summary['parent']}, and the champion is night "
            f"{parent} now: its questions were asked of another model before; sample anew with "
            f"`{night_command(night, 'sample_lessons_node')}`"
        )
    manifest: dict[str, Any] = {
        "kind": "memory in mid-sleep",
        "night": night,
        "lessons": len(lessons["tonight"]),
        "parent": parent,
    }
    parts = opened.parts
    if not lessons["tonight"]:
        return Pretrained(parts, manifest), pd.DataFrame(), pd.DataFrame()
    make_room(opened.model, opened.tokenizer, opened.store, seeding, night, own, seed_progress_folder / "merge")
    plastic = learns_along(seeding, opened.store)
    Consolidation(opened.model, sender=CONTEXT, receiver=1, night=night, plastic=plastic).begin()
    learned = learn(
        opened.model,
        opened.tokenizer,
        lessons["tonight"],
        opened.store,
        seeding.for_night(len(lessons["tonight"])),
        own,
        lessons["open_book"],
        folder=seed_progress_folder / "expert",
        progress=True,
        resume=True,
    )
    for entry in learned.history:
        active_sink().log_metrics({f"seed/{name}": value for name, value in entry.items()}, step=int(entry["step"]))
    manifest["seconds"] = learned.seconds
    return Pretrained(parts, manifest), pd.DataFrame(learned.history), pd.DataFrame(learned.rollouts)
