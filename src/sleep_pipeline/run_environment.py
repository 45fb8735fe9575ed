"""Which configuration environment the present run was given, for commands that its reports and errors tell people."""

from __future__ import annotations

_given: str | None = None


def set_environment(name: str | None) -> None:
    """Remember the environment of the run that begins; None when it has ended, or was given none."""
    global _given
    _given = name


def environment_option() -> str:
    """What a command needs to speak of the same life: ` --env=NAME`, or nothing."""
    return f" --env={_given}" if _given else ""
