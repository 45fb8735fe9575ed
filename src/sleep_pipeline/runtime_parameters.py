"""Refuses `--params` that nothing reads, before anything runs.

Kedro merges every runtime parameter into the configuration, so a misspelt name would be ignored in
silence. Names inside a group (`pretrain.stpes`) are checked by the group's pydantic model, which
forbids extra fields; this hook checks the first part of the name (`pretrian.steps`).
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import click
from kedro.config import OmegaConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl

_RUNTIME_REFERENCE = re.compile(r"\$\{\s*runtime_params\s*:\s*([A-Za-z_]\w*)")
_SUFFIXES = {".yml", ".yaml", ".json"}


class UnknownParameterError(click.ClickException, ValueError):
    """A runtime parameter that no configuration file knows; Click prints it without a traceback."""


def _configuration_files(conf_source: Path, environments: Iterable[str]) -> Iterator[Path]:
    for environment in dict.fromkeys(environments):
        folder = conf_source / environment
        for path in sorted(folder.rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file():
                yield path


def known_parameter_names(conf_source: Path, environments: Iterable[str]) -> set[str]:
    """Return the top-level parameter names of the configuration below `conf_source`.

    A name is known when a `parameters*` file defines it, or when any file of these environments reads it
    through `${runtime_params:NAME,...}`.
    """
    import yaml

    names: set[str] = set()
    for path in _configuration_files(conf_source, environments):
        text = path.read_text(encoding="utf-8")
        names.update(_RUNTIME_REFERENCE.findall(text))
        if any(part.startswith("parameters") for part in path.relative_to(conf_source).parts):
            content = yaml.safe_load(text)
            if isinstance(content, dict):
                names.update(str(name) for name in content)
    return names


def check_names(given: Mapping[str, Any], known: set[str]) -> None:
    """Raise `UnknownParameterError` for the first name of `given` that is not in `known`."""
    for name in given:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(sorted(known)) or 'none'}."
        raise UnknownParameterError(f"Unknown parameter {name!r} in --params: {remedy}")


class ParameterNamesHook:
    """Kedro hook that runs `check_names` as soon as the configuration of a run is known."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Check the runtime parameters of `context`."""
        loader = cast(OmegaConfigLoader, context.config_loader)
        given = loader.runtime_params or {}
        if not given:
            return
        environments = [loader.base_env, loader.env or loader.default_run_env]
        check_names(given, known_parameter_names(Path(loader.conf_source), environments))
