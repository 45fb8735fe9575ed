"""The PEFT tuner that puts a continuum memory into a model, saves it and takes it out again."""

import copy
import json
import re
import weakref
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sleep_pipeline.memory.blocks import find_mlp_blocks, text_config
from sleep_pipeline.memory.checkpointing import KeepsView, keep_views
from sleep_pipeline.memory.config import ContinuumMemoryConfig
from sleep_pipeline.memory.digest import OtherBaseError, base_digest
from sleep_pipeline.memory.layer import ContinuumLayer, refuse_merge
from sleep_pipeline.memory.levels import ACCUMULATED, BASE, PROSPECTIVE, SLOTS, WORKSPACE
from sleep_pipeline.memory.slots import SlotError
from sleep_pipeline.memory.state import MemoryState

STATE_KEY = "continuum_state"


class ContinuumMemoryModel(BaseTuner):
    """Wraps the MLP block of every decoder layer; used through `peft.get_peft_model`.

    Raises, before anything in the model is changed:
        BlockError: a decoder layer has no MLP block.
        ValueError: a rank exceeds the hidden size, or the saved digest is not that of this base model.
    """

    prefix = "continuum_"
    tuner_layer_cls = ContinuumLayer
    target_module_mapping: dict[str, list[str]] = {}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put the memory of `adapter_name` into `model`, or leave `model` as it was."""
        # Two adapters may be given one configuration object, but each keeps its own state in it.
        self.peft_config[adapter_name] = copy.deepcopy(self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        state = self.memory_state(adapter_name)
        state.owned = True
        weakref.finalize(self, setattr, state, "owned", False)
        state.changed()

    def memory_state(self, adapter_name: str) -> MemoryState:
        """Return the state of an adapter's memory."""
        for layer in self._layers():
            if adapter_name in layer.states:
                return layer.states[adapter_name]
        raise ValueError(f"there is no continuum memory named {adapter_name!r} on this model")

    def _layers(self) -> list[ContinuumLayer]:
        return [module for module in self.model.modules() if isinstance(module, ContinuumLayer)]

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        assert isinstance(peft_config, ContinuumMemoryConfig)
        hidden_size = text_config(model).hidden_size
        for number, level in enumerate(peft_config.levels, start=1):
            if level.rank > hidden_size:
                raise ValueError(
                    f"level {number} has rank {level.rank}, more than the model's hidden size {hidden_size}: a "
                    f"low-rank expert needs a rank of at most {hidden_size}"
                )
        if peft_config.target_modules is None:
            names = [block.name for block in find_mlp_blocks(model)]
            if peft_config.layers_to_transform is not None:
                outside = [index for index in peft_config.layers_to_transform if not 0 <= index < len(names)]
                if outside:
                    raise ValueError(
                        f"layers_to_transform names layers {outside}, but the model's run from 0 to {len(names) - 1}"
                    )
                names = [names[index] for index in sorted(set(peft_config.layers_to_transform))]
            peft_config.target_modules = "|".join(re.escape(name) for name in names)
        digest = base_digest(model)
        if peft_config.base_digest is not None and peft_config.base_digest != digest:
            raise OtherBaseError(
                f"this memory was made for a base model with digest {peft_config.base_digest[:12]}..., but this one "
                f"has {digest[:12]}...: load the base model it belongs to, in the same dtype (the adapter's "
                f"configuration names {peft_config.base_model_name_or_path!r}); to load it onto this one all the "
                "same, pass a config with base_digest=None"
            )
        peft_config.base_digest = digest
        # The configuration of another memory tells of experts whose tensors are not here; loading brings both.
        peft_config.state = None
        self._pending_state = MemoryState.of(peft_config)
        self._hidden_size = hidden_size

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, ContinuumLayer):
            target.add(adapter_name, self._pending_state)
            return
        numbers = [int(name) for name in current_key.split(".") if name.isdecimal()]
        layer = ContinuumLayer(target, numbers[0] if numbers else len(self._layers()), self._hidden_size)
        layer.add(adapter_name, self._pending_state)
        self._replace_module(parent, target_name, layer, target)
        names = current_key.split(".")
        for end in range(len(names) - 1, 0, -1):
            ancestor = self.model.get_submodule(".".join(names[:end]))
            if isinstance(ancestor, GradientCheckpointingLayer):
                object.__setattr__(layer, "_view_keeper", (ancestor, keep_views(ancestor)))
                break

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        new_module.train(child.training)
        setattr(parent, child_name, new_module)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        for layer in self._layers():
            layer.obey(enabled)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # Only what is trained needs float32; the stored experts stay in the base model's dtype, half as
        # large.
        if autocast_adapter_dtype:
            for layer in self._layers():
                # Another memory's layers may be others.
                if adapter_name in layer.states:
                    for level in layer.levels(adapter_name):
                        level.upcast_trained()

    def _check_merge_allowed(self) -> None:
        refuse_merge()

    def unmerge_adapter(self) -> None:
        """Refuse: see `refuse_merge`."""
        refuse_merge()

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            refuse_merge()
        # Only the memory goes: another tuner's layers on the same model are not this one's to remove.
        for name, module in list(self.model.named_modules()):
            if isinstance(module, ContinuumLayer):
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, module.base_layer)
                keeper = getattr(module, "_view_keeper", None)
                if keeper is not None:
                    decoder_layer, handle = keeper
                    handle.remove()
                    function = getattr(decoder_layer, "_gradient_checkpointing_func", None)
                    if isinstance(function, KeepsView):
                        decoder_layer._gradient_checkpointing_func = function.checkpoint
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        saved: dict[str, Tensor] = {}
        state: MemoryState | None = None
        for name, layer in _named_layers(model):
            if adapter_name not in layer.states:
                continue
            state = layer.states[adapter_name]
            if state.past and state.hidden:
                raise SlotError(
                    "a plastic sleep cannot be saved in a teacher's view, which hides what was learned: leave the view"
                )
            for number in range(1, state.depth + 1):
                for tensor, rows in saved_tensors(state, number).items():
                    key = f"{name}.continuum_levels.{adapter_name}.{number - 1}.{tensor}"
                    saved[key] = state_dict[key] if rows is None else state_dict[key][:rows].clone()
        if state is None:
            raise ValueError(f"there is no continuum memory named {adapter_name!r} on this model")
        encoded = json.dumps(state.to_dict(), sort_keys=True).encode()
        # The state travels in the weights' own file: the two can never be torn apart by a crash between two
        # writes.
        saved[_state_key(model)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8).clone()
        return saved

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".continuum_levels.{adapter_name}.", ".continuum_levels.", 1)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        states = [layer.states[adapter_name] for _, layer in _named_layers(model) if adapter_name in layer.states]
        if not states:
            raise ValueError(f"there is no continuum memory named {adapter_name!r} on this model")
        state = states[0]
        encoded = next((value for key, value in state_dict.items() if key.endswith(STATE_KEY)), None)
        if encoded is None:
            raise ValueError(f"the saved adapter has no {STATE_KEY!r}: it was not saved by a continuum memory")
        record = json.loads(bytes(encoded.cpu().numpy()))
        # PEFT saves the embeddings, too, where the vocabulary was resized. They are the base model's.
        file = {key: value for key, value in state_dict.items() if ".continuum_levels." in key}
        found = _full_tensors(model, adapter_name, state, record, file)
        state.adopt(record)
        state.changed()
        return found


def _named_layers(model: nn.Module) -> list[tuple[str, ContinuumLayer]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ContinuumLayer)]


def _state_key(model: nn.Module) -> str:
    wrapped = any(name.startswith("base_model.model.") for name, _ in model.named_modules())
    return f"base_model.model.{STATE_KEY}" if wrapped else STATE_KEY


def saved_tensors(state: MemoryState, number: int) -> dict[str, int | None]:
    """Return which tensors of level `number` a save must hold, with the rows to keep (None for all).

    Free slots, an idle workspace and unused accumulators are zeros by definition and are not written.
    """
    saved: dict[str, int | None] = {}
    rows = max(state.table.active(number), default=-1) + 1
    if rows:
        saved.update(dict.fromkeys(SLOTS, rows))
    training = state.table.training()
    if training is not None and training[0] == number:
        saved.update(dict.fromkeys(WORKSPACE))
    if number < state.depth:
        saved.update(dict.fromkeys(BASE))
        if state.has_prospective(number):
            saved.update(dict.fromkeys(PROSPECTIVE))
        if state.pending[number - 1]:
            saved.update(dict.fromkeys(ACCUMULATED))
    return saved


def _full_tensors(
    model: nn.Module, adapter_name: str, state: MemoryState, record: dict[str, Any], file: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the model's tensors for a saved memory, padded with the zeros that were not written.

    Raises:
        ValueError: the file lacks a tensor, has one too many, or one of another shape.
    """
    future = MemoryState.of(replace(state.config, state=record))
    remaining = dict(file)
    full: dict[str, Tensor] = {}
    for name, layer in _named_layers(model):
        if adapter_name not in layer.states:
            continue
        for number, level in enumerate(layer.levels(adapter_name), start=1):
            written = saved_tensors(future, number)
            for tensor, parameter in level.named_parameters():
                model_key = f"{name}.continuum_levels.{adapter_name}.{number - 1}.{tensor}"
                if tensor not in written:
                    full[model_key] = torch.zeros(parameter.shape, dtype=parameter.dtype)
                    continue
                rows = written[tensor]
                shape = parameter.shape if rows is None else torch.Size([rows, *parameter.shape[1:]])
                file_key = f"{name}.continuum_levels.{number - 1}.{tensor}"
                if file_key not in remaining and f"base_model.model.{file_key}" in remaining:
                    file_key = f"base_model.model.{file_key}"
                value = remaining.pop(file_key, None)
                if value is None or value.shape != shape:
                    raise ValueError(
                        f"the saved adapter does not fit this memory: {file_key} should have shape {tuple(shape)}, "
                        f"but {'is missing' if value is None else f'has {tuple(value.shape)}'}"
                    )
                if rows is not None and rows < parameter.shape[0]:
                    padding = value.new_zeros((parameter.shape[0] - rows, *parameter.shape[1:]))
                    value = torch.cat([value, padding])
                full[model_key] = value
    if remaining:
        raise ValueError(
            f"the saved adapter has {len(remaining)} tensors that this memory has no place for, such as "
            f"{min(remaining)}: it was saved for a model with other layers or levels"
        )
    return full
