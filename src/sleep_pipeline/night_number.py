"""Which night a run is about; read by the configuration, so nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sleep_pipeline.registry import NightRegistry


def project_folder() -> Path:
    """The Kedro project around the working directory, or the one that this package was installed from."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "conf").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    return Path(__file__).resolve().parents[2]


def next_number(registry: NightRegistry, reporting_folder: Path) -> int:
    """The night after the last one that was registered, or that one if it ended before its report was written."""
    following = registry.next_night()
    reports = reporting_folder / folder_of(following - 1)
    unfinished = (reports / "metrics.json").exists() and not (reports / "report.html").exists()
    return following - 1 if following > 1 and unfinished else following


def night_number(life: str, asked: int | str | None) -> int:
    """The night that was asked for, or the next one of a life; see `next_number`.

    Raises:
        ValueError: what was asked for is no night.
    """
    if asked in (None, "null", ""):
        from sleep_pipeline.registry import NightRegistry

        data = project_folder() / "data"
        return next_number(NightRegistry(data / "06_models" / str(life)), data / "08_reporting" / str(life))
    number = int(asked) if str(asked).isdigit() else 0
    if number < 1:
        raise ValueError(f"night={asked!r} is no night; nights are counted from 1")
    return number


def check_turn(registry: NightRegistry, night: int) -> None:
    """Make sure that a night could be registered, or is: numbers ascend, though they may leave some out.

    Raises:
        RegistryError: a later night is registered, and this one is not.
    """
    from sleep_pipeline.registry import RegistryError

    following = registry.next_night()
    if night < following and night not in registry.nights():
        raise RegistryError(
            f"night {night} would be refused in the end, since night {following - 1} is registered: run it as night "
            f"{following}"
        )


def night_folder(life: str, asked: int | str | None) -> str:
    """Name of a night's folder in every layer of the data."""
    return folder_of(night_number(life, asked))


def folder_of(night: int) -> str:
    """Name of the folder of a night."""
    return f"night_{night:03d}"
