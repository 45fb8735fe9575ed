"""What this project records of its runs in MLflow; nothing here imports MLflow before a run starts.

The hook is our own. The published plugin costs five seconds of import on every Kedro command, logs a
typed parameter group as one string, and keeps its run in MLflow's global state.
"""

from sleep_pipeline.tracking.active import active_run, active_sink, log_artifact, log_figure, night_sink

__all__ = ["active_run", "active_sink", "log_artifact", "log_figure", "night_sink"]
