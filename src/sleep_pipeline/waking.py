"""The model of a night beside the one that it grew from, in one network."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleep_pipeline.datasets.pretrained import check_files
from sleep_pipeline.night_model import MachineSettings, MemorySettings, NightModel, open_model, remedy_for
from sleep_pipeline.registry import BASE, MANIFEST, NightRegistry, PrunedError, RegistryError
from sleep_pipeline.seeding.settings import ReplaySettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PARENT = "parent"


@dataclass(frozen=True)
class Side:
    """One of the models that are asked.

    Attributes:
        label: for people.
        view: a context manager in which the network is this model.
    """

    label: str
    view: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Awake:
    """A night's model, loaded, with the states of it that can be asked.

    Attributes:
        opened: the network.
        sides: the parent, then the night; one alone before the first night, or where the parent was pruned.
    """

    opened: NightModel
    sides: tuple[Side, ...]

    def answers(self, question: str, max_new_tokens: int) -> list[str]:
        """What each side says to a question that stands alone.

        Raises:
            ValueError: the question does not fit into the model's window.
        """
        from sleep_pipeline.generation.replies import greedy_replies

        conversation = [{"role": "user", "content": question}]
        found = []
        for side in self.sides:
            with side.view():
                found += greedy_replies(self.opened.model, self.opened.tokenizer, [conversation], max_new_tokens)
        return found


def load_night(
    folder: str | Path = "data/06_models", night: int | None = None, *, machine: MachineSettings | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a night's model for use in your own code: a PEFT model that generates as any other, in eval mode.

    Its memory is gated in every token and therefore stays beside the base model's weights; `base_view(model)` of
    `sleep_pipeline.memory` is the model before its first night, without loading it anew.

    Args:
        folder: where the life's nights and `registry.json` lie.
        night: its number; the champion by default.
        machine: device, dtype and threads; by default the first GPU if there is one. The dtype `auto` is the nights'.

    Raises:
        RegistryError: no night is live, the night is unknown, or its checkpoint is missing or another one.
        ModelLoadError: the base model cannot be had.
        ValueError: the base model is not the one that the night grew from, or a file of the checkpoint is damaged.
    """
    registry = NightRegistry(folder)
    if night is None:
        champion = registry.champion()
        if champion is None:
            known = ", ".join(map(str, registry.nights())) or "none"
            raise RegistryError(
                f"no night of {registry.folder} is live (registered: {known}): give the number of one, name the folder "
                "that holds registry.json, or load the base model with load_model"
            )
        night = champion.number
    opened = _opened(registry, night, machine)
    return opened.model, opened.tokenizer


def wake_base(model: str, machine: MachineSettings, memory: MemorySettings) -> Awake:
    """Load the model before its first night.

    Raises:
        ModelLoadError: the base model cannot be had.
    """
    opened = open_model(model, machine, memory, ReplaySettings(), None)
    return Awake(opened, (Side("base model", nullcontext),))


def wake_night(registry: NightRegistry, number: int, machine: MachineSettings) -> Awake:
    """Load the model of a night so that it can be asked as it is and as it was before that night.

    Model and memory are those that the checkpoint names, and so is the dtype, where the machine's is `auto`. The parent
    is a view of the same network that leaves the night's expert out; where the night changed older experts, these are
    read from the parent's checkpoint, and if that was pruned, the night answers alone.

    Raises:
        RegistryError: the night is unknown, or a checkpoint that is needed is missing or another one.
        ModelLoadError: the base model cannot be had.
        ValueError: the base model is not the one that the night grew from, or a file of a checkpoint is damaged.
    """
    parent = registry.night(number).parent
    opened = _opened(registry, number, machine)
    own = Side(f"night {number}", nullcontext)
    try:
        before = view_before(opened.model, number, parent, registry)
    except PrunedError:
        return Awake(opened, (own,))
    label = f"night {parent}" if parent != BASE else "base model"
    return Awake(opened, (Side(f"parent ({label})", before), own))


def _opened(registry: NightRegistry, number: int, machine: MachineSettings | None) -> NightModel:
    """The network of a night, with the base model, its dtype and the form of memory that its checkpoint names."""
    checkpoint = registry.checkpoint(number)
    manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    machine = machine or MachineSettings()
    if machine.dtype == "auto":
        machine = machine.model_copy(update={"dtype": manifest["base_model"].get("dtype", "auto")})
    # Before lives could leave layers out, all of them had a memory.
    memory = MemorySettings.model_validate({"starts_at": 0.0, **manifest["memory"]})
    return open_model(manifest["base_model"]["name"], machine, memory, ReplaySettings(), checkpoint)


def view_before(
    model: PreTrainedModel, number: int, parent: int, registry: NightRegistry
) -> Callable[[], AbstractContextManager[None]]:
    """A view of a night's network in which it is the model that the night grew from.

    Args:
        model: of the night.
        number: the night's; it need not be registered.
        parent: the night that it grew from.
        registry: where the parent is found if the night merged experts, or trained earlier ones.

    Raises:
        RegistryError: the parent's checkpoint is needed, and it is missing or another one.
        ValueError: a file of it is damaged.
    """
    from sleep_pipeline.memory import adapters_view, base_view, experts_view, state_of

    if parent == BASE:
        return lambda: base_view(model)
    table = state_of(model).table
    tonight = [(level, slot, event) for night, level, slot, event in table.events if night == number]
    if not tonight:
        return nullcontext
    if len({(level, slot) for level, slot, _ in tonight}) == 1:
        ((level, new),) = {(level, slot) for level, slot, _ in tonight}
        earlier = [slot for slot in table.active(level) if slot != new]
        return lambda: experts_view(model, level, earlier)
    _load_beside(model, registry.checkpoint(parent))
    return lambda: adapters_view(model, [_PARENT])


def _load_beside(model: Any, checkpoint: Path) -> None:
    check_files(checkpoint, remedy_for(checkpoint))
    model.load_adapter(str(checkpoint), adapter_name=_PARENT)
    model.eval()
