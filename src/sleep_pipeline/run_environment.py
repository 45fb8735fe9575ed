"""What the present run was given (environment, parameters), for commands that its reports and errors tell people."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

_environment: str | None = None
_parameters: dict[str, str] = {}


def set_environment(name: str | None, parameters: Mapping[str, Any] | None = None) -> None:
    """Remember what the run that begins was given; None when it has ended, or was given none.

    Args:
        name: of its environment.
        parameters: of `--params`, nested as Kedro nests them.
    """
    global _environment, _parameters
    _environment = name
    _parameters = dict(_flat(parameters or {}))


def environment_option() -> str:
    """What a command needs to speak of the same life: ` --env=NAME`, or nothing."""
    return f" --env={_environment}" if _environment else ""


def night_command(night: int, from_node: str | None = None) -> str:
    """The command that runs a night as the present run was run: in its environment, with its parameters.

    Args:
        night: its number.
        from_node: that it begins with; None goes on where the night is.
    """
    given = {**_parameters, "night": str(night)}
    option = shlex.quote("--params=" + ",".join(f"{name}={given[name]}" for name in sorted(given, key="night".__ne__)))
    start = f" --from-nodes={from_node}" if from_node else ""
    return f"kedro run --pipelines=sleep {option}{environment_option()}{start}"


def _flat(parameters: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", str(value)
