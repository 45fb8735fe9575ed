"""The continuum memory: levels of low-rank experts inside any Hugging Face causal language model.

    config = ContinuumMemoryConfig(levels=[LevelConfig(num_slots=32, rank=32)])
    model = peft.get_peft_model(base_model, config)
    with consolidation(model, sender=CONTEXT, receiver=1, night=1) as sleep:
        ...  # the default state is the student; `with teacher_view(model):` is the teacher
        sleep.commit()
    model.save_pretrained("memory")

Importing this package registers the method with PEFT. It deviates from the paper (paper.md section 2) in the
router, which the paper leaves open: gates start shut (`routers.py`), in the chain of eq. 1, which is
residual here so that a level that has learned nothing is an exact no-op, and, with `plastic=True`, in letting
earlier experts learn along with the new one.
"""

from peft.utils import register_peft_method

from sleep_pipeline.memory.beside import add_beside, load_beside, memory_aside, save_beside
from sleep_pipeline.memory.blocks import Block, BlockError, find_mlp_blocks
from sleep_pipeline.memory.checkpointing import checkpoint_context
from sleep_pipeline.memory.config import ContinuumMemoryConfig, LevelConfig
from sleep_pipeline.memory.describe import MemorySummary, describe, plot_slots
from sleep_pipeline.memory.digest import OtherBaseError, base_digest
from sleep_pipeline.memory.journal import Journal, JournalError, Recovery
from sleep_pipeline.memory.model import ContinuumMemoryModel
from sleep_pipeline.memory.online import WakeUpdates
from sleep_pipeline.memory.operations import activate, reset, state_of, states_of, unlock
from sleep_pipeline.memory.registration import CONTINUUM
from sleep_pipeline.memory.schedule import Pair, Schedule
from sleep_pipeline.memory.slots import CONTEXT, Sleep, Slot, SlotError, SlotState, SlotTable
from sleep_pipeline.memory.state import LevelView, MemoryState
from sleep_pipeline.memory.tracing import RoutingTrace, trace_routing
from sleep_pipeline.memory.transaction import Consolidation, consolidation, recover
from sleep_pipeline.memory.views import (
    adapters_view,
    base_view,
    experts_view,
    random_experts,
    student_view,
    teacher_view,
)

__all__ = [
    "CONTEXT",
    "CONTINUUM",
    "Block",
    "BlockError",
    "Consolidation",
    "ContinuumMemoryConfig",
    "ContinuumMemoryModel",
    "Journal",
    "JournalError",
    "LevelConfig",
    "LevelView",
    "MemoryState",
    "MemorySummary",
    "OtherBaseError",
    "Pair",
    "Recovery",
    "RoutingTrace",
    "Schedule",
    "Sleep",
    "Slot",
    "SlotError",
    "SlotState",
    "SlotTable",
    "WakeUpdates",
    "activate",
    "adapters_view",
    "add_beside",
    "base_digest",
    "base_view",
    "checkpoint_context",
    "consolidation",
    "describe",
    "experts_view",
    "find_mlp_blocks",
    "load_beside",
    "memory_aside",
    "plot_slots",
    "random_experts",
    "recover",
    "reset",
    "save_beside",
    "state_of",
    "states_of",
    "student_view",
    "teacher_view",
    "trace_routing",
    "unlock",
]

register_peft_method(
    name="continuum", config_cls=ContinuumMemoryConfig, model_cls=ContinuumMemoryModel, prefix="continuum_"
)
