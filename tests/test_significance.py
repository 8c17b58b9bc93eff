"""Chance level: limits, exact cases, edges."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy.integrate import quad
from scipy.stats import beta

import streamcca as sc
from streamcca.significance import _null_moments, forced_ones, null_interval, null_mean_square, wachter_mean
from streamcca.wishart import CorrelationDraws


def test_one_direction_is_exact():
    """|rho| of two unrelated Gaussian columns has mean sqrt(2/pi) / sqrt(n - 1) in the limit; n = 3: 2/pi."""
    assert sc.null_mean(1, 1, 3) == pytest.approx(2 / math.pi)
    assert sc.null_mean(1, 1, 10**6) == pytest.approx(math.sqrt(2 / math.pi / (10**6 - 1)), rel=1e-5)
    assert sc.null_mean(1, 5, 50) == pytest.approx(0.3058, abs=3e-4)


@given(st.integers(2, 200), st.integers(2, 200), st.integers(3, 5000))
def test_symmetric_bounded_and_not_below_its_square_mean(kx, ky, n):
    mean = sc.null_mean(kx, ky, n)
    assert mean == sc.null_mean(ky, kx, n)
    assert 0 < mean <= 1
    if max(kx, ky) >= n - 1:
        assert mean == 1
        return
    square = max(kx, ky) / (n - 1)
    # mean rho^2 <= mean rho <= sqrt(mean rho^2), for numbers in [0, 1]
    assert square - 1e-4 <= mean <= math.sqrt(square) + 1e-4
    low, high = sc.null_edges(kx, ky, n)
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize(
    ("kx", "ky", "n", "ones"), [(5, 4, 100, 0), (20, 15, 31, 5), (10, 10, 21, 0), (10, 10, 15, 6), (9, 3, 5, 3)]
)
def test_forced_ones(kx, ky, n, ones):
    assert forced_ones(kx, ky, n) == ones


@pytest.mark.parametrize(("kx", "ky", "n"), [(30, 25, 50), (10, 40, 60), (25, 25, 400)])
def test_against_simulation(kx, ky, n, rng):
    means = []
    for _ in range(60):
        q = [np.linalg.qr(v - v.mean(0))[0] for v in (rng.standard_normal((n, kx)), rng.standard_normal((n, ky)))]
        means.append(np.linalg.svd(q[0].T @ q[1], compute_uv=False).mean())
    assert sc.null_mean(kx, ky, n) == pytest.approx(np.mean(means), rel=0.01)


def test_bad_arguments():
    for arguments in [(0, 1, 10), (1, 0, 10), (1, 1, 1)]:
        with pytest.raises(sc.InputError, match="null_mean: got"):
            sc.null_mean(*arguments)


@pytest.mark.parametrize(
    ("kx", "ky", "n"), [(10, 10, 101), (50, 50, 101), (100, 499, 600), (250, 250, 502), (30, 300, 1001)]
)
def test_the_mean_of_wachters_law_against_quadrature(kx, ky, n):
    a, b = kx / (n - 1), ky / (n - 1)
    low, high = (edge**2 for edge in sc.null_edges(kx, ky, n))

    def density(r):
        return np.sqrt(max(0.0, (r - low) * (high - r))) / (2 * np.pi * min(a, b) * r * (1 - r))

    middle = (low + high) / 2  # the substitutions take the square roots at both edges away
    left = quad(lambda t: 2 * t * density(low + t * t) * np.sqrt(low + t * t), 0, np.sqrt(middle - low), epsabs=1e-12)
    right = quad(
        lambda t: 2 * t * density(high - t * t) * np.sqrt(high - t * t), 0, np.sqrt(high - middle), epsabs=1e-12
    )
    assert wachter_mean(kx, ky, n) == pytest.approx(left[0] + right[0], abs=2e-9)


@pytest.mark.parametrize("arguments", [(0, 1, 10), (1, 1, 1), (1, -1, 10)])
def test_senseless_sizes(arguments):
    for function in (sc.null_mean, sc.null_edges):
        with pytest.raises(sc.InputError, match="expected kx, ky >= 1 and n >= 2"):
            function(*arguments)


def test_chance_of_weighted_rows_rests_on_their_number(rng):
    x, y = rng.standard_normal((300, 6)), rng.standard_normal((300, 5))
    plain = sc.cca(x, y)
    m = sc.Moments({"x": 6, "y": 5})
    m.update(x=x, y=y, weights=np.full(300, 0.05))
    weighted = sc.cca(m)
    assert (weighted.n, weighted.rows) == (pytest.approx(15), 300)
    assert weighted.null_mean == plain.null_mean
    bands = []
    for result in (plain, weighted):
        _, ax = result.plot()
        bands.append(ax.patches[0].get_extents().bounds if ax.patches else ax.get_legend().get_texts()[0].get_text())
    assert bands[0] == bands[1]


@pytest.mark.parametrize(
    ("kx", "ky", "n"),
    [(2, 2, 200), (2, 3, 12), (3, 3, 30), (5, 5, 200), (5, 5, 20000), (8, 20, 60), (20, 20, 200), (20, 22, 2000)],
)
def test_mean_deviation_and_range_of_chance_by_simulation(kx, ky, n):
    """Mean within 0.1 % and the noise of 2000 to 20,000 draws, less what the exact mean square says of them."""
    few, repetitions = min(kx, ky), 20000 if min(kx, ky) < 10 else 2000
    rho = np.tanh(CorrelationDraws(kx, ky, n - 1, repetitions, 21).fisher_z(np.zeros(few)))
    means, squares = rho.mean(axis=1), (rho**2).mean(axis=1)
    assert squares.mean() == pytest.approx(null_mean_square(kx, ky, n), abs=4 * squares.std() / math.sqrt(repetitions))
    slope = np.cov(means, squares)[0, 1] / squares.var()
    better = means - slope * (squares - null_mean_square(kx, ky, n))
    error = better.std() / math.sqrt(repetitions)
    assert sc.null_mean(kx, ky, n) == pytest.approx(better.mean(), abs=3 * error + 1e-3 * better.mean())
    assert wachter_mean(kx, ky, n) > better.mean() + 3 * error  # what the corrections are for
    assert _null_moments(kx, ky, n)[1] == pytest.approx(means.std(), rel=0.02 + 3 / math.sqrt(2 * repetitions))
    for level in (0.5, 0.95):
        low, high = null_interval(kx, ky, n, level)
        inside = np.mean((means > low) & (means < high))
        assert inside == pytest.approx(level, abs=0.06 / few + 3 * math.sqrt(level * (1 - level) / repetitions))


@pytest.mark.parametrize(("kx", "ky", "n"), [(10, 10, 16), (8, 6, 12), (30, 25, 50), (4, 4, 8)])
def test_chance_where_some_correlations_are_forced(kx, ky, n, rng):
    means = []
    for _ in range(2000):
        q = [np.linalg.qr(v - v.mean(0))[0] for v in (rng.standard_normal((n, kx)), rng.standard_normal((n, ky)))]
        means.append(np.linalg.svd(q[0].T @ q[1], compute_uv=False).mean())
    assert sc.null_mean(kx, ky, n) == pytest.approx(np.mean(means), abs=4 * np.std(means) / math.sqrt(2000) + 2e-4)
    low, high = null_interval(kx, ky, n, 0.9)
    assert np.mean((low < np.array(means)) & (np.array(means) < high)) == pytest.approx(0.9, abs=0.04)


def test_range_of_chance_at_its_limits():
    assert null_interval(5, 7, 8) == (1, 1)
    assert null_mean_square(5, 7, 8) == 1
    low, high = null_interval(1, 3, 30)  # rho^2 is Beta(3/2, 13)
    assert (low, high) == pytest.approx(np.sqrt(beta(1.5, 13).ppf([0.025, 0.975])))
    wide = null_interval(4, 4, 50, 0.99)
    narrow = null_interval(4, 4, 50, 0.5)
    assert wide[0] < narrow[0] < sc.null_mean(4, 4, 50) < narrow[1] < wide[1]
    for level in (0, 1, 95):
        with pytest.raises(sc.InputError, match="probability between 0 and 1"):
            null_interval(4, 4, 50, level)
    with pytest.raises(sc.InputError, match="wachter_mean: got"):
        wachter_mean(0, 1, 5)
    assert wachter_mean(3, 9, 10) == 1
    # Fractional, effective numbers of rows: no jumps between whole ones.
    assert sc.null_mean(5, 5, 9) > sc.null_mean(5, 5, 9.5) > sc.null_mean(5, 5, 10) > sc.null_mean(5, 5, 10.5)
