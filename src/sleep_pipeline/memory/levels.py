"""The tensors of one level in one decoder layer: its slots, its workspace and its own MLP.

Slots live in stacked tensors `[num_slots, ...]` that never change shape, so a level's active experts are a view of
their prefix, ready for one batched product without copying. The expert in training has tensors of its own, the
*workspace*, which activation copies into its slot. It alone gets gradients and optimiser state, unless the sleep is
a plastic one. Free slots and an idle workspace hold zeros.
"""

import math
import random

import torch
from torch import Tensor, nn

from sleep_pipeline.memory.config import LevelConfig
from sleep_pipeline.memory.experts import dense, grouped, grouped_pays, hidden_units, inverse_rms
from sleep_pipeline.memory.routers import INDEPENDENT, ROUTERS, keep_top_k, open_one_more
from sleep_pipeline.memory.state import LevelPlan, Plan

SLOTS = ("keys", "offsets", "down", "up")
WORKSPACE = ("new_key", "new_offset", "new_down", "new_up")
BASE = ("base_down", "base_up")
PROSPECTIVE = ("next_down", "next_up")
ACCUMULATED = ("sum_down", "sum_up")


def in_dtype_of(x: Tensor, weight: Tensor) -> Tensor:
    """Return `x` as a product with `weight` needs it; autocast looks after itself."""
    return x if x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


class Level(nn.Module):
    """One level's experts, router and own MLP in one decoder layer.

    Args:
        config: the level.
        hidden_size: `d`.
        activation: the experts' nonlinearity.
        has_base: whether the level has an MLP of its own (all but the slowest).
        seed: of this level in this layer.
        dtype: of the base model's block.
        device: of the base model's block.
    """

    keys: nn.Parameter
    offsets: nn.Parameter
    down: nn.Parameter
    up: nn.Parameter
    new_key: nn.Parameter
    new_offset: nn.Parameter
    new_down: nn.Parameter
    new_up: nn.Parameter
    base_down: nn.Parameter

    def __init__(
        self,
        config: LevelConfig,
        hidden_size: int,
        activation: str,
        has_base: bool,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        super().__init__()
        self.config = config
        self.hidden_size = hidden_size
        self.activation = activation
        self.has_base = has_base
        self.seed = seed
        slots, rank = config.num_slots, config.rank
        # `keys` holds the learned keys times the router's gain, so that the gain costs nothing per token.
        shapes: dict[str, tuple[int, ...]] = {
            "keys": (slots, hidden_size),
            "offsets": (slots,),
            "down": (slots, rank, hidden_size),
            "up": (slots, rank, hidden_size),
            "new_key": (hidden_size,),
            "new_offset": (1,),
            "new_down": (rank, hidden_size),
            "new_up": (rank, hidden_size),
        }
        if has_base:
            for name in (*BASE, *PROSPECTIVE, *ACCUMULATED):
                shapes[name] = (config.base_width, hidden_size)
        for name, shape in shapes.items():
            zeros = torch.zeros(shape, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(zeros, requires_grad=False))
        if has_base and self.base_down.device.type != "meta":
            self._initialise(self.base_down)

    def _initialise(self, down: Tensor, *salt: int) -> None:
        """Fill a down-projection as LoRA does, the same on every machine and device, another one for every salt."""
        seed = random.Random(f"{self.seed}/{salt}").getrandbits(63)
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(self.hidden_size)
        values = torch.rand(down.shape, generator=generator, dtype=torch.float32) * (2 * bound) - bound
        with torch.no_grad():
            down.copy_(values)

    def forward(self, x: Tensor, plan: LevelPlan, whole: Plan, level: int, layer: int) -> Tensor:
        """Return what this level adds, `[..., d]`, for its input `x` of the same shape."""
        scale = inverse_rms(x)
        gates, new_gate = self.route(x, scale, plan, whole, level, layer)
        out: Tensor | None = None
        if gates is not None:
            down, up = self.down[: plan.count], self.up[: plan.count]
            values = in_dtype_of(x, down)
            chosen = plan.count if self.config.top_k is None else self.config.top_k + (whole.random is not None)
            if grouped_pays(down, chosen, tokens=x.numel() // x.shape[-1]):
                out = grouped(values, scale, gates, down, up, self.activation, chosen)
            else:
                out = dense(values, scale, gates, down, up, self.activation)
        if new_gate is not None:
            out = self._add(out, self._wide(x, scale, self.new_down, self.new_up, new_gate))
        if plan.base is not None:
            down, up = getattr(self, f"{plan.base}_down"), getattr(self, f"{plan.base}_up")
            out = self._add(out, self._wide(x, scale, down, up, None))
        assert out is not None, "a level without anything to do has no plan"
        return out

    def _wide(self, x: Tensor, scale: Tensor, down: Tensor, up: Tensor, gate: Tensor | None) -> Tensor:
        hidden = hidden_units(in_dtype_of(x, down), scale, down, self.activation)
        return (hidden if gate is None else hidden * gate.to(hidden.dtype)) @ up

    @staticmethod
    def _add(out: Tensor | None, more: Tensor) -> Tensor:
        return more if out is None else out + more.to(out.dtype)

    def route(
        self, x: Tensor, scale: Tensor, plan: LevelPlan, whole: Plan, level: int, layer: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gates of the active slots `[..., count]` and of the expert in training `[..., 1]`.

        Both take part in one routing decision, so activating an expert does not change what it does. Where
        nothing makes experts compete their gates are computed apart, so unlocking one does not change the
        others' by a single bit.
        """
        parts = []
        if plan.count:
            logits = self._logits(x, scale, self.keys[: plan.count], self.offsets[: plan.count])
            mask = plan.mask(x.device)
            parts.append(logits if mask is None else logits.masked_fill(mask, -torch.inf))
        if plan.training:
            key = self.new_key.unsqueeze(0) * self.config.router_gain
            parts.append(self._logits(x, scale, key, self.new_offset))
        if not parts:
            return None, None
        router = ROUTERS[self.config.router]
        if router in INDEPENDENT or len(parts) == 1:
            gates = [router(logits) for logits in parts]
        else:
            gates = list(router(torch.cat(parts, dim=-1)).split([plan.count, 1], dim=-1))
        top_k, experts = self.config.top_k, plan.count + plan.training
        if top_k is not None and top_k < experts:
            gates = list(keep_top_k(torch.cat(gates, dim=-1), top_k).split([g.shape[-1] for g in gates], dim=-1))
        if whole.random is not None and (choices := whole.random.choices[level - 1]) is not None:
            gates[0] = open_one_more(gates[0], choices[layer], whole.random.gate)
        if whole.trace is not None:
            whole.trace.record(level, layer, torch.cat(gates, dim=-1), plan.count)
        return (gates[0] if plan.count else None), (gates[-1] if plan.training else None)

    @staticmethod
    def _logits(x: Tensor, scale: Tensor, keys_ED: Tensor, offsets_E: Tensor) -> Tensor:
        scores = nn.functional.linear(in_dtype_of(x, keys_ED), keys_ED)
        return torch.addcmul(offsets_E, scores, scale)

    @torch.no_grad()
    def open_workspace(self, slot: int, unlocks: int) -> None:
        """Prepare a fresh expert: random `A`, zero `B` (so that it adds nothing), zero key, the initial offset.

        Every slot draws its own `A`, and another one each time that it is unlocked: experts that began alike would read
        the same directions of their input.
        """
        self._initialise(self.new_down, slot, unlocks)
        self.new_up.zero_()
        self.new_key.zero_()
        self.new_offset.fill_(self.config.router_bias)

    @torch.no_grad()
    def store_workspace(self, slot: int) -> None:
        """Copy the trained expert into `slot` and clear the workspace."""
        self.keys[slot].copy_(self.new_key * self.config.router_gain)
        self.offsets[slot].copy_(self.new_offset[0])
        self.down[slot].copy_(self.new_down)
        self.up[slot].copy_(self.new_up)
        self.clear_workspace()

    @torch.no_grad()
    def clear_workspace(self) -> None:
        """Zero the workspace and drop its gradients."""
        for name in WORKSPACE:
            parameter = self.get_parameter(name)
            parameter.zero_()
            parameter.grad = None

    @torch.no_grad()
    def clear_slots(self, slots: tuple[int, ...]) -> None:
        """Zero the tensors of `slots`."""
        for name in SLOTS:
            for slot in slots:
                self.get_parameter(name)[slot].zero_()

    def train_experts(self, new: bool, earlier: bool = False) -> None:
        """Let the workspace and the slots require gradients, or not."""
        for names, on in ((WORKSPACE, new), (SLOTS, earlier)):
            for name in names:
                self.get_parameter(name).requires_grad_(on)

    def train_base(self, on: bool) -> None:
        """Let the level's own MLP require gradients, or not."""
        if self.has_base:
            for name in BASE:
                self.get_parameter(name).requires_grad_(on)

    def upcast_trained(self) -> None:
        """Hold what is trained in float32, as PEFT does for adapters of half-precision models."""
        for name in (*WORKSPACE, *((*BASE, *PROSPECTIVE, *ACCUMULATED) if self.has_base else ())):
            parameter = self.get_parameter(name)
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
