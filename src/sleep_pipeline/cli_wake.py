"""The command that talks with the model of a night, side by side with the model before that night.

sleep-pipeline wake                                      the champion and its parent
sleep-pipeline wake --night 3                            night 3 and the night that it grew from
sleep-pipeline wake --question "Where does Mira work?"   one question, for scripts
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from sleep_pipeline.cli_project import environment_option, project_root

if TYPE_CHECKING:
    from sleep_pipeline.waking import Awake

_LEAVE = frozenset({"exit", "quit"})


def _lines(label: str, width: int, reply: str) -> Iterator[str]:
    """A reply beside its label, further lines below the first."""
    from sleep_pipeline.cli_nights import printable

    for number, line in enumerate(reply.splitlines() or [""]):
        yield f"{'' if number else label:<{width}}  {printable(line)}"


def _answer(awake: Awake, question: str, max_new_tokens: int) -> None:
    width = max(len(side.label) for side in awake.sides)
    try:
        answers = awake.answers(question, max_new_tokens)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    for side, reply in zip(awake.sides, answers, strict=True):
        for line in _lines(side.label, width, reply):
            click.echo(line)


def _hush() -> None:
    """Keep bars and warnings meant for programmers out of the talk."""
    import warnings

    from transformers.utils import logging

    warnings.simplefilter("ignore", FutureWarning)
    logging.disable_progress_bar()


def _load(night: int | None, env: str | None) -> Awake:
    from sleep_pipeline.configuration import config_loader, folder
    from sleep_pipeline.language_model import ModelLoadError
    from sleep_pipeline.night_model import MachineSettings, MemorySettings
    from sleep_pipeline.registry import NightRegistry, RegistryError
    from sleep_pipeline.waking import wake_base, wake_night

    _hush()
    project = project_root()
    # A night that is named keeps the configuration from asking the register which one comes next.
    loader = config_loader(project, env, {"night": night or 1})
    parameters = loader["parameters"]
    try:
        machine = MachineSettings.model_validate(parameters["machine"])
        registry = NightRegistry(folder(project, loader, "models_folder"))
        champion = registry.champion()
        if night is None and champion is not None:
            night = champion.number
        if night is not None:
            awake = wake_night(registry, night, machine)
            if len(awake.sides) == 1:
                click.echo(f"The night before it was pruned, so night {night} answers alone.", err=True)
            return awake
        click.echo(
            "No night is live, so the base model answers alone; --night N asks a night that was rejected.", err=True
        )
        return wake_base(parameters["model"], machine, MemorySettings.model_validate(parameters["memory"]))
    except (RegistryError, ModelLoadError, ValueError) as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.option("--night", type=click.IntRange(min=1), default=None, help="The night to ask; by default the champion.")
@environment_option
@click.option("--question", default=None, help="Ask this and end.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Where an answer is cut."
)
def wake(night: int | None, env: str | None, question: str | None, max_new_tokens: int) -> None:
    """Ask the model of a night, and the model that it grew from, the same questions.

    Every question stands alone: neither the memories nor what was said before is in the context, so the answers come
    from the weights. An empty line is passed over; exit, quit or the end of the input ends the talk.
    """
    if question is not None and not question.strip():
        raise click.BadParameter("the question is empty", param_hint="--question")
    awake = _load(night, env)
    if question is not None:
        _answer(awake, question, max_new_tokens)
        return
    while True:
        try:
            asked = click.prompt("", default="", show_default=False, prompt_suffix="> ").strip()
        except click.Abort:
            click.echo()
            return
        if asked.casefold() in _LEAVE:
            return
        if asked:
            _answer(awake, asked, max_new_tokens)
