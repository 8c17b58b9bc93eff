"""RM against PM: coefficients against SciPy, Mantel against direct permutation, resampling against draws by hand."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import streamcca as sc
from streamcca.multiplicity.relation.association import associate
from streamcca.multiplicity.relation.coefficients import (
    COEFFICIENTS,
    correlation,
    correlations_of_rows,
    weighted_correlations,
)
from streamcca.multiplicity.relation.permutations import mantel, permutation_test
from streamcca.multiplicity.relation.resampling import (
    Estimate,
    jackknife,
    model_weights,
    pair_mean,
    pairs_between,
    pairs_within,
    percentiles,
)

SCIPY = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr, "kendall": scipy.stats.kendalltau}


def distances(models=9, seed=0, width=3):
    x = np.random.default_rng(seed).standard_normal((models, width))
    return np.linalg.norm(x[:, None] - x[None], axis=2)


def related(d, seed=1, noise=0.3):
    e = np.triu(np.random.default_rng(seed).standard_normal(d.shape) * noise, 1)
    y = d + e + e.T
    np.fill_diagonal(y, 0)
    return y


GROUPS = {"a": [0, 1, 2], "b": [3, 4, 5], "c": [6, 7, 8]}


# ---------------------------------------------------------------------- resampling


def test_draws_are_of_models_within_their_groups():
    w = model_weights([[0, 2, 4], [1, 3, 5, 6]], draws=500, seed=3)
    assert w.shape == (500, 7)
    assert w.dtype == np.int64
    np.testing.assert_array_equal(w[:, [0, 2, 4]].sum(axis=1), 3)
    np.testing.assert_array_equal(w[:, [1, 3, 5, 6]].sum(axis=1), 4)
    assert ((w[:, [0, 2, 4]] > 0).sum(axis=1) >= 2).all()
    np.testing.assert_array_equal(w, model_weights([[0, 2, 4], [1, 3, 5, 6]], draws=500, seed=3))
    assert (w != model_weights([[0, 2, 4], [1, 3, 5, 6]], draws=500, seed=4)).any()
    # Each model as often as any other: 500 x 3 draws among 3, standard deviation of a sum below sqrt(500 * 1).
    assert np.abs(w[:, [0, 2, 4]].sum(axis=0) - 500).max() < 5 * 500**0.5
    assert (model_weights([[0, 1], [2]], 20, 0) == 1).all()


@pytest.mark.parametrize("groups", [[], [[]], [[0, 1], [1, 2]], [[-1, 0]]])
def test_groups_that_are_none(groups):
    with pytest.raises(sc.InputError, match="groups"):
        model_weights(groups, 3, 0)


def test_pair_means_are_those_of_drawn_models_without_own_copies():
    d, groups = related(distances(7)), [[0, 1, 2, 3], [4, 5, 6]]
    w = model_weights(groups, 50, 0)
    within, between = pairs_within(groups[0]), pairs_between(*groups)
    got_within, got_between = pair_mean(d, w, within), pair_mean(np.stack([d, 2 * d]), w, between)
    for row, one, two in zip(w, got_within, got_between, strict=True):
        drawn = [np.repeat(group, row[group]) for group in groups]
        pairs = [d[a, b] for a, b in itertools.combinations(drawn[0], 2) if a != b]
        assert one == pytest.approx(np.mean(pairs), rel=1e-12)
        across = np.mean([d[a, b] for a in drawn[0] for b in drawn[1]])
        np.testing.assert_allclose(two, [across, 2 * across], rtol=1e-12)
    assert np.isnan(pair_mean(d, [[3, 0, 0, 0, 0, 0, 0]], within)).all()


def test_jackknife_of_a_mean_is_students_interval():
    """The mean over pairs of x_a + x_b is twice the mean of x: the jackknife has Student's interval exactly."""
    x = np.random.default_rng(0).standard_normal(6)
    d = np.add.outer(x, x)
    (got,) = jackknife(lambda w: pair_mean(d, w, pairs_within(range(6))), [range(6)], 6, 0.9)
    half = 2 * scipy.stats.t.ppf(0.95, 5) * x.std(ddof=1) / 6**0.5
    assert got.value == pytest.approx(2 * x.mean())
    np.testing.assert_allclose([got.low, got.high], [2 * x.mean() - half, 2 * x.mean() + half], rtol=1e-10)


def test_jackknife_of_two_groups_is_welchs():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal(5), 3 * rng.standard_normal(8)
    d = np.zeros((13, 13))
    d[:5, 5:] = y[None] - x[:, None]
    groups = [list(range(5)), list(range(5, 13))]
    (got,) = jackknife(lambda w: pair_mean(d, w, pairs_between(*groups)), groups, 13, 0.95)
    want = scipy.stats.ttest_ind(y, x, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose([got.low, got.high], [want.low, want.high], rtol=1e-10)


def test_few_models_have_no_interval():
    d = distances(3)
    mean = lambda w: pair_mean(d, w, pairs_within([0, 1]))  # noqa: E731
    (got,) = jackknife(mean, [[0, 1]], 3, 0.95)
    assert got == Estimate(d[0, 1], None, None, "no interval: 2 models cannot spare one")
    (got,) = percentiles(mean, [[0, 1]], 3, 0.95, np.pad(model_weights([[0, 1]], 9, 0), ((0, 0), (0, 1))))
    assert (got.low, got.high) == (None, None)
    assert "2 models" in got.reason
    (got,) = jackknife(lambda w: pair_mean(d, w, pairs_within([0])), [[0]], 3, 0.95)
    assert (got.value, got.reason) == (None, "no pair of models")
    assert "None" in repr(got)
    json.dumps(got.to_dict())


@pytest.mark.parametrize(("models", "jackknife_least", "percentile_most"), [(5, 0.92, 0.93), (10, 0.91, 0.945)])
def test_coverage_of_means_over_pairs(models, jackknife_least, percentile_most):
    """600 groups of random points: the jackknife holds its level, percentiles do not, i.i.d. pairs fail.

    Bounds are the coverage of 2,000 repetitions (resampling.py) give or take 3 standard errors of 600.
    """
    rng = np.random.default_rng(models)
    big = rng.standard_normal((1500, 3))
    truth = scipy.spatial.distance.pdist(big).mean()
    pairs, members = pairs_within(range(models)), list(range(models))
    hits = np.zeros(3)
    for seed in range(600):
        d = related(distances(models, seed=(models, seed)), seed, 0.05)
        mean = lambda w, d=d: pair_mean(d, w, pairs)  # noqa: E731
        (one,) = jackknife(mean, [members], models, 0.95)
        (two,) = percentiles(mean, [members], models, 0.95, model_weights([members], 200, seed))
        values = d[pairs[:, 0], pairs[:, 1]]
        half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
        hits += [one.low <= truth <= one.high, two.low <= truth <= two.high, abs(values.mean() - truth) <= half]
    by_jackknife, by_percentile, by_pairs = hits / 600
    assert by_jackknife > jackknife_least
    assert by_percentile < min(percentile_most, by_jackknife)
    assert by_pairs < 0.8


# ---------------------------------------------------------------------- coefficients


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("ties", [False, True])
def test_coefficients_are_scipys(name, ties):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, (5, 12)).astype(float) if ties else rng.standard_normal((5, 12))
    y = x + (rng.integers(0, 3, x.shape) if ties else rng.standard_normal(x.shape))
    want = [SCIPY[name](a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(correlations_of_rows(name, x, y), want, rtol=1e-12)
    assert correlation(name, x[0], y[0])[0] == pytest.approx(want[0], rel=1e-12)


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("ties", [False, True])
def test_weighted_coefficients_are_scipys_of_repeated_pairs(name, ties, monkeypatch):
    d = distances(8)
    if ties:
        d = d.round()
    e = related(d)
    pairs, w = pairs_within(range(8)), model_weights([range(4), range(4, 8)], 40, 0)
    a, b = (z[pairs[:, 0], pairs[:, 1]] for z in (d, e))
    got = weighted_correlations(name, a, b, w, pairs)
    for row, value in zip(w, got, strict=True):
        count = row[pairs[:, 0]] * row[pairs[:, 1]]
        want = SCIPY[name](np.repeat(a, count), np.repeat(b, count)).statistic
        assert value == pytest.approx(want, rel=1e-9, abs=1e-12)
    monkeypatch.setattr("streamcca.multiplicity.relation.coefficients._SIGNS", 3)
    monkeypatch.setattr("streamcca.multiplicity.relation.coefficients._CHUNK", 100)
    np.testing.assert_allclose(weighted_correlations(name, a, b, w, pairs), got, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------- Mantel


def by_hand(x, y, orders, coefficient, pairs):
    i, j = pairs[:, 0], pairs[:, 1]
    return np.array([SCIPY[coefficient](x[i, j], y[np.ix_(o, o)][i, j]).statistic for o in orders])


@pytest.mark.parametrize("coefficient", ["pearson", "spearman"])
@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_mantel_of_few_models_goes_through_all_permutations(coefficient, alternative):
    x = distances(5)
    y = related(x, noise=1.5)
    pairs = pairs_within(range(5))
    found = by_hand(x, y, [list(o) for o in itertools.permutations(range(5))], coefficient, pairs)
    observed = found[0]
    reach = {
        "two-sided": np.abs(found) >= abs(observed) - 1e-12,
        "greater": found >= observed - 1e-12,
        "less": found <= observed + 1e-12,
    }[alternative]
    got = mantel(x, y, coefficient=coefficient, alternative=alternative)
    assert got.exact
    assert got.permutations == 120
    assert got.statistic == pytest.approx(observed, rel=1e-12)
    assert got.p == reach.mean()


def test_mantel_within_strata_moves_no_model_out_of_its_group():
    x, strata = distances(6), np.array([0, 0, 0, 1, 1, 1])
    y = related(x, noise=1)
    pairs = np.concatenate([pairs_within([0, 1, 2]), pairs_within([3, 4, 5])])
    three = [list(o) for o in itertools.permutations(range(3))]
    orders = [a + [3 + k for k in b] for a in three for b in three]
    found = by_hand(x, y, orders, "pearson", pairs)
    got = mantel(x, y, pairs=pairs, strata=strata)
    assert (got.exact, got.permutations) == (True, 36)
    assert got.p == (np.abs(found) >= abs(found[0]) - 1e-12).mean()
    assert "within" in got.kind
    with pytest.raises(sc.InputError, match="go over into each other"):
        mantel(x, y, pairs=pairs)


def test_drawn_permutations_within_strata():
    """All strata move, and only among themselves: p is that of all 576 permutations."""
    x, strata = distances(9, 3), np.array([0, 0, 0, 0, -1, 1, 1, 1, 1])
    y = related(x, noise=2)
    y[:4, :4] = y[:4, :4].max()  # the first stratum says nothing
    np.fill_diagonal(y, 0)
    pairs = np.concatenate([pairs_within(range(4)), pairs_within(range(5, 9))])
    exact = mantel(x, y, pairs=pairs, strata=strata, permutations=576)
    drawn = mantel(x, y, pairs=pairs, strata=strata, permutations=500)
    assert exact.exact
    assert not drawn.exact
    assert 0.1 < exact.p < 0.9
    assert abs(exact.p - drawn.p) < 4 * (exact.p * (1 - exact.p) / 500) ** 0.5


def test_drawn_permutations_agree_with_all():
    x = distances(7)
    y = related(x, noise=2)
    exact = mantel(x, y, permutations=5040)
    drawn = mantel(x, y, permutations=2000)
    assert exact.exact
    assert not drawn.exact
    assert abs(exact.p - drawn.p) < 4 * (exact.p * (1 - exact.p) / 2000) ** 0.5 + 1e-3
    # One permutation that reaches nothing still leaves the observed one: (1 + 0) / (1 + 99).
    assert mantel(distances(30), distances(30) ** 2, permutations=99).p == 0.01


@pytest.mark.slow
def test_mantel_of_unrelated_matrices_is_uniform():
    ps = [mantel(distances(6, seed), distances(6, 1000 + seed)).p for seed in range(150)]
    assert scipy.stats.kstest(ps, "uniform").pvalue > 0.01
    assert min(ps) >= 1 / 720


def test_permutation_test_is_scipys():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 6))
    got = permutation_test(x, y)
    want = scipy.stats.permutation_test(
        (x,), lambda z: scipy.stats.pearsonr(z, y).statistic, permutation_type="pairings", n_resamples=np.inf
    )
    # SciPy doubles the smaller tail for two sides; the tails themselves are the same.
    greater = permutation_test(x, y, alternative="greater").p
    less = permutation_test(x, y, alternative="less").p
    assert want.pvalue == pytest.approx(min(1, 2 * min(greater, less)))
    assert got.statistic == pytest.approx(want.statistic)
    reach = [abs(scipy.stats.pearsonr(x, np.array(o)).statistic) for o in itertools.permutations(y)]
    assert got.p == np.mean(np.array(reach) >= abs(got.statistic) - 1e-12)


# ---------------------------------------------------------------------- associate


def test_associate():
    d = distances(15, 4)
    e = related(d)
    groups = {"a": range(5), "b": range(5, 9), "c": range(9, 15)}
    got = associate(d, e, groups, draws=400, permutations=499)
    rm, pm = ([z[np.ix_(list(g), list(g))].sum() / (len(g) * (len(g) - 1)) for g in groups.values()] for z in (d, e))
    np.testing.assert_allclose(list(got.rm.values()), rm, rtol=1e-12)
    np.testing.assert_allclose(list(got.pm.values()), pm, rtol=1e-12)
    i, j = np.triu_indices(15, 1)
    label = np.repeat([0, 1, 2], [5, 4, 6])
    own = label[i] == label[j]
    for name in COEFFICIENTS:
        assert getattr(got.groups, name).value == pytest.approx(SCIPY[name](rm, pm).statistic)
        assert getattr(got.all, name).value == pytest.approx(SCIPY[name](d[i, j], e[i, j]).statistic)
        within = getattr(got.within, name)
        assert within.value == pytest.approx(SCIPY[name](d[i, j][own], e[i, j][own]).statistic)
        assert within.low < within.value < within.high
    assert (got.groups.points, got.within.points, got.all.points) == (3, 31, 105)
    assert got.all.test.p == 1 / 500
    assert got.groups.test.exact
    assert got.groups.test.permutations == 6
    json.dumps(got.to_dict(), allow_nan=False)
    assert "models permuted within their groups" in got.table()
    assert "Spearman" in repr(got)
    assert "Spearman" in repr(got.all)


def test_interval_of_groups_is_that_of_drawn_models():
    d = distances(12, 4)
    e = related(d, noise=0.1)
    groups = {"a": range(4), "b": range(4, 8), "c": range(8, 12)}
    got = associate(d, e, groups, draws=50, permutations=9, seed=7, level=0.8)
    w = model_weights(list(groups.values()), 50, 7)
    sides = [np.stack([pair_mean(z, w, pairs_within(g)) for g in groups.values()], axis=1) for z in (d, e)]
    drawn = [scipy.stats.pearsonr(a, b).statistic for a, b in zip(*sides, strict=True)]
    np.testing.assert_allclose([got.groups.pearson.low, got.groups.pearson.high], np.quantile(drawn, [0.1, 0.9]))


def test_what_has_no_answer_says_why():
    d = distances(6)
    two = associate(d, d, {"a": [0, 1, 2], "b": [3, 4, 5]}, draws=20, permutations=9)
    assert two.groups.pearson == Estimate(None, reason="2 groups, at least 3 are needed")
    assert two.groups.test.p is None
    assert "at least 3" in two.groups.test.reason
    flat = np.ones((9, 9))
    got = associate(flat, distances(9), GROUPS, draws=20, permutations=9)
    for part in (got.groups, got.within, got.all):
        assert part.kendall.value is None
        assert "first quantity are equal" in part.kendall.reason
        assert part.test.p is None
    json.dumps(got.to_dict(), allow_nan=False)
    pairs = associate(distances(6), related(distances(6)), {"a": [0, 1], "b": [2, 3], "c": [4, 5]}, draws=20)
    # Nothing can be drawn but what there is: the interval is a point, and the reason says why.
    assert "2 of the 3 models" in pairs.groups.spearman.reason
    assert pairs.groups.spearman.low == pairs.groups.spearman.high
    alone = associate(
        distances(6), related(distances(6)), {"a": [0, 1, 2, 3], "b": [4], "c": [5]}, draws=20, permutations=9
    )
    assert alone.groups.points == 1
    assert alone.all.points == 15
    assert "1 of the 3 models" in alone.all.pearson.reason
    assert alone.within.pearson.reason == ""
    assert alone.within.pearson.low < alone.within.pearson.high


def test_group_pm_given():
    d = distances(9)
    got = associate(d, d, GROUPS, group_pm={"a": 1.0, "b": 3.0, "c": 2.0}, draws=50, permutations=9)
    assert got.pm == {"a": 1.0, "b": 3.0, "c": 2.0}
    assert got.groups.pearson.value == pytest.approx(np.corrcoef(list(got.rm.values()), [1, 3, 2])[0, 1])
    assert "taken as it is" in got.groups.pearson.reason
    with pytest.raises(sc.InputError, match="got none for 'c'"):
        associate(d, d, GROUPS, group_pm={"a": 1.0, "b": 3.0})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d[:8], "shape"),
        (lambda d: np.where(d > 2, np.nan, d), "not finite"),
        (lambda d: d + np.triu(d), "not symmetric"),
        (lambda d: d[:8, :8], "9 and 8 models"),
    ],
)
def test_matrices_that_are_none(change, match):
    d = distances()
    with pytest.raises(sc.InputError, match=match):
        associate(d, change(d), GROUPS)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(-5, 5))
def test_invariances(seed, scale, shift):
    """No coefficient or p value changes by the order of models, or by scale and shift of one side."""
    d = distances(9, seed)
    e = related(d, seed, 1.0)
    order = np.random.default_rng(seed).permutation(9)
    place = np.argsort(order)
    first = associate(d, e, GROUPS, draws=5, permutations=400)
    moved = associate(
        scale * d[np.ix_(order, order)] + shift,
        e[np.ix_(order, order)],
        {name: place[members] for name, members in GROUPS.items()},
        draws=5,
        permutations=400,
    )
    for part in ("groups", "within", "all"):
        one, other = getattr(first, part), getattr(moved, part)
        for name in COEFFICIENTS:
            assert getattr(one, name).value == pytest.approx(getattr(other, name).value, abs=1e-9)
    assert first.within.test.exact
    assert first.within.test.p == pytest.approx(moved.within.test.p)
