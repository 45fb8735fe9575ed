"""What methods kept of the same nights: curves, and the matrix R of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sleep_pipeline.evaluation.retention import Floats, Retention

_COLUMNS = 4


def retention_plot(lives: Mapping[str, Sequence[Retention]], title: str) -> Figure:
    """Draw, mean over its seeds, what each method still answers and how that fades, and its matrix R.

    Above on the left, right answers to all nights so far after each night; on the right, right answers to a night by
    the number of nights that came after it; bands reach from the least seed to the greatest. Below, R: a row for each
    night that has passed, a column for the questions of each night.

    Args:
        lives: of each method, one a seed. A life of one night, such as joint training's, is drawn as a level.
        title: above it all.

    Raises:
        ValueError: there is no life, or a method's have different numbers of nights.
    """
    from matplotlib.figure import Figure

    matrices = {name: _matrices(name, own) for name, own in lives.items()}
    if not matrices:
        raise ValueError("there is no life to draw: live one first")
    spread = {name: R for name, R in matrices.items() if R.shape[-1] > 1}
    columns = min(_COLUMNS, max(1, len(spread)))
    rows = math.ceil(len(spread) / columns)
    figure = Figure(figsize=(12, 4.2 + 3.2 * rows), layout="constrained")
    figure.suptitle(title)
    above, *below = figure.subfigures(
        1 + bool(rows), 1, height_ratios=[4.2, 3.2 * rows][: 1 + bool(rows)], squeeze=False
    )[:, 0]
    so_far, fading = above.subplots(1, 2, sharey=True)
    for number, (name, R) in enumerate(matrices.items()):
        colour = f"C{number % 10}"
        if name not in spread:
            so_far.axhline(100 * R.mean(), color=colour, linestyle="--", label=f"{name} (all nights at once)")
            continue
        nights = range(R.shape[-1])
        _line(so_far, [R[:, i, : i + 1].mean(-1) for i in nights], name, colour, first=1)
        ages = [np.diagonal(R, offset=-age, axis1=-2, axis2=-1).mean(-1) for age in nights]
        _line(fading, ages, name, colour, first=0)
    so_far.set(
        xlabel="nights lived", ylabel="right without the texts (%)", title="of all nights so far", ylim=(-2, 102)
    )
    fading.set(xlabel="nights since it was learned", title="of a night, by its age")
    for axes in (so_far, fading):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    above.legend(*so_far.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    if below:
        _heat_maps(below[0], spread, rows, columns)
    return figure


def _matrices(name: str, lives: Sequence[Retention]) -> Floats:
    """R of every life, `[lives, T, T]`."""
    lengths = sorted({len(life) for life in lives})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"{name} has lives of {lengths} nights; draw those of one length together")
    return np.stack([life.means() for life in lives])


def _line(axes: Any, values: Sequence[Floats], name: str, colour: str, first: int) -> None:
    """A mean over seeds with its band; `values` has an array `[seeds]` for each place."""
    places = np.arange(len(values)) + first
    shares = 100 * np.stack(values)
    axes.plot(places, shares.mean(1), color=colour, marker="o", markersize=3, label=name)
    if shares.shape[1] > 1:
        axes.fill_between(places, shares.min(1), shares.max(1), color=colour, alpha=0.2, linewidth=0)


def _heat_maps(figure: Any, spread: Mapping[str, Floats], rows: int, columns: int) -> None:
    axes = figure.subplots(rows, columns, squeeze=False)
    image = None
    for place, (name, R) in zip(axes.flat, spread.items(), strict=False):
        nights = R.shape[-1]
        edges = (0.5, nights + 0.5)
        image = place.imshow(
            100 * R.mean(0), vmin=0, vmax=100, cmap="viridis", extent=(*edges, *edges[::-1]), interpolation="nearest"
        )
        place.set(title=name, xlabel="questions of night", ylabel="after night")
    for place in axes.flat[len(spread) :]:
        place.set_axis_off()
    figure.colorbar(image, ax=axes, label="right (%)", shrink=0.8)
