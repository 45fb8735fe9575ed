"""The command `sleep-pipeline`: Kedro's own commands for this project, and those that Kedro lacks.

    sleep-pipeline run --pipelines=pretrain      is `kedro run --pipelines=pretrain`
    sleep-pipeline doctor                        can this machine run a night?
    sleep-pipeline ui                            look at the recorded runs
    sleep-pipeline plan                          what would the next night do?
    sleep-pipeline lineage                       which night grew from which
    sleep-pipeline rollback                      take the last night back
    sleep-pipeline prune                         free the disk of models that nothing needs any more
    sleep-pipeline dvc render                    the nights as stages of DVC
    sleep-pipeline dvc restore                   nights that dvc pull fetched, back into the register
    sleep-pipeline wake                          talk with the model of a night, and with the one before it

Kedro finds the group `cli` by its name and module, so `kedro doctor` works as well.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sleep_pipeline.cli_dvc import dvc
from sleep_pipeline.cli_nights import lineage, rollback
from sleep_pipeline.cli_plan import plan
from sleep_pipeline.cli_project import environment_option, project_root
from sleep_pipeline.cli_prune import prune
from sleep_pipeline.cli_wake import wake
from sleep_pipeline.environment import apply_defaults

if TYPE_CHECKING:
    from sleep_pipeline.tracking.config import TrackingConfig

apply_defaults()


@click.group(name="sleep-pipeline")
def cli() -> None:
    """What this project adds to Kedro."""


cli.add_command(dvc)
cli.add_command(lineage)
cli.add_command(rollback)
cli.add_command(prune)
cli.add_command(plan)
cli.add_command(wake)


def tracking_config(project: Path, env: str | None) -> "TrackingConfig":
    """Read where the runs of `project` are recorded when run in the environment `env`."""
    from sleep_pipeline.configuration import config_loader
    from sleep_pipeline.tracking.hooks import load_config

    return load_config(config_loader(project, env), project)


@cli.command()
@environment_option
def doctor(env: str | None) -> None:
    """Say whether this machine can run a night.

    Prints versions, cores, memory, device, tracking and telemetry; ends with status 1 if something that
    a night needs is missing.
    """
    from sleep_pipeline.doctor import examine

    project = project_root()
    config = tracking_config(project, env)
    missing = 0
    for finding in examine(project, config.shown_uri if config.enabled else "off"):
        line = f"{finding.topic:<20} {finding.value}"
        if finding.remedy:
            missing += 1
            line += click.style(f"  <- {finding.remedy}", fg="red")
        click.echo(line)
    if missing:
        raise click.ClickException(f"{missing} of the things a night needs {'is' if missing == 1 else 'are'} missing.")


def port_is_free(host: str, port: int) -> bool:
    """Return whether a server could listen on `host`:`port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def server_command(host: str, port: int) -> list[str]:
    """Return the command line of an MLflow server.

    Its store stands in the environment (`MLFLOW_BACKEND_STORE_URI`): addresses can hold passwords, and everybody on the
    machine sees command lines.
    """
    options = {"--host": host, "--port": str(port), "--workers": "1"}
    return [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)]


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@environment_option
def ui(host: str, port: int, env: str | None) -> None:
    """Open the recorded runs in MLflow's user interface; Ctrl-C ends it."""
    config = tracking_config(project_root(), env)
    if config.tracking_uri.startswith(("http://", "https://")):
        raise click.ClickException(f"Runs go to a server: open {config.shown_uri} in a browser.")
    if not port_is_free(host, port):
        raise click.ClickException(f"Port {port} of {host} is taken: choose another with --port.")
    from sleep_pipeline.tracking.database import open_client

    open_client(config)
    click.echo(f"http://{host}:{port} shows {config.shown_uri} (it takes about 20 s to come up)")
    try:
        store = {"MLFLOW_BACKEND_STORE_URI": config.tracking_uri}
        sys.exit(subprocess.call(server_command(host, port), env={**os.environ, **store}))
    except KeyboardInterrupt:
        sys.exit(0)


def main() -> None:
    """Run a command of Kedro or of `cli` on the project around the working directory."""
    try:
        project = project_root()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    # Kedro looks for the file in the working directory only, and when it is imported.
    logging_config = project / "conf" / "logging.yml"
    if logging_config.is_file():
        os.environ.setdefault("KEDRO_LOGGING_CONFIG", str(logging_config))
    from kedro.framework.cli import main as kedro_main

    kedro_main()
