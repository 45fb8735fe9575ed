"""Classes as Gaussians with one covariance, learned in one pass without forgetting."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class GaussianClasses:
    """Class means and the pooled covariance within classes, in double precision.

    What has been added can be thrown away, and the order in which classes come changes nothing.

    Args:
        shrinkage: share of a multiple of the identity with the same trace in the covariance, more than 0 and at most 1.

    Raises:
        ValueError: the shrinkage would leave the covariance singular.
    """

    def __init__(self, shrinkage: float = 0.1) -> None:
        if not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage={shrinkage} is no share; give more than 0 and at most 1")
        self.shrinkage = shrinkage
        self.means: list[Floats] = []
        self.scatter: Floats | None = None
        self.freedom = 0

    def add(self, rows_ND: ArrayLike) -> None:
        """Add one class by its rows, at least one.

        Raises:
            ValueError: there is no row, or rows have another width than before, or are not finite.
        """
        rows = np.asarray(rows_ND, dtype=np.float64)
        if rows.ndim != 2 or not len(rows) or not np.isfinite(rows).all():
            raise ValueError(f"a class needs finite rows [n, d], at least one; got an array of shape {rows.shape}")
        if self.scatter is None:
            self.scatter = np.zeros((rows.shape[1], rows.shape[1]))
        if rows.shape[1] != len(self.scatter):
            raise ValueError(f"a class has rows of width {rows.shape[1]}, and those before {len(self.scatter)}")
        mean = rows.mean(0)
        self.means.append(mean)
        self.scatter += (rows - mean).T @ (rows - mean)
        self.freedom += len(rows) - 1

    def covariance(self) -> Floats:
        """The shared covariance `[d, d]`, shrunk; the identity as long as no class has two different rows."""
        if self.scatter is None:
            raise ValueError("no class has been added yet")
        width = len(self.scatter)
        if not np.trace(self.scatter) > 0:
            return np.eye(width)
        pooled = self.scatter / self.freedom
        shrunk: Floats = (1 - self.shrinkage) * pooled + self.shrinkage * np.trace(pooled) / width * np.eye(width)
        return shrunk

    def distances(self, rows_ND: ArrayLike) -> Floats:
        """Squared Mahalanobis distance of each row to each class's mean, `[n, classes]`."""
        factor = np.linalg.cholesky(self.covariance())
        rows, means = (
            scipy.linalg.solve_triangular(factor, np.asarray(part, dtype=np.float64).T, lower=True).T
            for part in (rows_ND, np.stack(self.means))
        )
        return np.stack([np.square(rows - mean).sum(-1) for mean in means], axis=-1)

    @property
    def nbytes(self) -> int:
        """Bytes of means and covariance."""
        return sum(mean.nbytes for mean in self.means) + (0 if self.scatter is None else self.scatter.nbytes)
