"""A bar for training: rate, time left and loss."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from sleep_pipeline.progress import bar


class Bar(TrainerCallback):
    """Shows how far a training is.

    Args:
        title: what is trained.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar where the run is."""
        if state.is_world_process_zero:
            self._bar = bar(title=self._title, total=state.max_steps, initial=state.global_step, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move on by a step."""
        if self._bar is not None:
            self._bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss."""
        if self._bar is not None and "loss" in (logs or {}):
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
