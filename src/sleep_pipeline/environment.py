"""The environment variables this project wants, in one place.

They switch off every tool's telemetry and a few noisy defaults. Tools read them when they are
imported, so `apply_defaults` runs first thing in `cli.py`, in `settings.py` and in `tests/conftest.py`, and Kedro calls
it before every command, wherever that is given (`kedro.init` in `pyproject.toml`).
"""

import os
import sys
from collections.abc import MutableMapping

DEFAULTS: dict[str, str] = {
    # MLflow compares with "true"; every other reader of DO_NOT_TRACK is content with any text.
    "DO_NOT_TRACK": "true",
    "KEDRO_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # By default Ray's workers give way to whatever else runs, and a busy machine then never lets them start.
    "RAY_worker_niceness": "0",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    # Forked data loaders deadlock behind the tokenizers' thread pool.
    "TOKENIZERS_PARALLELISM": "false",
}

TELEMETRY_SWITCHES: tuple[str, ...] = (
    "DO_NOT_TRACK",
    "KEDRO_DISABLE_TELEMETRY",
    "MLFLOW_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_TELEMETRY",
    "DVC_NO_ANALYTICS",
    "GX_ANALYTICS_ENABLED",
    "RAY_USAGE_STATS_ENABLED",
    "VLLM_NO_USAGE_STATS",
)


QUIET: dict[str, str] = {
    # Of transformers, too, which draws one for every model that it loads.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""What is set besides where nobody watches: a bar that is written into a file is noise."""


def apply_defaults(environ: MutableMapping[str, str] = os.environ, *, watched: bool | None = None) -> None:
    """Set every variable of `DEFAULTS` that the user has not set, and of `QUIET` if nobody watches.

    Args:
        environ: the variables.
        watched: whether standard error is a terminal; by default it is looked at.
    """
    if watched is None:
        watched = sys.stderr is not None and sys.stderr.isatty()
    for name, value in (DEFAULTS if watched else DEFAULTS | QUIET).items():
        environ.setdefault(name, value)
