"""The configuration of the project as commands read it that run no pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedro.config import OmegaConfigLoader


def config_loader(project: Path, env: str | None, runtime_params: Mapping[str, Any] | None = None) -> OmegaConfigLoader:
    """Return what a run in the environment `env` with these `--params` would be configured by."""
    from kedro.config import OmegaConfigLoader

    from sleep_pipeline.settings import CONFIG_LOADER_ARGS

    given = dict(runtime_params or {})
    return OmegaConfigLoader(conf_source=str(project / "conf"), env=env, runtime_params=given, **CONFIG_LOADER_ARGS)


def folder(project: Path, loader: OmegaConfigLoader, name: str) -> Path:
    """Return where the catalog's data set `name` lies."""
    return project / loader["catalog"][name]["filepath"]
