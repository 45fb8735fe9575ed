"""What a night would do if it began now, without doing any of it."""

from __future__ import annotations

import json
import shutil
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleep_pipeline.datasets import PretrainedDataset
from sleep_pipeline.dreaming.settings import DREAMER
from sleep_pipeline.night_going_on import ChangedSinceError, check_collected, check_records, nodes_to_run
from sleep_pipeline.night_hook import NightRoomError, check_ancestors, check_judge, check_register, check_room
from sleep_pipeline.night_lock import NightLock
from sleep_pipeline.night_number import check_turn, folder_of
from sleep_pipeline.night_questions import too_few_questions
from sleep_pipeline.planned_work import Needs, Settings, Work, needs_of, work_of
from sleep_pipeline.registry import BASE, NightRegistry, RegistryError

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline import Pipeline

PIPELINE = "sleep"
LOOK_BACK = 3
"""Nights by which the time is judged."""

_TIMED = {
    "sample_lessons_node": ("sampling", "beliefs", "open book"),
    "train_expert_node": ("training",),
    "dream_night_node": ("dreaming",),
    "refine_expert_node": ("refining",),
    "evaluate_night_node": ("evaluating",),
}
"""Which of the `seconds` in a night's metrics belong to which node."""


@dataclass(frozen=True)
class NodePlan:
    """One node of the night.

    Attributes:
        name: the node's.
        done: whether all its outputs are there, so that the run leaves it out.
        missing: outputs that are not there.
        seconds: what it took on the last nights; None if that is not known.
    """

    name: str
    done: bool
    missing: tuple[str, ...]
    seconds: float | None


@dataclass(frozen=True)
class Memories:
    """What the night learns.

    Attributes:
        new: by kind.
        quarantined: left out, with a reason.
        known: learned by the champion and its ancestors.
        collected: whether this night has collected already; otherwise the folder was read, and the checks of
            Collect may yet leave some out.
        waiting: files whose memories are for a later night, by the number in the name of their folder.
        left: new memories beyond `collect.at_most`, which wait for the next night.
    """

    new: Mapping[str, int]
    quarantined: int
    known: int
    collected: bool
    waiting: int = 0
    left: int = 0


@dataclass(frozen=True)
class Plan:
    """A night before it begins.

    Attributes:
        night: its number.
        parent: the night it grows from; `BASE` for the model before any.
        nodes: in the order in which they run.
        memories: see `Memories`.
        work: how much the nodes that are to do would compute.
        needs: bytes on the disk and in memory.
        seconds: how long the nodes that are to do took on the last nights; None without any.
        judged_by: those nights.
        problems: why the night would not end well as things stand.
    """

    night: int
    parent: int
    nodes: tuple[NodePlan, ...]
    memories: Memories
    work: tuple[Work, ...]
    needs: Needs
    seconds: float | None
    judged_by: tuple[int, ...]
    problems: tuple[str, ...]

    @property
    def to_do(self) -> tuple[NodePlan, ...]:
        """The nodes that the run would run."""
        return tuple(node for node in self.nodes if not node.done)


def open_project(
    project: Path, env: str | None, params: Mapping[str, Any]
) -> tuple[Pipeline, CatalogProtocol[Any, Any]]:
    """Return the pipeline and the catalog of a run, its parameters checked as a run checks them.

    Raises:
        click.ClickException: a parameter has an unknown name.
        ValueError: a parameter has a wrong value.
    """
    from kedro.framework.project import pipelines
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(project)
    with KedroSession.create(project, env=env, runtime_params=dict(params)) as session:
        pipelines.set_requested([PIPELINE])
        try:
            assert isinstance(session, KedroSession)
            context = session.load_context()
            # As a run does: the parameters of other pipelines are no business of this one.
            context._pipelines_to_validate = [PIPELINE]
            return pipelines[PIPELINE], context.catalog
        finally:
            pipelines.set_requested(None)


def make_plan(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> Plan:
    """Look at what is there and say what is left to do.

    Raises:
        NightLockError: a night is under way, and a run would be refused.
        RegistryError: the register does not fit what is on the disk.
        NotADirectoryError: there is no folder of memories.
        ModelLoadError: the tokenizer cannot be had.
    """
    models = path_of(catalog, "models_folder")
    NightLock(models).check()
    registry = NightRegistry(models)
    night = int(catalog.load("params:night"))
    champion = registry.champion()
    if champion is not None:
        registry.checkpoint(champion.number)
    registered = registry.nights().get(night)
    parent = registered.parent if registered else BASE if champion is None else champion.number
    times, judged_by = _times(path_of(catalog, "reporting_folder"), registry)
    nodes = tuple(_nodes(pipeline, catalog, times))
    to_do = {node.name for node in nodes if not node.done}
    settings = Settings.of(catalog)
    problems = []
    try:
        # Whoever asks for a plan may have named the night or not; what was registered must be known either way.
        check_register(registry, night, True, path_of(catalog, "reporting_folder"))
        check_turn(registry, night)
        check_records(registry, night, [node for node in pipeline.nodes if node.name in to_do])
        if to_do:
            check_ancestors(registry, path_of(catalog, "primary_folder"), path_of(catalog, "reporting_folder"))
            check_judge(registry, path_of(catalog, "reporting_folder"), settings.evaluation)
            if models.is_dir():
                check_room(registry)
            check_collected(catalog, registry, night, path_of(catalog, "memories_folder"), to_do)
    except (RegistryError, NightRoomError, ChangedSinceError) as error:
        problems.append(str(error))
    if "sample_lessons_node" in to_do:
        from sleep_pipeline.evaluation.probes import ProbeError, given_probes

        try:
            given_probes(path_of(catalog, "probes_folder"))
        except (ProbeError, OSError) as error:
            problems.append(str(error))
    elif registered is None and "decide_night_node" in to_do:
        asked = _rows(path_of(catalog, "probes"))
        if few := too_few_questions(night, asked, settings.evaluation.gate.min_questions):
            problems.append(few)
    if "evaluate_night_node" in to_do:
        from sleep_pipeline.evaluation.harness import check_harness
        from sleep_pipeline.evaluation.texts import TextsError, ordinary_texts

        try:
            ordinary_texts(settings.evaluation.texts, path_of(catalog, "raw_folder"))
        except TextsError as error:
            problems.append(str(error))
        try:
            check_harness(settings.evaluation.harness)
        except (ModuleNotFoundError, NotADirectoryError, ValueError) as error:
            problems.append(str(error))
    if "dream_night_node" in to_do:
        from sleep_pipeline.dreaming.extras import check_night

        try:
            check_night(settings.dreaming, settings.machine.device)
        except (ModuleNotFoundError, ValueError) as error:
            problems.append(str(error))
    memories, contexts = _memories(catalog, registry, settings, night, to_do, problems)
    work = tuple(work_of(settings, to_do, contexts, parent != BASE, _questions(catalog, registry, parent)))
    timed = [node.seconds for node in nodes if not node.done and node.seconds is not None]
    free = shutil.disk_usage(_existing(models)).free
    needs = needs_of(settings, _size(pipeline, catalog, night, judged_by), free)
    if to_do and needs.disk is not None and needs.disk > free:
        problems.append(f"the disk of {models} has {free:,} bytes left, and the night needs {needs.disk:,}: make room")
    return Plan(
        night=night,
        parent=parent,
        nodes=nodes,
        memories=memories,
        work=work,
        needs=needs,
        seconds=sum(timed) if judged_by else None,
        judged_by=judged_by,
        problems=tuple(problems),
    )


def path_of(catalog: CatalogProtocol[Any, Any], name: str) -> Path:
    """Where a data set of the night lies; unlike loading a folder this does not make it."""
    dataset = catalog.get(name)
    assert dataset is not None, name
    return Path(dataset._describe()["filepath"])


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.exists())


def _nodes(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any], times: Mapping[str, float]) -> Iterator[NodePlan]:
    runs = nodes_to_run(pipeline, catalog, only_missing=True)
    for node in pipeline.nodes:
        missing = tuple(output for output in node.outputs if not catalog.exists(output))
        took = [times[part] for part in _TIMED.get(node.name, ()) if part in times]
        yield NodePlan(node.name, node not in runs, missing, sum(took) if took else None)


def _times(reporting: Path, registry: NightRegistry) -> tuple[dict[str, float], tuple[int, ...]]:
    """Seconds by part, the median of the last nights; and which nights these are."""
    found: dict[int, Mapping[str, float]] = {}
    for number in sorted(registry.nights(), reverse=True):
        path = reporting / folder_of(number) / "metrics.json"
        if len(found) < LOOK_BACK and path.is_file():
            found[number] = json.loads(path.read_text(encoding="utf-8"))["seconds"]
    parts = {part for seconds in found.values() for part in seconds}
    median = {part: statistics.median(night[part] for night in found.values() if part in night) for part in parts}
    return median, tuple(sorted(found))


def _memories(
    catalog: CatalogProtocol[Any, Any],
    registry: NightRegistry,
    settings: Settings,
    night: int,
    to_do: set[str],
    problems: list[str],
) -> tuple[Memories, list[int]]:
    """What is to be learned, and the tokens of every context."""
    known = registry.known_memories()
    if "collect_memories_node" not in to_do:
        told = catalog.load("collect_summary")
        memories = Memories(
            told["kinds"], told["quarantined"], told["known_before"], collected=True, left=told.get("left_for_later", 0)
        )
        if "make_contexts_node" not in to_do:
            return memories, [int(tokens) for tokens in catalog.load("contexts")["tokens"]]
        from sleep_pipeline.memories.records import memories_from_frame

        return memories, _packed(memories_from_frame(catalog.load("memories")), settings)
    from sleep_pipeline.memories.tonight import read_tonight, taken

    folder = path_of(catalog, "memories_folder")
    found = read_tonight(folder, settings.collect, night, known)
    if problem := found.too_bad(settings.collect.max_bad_share):
        problems.append(problem)
    elif not found.memories:
        problems.append(f"{folder} holds no new memory for night {night}: put files into it")
    new = [found.memories[at] for at in taken([each.source for each in found.memories], settings.collect.at_most)]
    memories = Memories(
        dict(Counter(str(memory.kind) for memory in new)),
        len(found.refused) + len(found.said_twice),
        len(known),
        collected=False,
        waiting=len(found.waiting),
        left=len(found.memories) - len(new),
    )
    return memories, _packed(new, settings)


def _packed(memories: Any, settings: Settings) -> list[int]:
    if not memories:
        return []
    from sleep_pipeline.language_model import load_tokenizer
    from sleep_pipeline.memories.contexts import pack_contexts

    collect = settings.collect
    tokenizer = load_tokenizer(settings.model, trust_remote_code=settings.machine.trust_remote_code)
    return [context.tokens for context in pack_contexts(memories, tokenizer, collect.context_tokens, collect.together)]


def _questions(catalog: CatalogProtocol[Any, Any], registry: NightRegistry, parent: int) -> int:
    """Probes of the nights that the model stands on, which are asked again."""
    primary = path_of(catalog, "primary_folder")
    return sum(_rows(primary / folder_of(each.number) / "probes.parquet") for each in registry.lineage(parent))


def _rows(path: Path) -> int:
    """Rows of a table; none where it is not there."""
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    rows: int = parquet.read_metadata(path).num_rows if path.is_file() else 0
    return rows


def _size(pipeline: Pipeline, catalog: CatalogProtocol[Any, Any], night: int, judged_by: tuple[int, ...]) -> int | None:
    """Bytes that the last night left; None without one.

    A model that was pruned since counts as much as the largest that is left of the last nights, which holds the
    dreamer as well.
    """
    if not judged_by:
        return None
    total = pruned = largest = 0
    for output in pipeline.all_outputs():
        own = str(path_of(catalog, output))
        last, *before = (Path(own.replace(folder_of(night), folder_of(number))) for number in judged_by[::-1])
        total += _bytes(last)
        if isinstance(catalog.get(output), PretrainedDataset):
            pruned += output != DREAMER and not last.exists()
            largest = max(largest, *(_bytes(path) for path in (last, *before)))
    return total + pruned * largest


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
