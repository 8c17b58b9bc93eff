"""Measures and intervals at their edges: weights, offsets, few and wide rows, scales, groups that do not match."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import streamcca as sc


def _views(rng, n=400):
    x = rng.standard_normal((n, 6))
    return x, x[:, :5] + rng.standard_normal((n, 5))


def _weighted(kind, x, y, weight):
    m = kind({"a": 6, "b": 5})
    for i in range(0, len(x), 10):
        m.update({"a": x[i : i + 10], "b": y[i : i + 10]}, weights=np.full(10, weight))
    return m


@pytest.mark.parametrize("weight", [100.0, 0.01])
def test_chance_of_cka_does_not_depend_on_the_unit_of_weights(weight):
    x, y = _views(np.random.default_rng(0))
    plain, other = (_weighted(sc.Moments, x, y, w) for w in (1.0, weight))
    assert sc.cka(other, "a", "b").null_mean == pytest.approx(sc.cka(plain, "a", "b").null_mean, rel=0.01)


@pytest.mark.parametrize("name", ["cca", "cka", "regression_y"])
def test_intervals_do_not_depend_on_the_unit_of_weights(name):
    x, y = _views(np.random.default_rng(0))
    plain, other = (sc.interval(name, _weighted(sc.GroupMoments, x, y, w), "a", "b") for w in (1.0, 0.1))
    assert (other.estimate, other.low, other.high) == pytest.approx((plain.estimate, plain.low, plain.high), abs=1e-3)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_debiased_cka_of_few_wide_rows_is_within_its_bound(offset):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((8, 900)) + offset, rng.standard_normal((8, 700)) - offset
    x[:, 0] += y[:, 0]

    def kernel(rows):
        rows = rows.astype(np.longdouble)
        rows = rows - rows.mean(axis=0)
        k = rows @ rows.T
        k = k - np.diag(np.diag(k))
        s = k.sum(axis=0) / (len(k) - 2)
        k = k - s[:, None] - s + s.sum() / (len(k) - 1)
        np.fill_diagonal(k, 0)
        return k

    k, m = kernel(x), kernel(y)
    wanted = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    found = sc.similarity("debiased_cka", x, y, strategy="covariance")
    assert abs(found.mean - wanted) <= found.error_bound


@pytest.mark.parametrize("which", ["view", "weights", "shorter view"])
def test_groups_refuse_rows_that_do_not_match(which):
    x, y = _views(np.random.default_rng(0))
    g, numbers, weights = sc.GroupMoments({"a": 6, "b": 5}), np.arange(300), None
    a, b = x[:300], y[:300]
    if which == "view":
        b = y
    elif which == "weights":
        weights = np.ones(400)
    else:
        b = y[:200]
    with pytest.raises(sc.InputError):
        g.update(a=a, b=b, groups=numbers, weights=weights)
    assert g.rows == 0


def test_group_numbers_refuse_more_than_there_are_rows():
    x, y = _views(np.random.default_rng(0))
    with pytest.raises(sc.InputError, match="groups"):
        sc.group_moments(x, y, groups=np.arange(900))


@pytest.mark.parametrize("groups", [np.int64(10), 2.5])
def test_size_of_groups_is_an_integer_of_any_kind_or_refused(groups):
    x, y = _views(np.random.default_rng(0))
    if isinstance(groups, np.integer):
        assert sc.group_moments(x, y, groups=groups).rows == 400
    else:
        with pytest.raises(sc.InputError, match="groups"):
            sc.group_moments(x, y, groups=groups)


def test_pwcca_of_both_sides_has_no_single_detail():
    x, y = _views(np.random.default_rng(0))
    m = sc.Moments({"a": 6, "b": 5})
    m.update(a=x, b=y)
    matrix = sc.similarity_matrix(m, "pwcca")
    assert matrix["a", "b"].detail is matrix["b", "a"].detail is None
    assert sc.similarity("pwcca_y", m).detail.side == "y"


def test_an_interval_of_cka_needs_no_correlations():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 64))
    assert sc.interval("cka", x, x + rng.standard_normal((60, 64))).low >= 0


def test_a_table_of_refusals_only():
    x, _ = _views(np.random.default_rng(0))
    found = sc.similarities(x, np.full((400, 5), 3.0))
    assert found.refused
    assert "refused" in found.table()


@pytest.mark.parametrize("measure", ["cka_angle", "shape_angle"])
def test_interval_of_an_angle_of_equal_views_is_narrow(measure):
    x, _ = _views(np.random.default_rng(0))
    assert sc.interval(measure, x, x).high < 1e-3


@pytest.mark.parametrize("scale", [1e-90, 1e80])
@pytest.mark.parametrize("measure", ["cka", "procrustes", "shape"])
def test_scales_that_leave_float64_are_right_or_refused(measure, scale):
    x, y = _views(np.random.default_rng(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = sc.similarity(measure, scale * x, scale * y)
        except sc.StreamCCAError:
            return
    assert found.mean == pytest.approx(sc.similarity(measure, x, y).mean, abs=1e-9)


def test_a_batch_with_nan_leaves_all_parts_as_they_were():
    x, y = _views(np.random.default_rng(0))
    g = sc.GroupMoments({"a": 6, "b": 5})
    g.update(a=x, b=y, groups=np.arange(400))
    before = [part.mean("a") for part in g.parts]
    bad = y.copy()
    bad[399, 2] = np.nan
    with pytest.raises(sc.NonFiniteError, match="view 'b', row 399 of the batch, column 2"):
        g.update(a=x, b=bad, groups=np.arange(400))
    with pytest.raises(sc.InputError, match="width"):
        g.update(a=x[:, :5], b=y, groups=np.arange(400))
    assert g.n == 400
    for part, mean in zip(g.parts, before, strict=True):
        np.testing.assert_array_equal(part.mean("a"), mean)


def test_samples_of_several_rows_go_by_their_group():
    x, y = _views(np.random.default_rng(0))
    g = sc.GroupMoments({"a": 6, "b": 5})
    g.update(a=x.reshape(40, 10, 6), b=y.reshape(40, 10, 5), groups=np.arange(40))
    assert (g.n, g.rows) == (400, 400)
    assert all(part.n % 10 == 0 for part in g.parts)


def test_a_rule_that_no_measure_takes_is_refused():
    x, y = _views(np.random.default_rng(0))
    m, g = sc.accumulate({"x": x, "y": y}), sc.group_moments(x, y)
    for call in (
        lambda: sc.similarity("cka", x, y, rank=2),
        lambda: sc.similarity("cka", x, y, ridge=1),
        lambda: sc.similarities(x, y, measures=["cka", "procrustes"], variance=0.9),
        lambda: sc.similarity_matrix(m, "cka", rank=2),
        lambda: sc.interval("cka", g, variance=0.9),
        lambda: sc.difference("cka", g, ("x", "y"), ("y", "x"), rank=2),
    ):
        with pytest.raises(sc.InputError, match="no functions of canonical correlations; leave it out"):
            call()
    assert sc.similarities(x, y, measures=["cka", "svcca"], rank=2)["svcca"].detail.rank_x == 2


def test_bad_weights_leave_all_parts_as_they_were():
    x, y = _views(np.random.default_rng(0))
    g = sc.GroupMoments({"a": 6, "b": 5})
    for bad in (-1.0, np.nan, np.inf):
        weights = np.ones(400)
        weights[-1] = bad
        with pytest.raises(sc.InputError, match="weights: got a negative"):
            g.update(a=x, b=y, weights=weights, groups=np.arange(400))
    assert g.n == 0
