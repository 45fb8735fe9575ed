"""sleep-pipeline: give a language model a night of sleep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sleep_pipeline.language_model import load_model
    from sleep_pipeline.waking import load_night

__version__ = "0.1.0"
__all__ = ["__version__", "load_model", "load_night"]


def __getattr__(name: str) -> Any:
    """Import a loader on first use, so that the command line starts without loading torch."""
    if name == "load_model":
        from sleep_pipeline.language_model import load_model

        return load_model
    if name == "load_night":
        from sleep_pipeline.waking import load_night

        return load_night
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
