"""Commands about DVC's view of the nights.

sleep-pipeline dvc render             write the nights' stages into dvc.yaml
sleep-pipeline dvc render --check     do they agree with the pipelines?
sleep-pipeline dvc ready --night 3    may a stage of night 3 run?
sleep-pipeline dvc restore            enter the nights that `dvc pull` has fetched into the register
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sleep_pipeline.cli_project import environment_option, project_root

if TYPE_CHECKING:
    from sleep_pipeline.registry import NightRegistry

WEEK = 7


@click.group(name="dvc")
def dvc() -> None:
    """Nights as stages of DVC."""


def _stages(project: Path) -> dict[str, Any]:
    from kedro.framework.project import pipelines
    from kedro.framework.startup import bootstrap_project

    from sleep_pipeline.configuration import config_loader
    from sleep_pipeline.tracking.dvc_stages import night_stages, parameter_files

    bootstrap_project(project)
    catalog = config_loader(project, "base", {"night": 1})["catalog"]
    return night_stages(dict(pipelines), catalog, parameter_files(project))


@dvc.command()
@click.option("--check", is_flag=True, help="Write nothing; end with status 1 if dvc.yaml is not what it would be.")
@click.option(
    "--nights", type=click.IntRange(min=1), default=WEEK, show_default=True, help="How many; 7 are in the bundled week."
)
def render(check: bool, nights: int) -> None:
    """Write the nights into dvc.yaml: a stage a phase and night, from the Kedro pipelines.

    `dvc repro evaluate@3` then lives the nights up to the third, as far as they are not lived yet; `dvc push` and
    `dvc pull` carry what they made. The stages of other pipelines stay as they are.

    What it cannot do: a night that is registered is never lived again, since the champion stands on it. If its inputs
    or parameters have changed, its stage is refused and its files stay; `dvc commit` accepts them as they are. DVC sees
    the days of the bundled week (day_1, day_2, ...) and conf/base, but no other files of the inbox, no settings of
    conf/local, and no rollback.
    """
    from sleep_pipeline.registry import write_atomically
    from sleep_pipeline.tracking.dvc_stages import StagesError, rendered

    project = project_root()
    path = project / "dvc.yaml"
    text = path.read_text(encoding="utf-8") if path.is_file() else "stages:\n"
    try:
        wanted = rendered(text, _stages(project), nights)
    except StagesError as error:
        raise click.ClickException(str(error)) from error
    if check:
        if wanted != text:
            raise click.ClickException(
                f"dvc.yaml is not what the pipelines make of it for {nights} nights: run `sleep-pipeline dvc render`"
            )
        click.echo("dvc.yaml agrees with the pipelines.")
        return
    if wanted != text:
        write_atomically(path, wanted)
    click.echo(f"dvc.yaml has {nights} nights.")


def _register_and_records(project: Path, env: str | None) -> tuple[NightRegistry, list[dict[str, Any]]]:
    """The register, and what every night whose reports are here told of itself when it was registered, in order."""
    from sleep_pipeline.configuration import config_loader, folder
    from sleep_pipeline.registry import NightRegistry

    # A night that is named keeps the configuration from asking the register which one comes next.
    loader = config_loader(project, env, {"night": 1})
    registry = NightRegistry(folder(project, loader, "models_folder"))
    records = []
    for path in sorted(folder(project, loader, "reporting_folder").glob("night_*/registered.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            records.append((int(record["number"]), record))
        except (KeyError, TypeError, ValueError) as error:
            raise click.ClickException(f"{path} is damaged ({error}): restore it with `dvc checkout`") from error
    return registry, [record for _, record in sorted(records, key=lambda numbered: numbered[0])]


@dvc.command()
@environment_option
def restore(env: str | None) -> None:
    """Enter the nights that `dvc pull` has fetched into the register, which is not under DVC.

    The register is made anew from the `registered.json` of every night; nights that it knows already stay as they are.
    A rollback is not carried over: the champion is the one that the last night told of.
    """
    from sleep_pipeline.night_lock import NightLock, NightLockError
    from sleep_pipeline.registry import RegistryError

    registry, records = _register_and_records(project_root(), env)
    if not records:
        raise click.ClickException("No night is here to be registered: fetch them with `dvc pull` first.")
    try:
        with NightLock(registry.folder):
            new = registry.restore(records)
    except (RegistryError, NightLockError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"Entered: {', '.join(f'night {number}' for number in new)}." if new else "Every night is known already."
    )


@dvc.command()
@click.option("--night", type=click.IntRange(min=1), required=True, help="The night whose stage is about to run.")
@environment_option
def ready(night: int, env: str | None) -> None:
    """End with status 1 if no stage of a night may run; stages begin with this.

    That is so if the night is registered, or if nights that were fetched are not: it would not grow from them.
    """
    from sleep_pipeline.registry import RegistryError

    registry, records = _register_and_records(project_root(), env)
    try:
        nights = registry.nights()
    except RegistryError as error:
        raise click.ClickException(str(error)) from error
    strangers = [str(record["number"]) for record in records if record["number"] not in nights]
    if strangers:
        raise click.ClickException(
            f"The files of night {', '.join(strangers)} are here, but {registry.path} does not know of them: run "
            "`sleep-pipeline dvc restore` first, or move them away"
        )
    if night in nights:
        raise click.ClickException(
            f"Night {night} is registered and is not lived again; its files are untouched. To finish one that was cut "
            f"short: kedro run --pipelines=sleep --params=night={night}. To accept it as it is: dvc commit. To live "
            "other nights: begin another life (globals: life)."
        )
