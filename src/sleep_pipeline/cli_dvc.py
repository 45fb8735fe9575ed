"""Commands about DVC's view of the nights.

sleep-pipeline dvc render             write the nights' stages into dvc.yaml
sleep-pipeline dvc render --check     do they agree with the pipelines?
sleep-pipeline dvc ready --night 3    may a stage of night 3 run?
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

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
    from sleep_pipeline.cli import project_root
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


@dvc.command()
@click.option("--night", type=click.IntRange(min=1), required=True, help="The night whose stage is about to run.")
@click.option("--env", "-e", envvar="KEDRO_ENV", default=None, help="Configuration environment.")
def ready(night: int, env: str | None) -> None:
    """End with status 1 if a night is registered, since then no stage of it may run again; stages begin with this."""
    from sleep_pipeline.cli import project_root
    from sleep_pipeline.configuration import config_loader, folder
    from sleep_pipeline.registry import NightRegistry, RegistryError

    project = project_root()
    registry = NightRegistry(folder(project, config_loader(project, env), "models_folder"))
    try:
        registered = night in registry.nights()
    except RegistryError as error:
        raise click.ClickException(str(error)) from error
    if registered:
        raise click.ClickException(
            f"Night {night} is registered and is not lived again; its files are untouched. To finish one that was cut "
            f"short: kedro run --pipelines=sleep --params=night={night}. To accept it as it is: dvc commit. To live "
            "other nights: begin another life (globals: life)."
        )
