"""The command that frees the disk of what no later night and no report needs.

sleep-pipeline prune --dry-run     what may go, and how much that is
sleep-pipeline prune               models on the way to a checkpoint, and checkpoints of rejected nights
sleep-pipeline prune --keep 5      and all but the last five checkpoints of the champion's line
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sleep_pipeline.cli_project import environment_option, project_root

if TYPE_CHECKING:
    from sleep_pipeline.pruning import Pruning
    from sleep_pipeline.registry import NightRegistry

_INTERMEDIATE = {"seeded_model": "seeded model", "dreamer": "dreamer", "seed_progress_folder": "progress"}


def _life(project: Path, env: str | None) -> tuple[NightRegistry, Path, dict[str, Path]]:
    """The register of an environment's life, its reports, and the folders of its models on the way."""
    from sleep_pipeline.configuration import config_loader, folder
    from sleep_pipeline.registry import NightRegistry

    # A night that is named keeps the configuration from asking the register which one comes next.
    loader = config_loader(project, env, {"night": 1})
    registry = NightRegistry(folder(project, loader, "models_folder"))
    intermediate = {what: folder(project, loader, name).parent for name, what in _INTERMEDIATE.items()}
    return registry, folder(project, loader, "reporting_folder"), intermediate


def _list(numbers: tuple[int, ...]) -> str:
    return ("night " if len(numbers) == 1 else "nights ") + ", ".join(map(str, numbers))


def _lines(pruning: Pruning, project: Path) -> Iterator[str]:
    """What goes and what is given up, for people."""
    from sleep_pipeline.cli_nights import printable
    from sleep_pipeline.cli_plan import size_in_words

    rows = [
        (f"night {removal.night}", removal.what, size_in_words(removal.size), _shown(removal.path, project))
        for removal in pruning.removals
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    for night, what, size, path in rows:
        yield printable(f"{night:<{widths[0]}}  {what:<{widths[1]}}  {size:>{widths[2]}}  {path}")
    if pruning.rollbacks:
        yield f"given up: to roll back to {_list(pruning.rollbacks)}"
    if pruning.checkpoints:
        yield f"given up: to ask the model of {_list(pruning.checkpoints)}"
        yield f"given up: to write the report of {_list(pruning.checkpoints)} again, which stays as it is"
    if pruning.unfinished:
        yield f"{_list(pruning.unfinished)} without a report: nothing of it is touched"
    if rows and _in_dvc(pruning, project):
        yield (
            "dvc.lock names some of it: `dvc repro --allow-missing` goes on without, `dvc checkout` brings back what "
            "DVC's cache has, and `dvc gc` frees that"
        )


def _shown(path: Path, project: Path) -> str:
    return path.relative_to(project).as_posix() if path.is_relative_to(project) else str(path)


def _in_dvc(pruning: Pruning, project: Path) -> bool:
    lock = project / "dvc.lock"
    text = lock.read_text(encoding="utf-8") if lock.is_file() else ""
    return any(f"path: {_shown(removal.path, project)}\n" in text for removal in pruning.removals)


@click.command()
@click.option(
    "--keep", type=click.IntRange(min=1), default=None, help="Keep this many checkpoints of the champion's line."
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@environment_option
def prune(keep: int | None, dry_run: bool, yes: bool, env: str | None) -> None:
    """Remove models that no later night and no report needs.

    These are the models on the way to the checkpoint of a finished night and the checkpoints of rejected nights; with
    --keep also those of the champion's line but for the latest, itself among them. Memories, contexts, probes, metrics
    and reports stay, and so do nights that were rolled back. A night that has lost its checkpoint can be asked no more,
    nor be rolled back to, nor can its report be written again.
    """
    from sleep_pipeline.cli_plan import size_in_words
    from sleep_pipeline.night_lock import NightLock, NightLockError
    from sleep_pipeline.pruning import find
    from sleep_pipeline.pruning import prune as remove
    from sleep_pipeline.registry import RegistryError

    project = project_root()
    life = _life(project, env)
    registry = life[0]
    lock = NightLock(registry.folder)
    try:
        lock.check()
        found = find(*life, keep)
        for line in _lines(found, project):
            click.echo(line)
        if dry_run or not found.removals:
            click.echo(f"{size_in_words(found.size)} would be freed." if found.removals else "Nothing to remove.")
            return
        if not yes:
            click.confirm(f"Remove {size_in_words(found.size)}?", abort=True)
        with lock:
            if find(*life, keep) != found:
                raise click.ClickException("The life changed meanwhile: look at it again, then repeat.")
            remove(registry, found)
    except (RegistryError, NightLockError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{size_in_words(found.size)} freed.")
