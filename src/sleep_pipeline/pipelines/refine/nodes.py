"""Nodes of the `refine` pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sleep_pipeline.datasets import Pretrained
from sleep_pipeline.night_model import MachineSettings, MemorySettings, StorePart, open_model
from sleep_pipeline.seeding.settings import SeedingSettings

Lessons = Any  # dict[str, list[Lesson]]


def activate_expert(
    seeded_model: Path,
    lessons: Lessons,
    model: str,
    machine: MachineSettings,
    memory: MemorySettings,
    seeding: SeedingSettings,
    night: int,
    random_seed: int,
    seed_summary: dict[str, Any],
    models_folder: Path,
) -> Pretrained:
    """End the sleep: the expert becomes active, and tonight's lessons go into the store for replay."""
    from sleep_pipeline.memory import Consolidation, state_of
    from sleep_pipeline.registry import BASE, NightRegistry

    opened = open_model(model, machine, memory, seeding.replay, seeded_model)
    state = state_of(opened.model)
    slot = None
    if state.table.sleep is not None:
        slot = Consolidation.resume(opened.model).commit()
        opened.store.add("stored", lessons["tonight"], night, random_seed)
        opened.store.add("open_book", lessons["open_book"], night, random_seed)
    champion = NightRegistry(models_folder).champion()
    manifest = {
        "kind": "memory after a night",
        "night": night,
        "parent": BASE if champion is None else champion.number,
        "base_model": {"name": model, "digest": state.config.base_digest},
        "slot": slot,
        "memory": memory.model_dump(mode="json"),
        "settings": {"seeding": seeding.model_dump(mode="json", by_alias=True), "random_seed": random_seed},
        "lessons": len(lessons["tonight"]),
        "samples": seed_summary["samples"],
    }
    return Pretrained((opened.model, StorePart(opened.store)), manifest)
