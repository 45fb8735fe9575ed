"""The environment variables this project wants, in one place.

They switch off every tool's telemetry and a few noisy defaults. Tools read them when they are
imported, so `apply_defaults` runs first thing in `cli.py`, in `settings.py` and in `tests/conftest.py`, and Kedro calls
it before every command, wherever that is given (`kedro.init` in `pyproject.toml`).
"""

import os
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


def apply_defaults(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set every variable of `DEFAULTS` that the user has not set."""
    for name, value in DEFAULTS.items():
        environ.setdefault(name, value)
