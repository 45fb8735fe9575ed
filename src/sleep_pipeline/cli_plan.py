"""The command that says what the next night would do.

sleep-pipeline plan                                   the next night, or what is left of one that was cut short
sleep-pipeline plan --params=night=3,seeding.rows=32  as a run with these parameters would
sleep-pipeline plan --json                            for scripts
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sleep_pipeline.cli_project import environment_option, project_root

if TYPE_CHECKING:
    from sleep_pipeline.planning import Plan


def _parameters(context: click.Context, option: click.Parameter, value: str) -> dict[str, Any]:
    from kedro.framework.cli.utils import _split_params

    given: dict[str, Any] = _split_params(context, option, value)
    return given


def size_in_words(count: int | None) -> str:
    """Return a number of bytes for people."""
    if count is None:
        return "unknown"
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _lines(plan: Plan) -> Iterator[str]:
    """The plan for people."""
    from sleep_pipeline.cli_nights import name_of, printable

    yield f"night {plan.night}, from {name_of(plan.parent)}"
    yield ""
    width = max(len(node.name) for node in plan.nodes)
    for node in plan.nodes:
        time = f"about {_duration(node.seconds)}" if node.seconds is not None and not node.done else ""
        missing = "" if node.done else ", ".join(node.missing)
        yield f"{'done' if node.done else 'to do':<6} {node.name:<{width}}  {time:<12}  {missing}".rstrip()
    yield ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(plan.memories.new.items()))
    new = sum(plan.memories.new.values())
    when = "collected" if plan.memories.collected else "new in the folder"
    yield (
        f"{'memories':<12} {new} {when}{f' ({kinds})' if kinds else ''}; {plan.memories.quarantined} in quarantine; "
        f"{plan.memories.known} learned before"
    )
    if plan.memories.waiting:
        yield f"{'':<12} files for a later night, as the names of their folders day_N say: {plan.memories.waiting}"
    if plan.memories.left:
        yield f"{'':<12} new memories that wait for the next night (collect.at_most): {plan.memories.left}"
    for work in plan.work:
        amount = f"{'at most ' if work.at_most else ''}{work.amount:,}"
        yield f"{'work':<12} {work.node.removesuffix('_node')}: {amount} {work.what} = {work.how}"
    if plan.to_do:
        yield from _costs(plan)
    else:
        yield f"{'time':<12} none: everything is done"
    for problem in plan.problems:
        yield printable(f"{'problem':<12} {problem}")


def _costs(plan: Plan) -> Iterator[str]:
    needs = plan.needs
    # Before there is a night to judge by, its experts alone are known.
    least = "about" if plan.judged_by else "at least"
    yield f"{'disk':<12} {least} {size_in_words(needs.disk)}, {size_in_words(needs.disk_free)} free"
    yield (
        f"{'memory':<12} model {size_in_words(needs.base)}, experts {size_in_words(needs.experts)}, "
        f"copies that try dreams at most {size_in_words(needs.trials)}; {size_in_words(needs.memory_free)} free"
    )
    if plan.seconds is None:
        yield f"{'time':<12} no night to judge by yet"
    else:
        nights = "night" if len(plan.judged_by) == 1 else "nights"
        numbers = ", ".join(map(str, plan.judged_by))
        yield f"{'time':<12} about {_duration(plan.seconds)}, as {nights} {numbers} took, start-up aside"


@click.command()
@environment_option
@click.option("--params", default="", callback=_parameters, help="As of `kedro run`, such as night=3,model=PATH.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(env: str | None, params: dict[str, Any], as_json: bool) -> None:
    """Show what `kedro run --pipelines=sleep` would do now, without doing it.

    The night's number and parent, every node with what of it is missing, the memories that are new, and roughly what
    it takes. Numbers of work are what the settings allow; the time is that of the last three nights of this life.
    """
    from kedro.validation.exceptions import ParameterValidationError

    from sleep_pipeline.language_model import ModelLoadError
    from sleep_pipeline.night_lock import NightLockError
    from sleep_pipeline.planning import make_plan, open_project

    try:
        made = make_plan(*open_project(project_root(), env, params))
    except (NightLockError, ModelLoadError, ParameterValidationError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(asdict(made), indent=2))
        return
    for line in _lines(made):
        click.echo(line)
