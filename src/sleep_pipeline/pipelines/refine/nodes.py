"""Nodes of the `refine` pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sleep_pipeline.datasets import Pretrained
from sleep_pipeline.datasets.pretrained import MANIFEST
from sleep_pipeline.dreaming.settings import DREAMER
from sleep_pipeline.night_dreamer import kept_dreamer
from sleep_pipeline.night_model import MachineSettings, MemorySettings, open_model
from sleep_pipeline.pipelines.seed.nodes import champion_number, own_seed, parent_checkpoint
from sleep_pipeline.seeding.settings import RefineSettings, SeedingSettings

Lessons = Any  # dict[str, list[Lesson]]


def refine_expert(
    seeded_model: Path,
    lessons: Lessons,
    dream_lessons: Lessons,
    dreamer: Path,
    model: str,
    machine: MachineSettings,
    memory: MemorySettings,
    seeding: SeedingSettings,
    refining: RefineSettings,
    night: int,
    random_seed: int,
    seed_summary: dict[str, Any],
    models_folder: Path,
    refine_progress_folder: Path,
) -> Pretrained:
    """Distil the dreams that helped into what the sleep trains, with replay, and end the sleep.

    The expert becomes active, and what it learned goes into the store for replay. Without a dream that helped, the
    expert stays as it was seeded. The dreamer, if the life has one, goes into the checkpoint as it is.

    Raises:
        RegistryError: the champion is another than when the expert was seeded.
    """
    import time

    from sleep_pipeline.memory import Consolidation, state_of
    from sleep_pipeline.registry import RegistryError
    from sleep_pipeline.run_environment import night_command
    from sleep_pipeline.seeding.night import hand_on, learn

    parent_checkpoint(models_folder, night)
    parent = champion_number(models_folder)
    grew_from = json.loads((seeded_model / MANIFEST).read_text(encoding="utf-8")).get("parent", parent)
    if grew_from != parent:
        raise RegistryError(
            f"night {night} was seeded on night {grew_from}, and the champion is night {parent} now: it would bring "
            f"back what was rolled back; seed it anew with `{night_command(night, 'sample_lessons_node')}`"
        )
    opened = open_model(model, machine, memory, seeding.replay, seeded_model)
    state = state_of(opened.model)
    slot = None
    began = time.perf_counter()
    if state.table.sleep is not None:
        sleep = Consolidation.resume(opened.model)
        learned = [*lessons["tonight"], *dream_lessons["tonight"]]
        if dream_lessons["tonight"]:
            learn(
                opened.model,
                opened.tokenizer,
                learned,
                opened.store,
                refining.seeding(seeding).for_night(len(learned)),
                own_seed(random_seed, night) + 1,
                lessons["open_book"],
                folder=refine_progress_folder / "dreams",
                progress=True,
                resume=True,
            )
        slot = sleep.commit()
        opened.store.add("stored", learned, night, random_seed)
        opened.store.add("open_book", lessons["open_book"], night, random_seed)
        hand_on(
            opened.model,
            opened.tokenizer,
            opened.store,
            seeding,
            night,
            own_seed(random_seed, night),
            refine_progress_folder / "levels",
        )
    manifest = {
        "kind": "memory after a night",
        "night": night,
        "parent": parent,
        "base_model": {"name": model, "digest": state.config.base_digest, "dtype": machine.dtype},
        "slot": slot,
        "memory": memory.model_dump(mode="json"),
        "settings": {"seeding": seeding.model_dump(mode="json", by_alias=True), "random_seed": random_seed},
        "lessons": len(lessons["tonight"]),
        "dream_lessons": len(dream_lessons["tonight"]),
        "seconds": time.perf_counter() - began,
        "samples": seed_summary["samples"],
    }
    parts = opened.parts
    kept = kept_dreamer(dreamer)
    return Pretrained(parts, manifest) if kept is None else Pretrained((*parts, kept), manifest | {DREAMER: kept.form})
