"""How much a night computes and needs, by its settings: rough numbers, most of them upper limits."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sleep_pipeline.dreaming.settings import DreamingSettings
from sleep_pipeline.evaluation.settings import EvaluationSettings
from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.night_model import MachineSettings, MemorySettings
from sleep_pipeline.seeding.settings import RefineSettings, SeedingSettings

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol

_FLOAT = 4
_COPIES_IN_TRAINING = 4
"""Weights, gradients and the two moments of AdamW."""


@dataclass(frozen=True)
class Settings:
    """The parameters of a night."""

    model: str
    machine: MachineSettings
    memory: MemorySettings
    collect: CollectSettings
    seeding: SeedingSettings
    dreaming: DreamingSettings
    refining: RefineSettings
    evaluation: EvaluationSettings

    @classmethod
    def of(cls, catalog: CatalogProtocol[Any, Any]) -> Settings:
        """As a run gets them."""
        return cls(**{name: catalog.load(f"params:{name}") for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Work:
    """An amount of work.

    Attributes:
        node: that does it.
        what: is counted.
        amount: how many.
        at_most: whether it may be fewer.
        how: the amount as a product of settings, for people.
    """

    node: str
    what: str
    amount: int
    at_most: bool
    how: str


@dataclass(frozen=True)
class Needs:
    """Bytes; None where nothing is known yet.

    Attributes:
        disk: that the night leaves.
        disk_free: that are free.
        base: weights of the base model.
        experts: all slots of the memory, and what trains of them with its gradients and moments.
        trials: what copies that try dreams may take beside the model.
        memory_free: that are available.
    """

    disk: int | None
    disk_free: int
    base: int | None
    experts: int | None
    trials: int
    memory_free: int


def work_of(
    settings: Settings, to_do: Collection[str], contexts: Sequence[int], has_parent: bool, earlier_questions: int
) -> Iterator[Work]:
    """What the nodes that are to do would compute.

    Args:
        settings: of the night.
        to_do: names of these nodes.
        contexts: tokens of every context.
        has_parent: whether there are earlier nights to replay.
        earlier_questions: probes of the nights that it grows from.
    """
    for work in _all_work(settings, contexts, has_parent, earlier_questions):
        if work.node in to_do:
            yield work


def _all_work(settings: Settings, contexts: Sequence[int], has_parent: bool, earlier_questions: int) -> Iterator[Work]:
    count, tokens = len(contexts), sum(contexts)
    teacher, replay, dreaming = settings.seeding.teacher, settings.seeding.replay, settings.dreaming
    node = "sample_lessons_node"
    prompts = len(teacher.prompts)
    yield Work(node, "tokens read", tokens * prompts, False, f"{count} contexts of {tokens} tokens x {prompts} prompts")
    yield Work(
        node,
        "tokens written",
        count * teacher.replies * teacher.max_new_tokens,
        True,
        f"{count} contexts x {teacher.replies} replies x {teacher.max_new_tokens} tokens",
    )
    excerpts = teacher.excerpts if teacher.excerpt_sentences else 0
    yield Work(
        node,
        "tokens written about excerpts",
        count * excerpts * teacher.excerpt_replies * teacher.max_new_tokens,
        True,
        f"{count} contexts x {excerpts} excerpts x {teacher.excerpt_replies} replies x {teacher.max_new_tokens} tokens",
    )
    documents = replay.open_book_documents if replay.open_book_rows else 0
    free, talks = (replay.free_texts, replay.conversations) if replay.open_book_rows else (0, 0)
    yield Work(
        node,
        "tokens made up for reading",
        documents * (replay.document_tokens + replay.open_book_replies * teacher.max_new_tokens)
        + free * replay.free_text_tokens
        + 2 * talks * replay.conversation_tokens,
        True,
        f"{documents} documents with {replay.open_book_replies} replies each, {free} free texts, {talks} conversations",
    )
    rows, stored = settings.seeding.rows, replay.stored_rows if has_parent else 0
    together = rows + stored + replay.open_book_rows
    how = f"{rows} of tonight + {stored} of earlier nights + {replay.open_book_rows} in reading"
    steps, more = settings.seeding.optimizer.steps, _more(settings.seeding)
    yield Work("train_expert_node", "rows trained on", steps * together, False, f"{steps} steps x ({how}){more}")
    yield from _dreaming(dreaming, count)
    steps, more = settings.refining.steps, _more(settings.refining.seeding(settings.seeding))
    yield Work(
        "refine_expert_node",
        "rows trained on",
        steps * together,
        True,
        f"{steps} steps x ({how}), if a dream helps{more}",
    )
    asked = settings.evaluation
    yield Work(
        "evaluate_night_node",
        "questions asked, without yours about tonight",
        earlier_questions + asked.teacher_probes + asked.reading_questions,
        False,
        f"{earlier_questions} of earlier nights + at most {asked.teacher_probes} of the teacher about "
        f"tonight + {asked.reading_questions} about reading",
    )


def _more(settings: SeedingSettings) -> str:
    """From how many lessons on there are more steps."""
    optimizer = settings.optimizer
    if not optimizer.passes:
        return ""
    return f"; more steps for more than {int(optimizer.steps * settings.rows / optimizer.passes)} lessons"


def _dreaming(settings: DreamingSettings, contexts: int) -> Iterator[Work]:
    node, dreams, scores, rest_em = "dream_night_node", settings.dreams, settings.scores, settings.rest_em
    if rest_em.rounds and contexts > 1:
        yield from _rounds(settings, contexts)
        return
    yield Work(
        node,
        "tokens dreamt",
        contexts * dreams.dreams * dreams.max_new_tokens,
        True,
        f"{contexts} contexts x {dreams.dreams} dreams x {dreams.max_new_tokens} tokens",
    )
    chosen = scores.top_k + scores.random_b
    tried = min(contexts * dreams.dreams, chosen * (contexts if scores.each == "context" else 1))
    yield Work(
        node,
        "copies trained",
        tried * settings.rewards.seeds,
        True,
        f"{tried} dreams x {settings.rewards.seeds} seeds, {settings.trials.steps} steps each",
    )


def _rounds(settings: DreamingSettings, contexts: int) -> Iterator[Work]:
    """What ReST-EM dreams and tries, which is all that such a night does."""
    node, dreams, rest_em = "dream_night_node", settings.dreams, settings.rest_em
    train, held_out = rest_em.split(contexts)
    told = rest_em.rounds * train + (rest_em.rounds + 1) * held_out
    times = f"{rest_em.rounds} rounds of {train} contexts, and {held_out} held-out ones before and after each"
    yield Work(
        node,
        "tokens dreamt",
        told * dreams.dreams * dreams.max_new_tokens,
        True,
        f"({times}) x {dreams.dreams} dreams x {dreams.max_new_tokens} tokens",
    )
    yield Work(
        node,
        "copies trained",
        told * dreams.dreams * settings.rewards.seeds,
        True,
        f"({times}) x {dreams.dreams} dreams x {settings.rewards.seeds} seeds, {settings.trials.steps} steps each",
    )
    yield Work(
        node,
        "dreams that the dreamer is trained on",
        rest_em.rounds * rest_em.steps * rest_em.rows,
        True,
        f"{rest_em.rounds} rounds x {rest_em.steps} steps x {rest_em.rows} dreams",
    )


def needs_of(settings: Settings, last_night: int | None, disk_free: int) -> Needs:
    """What the night needs of the machine.

    Args:
        settings: of the night.
        last_night: bytes that the last night left.
        disk_free: bytes that are free.
    """
    import psutil

    shape, weights = _local(settings.model)
    experts, disk = None, last_night
    if shape is not None:
        layers, width = shape
        carrying = len(settings.memory.layers(layers))
        one = [2 * level.rank * width * carrying * _FLOAT for level in settings.memory.levels]
        slots = [level.num_slots for level in settings.memory.levels]
        # Earlier experts train as well, and are kept as they were.
        training = 1 + (slots[0] if settings.seeding.plastic and last_night is not None else 0)
        stored = sum(size * count for size, count in zip(one, slots, strict=True))
        experts = stored + _COPIES_IN_TRAINING * training * one[0]
        if disk is None:
            # The checkpoint before dreaming and the one after it.
            disk = 2 * one[0]
    return Needs(
        disk=disk,
        disk_free=disk_free,
        base=weights,
        experts=experts,
        trials=settings.dreaming.trials.memory_budget * max(1, settings.dreaming.trials.workers),
        memory_free=int(psutil.virtual_memory().available),
    )


def _local(model: str) -> tuple[tuple[int, int] | None, int | None]:
    """Layers and width, and bytes of the weights, of a model in a folder; a hub is not asked."""
    from pathlib import Path

    from sleep_pipeline.language_model import place_of

    folder = Path(place_of(model))
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError:
        return None, None
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    width = config.get("hidden_size", config.get("n_embd"))
    return (None if layers is None or width is None else (layers, width)), weights
