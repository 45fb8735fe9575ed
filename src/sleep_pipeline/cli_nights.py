"""Commands about the nights so far: where the model comes from, and how to take a night back.

sleep-pipeline lineage                what grew from what, with scores and decisions
sleep-pipeline lineage --night 3      what night 3 learned, memory by memory
sleep-pipeline rollback               the previous champion is live again
sleep-pipeline rollback --to 3        night 3 is, from which the champion grew; 0 is the base model
sleep-pipeline rollback --env smoke   the same in the life of another environment
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sleep_pipeline.cli_project import environment_option, project_root

if TYPE_CHECKING:
    from kedro.config import OmegaConfigLoader

    from sleep_pipeline.registry import Night, NightRegistry

# Nights of earlier releases have `forgetting`, from the best score, in place of what the gate decides by now.
_SHOWN_SCORES = ("recall_gain", "accuracy", "forgetting_of_questions", "forgetting", "open_book")

_models = click.option(
    "--models",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder with registry.json, relative to the project; by default the models_folder of the environment.",
)


def _open(env: str | None, models: Path | None, night: int | None) -> tuple[Path, OmegaConfigLoader, NightRegistry]:
    """The project, its configuration in an environment as a run of a night has it, and the register of that life."""
    from sleep_pipeline.configuration import config_loader, folder
    from sleep_pipeline.registry import NightRegistry

    project = project_root()
    # A night that is named keeps the configuration from asking the register which one comes next.
    loader = config_loader(project, env, {"night": night or 1})
    return project, loader, NightRegistry(project / models if models else folder(project, loader, "models_folder"))


def printable(text: object) -> str:
    """Return text without what could steer a terminal; names of files are whatever somebody called them."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))


def name_of(number: int) -> str:
    """Return how a night, or the model before any, is called."""
    return f"night {number}" if number else "the base model"


def _scores(night: Night) -> str:
    names = [name for name in _SHOWN_SCORES if name in night.scores] or list(night.scores)[:4]
    shown = []
    for name in names:
        value = night.scores[name]
        shown.append(f"{name} {'-' if value is None or not math.isfinite(value) else f'{value:.3f}'}")
    return ", ".join(shown)


def _verdict(night: Night) -> str:
    failed = [check for check in night.decision.get("checks", ()) if not check["passed"]]
    if night.status == "rejected":
        return "rejected" + (f": {failed[0]['reason']}" if failed else "")
    if not night.decision:
        return "not decided"
    return "passed the gate" if night.decision.get("promote") else "did not pass the gate"


def _describe(registry: NightRegistry, night: Night, names: Sequence[str]) -> str:
    marks = f" [{', '.join(names)}]" if names else ""
    count = len(night.memories)
    parts = [
        f"night {night.number}{marks} from {name_of(night.parent)}",
        _scores(night),
        f"{count} {'memory' if count == 1 else 'memories'}",
        _verdict(night),
        "pruned" if registry.lacks(night) else "",
    ]
    return printable("; ".join(part for part in parts if part))


def tree(registry: NightRegistry) -> Iterator[str]:
    """Yield the lines of the tree of nights: the champion's line runs straight down, branches stand to its right."""
    from sleep_pipeline.registry import BASE, roots_and_children

    aliases = registry.aliases()
    children = roots_and_children(registry.nights().values())
    live = {night.number for night in registry.lineage()}

    def marks(number: int) -> Sequence[str]:
        return sorted(alias for alias, at in aliases.items() if at == number)

    base = marks(BASE) if "champion" in aliases else ["champion"]
    yield "base model" + (f" [{', '.join(base)}]" if base else "")

    def below(number: int, indent: str) -> Iterator[str]:
        while grown := children.get(number):
            *branches, main = sorted(grown, key=lambda night: (night.number in live, night.number))
            for branch in branches:
                yield f"{indent}|  +- {_describe(registry, branch, marks(branch.number))}"
                yield from below(branch.number, f"{indent}|  ")
            yield f"{indent}+- {_describe(registry, main, marks(main.number))}"
            number = main.number

    yield from below(BASE, "")


def learned_memories(path: Path, night: Night) -> list[dict[str, Any]]:
    """Return digest, kind, source and line of every memory that a night learned.

    Source and line are None where the night's table of memories, `path`, is gone or does not know the memory.
    """
    rows: dict[str, dict[str, Any]] = {}
    if path.is_file():
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]

        present = set(parquet.read_schema(path).names)
        columns = [name for name in ("digest", "kind", "source", "line") if name in present]
        rows = {row["digest"]: row for row in parquet.read_table(path, columns=columns).to_pylist() if "digest" in row}
    empty = {"kind": None, "source": None, "line": None}
    return [{"digest": digest, **empty, **rows.get(digest, {})} for digest in night.memories]


def _place(memory: dict[str, Any]) -> str:
    if memory["source"] is None:
        return f"{memory['digest']} (its row in memories.parquet is gone)"
    return f"{memory['source']}:{memory['line']}" + (f" ({memory['kind']})" if memory["kind"] else "")


@click.command()
@click.option("--night", type=click.IntRange(min=1), default=None, help="Show what this night learned.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@environment_option
@_models
def lineage(night: int | None, as_json: bool, env: str | None, models: Path | None) -> None:
    """Show which night grew from which, with scores, decisions and what is live.

    With --night, also every memory that this night learned, with its file and line.
    """
    from sleep_pipeline.configuration import folder
    from sleep_pipeline.registry import RegistryError

    project, loader, registry = _open(env, models, night)
    try:
        nights = registry.nights() if night is None else {each.number: each for each in registry.lineage(night)}
        record: dict[str, Any] = {
            "aliases": registry.aliases(),
            "nights": [asdict(each) for each in nights.values()],
        }
        memories = [] if night is None else learned_memories(folder(project, loader, "memories"), nights[night])
        if night is not None:
            record["memories"] = memories
        if as_json:
            click.echo(json.dumps(record, indent=2))
            return
        if not nights:
            click.echo("No night yet: the base model is live.")
            return
        if night is None:
            for line in tree(registry):
                click.echo(line)
            return
        names = sorted(alias for alias, at in registry.aliases().items() if at == night)
        click.echo(" -> ".join(["base model", *(f"night {number}" for number in nights)]))
        click.echo(_describe(registry, nights[night], names))
        for check in nights[night].decision.get("checks", ()):
            click.echo(printable(f"  {'passed' if check['passed'] else 'FAILED'}  {check['reason']}"))
        click.echo(f"learned {len(memories)} {'memory' if len(memories) == 1 else 'memories'}:")
        for memory in memories:
            click.echo(printable(f"  {_place(memory)}"))
    except RegistryError as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.option("--to", type=click.IntRange(min=0), default=None, help="A night before the champion; 0 is the base.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@environment_option
@_models
def rollback(to: int | None, yes: bool, env: str | None, models: Path | None) -> None:
    """Swap the champion and the previous champion, or go back to any night before; again swaps them back.

    What only the old champion knew counts as new and is learned again by the next night.
    """
    from sleep_pipeline.night_lock import NightLock, NightLockError
    from sleep_pipeline.registry import BASE, RegistryError

    project, _, registry = _open(env, models, None)
    try:
        aliases = registry.aliases()
        before, after = aliases.get("champion", BASE), registry.rollback_target(to)
        if after != BASE:
            registry.checkpoint(after)
        known = {digest for night in registry.lineage(after) for digest in night.memories}
        lost = len(registry.known_memories() - known)
        click.echo(
            f"{printable(registry.folder)}: {name_of(before)} -> {name_of(after)}; "
            f"{lost} {'memory' if lost == 1 else 'memories'} will be new."
        )
        if not yes:
            click.confirm("Roll back?", abort=True)
        with NightLock(registry.folder):
            if registry.aliases() != aliases:
                raise click.ClickException("The register changed meanwhile: look at it again, then repeat.")
            live = registry.rollback(to)
    except (RegistryError, NightLockError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{name_of(live.number if live else BASE)} is live.")
    _mirror(project, registry, env, named=models is not None)


def _mirror(project: Path, registry: NightRegistry, env: str | None, named: bool) -> None:
    """Show the register in MLflow; of a folder that was named it is not known which environment's nights it holds."""
    from sleep_pipeline.cli import tracking_config

    config = tracking_config(project, env)
    if not config.enabled:
        return
    if named:
        click.echo("MLflow shows it after the next night of its environment; with --env alone, at once.")
        return
    from sleep_pipeline.tracking.registry import mirror

    mirror(registry, config, env or "base")
