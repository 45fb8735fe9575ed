"""The picture of what methods kept shows their matrices and means."""

import numpy as np
import pytest

from sleep_pipeline.evaluation.retention import Retention
from sleep_pipeline.reporting.retention import retention_plot

KEPT = Retention(scores=(((1, 1),), ((1, 1), (1, 1)), ((1, 0), (1, 1), (1, 1))))
LOST = Retention(scores=(((1, 1),), ((0, 1), (1, 1)), ((0, 0), (0, 0), (1, 0))))
AT_ONCE = Retention(scores=(((1, 1, 1, 0),),))


@pytest.mark.slow
def test_curves_and_matrices_are_those_of_the_lives() -> None:
    figure = retention_plot({"sleep": [KEPT, LOST], "joint": [AT_ONCE]}, "two methods")
    above, below = figure.subfigs
    so_far, fading = above.axes
    curves = {line.get_label(): line for line in so_far.lines}
    np.testing.assert_allclose(curves["sleep"].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(curves["sleep"].get_ydata(), [100, 100 * (1 + 0.75) / 2, 100 * (5 / 6 + 1 / 6) / 2])
    assert set(curves["joint (all nights at once)"].get_ydata()) == {75}
    # Kept: 1, 1, then (1 + 1) / 2 one night later, and a half after two; lost: 5/6, a quarter, nothing.
    np.testing.assert_allclose(fading.lines[0].get_ydata(), [100 * (1 + 5 / 6) / 2, 100 * (1 + 0.25) / 2, 25])
    (matrix,) = below.axes[0].images
    np.testing.assert_allclose(
        np.ma.filled(matrix.get_array(), np.nan),
        [[100, np.nan, np.nan], [75, 100, np.nan], [25, 50, 75]],
    )
    assert [axes.get_title() for axes in below.axes if axes.images] == ["sleep"]


def test_a_bound_alone_is_drawn_without_matrices() -> None:
    (above,) = retention_plot({"joint": [AT_ONCE]}, "").subfigs
    assert len(above.axes[0].lines) == 1


def test_lives_that_cannot_be_drawn_together_are_named() -> None:
    with pytest.raises(ValueError, match=r"sleep has lives of \[1, 3\] nights"):
        retention_plot({"sleep": [KEPT, AT_ONCE]}, "")
    with pytest.raises(ValueError, match="no life"):
        retention_plot({}, "")
