"""What the nights kept and what they lost: the matrix R of continual learning, and the measures that are read from it.

`R[i][j]` is the share of right closed-book answers to night `j`'s questions after night `i`. It is kept question by
question, so that every interval can be drawn over the questions: each night's questions are resampled as a whole,
with all their answers over the nights, which leaves the comparisons paired. Shares of answers that are all right or all
wrong have Wilson's interval. Intervals speak of the choice of questions alone, not of what another seed would have
trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sleep_pipeline.evaluation.statistics import Estimate, mean_interval, paired_difference

if TYPE_CHECKING:
    import pandas

Answers = tuple[int, ...]
Floats = NDArray[np.float64]

_RESAMPLES = 2000
_NOTHING = Estimate(0.0, 0.0, 0.0, 0)


@dataclass(frozen=True)
class _Means:
    """What the measures need of the mean scores, night by night: each `[..., T]` with any number of leading axes.

    R itself, `[..., T, T]`, would take gigabytes for resamples of some hundreds of nights.

    Attributes:
        own: right after a night.
        last: after the last night.
        before_last: after the last night but one; NaN for the last night.
        best: the best before the last night; NaN for the last night.
        over_time: the night's part in the mean over the nights of the accuracy after each.
        open_book: of the teacher; NaN where it was not asked.
    """

    own: Floats
    last: Floats
    before_last: Floats
    best: Floats
    over_time: Floats
    open_book: Floats


def _accuracy(means: _Means) -> Floats:
    return means.last.mean(-1)


def _accuracy_over_time(means: _Means) -> Floats:
    return means.over_time.sum(-1)


def _backward_transfer(means: _Means) -> Floats:
    return (means.last - means.own)[..., :-1].mean(-1)


def _forgetting(means: _Means) -> Floats:
    return (means.best - means.last)[..., :-1].mean(-1)


def _forgetting_since_learned(means: _Means) -> Floats:
    return -_backward_transfer(means)


def _lost_last_night(means: _Means) -> Floats:
    return (means.before_last - means.last)[..., :-1].mean(-1)


def _relative_recall(means: _Means) -> Floats:
    known = ~np.isnan(means.open_book)
    learned = np.where(known, means.own, 0.0).sum(-1)
    readable = np.where(known, means.open_book, 0.0).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(readable > 0, learned / readable, np.nan)


_MEASURES: dict[str, tuple[Callable[[_Means], Floats], int]] = {
    "accuracy": (_accuracy, 1),
    "accuracy_over_time": (_accuracy_over_time, 1),
    "backward_transfer": (_backward_transfer, 2),
    "forgetting": (_forgetting, 2),
    "forgetting_since_learned": (_forgetting_since_learned, 2),
    "lost_last_night": (_lost_last_night, 2),
    "relative_recall": (_relative_recall, 1),
}
"""Of means over questions, each with the least number of nights that it speaks of."""
_SHARES = frozenset({"accuracy", "accuracy_over_time"})


@dataclass(frozen=True)
class Retention:
    """Every answer to every night's questions, night after night.

    Attributes:
        scores: `scores[i][j]` (`j <= i`) says of each of night `j`'s questions whether it was answered right, 1 or 0,
            without context after night `i`.
        before: per night, the same for its own questions just before it; None where that was not asked.
        open_book: per night, the same for the teacher with the context at hand; None where that was not asked.
        nights: the numbers of the nights, ascending; 1, 2, 3 ... if left out.

    Raises:
        ValueError: rows or questions are missing or too many, or a score is neither 0 nor 1.
    """

    scores: tuple[tuple[Answers, ...], ...] = ()
    before: tuple[Answers | None, ...] = field(default=())
    open_book: tuple[Answers | None, ...] = field(default=())
    nights: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.scores)
        scores = tuple(tuple(_answers(cell) for cell in row) for row in self.scores)
        object.__setattr__(self, "scores", scores)
        for name in ("before", "open_book"):
            cells = getattr(self, name) or (None,) * count
            object.__setattr__(self, name, tuple(None if cell is None else _answers(cell) for cell in cells))
        object.__setattr__(self, "nights", tuple(int(night) for night in self.nights) or tuple(range(1, count + 1)))
        self._check()

    def _check(self) -> None:
        count = len(self.scores)
        if not len(self.nights) == len(self.before) == len(self.open_book) == count:
            raise ValueError(
                f"{count} rows of scores go with {len(self.nights)} nights, {len(self.before)} scores before and "
                f"{len(self.open_book)} open-book scores: give one of each a night"
            )
        if any(late <= early for early, late in zip(self.nights, self.nights[1:], strict=False)):
            raise ValueError(f"nights={list(self.nights)} must ascend")
        for i, row in enumerate(self.scores):
            if len(row) != i + 1:
                raise ValueError(
                    f"night {self.nights[i]} has scores of {len(row)} nights; it needs {i + 1}, its own last"
                )
            for j, cell in enumerate(row):
                self._check_cell(cell, j, f"after night {self.nights[i]}")
        for j in range(count):
            self._check_cell(self.before[j], j, "before it")
            self._check_cell(self.open_book[j], j, "with the book open")

    def _check_cell(self, cell: Answers | None, j: int, when: str) -> None:
        if cell is None:
            return
        asked = len(self.scores[j][j])
        if len(cell) != asked or not asked:
            raise ValueError(f"night {self.nights[j]} has {asked} questions, but {len(cell)} scores {when}")
        if not set(cell) <= {0, 1}:
            wrong = next(score for score in cell if score not in (0, 1))
            raise ValueError(f"night {self.nights[j]} has the score {wrong} {when}: scores are 0 or 1 a question")

    def __len__(self) -> int:
        """Return the number of nights."""
        return len(self.scores)

    def append(
        self,
        night: int,
        row: Sequence[Sequence[int]],
        before: Sequence[int] | None = None,
        open_book: Sequence[int] | None = None,
    ) -> Retention:
        """Return the matrix with one more night.

        Args:
            night: its number.
            row: closed-book scores after it, of every earlier night's questions in order and then of its own.
            before: closed-book scores of its own questions before it.
            open_book: the teacher's scores of its own questions, with the context.

        Raises:
            ValueError: the scores do not fit the questions so far.
        """
        return Retention(
            (*self.scores, tuple(_answers(cell) for cell in row)),
            (*self.before, None if before is None else _answers(before)),
            (*self.open_book, None if open_book is None else _answers(open_book)),
            (*self.nights, night),
        )

    def means(self) -> Floats:
        """Return R, shares `[T, T]`; NaN above the diagonal, where a night had not been yet."""
        nights = len(self.scores)
        R = np.full((nights, nights), np.nan)
        for j in range(nights):
            R[j:, j] = self._answers_to(j).mean(-1)
        return R

    def accuracy(self, seed: int = 0) -> Estimate:
        """ACC: mean over all nights' questions after the last night (Lopez-Paz and Ranzato 2017)."""
        return self._estimate("accuracy", seed)

    def accuracy_over_time(self, seed: int = 0) -> Estimate:
        """Mean over the nights of what ACC was after each of them."""
        return self._estimate("accuracy_over_time", seed)

    def backward_transfer(self, seed: int = 0) -> Estimate:
        """BWT: after the last night minus right after its own, mean over earlier nights (Lopez-Paz and Ranzato 2017).

        Negative where nights were forgotten. Nothing can be before the second night: 0 over 0 questions.
        """
        return self._estimate("backward_transfer", seed)

    def forgetting(self, seed: int = 0) -> Estimate:
        """Best score before the last night minus the score after it, mean over earlier nights (Chaudhry et al. 2018).

        The best of several noisy scores is too high on average, the more so in resamples and the more nights there
        are: this is an upper bound, which grows though nothing is lost, and its interval may lie above the value.
        Before the second night: 0 over 0 questions.
        """
        return self._estimate("forgetting", seed)

    def forgetting_of_questions(self) -> Estimate:
        """As `forgetting_since_learned`, but questions weigh alike instead of nights.

        A night of a single question, which is either right or wrong, then counts for no more than it can tell. No
        best is taken, so the number of nights alone does not raise it. Its interval is that of `paired_difference`.
        """
        if len(self.scores) < 2:
            return _NOTHING
        learned = [score for row in self.scores[:-1] for score in row[-1]]
        return paired_difference(learned, [score for cell in self.scores[-1][:-1] for score in cell])

    def forgetting_since_learned(self, seed: int = 0) -> Estimate:
        """Score right after its own night minus the score after the last, mean over earlier nights: `-BWT`."""
        return self._estimate("forgetting_since_learned", seed)

    def lost_last_night(self, seed: int = 0) -> Estimate:
        """Score before the last night minus the score after it, mean over earlier nights: what it alone cost."""
        return self._estimate("lost_last_night", seed)

    def relative_recall(self, seed: int = 0) -> Estimate | None:
        """Closed-book right after a night as a share of the teacher's open-book score, over nights that have both.

        Nights weigh alike in the sums above and below the line. None if no teacher was asked or none knew anything.
        """
        readable = self._readable()
        return replace(self._estimate("relative_recall", seed), samples=readable) if readable else None

    def _readable(self) -> int:
        """Questions of the nights whose teacher was right at all."""
        return sum(len(cell) for cell in self.open_book if cell is not None and any(cell))

    def gain(self) -> Estimate | None:
        """Closed-book after the last night minus before it, on its own questions; None if not asked before.

        Its interval is that of `paired_difference`, which is meant for few questions.
        """
        if not self.scores or (before := self.before[-1]) is None:
            return None
        return paired_difference(self.scores[-1][-1], before)

    @classmethod
    def over_lives(cls, lives: Sequence[Retention], measure: str, seed: int = 0) -> Estimate:
        """Mean of a measure over lives, with a 95 % bootstrap over both the lives and each one's questions.

        Few lives make for too narrow an interval: three of them are drawn from three.

        Args:
            lives: such as those of several seeds, each with questions of its own.
            measure: `accuracy`, `accuracy_over_time`, `backward_transfer`, `forgetting`, `forgetting_since_learned`,
                `lost_last_night` or `relative_recall`.
            seed: of the bootstrap.

        Raises:
            ValueError: there is no life, a life is too short for the measure, or its teacher was never right.
        """
        if not lives:
            raise ValueError(f"there is no life to take the {measure} of: give one at least")
        of, least = _MEASURES[measure]
        if (shortest := min(map(len, lives))) < least:
            raise ValueError(f"{measure} needs {least} nights, and a life has {shortest}")
        rng = np.random.default_rng(seed)
        values = np.array([of(life._means()) for life in lives])
        if np.isnan(values).any():
            raise ValueError(f"{measure} needs right answers of a teacher, and a life has none")
        draws = np.stack([of(life._means(rng, _RESAMPLES)) for life in lives], axis=1)
        # A life that is drawn twice gets questions of its own each time.
        which, drawn = rng.integers(len(draws), size=draws.shape), rng.integers(len(lives), size=draws.shape)
        low, high = np.nanquantile(draws[which, drawn].mean(1), [0.025, 0.975])
        asked = sum(life._asked(least) for life in lives)
        return Estimate(float(values.mean()), float(low), float(high), asked)

    def summary(self, seed: int = 0) -> dict[str, Estimate | None]:
        """Return every measure by name; empty without a night."""
        if not self.scores:
            return {}
        readable = self._readable()
        measured = self._estimates([name for name in _MEASURES if readable or name != "relative_recall"], seed)
        return {
            **measured,
            "forgetting_of_questions": self.forgetting_of_questions(),
            "relative_recall": replace(measured["relative_recall"], samples=readable) if readable else None,
            "recall_gain": self.gain(),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the whole in JSON's types, lossless under `from_json`."""
        return {
            "nights": list(self.nights),
            "scores": [[list(cell) for cell in row] for row in self.scores],
            "before": [None if cell is None else list(cell) for cell in self.before],
            "open_book": [None if cell is None else list(cell) for cell in self.open_book],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Retention:
        """Return what `to_json` described.

        Raises:
            ValueError: a part is missing or does not fit the others.
        """
        missing = {"nights", "scores", "before", "open_book"} - record.keys()
        if missing:
            raise ValueError(f"a retention record lacks {', '.join(sorted(missing))}: it holds {sorted(record)}")
        return cls(record["scores"], record["before"], record["open_book"], record["nights"])

    def to_frame(self) -> pandas.DataFrame:
        """Return one row an answer: `kind`, `after_night`, `of_night`, `question`, `right`.

        The kinds are `closed_book`, `before` and `open_book`; the last two have no `after_night`.
        """
        import pandas

        rows: list[tuple[str, int | None, int, int, int]] = []
        for i, row in enumerate(self.scores):
            for j, cell in enumerate(row):
                rows += [("closed_book", self.nights[i], self.nights[j], q, right) for q, right in enumerate(cell)]
        for kind, cells in (("before", self.before), ("open_book", self.open_book)):
            for j, asked in enumerate(cells):
                rows += [(kind, None, self.nights[j], q, right) for q, right in enumerate(asked or ())]
        frame = pandas.DataFrame(rows, columns=["kind", "after_night", "of_night", "question", "right"])
        return frame.astype({"after_night": "Int64", "of_night": "int64", "question": "int64", "right": "int8"})

    def _means(self, rng: np.random.Generator | None = None, resamples: int = 0) -> _Means:
        """Means over the questions, or over `resamples` draws of them with replacement, `[resamples, T]`."""
        nights = len(self.scores)
        shape = (nights,) if rng is None else (resamples, nights)
        means = _Means(*(np.full(shape, np.nan) for _ in fields(_Means)))
        share = 1 / (nights * np.arange(1, nights + 1))
        for j in range(nights):
            asked = len(self.scores[j][j])
            weights = np.full(asked, 1 / asked)
            if rng is not None:
                weights = rng.multinomial(asked, weights, size=resamples) / asked
            column = weights @ self._answers_to(j).T
            means.own[..., j], means.last[..., j] = column[..., 0], column[..., -1]
            means.over_time[..., j] = column @ share[j:]
            if j < nights - 1:
                means.before_last[..., j], means.best[..., j] = column[..., -2], column[..., :-1].max(-1)
            if (teacher := self.open_book[j]) is not None:
                means.open_book[..., j] = weights @ np.array(teacher, dtype=np.float64)
        return means

    def _answers_to(self, j: int) -> Floats:
        """The answers to a night's questions since, `[nights since, questions]`."""
        return np.array([row[j] for row in self.scores[j:]], dtype=np.float64)

    def _estimate(self, name: str, seed: int) -> Estimate:
        return self._estimates([name], seed)[name]

    def _estimates(self, names: Sequence[str], seed: int) -> dict[str, Estimate]:
        """Measures by name, all of them of the same draws."""
        if not self.scores:
            raise ValueError("no night has been evaluated yet: append one first")
        means, draws = self._means(), self._means(np.random.default_rng(seed), _RESAMPLES)
        found = dict.fromkeys(names, _NOTHING)
        for name in names:
            measure, least = _MEASURES[name]
            if len(self.scores) >= least:
                low, high = np.nanquantile(measure(draws), [0.025, 0.975])
                value, asked = float(measure(means)), self._asked(least)
                if name in _SHARES and value in (0.0, 1.0):
                    # Resamples of answers that are all alike say nothing of the others that there might have been.
                    spread = mean_interval([value] * asked)
                    low, high = spread.low, spread.high
                found[name] = Estimate(value, float(low), float(high), asked)
        return found

    def _asked(self, least: int) -> int:
        """Questions behind a measure that takes so many nights."""
        return sum(len(row[-1]) for row in self.scores[: len(self.scores) - (least - 1)])


def _answers(cell: Sequence[int]) -> Answers:
    return tuple(int(score) if score in (0, 1) else score for score in cell)
