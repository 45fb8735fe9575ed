"""A life's memory: which layers carry it, and what a checkpoint of another form is told."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest

from sleep_pipeline import night_model
from sleep_pipeline.datasets.pretrained import MANIFEST
from sleep_pipeline.memory import OtherBaseError, state_of
from sleep_pipeline.memory.blocks import BlockError
from sleep_pipeline.night_model import LevelSettings, MachineSettings, MemorySettings, open_model
from sleep_pipeline.seeding.settings import ReplaySettings

LEVELS = (LevelSettings(num_slots=3, rank=4),)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_settings: Any, tiny_tokenizer: Any) -> str:
    from sleep_pipeline.pretraining.trainer import build_model

    folder = tmp_path_factory.mktemp("base")
    architecture = tiny_settings.architecture.model_copy(update={"num_layers": 2})
    build_model(architecture, tiny_tokenizer, seed=0).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def opened(base: str, checkpoint: Path | None = None, **memory: Any) -> Any:
    settings = MemorySettings(levels=LEVELS, **memory)
    return open_model(base, MachineSettings(device="cpu"), settings, ReplaySettings(), checkpoint)


def saved(night: Any, folder: Path) -> Path:
    for part in night.parts:
        part.save_pretrained(str(folder))
    (folder / MANIFEST).write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("share, of, first", [(0.0, 4, 0), (0.5, 4, 2), (0.5, 5, 2), (0.99, 3, 2), (0.5, 1, 0)])
def test_the_memory_starts_at_a_share_of_the_depth_and_the_last_layer_has_one(
    share: float, of: int, first: int
) -> None:
    assert MemorySettings(starts_at=share).layers(of) == list(range(first, of))


def test_layers_below_the_start_are_the_base_models_own(base: str) -> None:
    from sleep_pipeline.memory.layer import ContinuumLayer

    layers = [module.index for module in opened(base).model.modules() if isinstance(module, ContinuumLayer)]
    assert layers == [1]


@pytest.mark.slow
def test_a_checkpoint_whose_memory_starts_elsewhere_is_refused_with_the_remedy(base: str, tmp_path: Path) -> None:
    checkpoint = saved(opened(base), tmp_path / "night")
    opened(base, checkpoint)
    with pytest.raises(ValueError, match=r"starts at layer 1 of 2, asked for layer 0.*set `memory` back"):
        opened(base, checkpoint, starts_at=0.0)


@pytest.mark.slow
def test_a_memory_that_names_no_layers_has_one_in_each(base: str, tmp_path: Path) -> None:
    night = opened(base, starts_at=0.0)
    night.model.peft_config["default"].layers_to_transform = None
    checkpoint = saved(night, tmp_path / "night")
    opened(base, checkpoint, starts_at=0.0)
    with pytest.raises(ValueError, match="starts at layer 0 of 2, asked for layer 1"):
        opened(base, checkpoint)


@pytest.mark.slow
def test_a_checkpoint_of_another_activation_is_refused_and_another_store_is_taken(base: str, tmp_path: Path) -> None:
    checkpoint = saved(opened(base), tmp_path / "night")
    with pytest.raises(ValueError, match=r"activation is 'silu', asked for 'relu'"):
        opened(base, checkpoint, activation="relu")
    settings = MemorySettings(levels=LEVELS)
    night = open_model(base, MachineSettings(device="cpu"), settings, ReplaySettings(stored_capacity=7), checkpoint)
    assert night.store.pools["stored"].capacity == 7


@pytest.mark.parametrize(("device", "told"), [("cuda:1", "CUDA_VISIBLE_DEVICES=1"), ("mps", "one of auto, cpu, cuda")])
def test_a_device_that_cannot_run_a_night_is_refused_with_what_to_do(device: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        MachineSettings(device=device)


@pytest.mark.slow
def test_models_of_earlier_nodes_are_gone_when_the_next_one_is_opened(base: str) -> None:
    gc.disable()
    try:
        first = weakref.ref(state_of(opened(base).model).layers[0].base_layer)
        assert first() is not None, "a model with a memory refers to itself"
        opened(base)
        assert first() is None
    finally:
        gc.enable()


def test_the_dtype_of_weights_has_short_names_and_no_others() -> None:
    assert MachineSettings(dtype="bf16").dtype == "bfloat16" and MachineSettings(dtype="float16").dtype == "float16"
    with pytest.raises(ValueError, match="dtype='int8' is none of weights; choose one of auto, bfloat16"):
        MachineSettings(dtype="int8")


@pytest.mark.slow
def test_attention_that_cannot_be_had_and_models_without_a_block_are_told_with_the_remedy(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = MemorySettings(levels=LEVELS)
    machine = MachineSettings(device="cpu", attention="flash_attention_2")
    with pytest.raises(ValueError, match=r"attention=flash_attention_2 cannot be had for .*; set auto or eager"):
        open_model(base, machine, settings, ReplaySettings(), None)

    def none(_: Any) -> Any:
        raise BlockError("no MLP block was found")

    monkeypatch.setattr("sleep_pipeline.memory.blocks.find_mlp_blocks", none)
    with pytest.raises(BlockError, match=r"cannot have a memory, so nights .*; take a model of another kind \(no MLP"):
        open_model(base, MachineSettings(device="cpu"), settings, ReplaySettings(), None)


def test_a_base_model_that_was_replaced_is_told_with_what_to_do(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = saved(opened(base), tmp_path / "night")
    config = checkpoint / "adapter_config.json"
    record = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(record | {"base_digest": "0" * 64}), encoding="utf-8")
    with pytest.raises(OtherBaseError, match=r"night: this memory was made for.*name the model that the nights"):
        opened(base, checkpoint)
    monkeypatch.setattr(night_model, "EMBEDDED", base)
    with pytest.raises(OtherBaseError, match=r"the embedded model has been replaced.*git restore --source=COMMIT"):
        opened(base, checkpoint)


def test_saving_a_memory_asks_the_hub_for_nothing(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    night = opened(base)
    night.model.peft_config["default"].base_model_name_or_path = "someone/on-the-hub"
    asked: list[Any] = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *args, **_: asked.append(args))
    saved(night, tmp_path / "night")
    assert not asked
