"""The PEFT tuner layer around one MLP block: the chain of levels of paper.md eq. 1.

`y = MLP(x_k) + rms(MLP(x_k)) E_k(x_k)` with `x_{l+1} = x_l + base_l(x_l) + E_l(x_l)` for every faster level `l`: a
residual chain in which a level that has learned nothing is an exact no-op. `E_l` is the gated sum of the level's
experts. The slowest level speaks as loud as the pretrained block that it stands beside: blocks of one model differ by
a factor of ten and models by a thousand (the embedded one's last block has an rms of 400), and an optimizer's step is
as large for all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sleep_pipeline.memory.blocks import device_and_dtype
from sleep_pipeline.memory.experts import add_as_loud
from sleep_pipeline.memory.levels import Level
from sleep_pipeline.memory.state import MemoryState, Plan

Switches = tuple[bool, list[str], list[tuple[MemoryState, Plan | None, bool]]]
"""What decides what a layer computes: whether it is off, the active adapters, and of each memory its plan and whether
its experts are shown as they were before the sleep."""


class ContinuumLayer(nn.Module, BaseTunerLayer):
    """An MLP block with the memories of one or more adapters.

    Args:
        base_layer: the block, any module that maps `[..., d] -> [..., d]`, possibly returning a tuple that
            starts with its output.
        index: the number of its decoder layer, which seeds its experts and names it in traces.
        hidden_size: `d`.
    """

    adapter_layer_names = ("continuum_levels",)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, index: int, hidden_size: int):
        super().__init__()
        self.base_layer = base_layer
        self.index = index
        self.hidden_size = hidden_size
        self.continuum_levels = nn.ModuleDict()
        self.states: dict[str, MemoryState] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []

    def add(self, adapter_name: str, state: MemoryState) -> None:
        """Allocate the tensors of a new adapter's memory."""
        config = state.config
        device, dtype = device_and_dtype(self.base_layer)
        self.continuum_levels[adapter_name] = nn.ModuleList(
            Level(
                level,
                self.hidden_size,
                config.activation,
                has_base=number < len(config.levels),
                seed=(config.seed * 1009 + self.index) * 31 + number,
                dtype=dtype,
                device=device,
            )
            for number, level in enumerate(config.levels, start=1)
        )
        self.states[adapter_name] = state
        state.layers.append(self)

    def levels(self, adapter_name: str) -> list[Level]:
        """Return the levels of an adapter, fastest first."""
        levels = self.continuum_levels[adapter_name]
        assert isinstance(levels, nn.ModuleList)
        return [cast(Level, level) for level in levels]

    def levels_of(self, state: MemoryState) -> list[Level]:
        """Return the levels that belong to `state`."""
        return next(self.levels(name) for name, own in self.states.items() if own is state)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the block between its levels; without anything switched on, run the block alone."""
        live: list[tuple[nn.ModuleList, Plan]] = []
        if not self._disable_adapters:
            for name in self._active_adapter:
                state = self.states.get(name)
                if state is not None and state.plan is not None:
                    live.append((self.continuum_levels[name], state.plan))  # type: ignore[arg-type]
        if not live:
            return self.base_layer(hidden_states, *args, **kwargs)
        x = hidden_states
        for levels, plan in live:
            for number, entry in enumerate(plan.levels[:-1], start=1):
                if entry is not None:
                    x = x + levels[number - 1](x, entry, plan, number, self.index).to(x.dtype)
        result = self.base_layer(x, *args, **kwargs)
        output = result[0] if isinstance(result, tuple) else result
        spoken = output
        for levels, plan in live:
            slowest = plan.levels[-1]
            if slowest is not None:
                number = len(plan.levels)
                added = levels[number - 1](x, slowest, plan, number, self.index)
                output = add_as_loud(output, added, spoken)
        return (output, *result[1:]) if isinstance(result, tuple) else output

    def switches(self) -> Switches:
        """Return everything that decides what `forward` computes, for `switched`."""
        return (
            self._disable_adapters,
            self._active_adapter,
            [(state, state.plan, state.past) for state in self.states.values()],
        )

    @contextmanager
    def switched(self, switches: Switches) -> Iterator[None]:
        """Compute as at the time of `switches()`, for a checkpointed layer that is computed a second time."""
        present = self.switches()
        try:
            self._disable_adapters, self._active_adapter, plans = switches
            for state, plan, past in plans:
                # The first pass has been traced already.
                state.plan = None if plan is None else replace(plan, trace=None)
                state.show(past)
            yield
        finally:
            self._disable_adapters, self._active_adapter, plans = present
            for state, plan, past in plans:
                state.plan = plan
                state.show(past)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Choose the adapters that take part; only what a sleep of theirs trains may be trained."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._active_adapter = names
        for name, state in self.states.items():
            state.trainable = name in names and not inference_mode
            self._sync(name)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the memory on or off, unless the call comes from another tuner on the same model.

        PEFT's tuners switch *every* tuner layer they find, so a LoRA adapter that is disabled would take the
        memory along. While the memory's own tuner is alive, only that one is obeyed (`obey`).
        """
        if not any(state.owned for state in self.states.values()):
            self.obey(enabled)

    def obey(self, enabled: bool) -> None:
        """Switch the memory on or off."""
        self._disable_adapters = not enabled
        for name in self.states:
            self._sync(name)

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        """Allow or forbid training of what a sleep of the given adapters trains."""
        names = {adapter_names} if isinstance(adapter_names, str) else set(adapter_names)
        for name in names & self.states.keys():
            self.states[name].trainable = requires_grad
            self._sync(name)

    def _sync(self, name: str) -> None:
        state = self.states[name]
        training = state.table.training()
        for number, level in enumerate(self.levels(name), start=1):
            on = state.trainable and not self._disable_adapters and training is not None and training[0] == number
            level.train_experts(on, on and state.plastic)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter's memory from this layer."""
        state = self.states.pop(adapter_name, None)
        if state is not None:
            state.layers.remove(self)
            del self.continuum_levels[adapter_name]
        if adapter_name in self._active_adapter:
            remaining = [name for name in self._active_adapter if name != adapter_name]
            self.set_adapter(remaining or sorted(self.states)[:1])

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        reference = next(self.base_layer.parameters(), None)
        target = device if device is not None or reference is None else reference.device
        if target is not None and adapter_name in self.continuum_levels:
            self.continuum_levels[adapter_name].to(target)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse (see `refuse_merge`), unless the call comes from another tuner on the same model."""
        if not any(state.owned for state in self.states.values()):
            refuse_merge()

    def unmerge(self) -> None:
        """As `merge`: nothing was merged."""
        self.merge()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> "ContinuumLayer":
        """Stay where another tuner on the same model is unloaded; the memory's own tuner takes this layer out itself.

        PEFT looks for no layers inside this one, so those of the other tuner in the block are unloaded here.
        """
        unloaded: list[str] = []
        for name, module in list(self.named_modules())[1:]:
            if not isinstance(module, BaseTunerLayer) or any(name.startswith(f"{outer}.") for outer in unloaded):
                continue
            unloaded.append(name)
            unload = getattr(module, "unload_and_optionally_merge_module", None)
            if unload is not None:
                plain = unload(merge=merge, safe_merge=safe_merge, adapter_names=adapter_names)
            else:
                if merge:
                    module.merge(safe_merge=safe_merge, adapter_names=adapter_names)
                plain = module.get_base_layer()
            parent, _, child = name.rpartition(".")
            setattr(self.get_submodule(parent), child, plain)
        return self


def refuse_merge() -> None:
    """Raise the error of every attempt to merge a memory into the base weights."""
    raise ValueError(
        "a continuum memory cannot be merged into the base weights: its experts open and shut for each token, which "
        "no fixed matrix can do. Save the adapter with save_pretrained and load it beside the base model, or use "
        "unload() to get the base model back"
    )
