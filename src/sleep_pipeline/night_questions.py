"""Whether a night has questions enough for the gate, which is known long before the gate looks."""

from __future__ import annotations

from sleep_pipeline.run_environment import night_command


def too_few_questions(night: int, questions: int, least: int) -> str | None:
    """Why a night will be rejected whatever it learns, and what to do; None if it has questions enough.

    Args:
        night: its number.
        questions: that are asked about its memories.
        least: `evaluation.gate.min_questions`.
    """
    if questions >= least:
        return None
    return (
        f"night {night} has {questions} questions about its memories, and the gate, which takes {least} to tell a gain "
        "from chance (evaluation.gate.min_questions), will reject it: end it, and either wait for more memories and "
        f"collect anew (`{night_command(night, 'collect_memories_node')}`), or write more questions into the folder of "
        f"probes and sample anew (`{night_command(night, 'sample_lessons_node')}`)"
    )
