"""Isolated LoRA trials (paper.md section 4, step 3), many at a time in one stacked batch.

SEAL trains and judges its copies of the model one after another. Here the K copies of a stack share every product with
a frozen weight, and differ only in the thin products of their adapters. They stay isolated all the same: a trial's
loss is the mean over its own tokens, its gradient is clipped by its own norm, its optimiser state is its own row, and
when its steps are done it leaves the stack. What becomes of a trial does not depend on which others run beside it,
beyond the rounding of sums in another order.

    report = run_trials(model, [Dream((Row(ids, start=12),)), ...], TrialSettings(), evaluate)
    report.trials[0].outcome, report.dropped_by_reason
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from sleep_pipeline.dreaming.rows import Dream, fault, losses, side_by_side
from sleep_pipeline.dreaming.settings import TrialSettings
from sleep_pipeline.dreaming.stacked_lora import Layout, StackedLora, adapters_on, lay_out
from sleep_pipeline.memory.blocks import text_config
from sleep_pipeline.progress import bar

if TYPE_CHECKING:
    from sleep_pipeline.dreaming.workers import Workers

_UNEVEN = 1.1
"""How many times its share the busiest worker may have before a stack is cut."""
_CPU_PADDING = 0.1
"""Share of padding in a stack on a CPU, where arithmetic costs and another pass does not."""


class Evaluate(Protocol):
    """Judges trained copies, K at once, without gradients."""

    def __call__(self, model: nn.Module, trials: Sequence[int], /) -> Sequence[Any]:
        """One outcome for each of K trials.

        Args:
            model: with the K adapters on: of a batch `[K * B, T]`, the k-th `B` rows belong to `trials[k]`.
            trials: their indices among the dreams given.
        """
        ...


@dataclass(frozen=True)
class Trial:
    """What became of a dream.

    Attributes:
        index: of the dream.
        adapter: the trained adapter, a stack of one, for `adapters_on`; of none where it was not kept.
        losses: before each of its steps, nats a token.
        outcome: what `evaluate` said; None without it.
    """

    index: int
    adapter: StackedLora
    losses: tuple[float, ...]
    outcome: Any = None


@dataclass(frozen=True)
class Dropped:
    """A dream that could not be tried: its index and the reason in few words."""

    index: int
    reason: str


@dataclass(frozen=True)
class TrialReport:
    """All trials in the order of their dreams, and the dreams that were dropped."""

    trials: tuple[Trial, ...]
    dropped: tuple[Dropped, ...]

    @property
    def dropped_by_reason(self) -> dict[str, int]:
        """How many dreams each reason dropped."""
        return dict(Counter(dropped.reason for dropped in self.dropped))


@dataclass(frozen=True)
class Footprint:
    """Memory that training takes beside the model: bytes for each trial, and for each position of a batch."""

    trial: int
    position: float

    def of(self, trials: int, positions: int) -> float:
        """Bytes of a stack with so many trials and positions."""
        return trials * self.trial + positions * self.position


def run_trials(
    model: nn.Module,
    dreams: Sequence[Dream],
    settings: TrialSettings,
    evaluate: Evaluate | None = None,
    workers: Workers | None = None,
    keep: bool = True,
    progress: str | None = None,
) -> TrialReport:
    """Train an adapter on every dream, each isolated from the others, and judge the trained copies.

    The model runs in eval mode, so without dropout; its weights, flags and modules are afterwards as they were, also
    after an exception.

    Args:
        model: a Hugging Face causal LM, or one wrapped by peft; it stays where it is.
        dreams: see `Dream`; those that cannot be tried are dropped with a reason.
        settings: see `TrialSettings`.
        evaluate: see `Evaluate`.
        workers: processes that hold the model; None for those that `settings.workers` asks for, for this call alone.
        keep: whether the trained adapters stay on the device; hundreds take gigabytes of a large model's.
        progress: title of a bar, without workers; None for no bar.

    Raises:
        BlockError: the model has no decoder layers.
        ModuleNotFoundError: there are to be workers, and Ray is not installed.
        OutOfMemoryError: a stack does not fit onto the GPU beside the model.
        ValueError: `settings.targets` fit no layer, `evaluate` returns another number of outcomes than of trials, there
            are to be more workers than cores or GPUs, or those given hold another model.
    """
    if workers is None and settings.workers:
        from sleep_pipeline.dreaming.workers import workers_for

        with workers_for(model, settings) as hired:
            return run_trials(model, dreams, settings, evaluate, hired, keep, progress)
    layout = lay_out(model, settings.rank, settings.alpha, settings.targets)
    config = text_config(model)
    window = getattr(config, "max_position_embeddings", None)
    faults = [fault(dream, window, config.vocab_size) for dream in dreams]
    fit = [index for index, reason in enumerate(faults) if reason is None]
    with _frozen(model), torch.enable_grad():
        groups = _groups(model, layout, dreams, fit, settings)
    if workers is None:
        shown = bar(groups, progress, unit="stack")
        stacks = [run_stack(model, dreams, group, settings, evaluate, keep) for group in shown]
    else:
        stacks = workers.run(model, dreams, share_out(groups, dreams, workers.count), settings, evaluate, keep)
    trials = {trial.index: trial for stack in stacks for trial in stack}
    dropped = tuple(Dropped(index, reason) for index, reason in enumerate(faults) if reason is not None)
    return TrialReport(tuple(trials[index] for index in fit), dropped)


def run_stack(
    model: nn.Module,
    dreams: Sequence[Dream],
    group: Sequence[int],
    settings: TrialSettings,
    evaluate: Evaluate | None = None,
    keep: bool = True,
) -> list[Trial]:
    """One stack of `run_trials`: the trials of the dreams in `group`, which can all be tried.

    Raises:
        OutOfMemoryError: they do not fit onto the GPU beside the model.
    """
    layout = lay_out(model, settings.rank, settings.alpha, settings.targets)
    with _fitting(group, settings), _frozen(model), torch.enable_grad():
        flat, history = _train(model, layout, [dreams[index] for index in group], settings)
        adapters = layout.views(flat)
        outcomes = _judge(model, adapters, group, settings, evaluate)
    return [
        Trial(index, adapters.select([k] if keep else []), tuple(history[k]), outcomes[k])
        for k, index in enumerate(group)
    ]


def share_out(groups: Sequence[Sequence[int]], dreams: Sequence[Dream], workers: int) -> list[list[int]]:
    """Stacks for several workers, the largest first; the largest are cut until the workers have about equally much.

    A stack that is not cut gives the same bits as in one process, one that is cut the same but for rounding.
    """
    shared = [list(group) for group in groups]
    share = sum(_positions(group, dreams) for group in shared) / workers
    while True:
        shared.sort(key=lambda group: _positions(group, dreams), reverse=True)
        loads = [0] * workers
        for group in shared:
            loads[loads.index(min(loads))] += _positions(group, dreams)
        widest = next((at for at, group in enumerate(shared) if len(group) > 1), None)
        if max(loads) <= _UNEVEN * share or widest is None:
            return shared
        group = shared.pop(widest)
        shared += [group[: len(group) // 2], group[len(group) // 2 :]]


def _positions(group: Sequence[int], dreams: Sequence[Dream]) -> int:
    """Tokens of a stack's batch, padding included."""
    depth, length = max(len(dreams[i].rows) for i in group), max(dreams[i].longest for i in group)
    return len(group) * depth * length


def measure_footprint(model: nn.Module, layout: Layout, dream: Dream, settings: TrialSettings) -> Footprint:
    """What a trial takes, measured: one forward pass of the dream's longest row, counting what is kept for backward.

    With attention that keeps scores for every pair of tokens, a position costs more the longer its row is: give the
    longest dream to stay on the safe side.
    """
    row = max(dream.rows, key=lambda row: len(row.ids))
    device = next(model.parameters()).device
    batch = side_by_side([[row]], device)
    flat = layout.initial(dream.seed)[None].to(device, _dtype(model)).requires_grad_()
    own = {parameter.untyped_storage().data_ptr() for parameter in (*model.parameters(), flat)}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        with adapters_on(model, layout.views(flat)), precision_of(settings, device):
            # The graph must live until all is counted, or a freed tensor's address is given to the next.
            loss = losses(model, batch)
    # The logits and their gradient exist for a moment beside what is kept.
    passing = 2 * batch.labels_NS.numel() * text_config(model).vocab_size * loss.element_size()
    # Weights, gradients by layer and put together, two moments, and the result.
    return Footprint(6 * layout.size * flat.element_size(), (sum(kept.values()) + passing) / batch.ids_NT.numel())


def _groups(
    model: nn.Module, layout: Layout, dreams: Sequence[Dream], fit: Sequence[int], settings: TrialSettings
) -> list[list[int]]:
    """Dreams of like shape together, as many as may run at once and as the budget and the padding allow."""
    if not fit:
        return []
    footprint = None
    if settings.trials_at_once is None:
        longest = max(fit, key=lambda index: dreams[index].longest)
        footprint = measure_footprint(model, layout, dreams[longest], settings)
    most_padding = settings.max_padding
    if most_padding is None:
        most_padding = _CPU_PADDING if next(model.parameters()).device.type == "cpu" else 1.0
    order = sorted(fit, key=lambda index: (len(dreams[index].rows), dreams[index].longest, index))
    groups: list[list[int]] = [[]]
    for index in order:
        grown = [*groups[-1], index]
        positions = _positions(grown, dreams)
        padding = 1 - sum(dreams[i].tokens for i in grown) / positions
        fits = footprint is None or footprint.of(len(grown), positions) <= settings.memory_budget
        few = settings.trials_at_once is None or len(grown) <= settings.trials_at_once
        # Rows of unlike length within one dream pad it whatever stands beside it, so a dream alone always may.
        if len(grown) == 1 or (fits and few and padding <= most_padding):
            groups[-1] = grown
        else:
            groups.append([index])
    return groups


def _train(
    model: nn.Module, layout: Layout, dreams: Sequence[Dream], settings: TrialSettings
) -> tuple[Tensor, list[list[float]]]:
    """The trained adapters `[K, size]` of one stack, and each trial's losses."""
    device = next(model.parameters()).device
    weights = torch.stack([layout.initial(dream.seed) for dream in dreams]).to(device, _dtype(model))
    trained = torch.empty_like(weights)
    steps = [dream.steps or settings.steps for dream in dreams]
    history: list[Tensor] = []
    live = list(range(len(dreams)))
    state: dict[str, Tensor] = {}
    done = 0
    while live:
        until = min(steps[k] for k in live)
        batch = side_by_side([dreams[k].rows for k in live], device)
        optimizer = _optimizer(weights, settings, state)
        adapters = layout.views(weights.detach())
        leaves = [tensor.requires_grad_() for tensor in layout.tensors(adapters)]
        with adapters_on(model, adapters):
            for _ in range(done, until):
                with precision_of(settings, device):
                    loss_K = losses(model, batch)
                # A row of the stack meets no other, so each trial's gradient of the sum is that of its own loss.
                found = torch.autograd.grad(loss_K.sum(), leaves, materialize_grads=True)
                weights.grad = torch.cat([gradient.flatten(1) for gradient in found], dim=1)
                if settings.clip_norm is not None:
                    norms = torch.linalg.vector_norm(weights.grad, dim=1, keepdim=True)
                    weights.grad.mul_((settings.clip_norm / (norms + 1e-6)).clamp(max=1))
                optimizer.step()
                history.append(torch.full((len(dreams),), torch.nan, dtype=loss_K.dtype, device=device))
                history[-1][live] = loss_K.detach()
        trained[live] = weights
        # Those that are done leave, so that nothing can change them and they cost nothing.
        stay = [at for at, k in enumerate(live) if steps[k] > until]
        state = {name: value[stay] if value.dim() else value for name, value in optimizer.state[weights].items()}
        live, weights, done = [live[at] for at in stay], weights[stay], until
    columns = torch.stack(history, dim=1).tolist()
    return trained, [column[:count] for column, count in zip(columns, steps, strict=True)]


def _optimizer(weights_KP: Tensor, settings: TrialSettings, state: dict[str, Tensor]) -> torch.optim.AdamW:
    """AdamW over all adapters: it works number by number, and trials in a stack have made equally many steps."""
    optimizer = torch.optim.AdamW(
        [weights_KP],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    if state:
        optimizer.state[weights_KP] = state
    return optimizer


def _judge(
    model: nn.Module,
    adapters: StackedLora,
    group: Sequence[int],
    settings: TrialSettings,
    evaluate: Evaluate | None,
) -> Sequence[Any]:
    if evaluate is None:
        return [None] * len(group)
    device = next(model.parameters()).device
    with torch.no_grad(), adapters_on(model, adapters), precision_of(settings, device):
        outcomes = evaluate(model, tuple(group))
    if len(outcomes) != len(group):
        raise ValueError(
            f"evaluate returned {len(outcomes)} outcomes for {len(group)} trials; it must return one for each, in order"
        )
    return outcomes


def _dtype(model: nn.Module) -> torch.dtype:
    """Of the adapters: a step of AdamW in bf16 would mostly round to nothing."""
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)


def precision_of(settings: TrialSettings, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which copies compute; what they are compared with must be computed in it, too."""
    return torch.autocast(device.type, torch.bfloat16) if settings.precision == "bf16" else nullcontext()


@contextmanager
def _fitting(group: Sequence[int], settings: TrialSettings) -> Iterator[None]:
    """Tell which settings take less where a stack is too large for the GPU."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"trials of {len(group)} dreams at once do not fit onto the GPU beside the model: lower dreaming.trials."
            f"memory_budget={settings.memory_budget} (or trials_at_once, rank and targets there) or dreaming.tau."
            f"rows_at_once, by which they are judged ({error})"
        ) from error


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for the model's own weights; every flag is put back."""
    training = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)
