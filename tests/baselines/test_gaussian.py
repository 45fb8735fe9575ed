import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.stats import multivariate_normal

from sleep_pipeline.baselines.gaussian import GaussianClasses


def drawn(classes: int = 3, rows: int = 12, width: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(width, width))
    return [rng.normal(size=(rows + 4 * n, width)) @ mix + 3 * rng.normal(size=width) for n in range(classes)]


def learned(parts: list[np.ndarray], shrinkage: float = 0.1) -> GaussianClasses:
    classes = GaussianClasses(shrinkage)
    for part in parts:
        classes.add(part)
    return classes


def test_the_covariance_is_the_pooled_one_shrunk() -> None:
    parts = drawn()
    pooled = sum((len(part) - 1) * np.cov(part.T) for part in parts) / sum(len(part) - 1 for part in parts)
    expected = 0.7 * pooled + 0.3 * np.trace(pooled) / 5 * np.eye(5)
    np.testing.assert_allclose(learned(parts, 0.3).covariance(), expected, rtol=1e-12)


def test_distances_are_scipy_s() -> None:
    parts = drawn()
    classes = learned(parts)
    inverse = np.linalg.inv(classes.covariance())
    rows = np.random.default_rng(1).normal(size=(4, 5))
    expected = [[mahalanobis(row, part.mean(0), inverse) ** 2 for part in parts] for row in rows]
    np.testing.assert_allclose(classes.distances(rows), expected, rtol=1e-9)


def test_the_nearest_class_has_the_greatest_density() -> None:
    parts = drawn()
    classes = learned(parts)
    rows = np.concatenate(parts) + np.random.default_rng(2).normal(size=(48, 5))
    densities = [multivariate_normal(part.mean(0), classes.covariance()).logpdf(rows) for part in parts]
    assert classes.distances(rows).argmin(-1).tolist() == np.argmax(densities, axis=0).tolist()


def test_single_precision_rows_far_from_zero_lose_nothing() -> None:
    far = [(part + 1000).astype(np.float32) for part in drawn()]
    exact = [part.astype(np.float64) for part in far]
    np.testing.assert_allclose(learned(far).distances(far[0]), learned(exact).distances(exact[0]), rtol=1e-9)
    inverse = np.linalg.inv(learned(exact).covariance())
    expected = mahalanobis(exact[0][0], exact[1].mean(0), inverse) ** 2
    assert learned(far).distances(far[0])[0, 1] == pytest.approx(expected, rel=1e-9)


def test_the_order_of_classes_changes_nothing() -> None:
    parts = drawn()
    there, back = learned(parts), learned(parts[::-1])
    np.testing.assert_allclose(there.distances(parts[0]), back.distances(parts[0])[:, ::-1], rtol=1e-9)


def test_classes_of_one_example_are_told_apart_by_plain_distance() -> None:
    classes = learned([np.zeros((1, 2)), np.array([[3.0, 4.0]])])
    np.testing.assert_allclose(classes.distances([[0.0, 0.0]]), [[0.0, 25.0]])


def test_fewer_rows_than_dimensions_leave_it_usable() -> None:
    classes = learned([part[:2] for part in drawn(width=5)])
    assert np.isfinite(classes.distances(np.ones((1, 5)))).all()


@pytest.mark.parametrize("rows", [np.zeros((0, 5)), np.full((1, 5), np.nan), np.zeros(5), np.zeros((2, 4))])
def test_rows_that_fit_no_class_are_refused(rows: np.ndarray) -> None:
    classes = learned(drawn())
    with pytest.raises(ValueError, match="a class"):
        classes.add(rows)


@pytest.mark.parametrize("shrinkage", [0.0, -0.1, 1.5])
def test_a_shrinkage_that_is_no_share_is_refused(shrinkage: float) -> None:
    with pytest.raises(ValueError, match="is no share"):
        GaussianClasses(shrinkage)
