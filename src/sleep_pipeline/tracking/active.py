"""The run that nodes log into, without a handle passed through every function."""

from pathlib import Path
from typing import TYPE_CHECKING

from sleep_pipeline.metrics import MetricSink, NullSink
from sleep_pipeline.tracking.run import TrackedRun, whatever_mlflow_says

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Module state rather than a context variable: threads that a node starts must see it too.
_active: TrackedRun | None = None
_phase: TrackedRun | None = None


def set_active_run(run: TrackedRun | None) -> None:
    """Make `run` the one that the functions of this module use; the hook alone calls this."""
    global _active
    _active = run


def active_run() -> TrackedRun | None:
    """Return the run of the pipeline that is executing; None outside one or with tracking off."""
    return _active


def set_phase_run(run: TrackedRun | None) -> None:
    """Make `run` the child of the active run that the present phase of a night logs into; the hook alone calls this."""
    global _phase
    _phase = run


def phase_run() -> TrackedRun | None:
    """Return the run of the phase that is executing; None where a run has no phases."""
    return _phase


def active_sink() -> MetricSink:
    """Return where step metrics go: the run of the phase, the active run, or nowhere."""
    run = _phase or _active
    return NullSink() if run is None else run.sink


def night_sink() -> MetricSink:
    """Return where the scores of a whole night go: the active run, whatever phase it is in, or nowhere."""
    return NullSink() if _active is None else _active.sink


def log_artifact(path: Path | str, folder: str | None = None) -> None:
    """Store the file or folder at `path` in the active run, if there is one; where MLflow fails, that is a warning.

    Raises:
        FileNotFoundError: nothing is at `path`.
    """
    if _active is not None:
        if not Path(path).exists():
            raise FileNotFoundError(f"Cannot store {path} as an artifact: there is no such file or folder.")
        with whatever_mlflow_says():
            _active.log_artifact(Path(path), folder)


def log_figure(figure: "Figure", artifact_file: str) -> None:
    """Store a matplotlib figure as `artifact_file` in the active run, if there is one.

    Where MLflow fails, that is a warning.
    """
    if _active is not None:
        with whatever_mlflow_says():
            _active.log_figure(figure, artifact_file)
