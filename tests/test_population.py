"""Bias-corrected correlations and tests of their number: the draws, the estimates, the sizes of the tests."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.stats import beta, chi2, kstest

import streamcca as sc
from streamcca.dimension import SignificantCorrelations, significant_correlations, tracy_widom_upper
from streamcca.population import _decreasing, corrected_correlations
from streamcca.wishart import CorrelationDraws

SHAPES = {
    "zero": lambda k: np.zeros(k),
    "flat": lambda k: np.full(k, 0.5),
    "linear": lambda k: np.linspace(0.9, 0, k),
    "strong": lambda k: np.r_[np.linspace(0.9, 0.5, max(2, k // 10)), np.zeros(k - max(2, k // 10))],
    "decaying": lambda k: 0.9 * 0.1 ** (1.5 * np.arange(k) / k),
}


def from_rows(rho, kx, ky, n, repetitions, rng):
    """Sample correlations the slow way: rows, QR, SVD."""
    few = len(rho)
    x, y = rng.standard_normal((repetitions, n, kx)), rng.standard_normal((repetitions, n, ky))
    y[:, :, :few] = x[:, :, :few] * rho + np.sqrt(1 - rho**2) * y[:, :, :few]
    q = [np.linalg.qr(v - v.mean(axis=1, keepdims=True))[0] for v in (x, y)]
    return np.linalg.svd(q[0].transpose(0, 2, 1) @ q[1], compute_uv=False)


@pytest.mark.parametrize(("kx", "ky", "n"), [(3, 3, 20), (7, 4, 14), (3, 9, 30)])
def test_draws_have_the_law_of_rows(kx, ky, n, rng):
    """Means, deviations and the deviation of their mean, each to four standard errors of 4000 repetitions."""
    few = min(kx, ky)
    rho = np.linspace(0.9, 0.0, few)
    rows = from_rows(rho, kx, ky, n, 4000, rng)
    draws = np.tanh(CorrelationDraws(kx, ky, n - 1, 4000, 1).fisher_z(np.arctanh(rho)))
    error = np.sqrt((rows.var(axis=0) + draws.var(axis=0)) / 4000)
    assert np.all(np.abs(rows.mean(axis=0) - draws.mean(axis=0)) < 4 * error)
    np.testing.assert_allclose(draws.std(axis=0), rows.std(axis=0), rtol=4 / math.sqrt(4000))
    assert draws.mean(axis=1).std() == pytest.approx(rows.mean(axis=1).std(), rel=4 / math.sqrt(4000))


def test_one_direction_has_its_exact_law():
    """rho^2 of unrelated views is Beta(many / 2, (f - many) / 2), for fractional f too."""
    for freedom in (17, 22.75):
        z = CorrelationDraws(4, 1, freedom, 4000, 3).fisher_z(np.zeros(1))[:, 0]
        assert kstest(np.tanh(z) ** 2, beta(2, (freedom - 4) / 2).cdf).pvalue > 0.01


def test_jacobian_against_differences():
    draws = CorrelationDraws(5, 7, 40, 6, 2)
    square = np.array([1.5, 0.9, 0.4, 0.2, 0.05])
    jacobian = draws.jacobian(np.sqrt(square), 4)
    for j, step in enumerate(1e-5 * np.eye(5)):
        up, down = ((draws.fisher_z(np.sqrt(square + sign * step), 4) ** 2).mean(axis=0) for sign in (1, -1))
        np.testing.assert_allclose(jacobian[:, j], (up - down) / 2e-5, rtol=1e-5, atol=1e-7)


def test_draws_do_not_depend_on_how_they_are_batched(monkeypatch):
    whole = CorrelationDraws(6, 6, 50, 9, 4)
    z = np.linspace(1, 0.1, 6)
    curve, jacobian = whole.fisher_z(z), whole.jacobian(z)
    monkeypatch.setattr("streamcca.wishart._CHUNK", 2 * 36)
    np.testing.assert_allclose(whole.fisher_z(z), curve, rtol=1e-12)
    np.testing.assert_allclose(whole.jacobian(z), jacobian, rtol=1e-10)


@pytest.mark.parametrize(
    ("n", "k", "shape", "off"),
    [
        (200, 20, "flat", 0.01),
        (200, 20, "linear", 0.01),
        (200, 5, "flat", 0.01),
        (2000, 20, "zero", 0.01),
        (2000, 20, "strong", 0.01),
        (2000, 20, "linear", 0.005),
        (2000, 5, "decaying", 0.005),
    ],
)
def test_the_bias_is_taken_out(n, k, shape, off):
    rho = SHAPES[shape](k)
    samples = np.tanh(CorrelationDraws(k, k, n - 1, 30, 99).fisher_z(np.arctanh(rho)))
    results = [corrected_correlations(sample, k, k, n) for sample in samples]
    means = np.array([r.mean for r in results])
    error = 2 * means.std() / math.sqrt(len(means))
    assert abs(means.mean() - rho.mean()) < off + error
    # An interval about 0 has to reach what cannot be told from 0 (2.5 times the spread, measured), but not more.
    assert np.median([r.standard_error for r in results]) < 2 * means.std() + n**-0.5
    covered = [abs(r.mean - rho.mean()) <= 1.96 * r.standard_error for r in results]
    assert sum(covered) >= 25  # of 30; fewer have a probability of 0.3 % if intervals cover 95 %


@pytest.mark.slow
def test_the_bar_where_the_plain_mean_is_far_off():
    """One strong correlation among 15 x 30 directions, 300 rows: the plain mean is more than 0.2 too high."""
    rho = np.r_[0.8, np.zeros(14)]
    samples = np.tanh(CorrelationDraws(15, 30, 299, 40, 5).fisher_z(np.arctanh(rho)))
    results = [corrected_correlations(sample, 30, 15, 300) for sample in samples]
    assert np.mean([r.plain_mean for r in results]) > rho.mean() + 0.2
    assert np.mean([r.mean for r in results]) == pytest.approx(rho.mean(), abs=0.015)
    assert np.mean([r.correlations[0] for r in results]) == pytest.approx(0.8, abs=0.02)


def test_means_cost_one_degree_of_freedom(monkeypatch):
    seen = []

    class Recorded(CorrelationDraws):
        def __init__(self, kx, ky, freedom, count, seed):
            seen.append((kx, ky, freedom))
            super().__init__(kx, ky, freedom, count, seed)

    monkeypatch.setattr("streamcca.population.CorrelationDraws", Recorded)
    corrected_correlations([0.6, 0.5], 2, 3, 61.25)
    assert seen == [(2, 3, 60.25)]


def test_many_directions_start_from_few(monkeypatch):
    """Above 200 directions a thinned curve is fitted first; here above 30, so that both ways can be compared."""
    rho = np.r_[0.95, np.linspace(0.8, 0, 59)]
    samples = np.tanh(CorrelationDraws(60, 70, 1199, 4, 12).fisher_z(np.arctanh(rho)))
    whole = [corrected_correlations(sample, 60, 70, 1200) for sample in samples]
    monkeypatch.setattr("streamcca.population._COARSE", 30)
    thinned = [corrected_correlations(sample, 60, 70, 1200) for sample in samples]
    for one, other in zip(whole, thinned, strict=True):
        assert one.mean != other.mean
        assert one.mean == pytest.approx(other.mean, abs=0.005)
    for results in (whole, thinned):
        assert np.mean([r.mean for r in results]) == pytest.approx(rho.mean(), abs=0.01)
        assert np.mean([r.plain_mean for r in results]) > rho.mean() + 0.035
        assert np.mean([r.correlations[0] for r in results]) == pytest.approx(0.95, abs=0.01)


def test_many_rows_leave_nothing_to_correct():
    rho = np.array([0.9, 0.6, 0.3])
    r = corrected_correlations(rho, 3, 4, 10**7)
    np.testing.assert_allclose(r.correlations, rho, atol=2e-4)
    assert r.slope == pytest.approx(1, abs=0.02)
    assert r.standard_error == pytest.approx(math.sqrt(np.sum((1 - rho**2) ** 2) / 1e7) / 3, rel=0.15)


def test_the_classical_standard_error():
    """Few directions, many rows: the variance of rho is (1 - rho^2)^2 / n (Anderson 2003, section 13.4)."""
    rho = np.array([0.85, 0.6, 0.35])
    r = corrected_correlations(rho, 3, 3, 2000.5)
    assert r.standard_error == pytest.approx(math.sqrt(np.sum((1 - rho**2) ** 2) / 2000) / 3, rel=0.15)


def test_perfect_correlations_stay():
    r = corrected_correlations([1.0, 1.0, 0.5], 3, 3, 500)
    assert list(r.correlations[:2]) == [1, 1]
    assert r.correlations[2] == pytest.approx(0.5, abs=0.02)
    everything = corrected_correlations(np.ones(4), 4, 4, 50)
    assert everything.mean == 1
    assert everything.standard_error < 1e-4


def test_answers_repeat_and_sides_are_alike():
    rho = [0.7, 0.5, 0.2, 0.1]
    a, b, c = (corrected_correlations(rho, *sides, 150.5) for sides in ((4, 6), (4, 6), (6, 4)))
    assert repr(a) == repr(b)
    np.testing.assert_array_equal(a.correlations, b.correlations)
    np.testing.assert_array_equal(a.correlations, c.correlations)
    assert "population mean 0." in repr(a)
    assert "n = 150.5, ranks 4 and 6" in repr(a)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.integers(0, 5),
    st.floats(1, 300),
)
@settings(max_examples=40)
def test_estimates_are_sane(values, more, spare):
    kx, ky = len(values), len(values) + more
    n = kx + ky + 2 + spare
    r = corrected_correlations(values, kx, ky, n)
    assert r.correlations.shape == (kx,)
    assert np.all(np.diff(r.correlations) <= 0)
    assert r.correlations[-1] >= 0
    assert r.correlations[0] <= 1
    assert r.mean == pytest.approx(r.correlations.mean())
    assert r.plain_mean == pytest.approx(np.mean(values))
    assert 0 < r.standard_error < 10
    assert 0 < r.slope < 1e3


def test_more_similar_samples_have_more_similar_populations():
    """The mean rises with the sample's, so that levels and intervals keep their order."""
    base = np.linspace(0.75, 0.3, 8)
    means = [corrected_correlations(base + shift, 8, 8, 120).mean for shift in np.linspace(0, 0.2, 9)]
    assert np.all(np.diff(means) > 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (([0.5, 0.4], 3, 3, 100), sc.InputError, r"expected one for each of the min\(kx, ky\) = 3 pairs"),
        (([0.5, 1.1], 2, 3, 100), sc.InputError, r"outside \[0, 1\]"),
        (([0.5, np.nan], 2, 3, 100), sc.InputError, r"outside \[0, 1\]"),
        (([[0.5, 0.4]], 2, 3, 100), sc.InputError, r"shape \(1, 2\)"),
        (([0.5, 0.4], 2, 3, 5.5), sc.UnderdeterminedError, "take more rows or keep fewer directions"),
        (([0.5, 0.4], 2, 3, math.nan), sc.UnderdeterminedError, "n = nan"),
    ],
)
def test_refusals(call, error, message):
    for function in (corrected_correlations, significant_correlations):
        with pytest.raises(error, match=f"{function.__name__}: got .*{message}"):
            function(*call)


def test_the_last_row_that_a_correction_needs():
    with pytest.raises(sc.UnderdeterminedError, match="expected at least 7"):
        corrected_correlations([0.9, 0.8], 2, 3, 6.9)
    r = corrected_correlations([0.9, 0.8], 2, 3, 7)
    assert "less than 1.5 times kx + ky = 5" in r.doubtful
    assert r.doubtful in repr(r)
    assert not corrected_correlations([0.9, 0.8], 2, 3, 1000).doubtful
    assert "cannot tell weak correlations from none" in corrected_correlations([0.3, 0.2], 2, 3, 60).doubtful


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_the_closest_decreasing_sequence(values):
    """Pooling keeps the sum, decreases, and no decreasing sequence is closer (the projection's inequality)."""
    v = np.array(values)
    pooled = _decreasing(v)
    assert pooled.sum() == pytest.approx(v.sum(), abs=1e-9)
    assert np.all(np.diff(pooled) <= 1e-12)
    for other in (np.sort(v)[::-1], np.full(len(v), v.mean()), -np.arange(len(v), dtype=float)):
        assert (v - pooled) @ (other - pooled) <= 1e-8


def test_the_tracy_widom_law():
    """Quantiles of F1 as tabulated by Johnstone (2001) and by Bejan (2005), and its mean and variance."""
    levels = {0.99: -3.8954, 0.5: -1.2686, 0.1: 0.4501, 0.05: 0.9793, 0.01: 2.0234, 0.001: 3.2724}
    np.testing.assert_allclose(tracy_widom_upper(np.array(list(levels.values()))), list(levels), rtol=5e-4)
    s = np.linspace(-10, 12, 2201)
    upper = tracy_widom_upper(s)
    assert np.all(np.diff(upper) <= 0)
    assert -10 + upper.sum() * 0.01 == pytest.approx(-1.20653357 + 0.005, abs=1e-4)  # the rule's half step
    assert tracy_widom_upper(np.array([-50.0, 50.0])) == pytest.approx([1, 0], abs=1e-15)
    far = tracy_widom_upper(np.array([11.99, 12.01]))  # both sides of where the tail is continued
    assert far[1] / far[0] == pytest.approx(np.exp(-0.02 * np.sqrt(12)), rel=0.02)


@pytest.mark.parametrize(("kx", "ky", "n"), [(1, 3, 30), (5, 5, 40), (20, 20, 100), (30, 10, 60)])
def test_the_tests_have_their_size(kx, ky, n):
    """Unrelated views: p-values of Bartlett's test are uniform, those of the largest root nearly, never too small."""
    few = min(kx, ky)
    samples = np.tanh(CorrelationDraws(kx, ky, n - 1, 1000, 6).fisher_z(np.zeros(few)))
    results = [significant_correlations(sample, kx, ky, n) for sample in samples]
    first = np.array([r.p_values[0] for r in results])
    assert kstest(first, "uniform").pvalue > 0.01
    root = np.array([r.p_values_largest_root[0] for r in results])
    for level in (0.01, 0.05, 0.2):
        spread = 3 * math.sqrt(level * (1 - level) / 1000)
        assert np.mean(root < level) < level + spread
        assert np.mean(root < level) > 0.4 * level - spread
    if few >= 10:  # Johnstone's approximation centers to a few percent from 10 directions on
        assert np.median(root) == pytest.approx(0.5, abs=0.06)
    assert np.mean([r.count > 0 for r in results]) == np.mean(first < 0.05)


def test_bartletts_chi_square_is_met_where_rows_are_many():
    rho, kx, ky, n = np.array([0.4, 0.12, 0.08]), 3, 5, 5000
    r = significant_correlations(rho, kx, ky, n)
    for i in range(3):
        factor = n - 1 - i - (kx + ky + 1) / 2 + np.sum(1 / rho[:i] ** 2)
        statistic = -factor * np.log(1 - rho[i:] ** 2).sum()
        assert r.p_values[i] == pytest.approx(chi2.sf(statistic, (kx - i) * (ky - i)), rel=1e-3)


def test_strong_correlations_are_counted():
    rho = np.r_[0.9, 0.8, 0.7, np.zeros(7)]
    samples = np.tanh(CorrelationDraws(10, 12, 499, 300, 8).fisher_z(np.arctanh(rho)))
    results = [significant_correlations(sample, 10, 12, 500) for sample in samples]
    for counts in ([r.count for r in results], [r.count_largest_root for r in results]):
        assert min(counts) >= 3
        assert np.mean(np.array(counts) == 3) > 0.9
    assert np.mean([r.count == 3 for r in results]) < 0.985  # one in twenty goes on, by the level
    weak = np.tanh(CorrelationDraws(10, 10, 399, 100, 8).fisher_z(np.full(10, 0.12)))
    found = [significant_correlations(sample, 10, 10, 400) for sample in weak]
    # Ten weak ones: their sum shows, none alone does.
    assert np.mean([r.count > 0 for r in found]) > np.mean([r.count_largest_root > 0 for r in found]) + 0.1


def test_count_edges():
    everything = significant_correlations([0.99, 0.98], 2, 2, 1000)
    assert (everything.count, everything.count_largest_root) == (2, 2)
    exact = significant_correlations([1.0, 0.0], 2, 2, 100)
    assert (exact.count, exact.count_largest_root) == (1, 1)
    assert exact.p_values[0] == 0
    nothing = significant_correlations([0.0, 0.0], 2, 2, 100)
    assert (nothing.count, nothing.count_largest_root) == (0, 0)
    with pytest.raises(sc.InputError, match="level = 5"):
        significant_correlations([0.5], 1, 1, 10, level=5)
    assert isinstance(nothing, SignificantCorrelations)
    assert "hardly above kx + ky = 40" in repr(significant_correlations(np.full(20, 0.9), 20, 20, 42))


# The whole table (40 cells, 100 to 300 samples each) takes ten minutes; these cells stand for it.
@pytest.mark.slow
@pytest.mark.parametrize("shape", ["flat", "strong"])
@pytest.mark.parametrize(("n", "k"), [(200, 5), (200, 20), (2000, 20), (2000, 100)])
def test_the_table_of_the_docs(n, k, shape):
    """Where the plain mean is more than 0.05 off, the corrected one is within 0.015 (within 0.01 above 200 rows)."""
    repetitions = {5: 200, 20: 40, 100: 8}[k]
    rho = SHAPES[shape](k)
    samples = np.tanh(CorrelationDraws(k, k, n - 1, repetitions, 99).fisher_z(np.arctanh(rho)))
    results = [corrected_correlations(sample, k, k, n) for sample in samples]
    means = np.array([r.mean for r in results])
    error = 2 * means.std() / math.sqrt(repetitions)
    if np.mean([r.plain_mean for r in results]) > rho.mean() + 0.05:
        assert abs(means.mean() - rho.mean()) < (0.01 if n > 200 else 0.015) + error
    covered = np.mean([abs(r.mean - rho.mean()) <= 1.96 * r.standard_error for r in results])
    assert covered > 0.88 - 2 * math.sqrt(0.05 / repetitions)
