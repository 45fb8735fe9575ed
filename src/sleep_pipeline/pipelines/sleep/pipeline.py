"""The phases of a night, joined."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline

from sleep_pipeline.pipelines import collect, dream, evaluate, refine, seed

PHASES = {"collect": collect, "seed": seed, "dream": dream, "refine": refine, "evaluate": evaluate}


def create_pipeline(**_: Any) -> Pipeline:
    """Collect -> seed -> dream -> refine -> evaluate."""
    whole = Pipeline([])
    for phase in PHASES.values():
        whole += phase.create_pipeline()
    return whole
