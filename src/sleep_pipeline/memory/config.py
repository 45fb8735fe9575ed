"""The configuration of the continuum memory, as PEFT saves it beside the weights."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from peft import PeftConfig

from sleep_pipeline.memory.registration import CONTINUUM
from sleep_pipeline.memory.routers import ROUTERS
from sleep_pipeline.memory.schedule import Schedule, check_periods

ACTIVATIONS = ("silu", "relu", "identity")


@dataclass
class LevelConfig:
    """One level of the memory.

    Attributes:
        period: how many nights (or tokens; one unit for all levels) pass between two changes of this level's
            base weights, `C(l)` of paper.md. The slowest level is frozen and needs none; one that is given is
            checked against the others and has no effect.
        num_slots: expert slots; all are allocated from the start. A level that hands on must hold every
            expert of one period. Cost: `2 * rank * hidden_size` numbers a slot and decoder layer.
        rank: `d_low`, the width of one expert.
        top_k: how many experts a token may use; None for all of them. Bounds the cost of a token however many
            nights have passed.
        router: how an expert decides to open (`routers.py` says which fits when).
        router_bias: the gate logit of a fresh expert; negative starts it shut.
        router_gain: multiplies the learned key, which is the same as a learning rate so many times higher. The default
            is for a hidden size of 192; a wider model wants one that is smaller by as much.
        base_width: hidden width of the level's own MLP; ignored in the slowest level, whose base is the
            pretrained MLP.
    """

    period: int | None = None
    num_slots: int = 32
    rank: int = 32
    top_k: int | None = None
    router: str = "threshold"
    router_bias: float = -2.0
    router_gain: float = 4.0
    base_width: int = 64

    def __post_init__(self) -> None:
        """Refuse values that no model could use."""
        for name, least in (("num_slots", 2), ("rank", 1), ("base_width", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} of a memory level is {value!r}; give a whole number of at least {least}")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k of a memory level is {self.top_k!r}; give at least 1, or None for all experts")
        if self.router not in ROUTERS:
            raise ValueError(f"router {self.router!r} is unknown; choose one of {', '.join(sorted(ROUTERS))}")
        if self.router_gain <= 0:
            raise ValueError(f"router_gain is {self.router_gain}; give a positive number (the default is 4.0)")


def level_from_dict(record: dict[str, Any]) -> LevelConfig:
    """Return the level that a saved configuration describes.

    Raises:
        ValueError: it names something that a level does not have.
    """
    unknown = sorted(set(record) - {entry.name for entry in fields(LevelConfig)})
    if unknown:
        raise ValueError(f"a memory level has no {', '.join(unknown)}; remove it, or use the version that wrote it")
    return LevelConfig(**record)


@dataclass
class ContinuumMemoryConfig(PeftConfig):
    """The continuum memory system (paper.md section 2) as a PEFT method.

    Attributes:
        levels: fastest first; the last is the pretrained MLP with its slots. One level is the context above
            the pretrained model, the paper's two-level setting.
        context_period: how often the context is consolidated, in the unit of the periods.
        activation: the nonlinearity between an expert's two matrices: `silu`, `relu`, or `identity`.
        layers_to_transform: decoder layers that carry a memory; None for all.
        seed: of the experts' initial weights.
        target_modules: where the memory sits. Leave it out: the MLP block is found by rule. Give full module
            names, or a regular expression over them, for a model that the rule does not understand.
        base_digest: SHA-256 of the base model's weights; filled in when the memory is attached and compared
            when it is loaded. None skips the comparison.
        state: the slot table, kept up to date for saving. A memory that is attached begins empty, and takes over the
            state in the file of the weights when these are loaded.
    """

    levels: list[LevelConfig] = field(default_factory=lambda: [LevelConfig()])
    context_period: int = 1
    activation: str = "silu"
    layers_to_transform: list[int] | None = None
    seed: int = 0
    target_modules: list[str] | str | None = None
    base_digest: str | None = None
    state: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the levels against each other.

        Raises:
            ValueError: no level; periods that do not increase or divide; a level that cannot hold one
                period's experts; an unknown activation.
        """
        super().__post_init__()
        self.peft_type = CONTINUUM
        if not self.levels:
            raise ValueError("levels is empty; give at least one LevelConfig, the pretrained MLP with its slots")
        self.levels = [level if isinstance(level, LevelConfig) else level_from_dict(level) for level in self.levels]
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        *changing, slowest = self.levels
        for number, level in enumerate(changing, start=1):
            if level.period is None:
                raise ValueError(
                    f"level {number} of {len(self.levels)} has no period: only the slowest level goes without; give "
                    "the nights (or tokens) between two changes of its base weights"
                )
        periods = self.periods
        check_periods(periods if slowest.period is None else [*periods, slowest.period])
        for number, level in enumerate(changing, start=1):
            arrivals = periods[number] // periods[number - 1]
            if level.num_slots < arrivals:
                raise ValueError(
                    f"level {number} receives {arrivals} experts in its period of {periods[number]} but has only "
                    f"{level.num_slots} slots: give it num_slots={arrivals} or more, or a shorter period"
                )

    @property
    def periods(self) -> list[int]:
        """Chunk sizes of every level that changes, the context first."""
        return [self.context_period, *(cast(int, level.period) for level in self.levels[:-1])]

    def schedule(self) -> Schedule:
        """Return the schedule of these levels."""
        return Schedule(self.periods)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration in JSON's types."""
        return asdict(self)
