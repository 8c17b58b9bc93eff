"""CCA, SVCCA and PWCCA against the reference; weights; warnings and refusals; results."""

from __future__ import annotations

import dataclasses
import json
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
from hypothesis import given

import streamcca as sc

RULES = [("variance", 0.99), ("variance", 0.8), ("nuclear", 0.9), ("rank", 7), ("full", None)]


def svcca(x, y, rule, value, **options):
    if rule == "full":
        return sc.cca(x, y, **options)
    return sc.svcca(x, y, **{rule: value}, **options)


@pytest.mark.parametrize(("rule", "value"), RULES)
@pytest.mark.parametrize("shape", [(400, 30, 20), (400, 20, 30), (2000, 100, 64), (60, 9, 9)])
def test_float64_against_svd_of_the_full_matrices(rule, value, shape, decaying, isa):
    x, y = decaying(*shape)
    r = svcca(x, y, rule, value)
    rho, kx, ky = reference.correlations(x, y, rule, value)
    assert (r.rank_x, r.rank_y) == (kx, ky)
    np.testing.assert_allclose(r.correlations, rho, atol=1e-10, rtol=0)
    assert abs(r.mean - rho.mean()) <= max(r.error_bound, 1e-13)
    assert r.mean == pytest.approx(r.correlations.mean(), abs=1e-15)
    assert r.error_bound < 1e-9


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("shape", [(400, 30, 20), (400, 20, 30)])
def test_pwcca_against_its_definition(side, shape, decaying):
    x, y = decaying(*shape)
    r = sc.pwcca(x, y, side=side)
    assert r.mean == pytest.approx(reference.pwcca(x, y, side), abs=1e-11)
    assert r.mean == pytest.approx(float(r.shares @ r.correlations), abs=1e-14)
    assert r.shares.sum() == pytest.approx(1)
    assert r.error_bound < 1e-9


@pytest.mark.parametrize(("rule", "value"), RULES)
def test_weights_in_neuron_coordinates(rule, value, decaying):
    x, y = decaying(500, 30, 20)
    x = x + 10
    r = svcca(x, y, rule, value)
    m = min(r.rank_x, r.rank_y)
    assert r.x_weights.shape == (30, m)
    assert r.y_weights.shape == (20, m)
    a = (x - x.mean(0)) @ r.x_weights
    b = (y - y.mean(0)) @ r.y_weights
    np.testing.assert_allclose(np.cov(a, rowvar=False), np.eye(m), atol=1e-10)
    np.testing.assert_allclose(np.cov(b, rowvar=False), np.eye(m), atol=1e-10)
    np.testing.assert_allclose(a.T @ b / 499, np.diag(r.correlations), atol=1e-10)


@pytest.mark.parametrize("offset", [1e3, 1e6])
@pytest.mark.parametrize("measure", [sc.svcca, sc.cca, sc.pwcca])
def test_an_offset_changes_nothing(offset, measure, decaying):
    x, y = decaying(1000, 20, 15)
    plain, moved = measure(x, y), measure(x + offset, y - offset)
    np.testing.assert_allclose(moved.correlations, plain.correlations, atol=1e-9, rtol=0)
    assert moved.mean == pytest.approx(plain.mean, abs=1e-9)


# ---------------------------------------------------------------- invariances


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10))
def test_svcca_ignores_rotation_scale_and_shift(seed, scale):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((120, 8)) * np.arange(1, 9)
    y = rng.standard_normal((120, 6)) + x[:, :6]
    q = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    a, b = sc.svcca(x, y, variance=0.9), sc.svcca(scale * x @ q + rng.standard_normal(8), y, variance=0.9)
    assert (a.rank_x, a.rank_y) == (b.rank_x, b.rank_y)
    np.testing.assert_allclose(a.correlations, b.correlations, atol=1e-10)


@given(st.integers(0, 2**32 - 1))
def test_cca_ignores_invertible_maps_and_the_order_of_views(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((120, 6))
    y = rng.standard_normal((120, 4)) + x[:, :4]
    a = np.linalg.qr(rng.standard_normal((6, 6)))[0] * np.exp(rng.uniform(-2, 2, 6))
    plain = sc.cca(x, y)
    np.testing.assert_allclose(sc.cca(x @ a, y).correlations, plain.correlations, atol=1e-9)
    np.testing.assert_allclose(sc.cca(y, x).correlations, plain.correlations, atol=1e-12)
    assert np.all(np.diff(plain.correlations) <= 0)
    assert np.all((plain.correlations >= 0) & (plain.correlations <= 1))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_rows_may_be_permuted_and_repeated(seed, times):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((80, 5)), rng.standard_normal((80, 5))
    y += x
    order = np.repeat(rng.permutation(80), times)
    np.testing.assert_allclose(sc.svcca(x[order], y[order]).correlations, sc.svcca(x, y).correlations, atol=1e-10)


def test_a_view_with_itself_and_with_itself_and_noise(rng):
    x = rng.standard_normal((300, 12))
    assert sc.svcca(x, x).mean == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(sc.cca(x, np.hstack([x, rng.standard_normal((300, 5))])).correlations, 1, atol=1e-12)


def test_planted_correlations_come_back(rng):
    planted = np.array([0.999999, 0.99, 0.9, 0.7, 0.4, 0.1])
    n = 5000
    basis = np.linalg.qr(np.hstack([np.ones((n, 1)), rng.standard_normal((n, 12))]))[0][:, 1:]
    x = basis[:, :6]
    y = x * planted + basis[:, 6:] * np.sqrt(1 - planted**2)
    r = sc.cca(x @ rng.standard_normal((6, 6)), y @ rng.standard_normal((6, 6)))
    np.testing.assert_allclose(r.correlations, planted, atol=1e-11)


def test_one_neuron_is_pearson(rng):
    x, y = rng.standard_normal((200, 1)), rng.standard_normal((200, 1))
    assert sc.cca(x, y).mean == pytest.approx(abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]), abs=1e-14)


def test_units_of_neurons_do_not_matter_to_cca(rng):
    """Scaling columns by 1e-6 ... 1e6 costs nothing, since they are scaled to unit variance first."""
    x = rng.standard_normal((300, 8))
    y = rng.standard_normal((300, 5)) + x[:, :5]
    r = sc.cca(x * 10.0 ** np.linspace(-6, 6, 8), y)
    np.testing.assert_allclose(r.correlations, sc.cca(x, y).correlations, atol=1e-12)
    assert r.condition_x < 2


def test_constant_and_duplicated_neurons_are_left_out_with_a_note(rng):
    x = rng.standard_normal((300, 6))
    y = rng.standard_normal((300, 5)) + x[:, :5]
    wide = np.hstack([x, np.full((300, 1), 3.0), x[:, :2], np.zeros((300, 1))])
    with pytest.warns(sc.StreamCCAWarning) as caught:
        r = sc.cca(wide, y)
    texts = " ".join(str(w.message) for w in caught)
    assert "2 constant neurons are left out" in texts
    assert "numerical rank 6 of at most 8; directions below rounding are left out" in texts
    assert r.error_bound == pytest.approx(0.4)  # two directions could have held two of five correlations
    assert len(r.warnings) == 2
    np.testing.assert_allclose(r.correlations, sc.cca(x, y).correlations, atol=1e-10)
    a = (wide - wide.mean(0)) @ r.x_weights
    np.testing.assert_allclose(np.cov(a, rowvar=False), np.eye(5), atol=1e-10)
    np.testing.assert_array_equal(r.x_weights[[6, 9]], 0)


def test_ridge_is_the_callers_and_stands_in_the_result(rng):
    x = rng.standard_normal((300, 6)) * np.arange(1, 7)
    y = rng.standard_normal((300, 5)) + x[:, :5]
    r = sc.svcca(x, y, variance=1.0, ridge=0.1)
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cxy = np.cov(x, y, rowvar=False)[:6, 6:]

    def whiten(c):
        values, vectors = np.linalg.eigh(c + 0.1 * np.trace(c) / len(c) * np.eye(len(c)))
        return vectors / np.sqrt(values)

    rho = np.linalg.svd(whiten(cx).T @ cxy @ whiten(cy), compute_uv=False)
    np.testing.assert_allclose(r.correlations, rho, atol=1e-12)
    assert r.ridge == 0.1
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(sc.InputError, match="ridge: got"):
            sc.svcca(x, y, ridge=bad)


def test_a_ridge_does_not_bring_constant_neurons_to_life(rng):
    x = rng.standard_normal((500, 10))
    y = x @ rng.standard_normal((10, 10))
    wide = np.hstack([x, np.ones((500, 5))])
    for measure in (sc.cca, lambda *a, **k: sc.svcca(*a, variance=1.0, **k)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sc.StreamCCAWarning)
            r = measure(wide, np.hstack([y, np.zeros((500, 5))]), ridge=1e-9)
        assert (r.rank_x, r.rank_y) == (10, 10)
        assert r.mean == pytest.approx(1, abs=1e-6)


# ---------------------------------------------------------------- too few rows


def test_n_at_most_the_kept_ranks_is_refused(rng):
    x, y = rng.standard_normal((20, 30)), rng.standard_normal((20, 30))
    with pytest.raises(sc.UnderdeterminedError, match=r"n = 20 rows are too few for \(19, 19\) kept directions.*rank="):
        sc.svcca(x, y, variance=1.0)
    with pytest.raises(sc.UnderdeterminedError):
        sc.cca(rng.standard_normal((11, 10)), rng.standard_normal((11, 2)))
    with pytest.warns(sc.SampleSizeWarning, match="whatever the data"):
        r = sc.svcca(x, y, variance=1.0, allow_underdetermined=True)
    np.testing.assert_allclose(r.correlations, 1, atol=1e-9)
    assert r.null_mean == 1


def test_forced_ones_are_counted(rng):
    x, y = rng.standard_normal((31, 20)), rng.standard_normal((31, 15))
    with pytest.warns(sc.SampleSizeWarning, match=r"n = 31 rows for \(20, 15\) kept directions force 5 of the 15"):
        r = sc.cca(x, y)
    np.testing.assert_allclose(r.correlations[:5], 1, atol=1e-9)
    assert r.correlations[5] < 1 - 1e-6


def test_enough_rows_give_no_warning(rng):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.cca(rng.standard_normal((36, 20)), rng.standard_normal((36, 15)))


# ---------------------------------------------------------------- results


def test_results_are_frozen_printable_and_json(decaying):
    x, y = decaying(300, 12, 9)
    r = sc.svcca(x, y, rank=(5, 4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        r.mean = 1.0
    with pytest.raises(ValueError, match="read-only"):
        r.correlations[0] = 0
    assert "\n" not in repr(r)
    assert repr(r).startswith("SVCCA 0.")
    assert "rank=(5, 4): 5 of 12 and 4 of 9, n=300" in repr(r)
    data = json.loads(json.dumps(r.to_dict()))
    assert data["mean"] == r.mean
    assert data["correlations"] == r.correlations.tolist()
    assert data["truncation"]["rule"] == {"name": "rank", "x": 5, "y": 4}
    assert "x_weights" not in data
    assert np.shape(r.to_dict(weights=True)["x_weights"]) == (12, 4)
    assert r.distance == 1 - r.mean
    assert repr(sc.pwcca(x, y, side="y")).startswith("PWCCA (y side) ")


def test_moments_in_every_spelling(decaying):
    x, y = decaying(300, 12, 9)
    m = sc.Moments({"a": 12, "b": 9})
    m.update(a=x, b=y)
    expected = sc.svcca(x, y)
    for data in [(m, "a", "b"), (m,)]:
        np.testing.assert_array_equal(sc.svcca(*data).correlations, expected.correlations)
    np.testing.assert_allclose(sc.svcca(m, "b", "a").correlations, expected.correlations, atol=1e-12)
    assert sc.svcca(m, "a", "a").mean == pytest.approx(1)
    for bad in [(m, "a"), (m, "a", 3), (m, "a", "b", "c")]:
        with pytest.raises(sc.InputError, match="name two of the views 'a', 'b'"):
            sc.svcca(*bad)
    with pytest.raises(sc.InputError, match="there is no view 'c'"):
        sc.svcca(m, "a", "c")
    with pytest.raises(sc.InputError, match="side: got 'z'"):
        sc.pwcca(m, side="z")


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_unit_of_the_rows_does_not_matter(scale, decaying):
    x, y = decaying(300, 12, 9)
    plain, scaled = sc.svcca(x, y), sc.svcca(x * scale, y)
    np.testing.assert_allclose(scaled.correlations, plain.correlations, atol=1e-12)
    assert scaled.error_bound == pytest.approx(plain.error_bound, rel=0.5)
    np.testing.assert_allclose(scaled.x_weights * scale, plain.x_weights, rtol=1e-9, atol=1e-9)
