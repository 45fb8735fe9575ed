"""Lessons as safetensors: rows of different lengths laid end to end, with their lengths beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sleep_pipeline.seeding.divergences import CachedTeacher, join
from sleep_pipeline.seeding.lessons import Lesson


def save_lessons(pools: Mapping[str, Sequence[Lesson]], path: Path) -> None:
    """Write lessons under the names of their pools."""
    tensors = {
        f"{name}.{key}": tensor
        for name, lessons in pools.items()
        for key, tensor in pack([(lesson, 0) for lesson in lessons]).items()
    }
    save_file(tensors, path)


def load_lessons(path: Path) -> dict[str, list[Lesson]]:
    """Read what `save_lessons` wrote."""
    tensors = load_file(path)
    names = dict.fromkeys(key.rsplit(".", 1)[0] for key in tensors)
    return {
        name: [
            lesson
            for lesson, _ in unpack(
                {key.rsplit(".", 1)[1]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
            )
        ]
        for name in names
    }


def pack(lessons: Sequence[tuple[Lesson, int]]) -> dict[str, torch.Tensor]:
    """Lessons of different lengths as flat tensors with their lengths beside them, all cut to the least `top_k`."""
    nothing = CachedTeacher(torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1), torch.zeros(0))
    teachers = join([lesson.teacher for lesson, _ in lessons] or [nothing])
    return {
        "ids": torch.tensor([token for lesson, _ in lessons for token in lesson.ids], dtype=torch.int32),
        "lengths": torch.tensor([len(lesson.ids) for lesson, _ in lessons], dtype=torch.int32),
        "starts": torch.tensor([lesson.start for lesson, _ in lessons], dtype=torch.int32),
        "nights": torch.tensor([night for _, night in lessons], dtype=torch.int32),
        "views": torch.tensor([lesson.view for lesson, _ in lessons], dtype=torch.int32),
        "prompts": torch.tensor([token for lesson, _ in lessons for token in lesson.teacher_prompt], dtype=torch.int32),
        "prompt_lengths": torch.tensor([len(lesson.teacher_prompt) for lesson, _ in lessons], dtype=torch.int32),
        "tokens": teachers.tokens_NK.to(torch.int32),
        "log_probs": teachers.log_probs_NK.float(),
        "tails": teachers.tail_N.float(),
    }


def unpack(packed: Mapping[str, torch.Tensor]) -> list[tuple[Lesson, int]]:
    """What `pack` made flat."""
    lessons = []
    at = position = asked = 0
    columns = (packed[key].tolist() for key in ("lengths", "starts", "nights", "views", "prompt_lengths"))
    ids, prompts = packed["ids"].tolist(), packed["prompts"].tolist()
    for length, start, night, view, prompt in zip(*columns, strict=True):
        rows = slice(position, position + length - start)
        teacher = CachedTeacher(packed["tokens"][rows].long(), packed["log_probs"][rows], packed["tails"][rows])
        own = tuple(prompts[asked : asked + prompt])
        lessons.append((Lesson(tuple(ids[at : at + length]), start, teacher, own, view), night))
        at, position, asked = at + length, rows.stop, asked + prompt
    return lessons
