"""Accuracy over the classes met so far, a line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]


def accuracy_plot(curves: Mapping[str, Sequence[Curve]], title: str) -> Figure:
    """Draw each method's mean over its seeds, with a band from the least to the greatest.

    Args:
        curves: of each method, one a seed: number of classes and accuracy, after each task; of a single point where a
            method answers after the last task alone, which is drawn as a level to be reached.
        title: above it.
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    ticks: set[float] = set()
    for number, (name, runs) in enumerate(curves.items()):
        # Seeds that were cut to other lengths cannot share a line: the longest are drawn.
        length = max(len(run) for run in runs)
        points = np.array([run for run in runs if len(run) == length], dtype=np.float64)
        classes, accuracies = points[0, :, 0], 100 * points[:, :, 1]
        mean, colour = accuracies.mean(0), f"C{number % 10}"
        ticks |= set(classes.tolist())
        if length == 1:
            axes.axhline(mean[0], color=colour, linestyle="--", label=f"{name} (after the last task)")
        else:
            axes.plot(classes, mean, color=colour, marker="o", markersize=3, label=name)
        if len(points) > 1 and length > 1:
            axes.fill_between(classes, accuracies.min(0), accuracies.max(0), color=colour, alpha=0.2, linewidth=0)
        elif len(points) > 1:
            axes.axhspan(accuracies.min(), accuracies.max(), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="classes met", ylabel="accuracy over them (%)", title=title, ylim=(0, 102), xticks=sorted(ticks))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
