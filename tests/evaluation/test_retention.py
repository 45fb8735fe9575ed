"""The matrix of what was kept, against loops that are too simple to be wrong."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleep_pipeline.evaluation.retention import Retention
from sleep_pipeline.evaluation.statistics import Estimate, mean_interval


def mean(numbers: Any) -> float:
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def slow_measures(retention: Retention) -> dict[str, float]:
    """The definitions, one loop each, on plain lists."""
    a = [[mean(cell) for cell in row] for row in retention.scores]
    last, nights = len(a) - 1, range(len(a))
    earlier = range(last)
    open_book = [None if cell is None else mean(cell) for cell in retention.open_book]
    asked = [j for j in nights if open_book[j] is not None]
    lost = [
        own - now for j in earlier for own, now in zip(retention.scores[j][j], retention.scores[last][j], strict=True)
    ]
    measures = {
        "accuracy": mean(a[last][j] for j in nights),
        "accuracy_over_time": mean(mean(a[i][j] for j in range(i + 1)) for i in nights),
        "backward_transfer": mean(a[last][j] - a[j][j] for j in earlier),
        "forgetting": mean(max(a[i][j] for i in range(j, last)) - a[last][j] for j in earlier),
        "forgetting_since_learned": mean(a[j][j] - a[last][j] for j in earlier),
        "forgetting_of_questions": mean(lost),
        "lost_last_night": mean(a[last - 1][j] - a[last][j] for j in earlier),
    }
    readable = sum(open_book[j] or 0.0 for j in asked)
    if readable:
        measures["relative_recall"] = sum(a[j][j] for j in asked) / readable
    before = retention.before[last]
    if before is not None:
        measures["recall_gain"] = a[last][last] - mean(before)
    return measures


@st.composite
def retentions(draw: Callable[..., Any], least: int = 2) -> Retention:
    sizes = draw(st.lists(st.integers(1, 6), min_size=least, max_size=5))

    def cell(size: int) -> list[int]:
        return list(draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)))

    scores = [[cell(sizes[j]) for j in range(i + 1)] for i in range(len(sizes))]
    before = [draw(st.none() | st.just(cell(size))) for size in sizes]
    open_book = [draw(st.none() | st.just(cell(size))) for size in sizes]
    steps = draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))
    return Retention(scores, before, open_book, tuple(np.cumsum(steps).tolist()))  # type: ignore[arg-type]


THREE_NIGHTS = Retention(
    scores=(
        ((1, 1, 1, 0),),
        ((1, 1, 0, 0), (1, 1)),
        ((1, 0, 0, 0), (1, 0), (1, 1, 1, 1)),
    ),
    before=((0, 0, 0, 0), (0, 1), (0, 0, 0, 1)),
    open_book=((1, 1, 1, 1), None, (1, 1, 1, 0)),
)


def test_a_night_of_one_question_weighs_as_one_question() -> None:
    many = (1,) * 31
    lived = Retention(scores=((many,), (many, (1,)), (many, (0,), (1,))))
    assert lived.forgetting_since_learned().value == pytest.approx(0.5)
    asked = lived.forgetting_of_questions()
    assert asked.value == pytest.approx(1 / 32) and asked.samples == 32 and asked.high < 0.15
    assert Retention(scores=((many,),)).forgetting_of_questions().samples == 0


@settings(max_examples=40, deadline=None)
@given(retentions())
def test_every_measure_agrees_with_its_definition(retention: Retention) -> None:
    fast = {name: estimate.value for name, estimate in retention.summary().items() if estimate is not None}
    assert fast == pytest.approx(slow_measures(retention))


def test_the_matrix_has_the_means_below_the_diagonal_and_nothing_above() -> None:
    nan = float("nan")
    wanted = [[0.75, nan, nan], [0.5, 1.0, nan], [0.25, 0.5, 1.0]]
    np.testing.assert_array_equal(THREE_NIGHTS.means(), wanted)


def test_the_measures_of_three_nights_by_hand() -> None:
    values = {name: estimate.value for name, estimate in THREE_NIGHTS.summary().items() if estimate is not None}
    assert values == pytest.approx(
        {
            "accuracy": (0.25 + 0.5 + 1.0) / 3,
            "accuracy_over_time": (0.75 + 0.75 + (0.25 + 0.5 + 1.0) / 3) / 3,
            "backward_transfer": -0.5,
            "forgetting": 0.5,
            "forgetting_since_learned": 0.5,
            "forgetting_of_questions": (2 + 1) / (4 + 2),
            "lost_last_night": (0.25 + 0.5) / 2,
            "relative_recall": 1.75 / 1.75,
            "recall_gain": 0.75,
        }
    )


def test_the_strict_forgetting_counts_from_the_best_night_not_from_the_first() -> None:
    rising = Retention(scores=(((0, 0),), ((1, 1), (1,)), ((1, 0), (1,), (1,))))
    assert (rising.forgetting().value, rising.forgetting_since_learned().value) == (0.25, -0.25)


@settings(max_examples=40, deadline=None)
@given(retentions())
def test_strict_forgetting_is_never_less_than_that_since_learning(retention: Retention) -> None:
    assert retention.forgetting().value >= retention.forgetting_since_learned().value - 1e-12
    assert retention.forgetting_since_learned().value == -retention.backward_transfer().value


@settings(max_examples=25, deadline=None)
@given(retentions())
def test_intervals_of_linear_measures_hold_the_value_and_repeat(retention: Retention) -> None:
    for measure in (retention.accuracy, retention.accuracy_over_time, retention.backward_transfer):
        estimate = measure(seed=3)
        assert estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9
        assert estimate == measure(seed=3)


def slow_bootstrap(retention: Retention, measure: str, seed: int, resamples: int = 1500) -> tuple[float, float]:
    """Draws questions by index, builds the resampled matrix, and measures it."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        picks = [rng.integers(len(row[-1]), size=len(row[-1])) for row in retention.scores]
        redrawn = Retention(
            tuple(tuple(tuple(cell[q] for q in picks[j]) for j, cell in enumerate(row)) for row in retention.scores),
            retention.before,
            tuple(
                None if cell is None else tuple(cell[q] for q in picks[j]) for j, cell in enumerate(retention.open_book)
            ),
        )
        values.append(slow_measures(redrawn).get(measure, float("nan")))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize("measure", ["accuracy", "backward_transfer", "forgetting", "relative_recall"])
def test_intervals_are_those_of_drawing_questions_with_all_their_answers(measure: str) -> None:
    rng = np.random.default_rng(5)
    sizes, rates = (40, 50, 30), (0.9, 0.7, 0.8)
    scores = tuple(
        tuple(tuple((rng.random(sizes[j]) < rates[j] - 0.1 * (i - j)).astype(int).tolist()) for j in range(i + 1))
        for i in range(3)
    )
    open_book = tuple(tuple((rng.random(size) < 0.9).astype(int).tolist()) for size in sizes)
    retention = Retention(scores, (), open_book)
    estimate = retention.summary()[measure]
    assert isinstance(estimate, Estimate)
    assert (estimate.low, estimate.high) == pytest.approx(slow_bootstrap(retention, measure, seed=11), abs=0.025)


@pytest.mark.slow
def test_a_life_of_two_hundred_nights_is_measured_in_little_memory() -> None:
    nights, asked, resamples = 200, 16, 150
    rng = np.random.default_rng(2)
    kept = [(rng.random((nights - j, asked)) < 0.9).astype(int).tolist() for j in range(nights)]
    retention = Retention(tuple(tuple(tuple(kept[j][i - j]) for j in range(i + 1)) for i in range(nights)))
    tracemalloc.start()
    summary = retention.summary(seed=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6
    values = {name: estimate.value for name, estimate in summary.items() if estimate is not None}
    assert values == pytest.approx(slow_measures(retention))

    answers = [np.array(cells) for cells in kept]
    lost, best = np.zeros((2, resamples, nights - 1))
    for draw in range(resamples):
        for j in range(nights - 1):
            R = answers[j][:, rng.integers(asked, size=asked)].mean(1)
            lost[draw, j], best[draw, j] = R[0] - R[-1], R[:-1].max() - R[-1]
    for name, drawn in (("forgetting_since_learned", lost), ("forgetting", best)):
        low, high = np.quantile(drawn.mean(1), [0.025, 0.975])
        estimate = summary[name]
        assert estimate is not None
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.2 * (high - low)), name


def test_pairing_shows_that_equal_answers_were_not_forgotten() -> None:
    # Half of the questions are right, always the same ones: whichever are drawn, nothing was lost.
    kept = tuple([1, 0] * 20)
    forgetting = Retention(scores=((kept,), (kept, (1,)))).forgetting()
    assert (forgetting.value, forgetting.low, forgetting.high) == (0.0, 0.0, 0.0)


def test_the_first_night_has_nothing_to_forget() -> None:
    first = Retention().append(1, [[1, 0]], before=[0, 0])
    assert first.forgetting() == first.backward_transfer() == first.lost_last_night() == Estimate(0.0, 0.0, 0.0, 0)
    assert first.relative_recall() is None


def test_a_teacher_that_knows_nothing_gives_no_relative_recall() -> None:
    assert Retention(scores=(((1, 0),),), open_book=((0, 0),)).relative_recall() is None


@settings(max_examples=40, deadline=None)
@given(retentions(least=1))
def test_json_keeps_everything(retention: Retention) -> None:
    assert Retention.from_json(json.loads(json.dumps(retention.to_json()))) == retention


@settings(max_examples=20, deadline=None)
@given(retentions(least=1))
def test_appending_night_by_night_gives_the_same_matrix(retention: Retention) -> None:
    grown = Retention()
    for i, night in enumerate(retention.nights):
        grown = grown.append(night, retention.scores[i], retention.before[i], retention.open_book[i])
    assert grown == retention


def test_the_frame_has_a_row_an_answer() -> None:
    frame = THREE_NIGHTS.to_frame()
    counts = frame.groupby("kind").size().to_dict()
    assert counts == {"before": 10, "closed_book": 20, "open_book": 8}
    cell = frame[(frame.kind == "closed_book") & (frame.after_night == 3) & (frame.of_night == 1)]
    assert cell.right.tolist() == [1, 0, 0, 0]
    assert frame[frame.kind == "before"].after_night.isna().all()


def test_the_frame_survives_parquet(tmp_path: Any) -> None:
    import pandas

    frame = THREE_NIGHTS.to_frame()
    frame.to_parquet(tmp_path / "retention.parquet")
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "retention.parquet"), frame)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([[1, 0]], "night 2 has scores of 1 nights; it needs 2, its own last"),
        ([[1, 0, 1], [1]], "night 1 has 2 questions, but 3 scores after night 2"),
        ([[1, 0], []], "night 2 has 0 questions, but 0 scores after night 2"),
        ([[1, 0.5], [1]], "night 1 has the score 0.5 after night 2: scores are 0 or 1"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retention(scores=(((1, 1),),)).append(2, row)


def test_a_night_cannot_come_before_an_earlier_one() -> None:
    with pytest.raises(ValueError, match=r"nights=\[3, 2\] must ascend"):
        Retention().append(3, [[1]]).append(2, [[1], [1]])


def test_a_record_that_lacks_a_part_says_which() -> None:
    with pytest.raises(ValueError, match="lacks before, open_book"):
        Retention.from_json({"nights": [], "scores": []})


def test_without_a_night_there_is_nothing_to_measure() -> None:
    assert Retention().summary() == {}
    with pytest.raises(ValueError, match="append one first"):
        Retention().accuracy()


@pytest.mark.slow
def test_over_lives_a_measure_has_the_interval_of_a_bootstrap_over_lives_and_questions() -> None:
    better = Retention(
        scores=(((1,) * 6,), ((1,) * 6, (1,) * 5), ((1, 1, 1, 1, 0, 1), (1,) * 5, (1, 0, 1, 1))),
        open_book=((1,) * 6, (1, 1, 1, 0, 1), (1,) * 4),
    )
    lives = [better, replace(THREE_NIGHTS, open_book=((1, 1, 1, 1), (1, 1), (1, 1, 1, 0)))]
    rng = np.random.default_rng(1)

    def redrawn(life: Retention) -> Retention:
        picks = [rng.integers(len(cell), size=len(cell)) for cell in life.scores[-1]]
        rows = tuple(tuple(tuple(cell[q] for q in picks[j]) for j, cell in enumerate(row)) for row in life.scores)
        read = tuple(tuple(cell[q] for q in picks[j]) for j, cell in enumerate(life.open_book) if cell is not None)
        return Retention(rows, open_book=read)

    for measure in ("accuracy", "forgetting_since_learned", "relative_recall"):
        estimate = Retention.over_lives(lives, measure)
        assert estimate.value == pytest.approx(mean(slow_measures(life)[measure] for life in lives))
        drawn = [mean(slow_measures(redrawn(lives[rng.integers(2)]))[measure] for _ in lives) for _ in range(1500)]
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.06 * (high - low)), measure


def test_over_lives_what_cannot_be_measured_is_named() -> None:
    once = Retention(scores=(((1, 0),),))
    assert Retention.over_lives([once], "accuracy").value == 0.5
    for lives, measure, told in (
        ([], "accuracy", "no life"),
        ([once], "forgetting", "forgetting needs 2 nights, and a life has 1"),
        ([once], "relative_recall", "right answers of a teacher"),
    ):
        with pytest.raises(ValueError, match=told):
            Retention.over_lives(lives, measure)


@pytest.mark.parametrize("right", [0, 1])
def test_answers_that_are_all_alike_are_not_taken_for_certain(right: int) -> None:
    retention = Retention().append(1, [[right] * 20], open_book=[1] * 20).append(2, [[right] * 20, [right] * 20])
    for measured in (retention.accuracy(), retention.accuracy_over_time()):
        assert (measured.value, measured.samples) == (right, 40)
        known = mean_interval([right] * 40)
        assert (measured.low, measured.high) == (known.low, known.high)
        assert measured.high - measured.low > 0.05
