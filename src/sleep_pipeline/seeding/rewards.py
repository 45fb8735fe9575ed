"""Learning-to-imitate rewards (paper.md eq. 4): how well a student goes on where a teacher's sample was cut.

`r = gamma * r_sem + (1 - gamma) * r_abs`, where `r_abs` compares tokens and `r_sem` asks a frozen judge whether both
texts mean the same (`judges.py`). The paper leaves open whether the texts are compared with the shared prefix; here
they are the continuations alone, so that a long prefix earns nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from sleep_pipeline.seeding.judges import Judge

RewardFunction = Callable[..., list[float]]
"""Takes `completions`, `completion_ids` and the columns of the data set by name, as TRL's trainers pass them."""


def absolute_reward(said: Sequence[int], reference: Sequence[int], threshold: int) -> float:
    """`r_abs`: 1 minus the share of tokens that differ, or 0 beyond the threshold `z_0`.

    Args:
        said: the student's tokens, end marks left out.
        reference: the teacher's.
        threshold: the largest Levenshtein distance, in tokens, that earns anything.
    """
    if not said and not reference:
        return 1.0
    # rapidfuzz gives threshold + 1 as soon as the distance is known to be larger.
    distance = Levenshtein.distance(said, reference, score_cutoff=threshold)
    return 0.0 if distance > threshold else 1 - distance / max(len(said), len(reference))


def imitation_reward(gamma: float, threshold: int, judge: Judge | None, end: Sequence[int] = ()) -> RewardFunction:
    """Eq. 4 as a reward function for TRL.

    The data set needs the columns `reference_ids` (the teacher's continuation, without end marks) and, with a judge,
    `reference` (the same as text) and `question` (what the sample answers; may be empty).

    Args:
        gamma: weight of `r_sem`; 0 never asks the judge.
        threshold: `z_0` of `r_abs`, in tokens.
        judge: says whether two texts mean the same; None only with gamma 0.
        end: ids of end and padding marks, which do not count as something said.

    Raises:
        ValueError: gamma outside [0, 1], a negative threshold, or a gamma above 0 without a judge.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma of the imitation reward is {gamma}; give a number from 0 to 1")
    if threshold < 0:
        raise ValueError(f"z_0 of the imitation reward is {threshold}; give a number of tokens, 0 or more")
    if gamma and judge is None:
        raise ValueError(
            f"gamma of the imitation reward is {gamma}, but there is no judge: name one, or set gamma to 0"
        )
    silent = frozenset(end)

    def imitation(
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        reference_ids: Sequence[Sequence[int]],
        reference: Sequence[str] | None = None,
        question: Sequence[str] | None = None,
        **_: Any,
    ) -> list[float]:
        literal = [
            absolute_reward([token for token in said if token not in silent], list(wanted), threshold)
            for said, wanted in zip(completion_ids, reference_ids, strict=True)
        ]
        if not gamma or judge is None:
            return literal
        if reference is None:
            raise ValueError("the data set has no column `reference`, which the judge compares with; add it")
        said = [_text(completion) for completion in completions]
        asked = list(question) if question is not None else [""] * len(said)
        agreed = _agreement(judge, asked, said, list(reference))
        return [gamma * meant + (1 - gamma) * same for meant, same in zip(agreed, literal, strict=True)]

    return imitation


def _agreement(judge: Judge, questions: list[str], said: list[str], references: list[str]) -> list[float]:
    """`r_sem` of each pair; equal texts agree without asking, and an empty one with nothing else."""
    trios = list(zip(questions, said, references, strict=True))
    verdicts: dict[tuple[str, str, str], bool] = {}
    open_trios = []
    for trio in dict.fromkeys(trios):
        _, one, other = trio
        if one.strip() == other.strip():
            verdicts[trio] = True
        elif not one.strip() or not other.strip():
            verdicts[trio] = False
        else:
            open_trios.append(trio)
    if open_trios:
        verdicts.update(zip(open_trios, judge.agree(open_trios), strict=True))
    return [float(verdicts[trio]) for trio in trios]


def _text(completion: Any) -> str:
    """A completion's text, be it a string or a list of messages as TRL gives it for conversations."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def cut_prefix(ids: Sequence[int], rng: random.Random) -> tuple[list[int], list[int]]:
    """Cut a teacher's sample at random into a prefix, possibly empty, and a continuation of at least one token.

    Raises:
        ValueError: the sample is empty.
    """
    if not ids:
        raise ValueError("an empty sample cannot be cut; drop it before")
    at = rng.randrange(len(ids))
    return list(ids[:at]), list(ids[at:])
