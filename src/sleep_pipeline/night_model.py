"""The model of a night: a base model, its memory, and what is kept for replay."""

from __future__ import annotations

import gc
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from sleep_pipeline.datasets.pretrained import check_files
from sleep_pipeline.hardware import keep_freed_memory, pick_device
from sleep_pipeline.language_model import EMBEDDED, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sleep_pipeline.memory import ContinuumMemoryConfig
    from sleep_pipeline.seeding.replay import ReplayStore
    from sleep_pipeline.seeding.settings import ReplaySettings

REPLAY = "replay.safetensors"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MachineSettings(_Settings):
    """Where and how a night computes.

    Attributes:
        device: `auto` is the GPU if there is one; or cpu, cuda. Of several GPUs it is the first that is visible.
        dtype: of the base model's weights: bfloat16 (or bf16), float16, float32, float64; `auto` as they were saved.
        threads: CPU threads; None is torch's own choice, 1 makes nights repeatable to the last bit.
        attention: implementation of attention; `auto` takes the fastest for short texts on a CPU, else transformers'
            own choice.
        trust_remote_code: run Python code that the model's repository brings; off unless you have read that code.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: PositiveInt | None = None
    attention: str = "auto"
    trust_remote_code: bool = False

    @field_validator("dtype")
    @classmethod
    def _of_weights(cls, dtype: str) -> str:
        short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "double": "float64"}
        named = short.get(dtype, dtype)
        if named not in ("auto", "bfloat16", "float16", "float32", "float64"):
            raise ValueError(
                f"dtype={dtype!r} is none of weights; choose one of auto, bfloat16, float16, float32, float64"
            )
        return named

    @field_validator("device")
    @classmethod
    def _known(cls, device: str) -> str:
        if re.fullmatch(r"auto|cpu|cuda(:0)?", device):
            return device
        # The trainer takes the first GPU, whatever the model lies on; Apple's has no float64, which sampling needs.
        number = device.partition(":")[2] or "1"
        remedy = f"; for another GPU, CUDA_VISIBLE_DEVICES={number} in the environment" if "cuda" in device else ""
        raise ValueError(f"device={device!r} cannot run a night; choose one of auto, cpu, cuda{remedy}")


class LevelSettings(_Settings):
    """One level of the memory; see `memory.LevelConfig`."""

    period: PositiveInt | None = None
    num_slots: int = Field(32, ge=2)
    rank: PositiveInt = 32
    top_k: PositiveInt | None = None
    router: Literal["sigmoid", "null_softmax", "threshold"] = "threshold"
    router_bias: float = -2.0
    router_gain: PositiveFloat = 4.0
    base_width: PositiveInt = 64


class MemorySettings(_Settings):
    """The memory of a life; it cannot be changed after its first night.

    Attributes:
        levels: fastest first.
        activation: between an expert's two matrices.
        starts_at: share of the decoder layers, from below, that carry no memory, rounded down. They read; an expert
            among them sees a question before attention has brought it together with a text, and cannot tell whether
            the text or the memory should answer it.
    """

    levels: tuple[LevelSettings, ...] = (LevelSettings(),)
    activation: Literal["silu", "relu", "identity"] = "silu"
    starts_at: float = Field(0.5, ge=0, lt=1)

    @field_validator("levels")
    @classmethod
    def _room_to_merge(cls, levels: tuple[LevelSettings, ...]) -> tuple[LevelSettings, ...]:
        if levels and levels[-1].num_slots < 3:
            raise ValueError(
                f"num_slots={levels[-1].num_slots} of the slowest level leaves no room to merge two experts into a "
                "third; give 3 or more"
            )
        return levels

    def layers(self, of: int) -> list[int]:
        """Which of so many decoder layers carry a memory."""
        return list(range(int(self.starts_at * of), of))

    def config(self, layers: int, seed: int = 0) -> ContinuumMemoryConfig:
        """As PEFT takes it, for a model of so many decoder layers; the seed is of the experts' first weights."""
        from sleep_pipeline.memory import ContinuumMemoryConfig, LevelConfig

        return ContinuumMemoryConfig(
            levels=[LevelConfig(**level.model_dump()) for level in self.levels],
            activation=self.activation,
            layers_to_transform=self.layers(layers),
            seed=seed,
        )


@dataclass
class NightModel:
    """A model with its memory.

    Attributes:
        model: the base model with the memory attached.
        tokenizer: of the base model.
        store: for replay.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    store: ReplayStore

    @property
    def parts(self) -> tuple[MemoryPart, StorePart]:
        """What a checkpoint keeps of it."""
        return MemoryPart(self.model), StorePart(self.store)


@dataclass(frozen=True)
class MemoryPart:
    """The memory as a part of a checkpoint folder."""

    model: PreTrainedModel

    def save_pretrained(self, save_directory: str) -> None:
        """Write the memory into the folder, without PEFT's question to the hub about the base model's vocabulary."""
        self.model.save_pretrained(save_directory, save_embedding_layers=False)


@dataclass(frozen=True)
class StorePart:
    """The replay store as a part of a checkpoint folder."""

    store: ReplayStore

    def save_pretrained(self, save_directory: str) -> None:
        """Write the store into the folder."""
        self.store.save(Path(save_directory) / REPLAY)


def open_base(name: str, machine: MachineSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model onto a machine, without a memory.

    Args:
        name: "embedded", a folder, or a name on the hub.
        machine: where to compute.

    Raises:
        ModelLoadError: it cannot be had.
    """
    import torch

    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    # A model with a memory refers to itself, so that those of the nodes before would stay until Python looks for such.
    gc.collect()
    device = pick_device(machine.device)
    base, tokenizer = load_model(name, dtype=machine.dtype, trust_remote_code=machine.trust_remote_code)
    attention = machine.attention
    if device.type == "cpu":
        keep_freed_memory()
        attention = "eager" if attention == "auto" else attention
    if attention != "auto":
        try:
            base.set_attn_implementation(attention)
        except (ValueError, ImportError) as error:
            raise ValueError(
                f"machine.attention={attention} cannot be had for {name} ({str(error).splitlines()[0]}); set auto or "
                "eager"
            ) from error
    base.to(device)
    return base, tokenizer


def open_model(
    name: str,
    machine: MachineSettings,
    memory: MemorySettings,
    replay: ReplaySettings,
    checkpoint: Path | None,
    seed: int = 0,
) -> NightModel:
    """Load a base model with the memory of a checkpoint, or with a fresh one.

    Args:
        name: "embedded", a folder, or a name on the hub.
        machine: where to compute.
        memory: of a fresh life.
        replay: sizes of the store.
        checkpoint: folder of a night; None for the model before its first.
        seed: of the first weights of a fresh life's experts; a life keeps its own.

    Raises:
        ModelLoadError: the base model cannot be had.
        ValueError: the checkpoint has a memory of another form, belongs to another base model, or has other files
            than were saved.
    """
    from peft import PeftModel, get_peft_model

    from sleep_pipeline.memory import OtherBaseError, state_of
    from sleep_pipeline.memory.blocks import BlockError, find_mlp_blocks
    from sleep_pipeline.seeding.replay import ReplayStore

    base, tokenizer = open_base(name, machine)
    try:
        layers = len(find_mlp_blocks(base))
    except BlockError as error:
        raise BlockError(
            f"{name} cannot have a memory, so nights cannot run on it; take a model of another kind ({error})"
        ) from error
    wanted = memory.config(layers, seed)
    model: Any
    if checkpoint is None:
        model = get_peft_model(base, wanted)
        store = ReplayStore(replay.stored_capacity, replay.open_book_capacity)
    else:
        check_files(checkpoint, remedy_for(checkpoint))
        try:
            model = PeftModel.from_pretrained(base, str(checkpoint), is_trainable=True)
        except OtherBaseError as error:
            raise OtherBaseError(f"{checkpoint}: {error}; {_replaced(name)}") from error
        _same_memory(wanted, state_of(model).config, layers, checkpoint)
        store = ReplayStore.load(checkpoint / REPLAY)
        store.resize(replay.stored_capacity, replay.open_book_capacity)
    return NightModel(model.eval(), tokenizer, store)


def _replaced(name: str) -> str:
    """What to do where a life's base model is no more what it was."""
    if name == EMBEDDED:
        return (
            "the embedded model has been replaced since, by an update or by `make embedded`: nights go on with the one "
            "before from a folder of your own (git log -- src/sleep_pipeline/embedded; git restore --source=COMMIT "
            "--worktree src/sleep_pipeline/embedded; copy it; restore it again), which `model` in parameters_night.yml "
            "names, or a new life begins in another folder (globals: life)"
        )
    return (
        f"`model` or machine.dtype was changed, or the files of {name} were: name the model that the nights grew on, "
        "or begin a new life in another folder (globals: life)"
    )


def remedy_for(checkpoint: Path) -> str:
    """What to do about a damaged checkpoint: one that is not registered is made again by the same command."""
    from sleep_pipeline.registry import NightRegistry
    from sleep_pipeline.run_environment import environment_option

    registry = NightRegistry(checkpoint.parent)
    if checkpoint.name in {night.checkpoint for night in registry.nights().values()}:
        return f"restore the folder (dvc checkout), or run `sleep-pipeline rollback{environment_option()}`"
    return f"delete {checkpoint} and run the same command again, which makes it anew"


def _same_memory(wanted: ContinuumMemoryConfig, saved: ContinuumMemoryConfig, layers: int, checkpoint: Path) -> None:
    asked, found = asdict(wanted)["levels"], asdict(saved)["levels"]
    differing = [
        f"level {number}: {name} is {level.get(name)!r}, asked for {value!r}"
        for number, (sought, level) in enumerate(zip(asked, found, strict=False), start=1)
        for name, value in sought.items()
        if level.get(name) != value
    ]
    if len(asked) != len(found):
        differing = [f"it has {len(found)} levels, asked for {len(asked)}"]
    if saved.activation != wanted.activation:
        differing.append(f"activation is {saved.activation!r}, asked for {wanted.activation!r}")
    # A memory that names no layers has one in each.
    first, meant = (min(config.layers_to_transform or range(layers)) for config in (saved, wanted))
    if first != meant:
        differing.append(f"starts_at: it starts at layer {first} of {layers}, asked for layer {meant}")
    if differing:
        raise ValueError(
            f"the memory of {checkpoint} is not that of the settings ({'; '.join(differing)}): a memory keeps its "
            "form for life; set `memory` back, or begin a new life in another folder (globals: life)"
        )
