"""Refuses `--params`, and groups in the files of an environment, that nothing reads, before anything runs.

Kedro merges every runtime parameter into the configuration, so a misspelt name would be ignored in
silence. Names inside a group (`pretrain.stpes`) are checked by the group's pydantic model, which
forbids extra fields; this hook checks the first part of the name (`pretrian.steps`). The same holds for files:
an environment changes what `conf/base` has, and `evaluate:` in place of `evaluation:` would change nothing.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

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
    names = {name for _, defined in _defined(conf_source, environments) for name in defined}
    for path in _configuration_files(conf_source, environments):
        names.update(_RUNTIME_REFERENCE.findall(path.read_text(encoding="utf-8")))
    return names


def _defined(conf_source: Path, environments: Iterable[str]) -> Iterator[tuple[Path, list[str]]]:
    """The parameter files of these environments with the top-level names that each defines."""
    import yaml

    for path in _configuration_files(conf_source, environments):
        if any(part.startswith("parameters") for part in path.relative_to(conf_source).parts):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            yield path, [str(name) for name in content] if isinstance(content, dict) else []


def check_names(given: Iterable[str], known: set[str], place: str = "--params") -> None:
    """Raise `UnknownParameterError` for the first name of `given`, which stands in `place`, that is not in `known`."""
    for name in given:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(sorted(known)) or 'none'}."
        raise UnknownParameterError(f"Unknown parameter {name!r} in {place}: {remedy}")


def check_groups(conf_source: Path, base: str, environment: str) -> None:
    """Check an environment's parameters against those of the base; names that begin with `_` are for interpolation.

    Raises:
        UnknownParameterError: the environment gives a parameter that the base does not have.
    """
    known = known_parameter_names(conf_source, [base])
    for path, names in _defined(conf_source, [environment] if environment != base else []):
        check_names((name for name in names if not name.startswith("_")), known, str(path))


class ParameterNamesHook:
    """Kedro hook that runs `check_names` as soon as the configuration of a run is known."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Check the runtime parameters of `context`, and the groups in the files of its environment."""
        loader = cast(OmegaConfigLoader, context.config_loader)
        conf, environment = Path(loader.conf_source), loader.env or loader.default_run_env
        check_groups(conf, loader.base_env, environment)
        if given := loader.runtime_params or {}:
            check_names(given, known_parameter_names(conf, [loader.base_env, environment]))
