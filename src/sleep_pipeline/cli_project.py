"""What every command of `sleep-pipeline` needs: the project around the working directory, and its environment."""

from __future__ import annotations

from pathlib import Path

import click

from sleep_pipeline.run_environment import set_environment


def project_root() -> Path:
    """Return the Kedro project around the working directory.

    Raises:
        click.ClickException: there is none.
    """
    from kedro.utils import find_kedro_project

    found = find_kedro_project(Path.cwd())
    if found is None:
        raise click.ClickException(
            f"{Path.cwd()} lies in no Kedro project: change into the folder with pyproject.toml and conf/."
        )
    return Path(found)


def _existing(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse an environment that has no folder: Kedro would end in a traceback, or never look.

    Remedies that errors name speak of this environment from here on.
    """
    set_environment(value)
    if value is None:
        return None
    conf = project_root() / "conf"
    if not (conf / value).is_dir():
        known = sorted(folder.name for folder in conf.iterdir() if folder.is_dir())
        raise click.BadParameter(f"{conf} has no environment {value!r}; choose one of {', '.join(known)}")
    return value


environment_option = click.option(
    "--env", "-e", envvar="KEDRO_ENV", default=None, callback=_existing, help="Configuration environment."
)
"""`--env` of the commands that look at one environment of the project."""
