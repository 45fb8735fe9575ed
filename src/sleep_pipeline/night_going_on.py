"""What must still hold where a night goes on: its memories are in the folder, and its records are not later nights'.

Nodes whose outputs are there are left out, so a memory that was deleted since it was collected would be learned anyway.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleep_pipeline.datasets import FileDataset, PretrainedDataset
from sleep_pipeline.registry import BASE, NightRegistry, RegistryError
from sleep_pipeline.run_environment import environment_option, night_command

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

    from sleep_pipeline.memories.settings import CollectSettings

COLLECTS = "collect_memories_node"
_SUMMARY, _MEMORIES, _SETTINGS = "collect_summary", "memories", "params:collect"
_CHECKPOINT = "night_model"
_ENDS = frozenset({"decide_night_node", "register_night_node", "write_report_node"})
"""Nodes that compute nothing with the model; `register_night_node` rejects a night whose parent is live no more."""

_FINISH = frozenset({"register_night_node", "write_report_node"})
"""Nodes that a registered night may still lack; doing them again changes nothing that other nights stand on."""

_SHOWN = 3


class ChangedSinceError(ValueError):
    """What a night was collected from is not what it was."""


def nodes_to_run(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any], only_missing: bool) -> list[Node]:
    """The nodes that a run runs, in order.

    Args:
        pipeline: of the run.
        catalog: of the run.
        only_missing: whether nodes whose outputs are there are left out, by Kedro's own rule.
    """
    from kedro.runner.runner import _build_node_children_map, _determine_nodes_to_run

    nodes = list(pipeline.nodes)
    if not only_missing:
        return nodes
    quiet = logging.getLogger(__name__)
    runs = _determine_nodes_to_run(nodes[::-1], catalog, _build_node_children_map(pipeline), quiet)
    return [node for node in nodes if node in runs]


def check_records(registry: NightRegistry, night: int, runs: Iterable[Node]) -> None:
    """Make sure that nothing overwrites what a registered night left: later nights are asked and compared by it.

    Args:
        registry: of the life.
        night: its number.
        runs: the nodes that are to run.

    Raises:
        RegistryError: the night is registered, and a node would make its records anew, or reads its checkpoint, which
            is gone.
    """
    known = registry.nights().get(night)
    if known is None:
        return
    runs = list(runs)
    first = next((node for node in runs if node.outputs and node.name not in _FINISH), None)
    if first is not None:
        outputs = ", ".join(first.outputs)
        again = f"; its report alone is written again with `{night_command(night, 'write_report_node')}`"
        raise RegistryError(
            f"night {night} is registered, and {first.name} would make its {outputs} anew, by which later nights are "
            f"asked and compared: run its memories as night {registry.next_night()}, after `sleep-pipeline rollback"
            f"{environment_option()}` if it was promoted{'' if registry.lacks(known) else again}"
        )
    if any(_CHECKPOINT in node.inputs for node in runs):
        registry.checkpoint(night)


def with_what_follows(runs: Sequence[Node], whole: Pipeline) -> list[Node]:
    """The nodes that are done again and those that have read what they made, in order.

    A run of the rest of the night would otherwise find these done: it would register a model that was trained before
    the expert was trained anew, or learn from a memory that was taken back.

    Args:
        runs: the nodes of a run that does as it is told, in order.
        whole: the night that they are part of.
    """
    names = {node.name for node in whole.nodes}
    known = [node.name for node in runs if node.name in names]
    follows = whole.from_nodes(*known).nodes if known else []
    done = {node.name for node in runs}
    return [*runs, *(node for node in follows if node.name not in done)]


def clear_outputs(catalog: CatalogProtocol[Any, Any], runs: Sequence[Node]) -> None:
    """Remove what nodes that are done again made before, the last one's first.

    A run that is killed on its way would leave some of it behind, and the next one would take that for done: a memory
    that was taken back would be learned from lessons about it, though it was collected anew without it.
    """
    for node in reversed(runs):
        for name in node.outputs:
            dataset = catalog.get(name) if name in catalog else None
            if isinstance(dataset, FileDataset | PretrainedDataset):
                dataset.clear()


def check_collected(
    catalog: CatalogProtocol[Any, Any], registry: NightRegistry, night: int, folder: Path, runs: Iterable[str]
) -> tuple[str, ...]:
    """Make sure that a night that goes on has collected what is there, and grows from the night that it should.

    Files that are byte for byte as they were are not read again. A text or a conversation that has grown at its
    end, or has moved to another file, is there as it was.

    Args:
        catalog: of the run.
        registry: of the life.
        night: its number.
        folder: of the memories.
        runs: names of the nodes that are to run; where Collect is among them or none is, nothing is checked.

    Returns:
        Files that came since; what they hold waits for the next night.

    Raises:
        ChangedSinceError: a memory was deleted or edited, or another night is the champion now.
    """
    from sleep_pipeline.memories.settings import CollectSettings

    names = set(runs)
    if not names or COLLECTS in names or night in registry.nights():
        return ()
    if not all(name in catalog and catalog.exists(name) for name in (_SUMMARY, _MEMORIES)):
        return ()
    told = catalog.load(_SUMMARY)
    remedy = f"collect anew with `{night_command(night, COLLECTS)}`"
    champion = registry.champion()
    live = BASE if champion is None else champion.number
    if told.get("parent", live) != live and not names <= _ENDS:
        raise ChangedSinceError(
            f"night {night} was collected when night {told['parent']} was the champion, and that is night {live} now "
            f"(0 is the base model), which knows other memories: {remedy}"
        )
    # A pipeline whose nodes do not ask for these settings has them as they stand in the file.
    settings = CollectSettings.model_validate(catalog.load(_SETTINGS))
    gone, added = _compared(catalog.load(_MEMORIES), told.get("sources"), folder, settings)
    if gone:
        shown = ", ".join(gone[:_SHOWN]) + (f" and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else "")
        raise ChangedSinceError(
            f"{shown}: no longer what night {night} has collected there, since it was deleted or edited; so that the "
            f"night does not learn it, {remedy}"
        )
    return added


def _compared(
    memories: Any, sources: dict[str, str] | None, folder: Path, settings: CollectSettings
) -> tuple[list[str], tuple[str, ...]]:
    """Places of the memories that are gone, and files that came; nights of earlier releases do not tell `sources`."""
    from sleep_pipeline.memories.files import FileToRead, walk
    from sleep_pipeline.memories.reading import read_folder

    found = walk(folder, settings.max_depth, settings.outside_links)
    files = {item.source: item.path for item in found if isinstance(item, FileToRead)}
    was = sources or {}
    changed = {
        source
        for source in set(memories["source"])
        if source not in files or source not in was or _digest(files[source]) != was[source]
    }
    gone = memories[memories["source"].isin(changed)]
    # The changed files alone, which are few; only if a memory is not in them, it is looked for in all.
    for only in (changed, None):
        if len(gone) and folder.is_dir():
            there = _digests(read_folder(folder, settings, only).memories, set(gone["digest"]))
            gone = gone[~gone["digest"].isin(there)]
    places = [f"{source}:{line}" for source, line in zip(gone["source"], gone["line"], strict=True)]
    return places, () if sources is None else tuple(source for source in files if source not in was)


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _digests(memories: Iterable[Any], wanted: Collection[str]) -> set[str]:
    """Which of the digests are those of memories, or of their beginnings."""
    from sleep_pipeline.memories.records import digests_of_beginnings, digests_of_turns

    found: set[str] = set()
    for memory in memories:
        found.add(memory.digest)
        if memory.kind == "text" and memory.text is not None and memory.digest not in wanted:
            found.update(digests_of_beginnings(memory.text.split("\n")))
        elif memory.kind == "chat" and memory.digest not in wanted:
            found.update(digests_of_turns(memory.messages))
    return found & set(wanted)
