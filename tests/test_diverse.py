"""Orders of diversity against direct computation, and how many features a probe needs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcca import Moments
from streamcca.errors import AccuracyWarning, InputError, NonFiniteError
from streamcca.multiplicity.features.diverse import ORDERS, diversity_order
from streamcca.multiplicity.features.feature_curve import _first_at, _needed_interval, features_needed
from streamcca.multiplicity.features.probe import linear_probe

P, Q = 5, 8


def features_of_two_models(n=200, p=P, q=Q, seed=0):
    """Correlated features of unlike scales."""
    generator = np.random.default_rng(seed)
    hidden = generator.standard_normal((n, 6))
    mixed = hidden @ generator.standard_normal((6, p + q)) + 0.4 * generator.standard_normal((n, p + q))
    return mixed * generator.permutation(np.geomspace(0.1, 10, p + q)) + generator.uniform(-9, 9, p + q)


def standardized(x):
    return (x - x.mean(0)) / x.std(0)


def greedy(x):
    """Feature by feature, the one of which a regression on those before leaves the most; variance decides the first."""
    z, order = standardized(x), [int(x.var(0).argmax())]
    while len(order) < x.shape[1]:
        chosen = z[:, order]
        left = [
            -1.0 if j in order else ((z[:, j] - chosen @ np.linalg.lstsq(chosen, z[:, j])[0]) ** 2).sum()
            for j in range(x.shape[1])
        ]
        order.append(int(np.argmax(left)))
    return order


@pytest.mark.parametrize("seed", range(4))
def test_pivoted_is_the_greedy_order_and_that_of_pivoted_qr(seed):
    x = features_of_two_models(seed=seed)
    found = diversity_order(np.cov(x.T), P)
    np.testing.assert_array_equal(found, greedy(x))
    z = standardized(x)
    z[:, found[0]] *= 1.0001  # all columns are of one length: the first of QR is up to rounding
    _, _, pivots = scipy.linalg.qr(z, mode="economic", pivoting=True)
    np.testing.assert_array_equal(found, pivots)


@pytest.mark.parametrize("seed", range(4))
def test_sorted_orders_against_loops(seed):
    x = features_of_two_models(seed=seed)
    covariance, correlation = np.cov(x.T), np.corrcoef(x.T)
    other = [range(P, P + Q) if i < P else range(P) for i in range(P + Q)]
    across = np.array([np.mean([abs(covariance[i, j]) for j in other[i]]) for i in range(P + Q)])
    scale_free = np.array([np.mean([abs(correlation[i, j]) for j in other[i]]) for i in range(P + Q)])
    expected = {
        "variance": np.argsort(-x.var(0)),
        "cross-covariance": np.argsort(across),
        "cross-covariance-descending": np.argsort(-across),
        "cross-correlation": np.argsort(scale_free),
    }
    for order, columns in expected.items():
        np.testing.assert_array_equal(diversity_order(covariance, P, order), columns)
    assert {*expected, "pivoted"} == set(ORDERS)


def test_moments_give_the_same_order_in_either_order_of_views():
    x = features_of_two_models()
    moments = Moments({"a": P, "b": Q})
    moments.update(a=x[:90, :P], b=x[:90, P:])
    moments.update(a=x[90:, :P], b=x[90:, P:])
    turned = Moments({"b": Q, "a": P})
    turned.update(a=x[:, :P], b=x[:, P:])
    for order in ORDERS:
        found = diversity_order(moments, order=order)
        np.testing.assert_array_equal(found, diversity_order(np.cov(x.T), P, order))
        other = diversity_order(turned, Q, order)
        np.testing.assert_array_equal(np.where(other < Q, other + P, other - Q), found)


def test_ties_go_to_variance_then_to_the_number():
    np.testing.assert_array_equal(diversity_order(np.eye(6), 2), np.arange(6))
    np.testing.assert_array_equal(diversity_order(np.diag([1.0, 3, 2, 3, 1]), 2), [1, 3, 2, 0, 4])
    for order in ORDERS:
        np.testing.assert_array_equal(diversity_order(np.eye(6), 2, order), np.arange(6))
    np.testing.assert_array_equal(diversity_order(np.diag([1.0, 3, 2, 3, 1]), 2, "cross-covariance"), [1, 3, 2, 0, 4])


def test_copies_and_constants_come_last():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((100, 4))
    x = np.concatenate([x, -2 * x, np.full((100, 1), 7.0)], axis=1)
    x[:, 1] = 3.0
    covariance = np.cov(x.T)
    covariance[[1, 8]] = covariance[:, [1, 8]] = 0
    found = diversity_order(covariance, 4)
    # The doubled copies have more variance; the copy of the constant's old column is a feature of its own.
    assert set(found[:4].tolist()) == {4, 5, 6, 7}
    assert set(found[4:7].tolist()) == {0, 2, 3}
    np.testing.assert_array_equal(x[:, found[4:7]].var(0), np.sort(x[:, [0, 2, 3]].var(0))[::-1])
    for order in ORDERS:
        np.testing.assert_array_equal(diversity_order(covariance, 4, order)[-2:], [1, 8])
    np.testing.assert_array_equal(diversity_order(np.zeros((3, 3)), 1), [0, 1, 2])


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(sorted(ORDERS)))
def test_an_order_moves_with_the_columns(seed, order):
    x = features_of_two_models(60, seed=seed)
    covariance = np.cov(x.T)
    found = diversity_order(covariance, P, order)
    np.testing.assert_array_equal(np.sort(found), np.arange(P + Q))
    for count in (1, 4, P + Q):
        np.testing.assert_array_equal(diversity_order(covariance, P, order, count), found[:count])
    generator = np.random.default_rng(seed)
    moved = np.concatenate([generator.permutation(P), P + generator.permutation(Q)])
    again = diversity_order(covariance[np.ix_(moved, moved)], P, order)
    np.testing.assert_array_equal(moved[again], found)
    if order in ("pivoted", "cross-correlation"):
        scale = generator.uniform(0.9, 1.1, P + Q)
        scale[found[0]] = 1.2 if order == "pivoted" else 1.0  # which starts, the variance says
        rescaled = diversity_order(covariance * 100 * np.outer(scale, scale) / 100, P, order)
        if order == "cross-correlation" or rescaled[0] == found[0]:
            np.testing.assert_array_equal(rescaled, found)


@pytest.mark.parametrize(
    ("covariance", "options", "message"),
    [
        (np.eye(4)[:3], {"split": 2}, r"shape \(3, 4\)"),
        (np.eye(4), {}, "split: got None"),
        (np.eye(4), {"split": 4}, "split: got 4, .*1 to 3"),
        (np.triu(np.ones((4, 4))), {"split": 2}, "not symmetric"),
        (-np.eye(4), {"split": 2}, "not symmetric"),
        (np.eye(4), {"split": 2, "order": "diverse"}, "order: got 'diverse'"),
        (np.eye(4), {"split": 2, "count": 5}, "count: got 5"),
        (Moments({"a": 2}), {}, "moments of 1 views"),
        (Moments({"a": 2, "b": 3}), {"split": 3}, "split: got 3, expected 2, the width of view 'a'"),
    ],
)
def test_refused_covariances(covariance, options, message):
    with pytest.raises(InputError, match=message):
        diversity_order(covariance, **options)


def test_nan_is_refused():
    with pytest.raises(NonFiniteError, match="NaN"):
        diversity_order(np.full((4, 4), np.nan), 2)


# ---------------------------------------------------------------------- the curve


def task(n=600, seed=0):
    x = features_of_two_models(n, seed=seed)
    z = standardized(x)
    y = (z @ np.random.default_rng(seed + 1).standard_normal((P + Q, 3))).argmax(1)
    half = n // 2
    parts = x[:, :P], x[:, P:]
    return x, y, [part[:half] for part in parts], [part[half:] for part in parts], y[:half], y[half:]


@pytest.mark.parametrize("order", [*ORDERS, "random", [12, 3, 7, 0, 5]])
def test_each_point_is_the_probe_on_the_first_features(order):
    x, _, train, test, y, ty = task()
    curve = features_needed(train, test, y, ty, order, step=3, l2=0.01, target_accuracy=0.7, seed=2)
    if isinstance(order, list):
        columns, name = np.array(order), "given"
    elif order == "random":
        columns, name = np.random.default_rng([2, 0]).permutation(P + Q), "random"
    else:
        columns, name = diversity_order(np.cov(x[:300].T), P, order), order
    assert curve.order == name
    assert curve.sizes == ((3, 5) if name == "given" else (3, 6, 9, 12, 13))
    found = []
    for size, estimate, first in zip(curve.sizes, curve.accuracy, curve.from_first, strict=True):
        probe = linear_probe(x[:300, columns[:size]], y, l2=0.01)
        found.append(probe.accuracy(x[300:, columns[:size]], ty))
        assert estimate.value == pytest.approx(found[-1], abs=1e-12)
        assert first == (columns[:size] < P).sum()
    reached = [size for size, accuracy in zip(curve.sizes, found, strict=True) if accuracy >= 0.7]
    assert curve.needed == (reached[0] if reached else None)
    json.dumps(curve.to_dict(), allow_nan=False)
    assert "\n" not in repr(curve)
    assert "needed for 70 %" in curve.table()


def test_random_orders_to_compare_with():
    x, _, train, test, y, ty = task()
    curve = features_needed(train, test, y, ty, step=5, draws=3, l2=0.01, target_accuracy=0.6, seed=9)
    scores = np.empty((3, 3, 300))
    for j in range(3):
        columns = np.random.default_rng([9, 1 + j]).permutation(P + Q)
        for i, size in enumerate((5, 10, 13)):
            probe = linear_probe(x[:300, columns[:size]], y, l2=0.01)
            scores[i, j] = probe.correct(x[300:, columns[:size]], ty)
    np.testing.assert_allclose([e.value for e in curve.random_accuracy], scores.mean((1, 2)), atol=1e-12)
    for j, needed in enumerate(curve.random_needed):
        reached = np.flatnonzero(scores[:, j].mean(1) >= 0.6)
        assert needed == (None if not len(reached) else (5, 10, 13)[reached[0]])
    assert curve.probes == 12
    again = features_needed(train, test, y, ty, step=5, draws=3, l2=0.01, target_accuracy=0.6, seed=9)
    assert again.to_dict() == curve.to_dict()


def test_curves_need_not_rise():
    accuracies = np.array([0.5, 0.9, 0.8, 0.95])
    assert _first_at(accuracies, (2, 4, 6, 8), 0.85) == 4
    assert _first_at(accuracies, (2, 4, 6, 8), 0.95) == 8
    assert _first_at(accuracies, (2, 4, 6, 8), 0.96) is None
    assert _first_at(accuracies, (2, 4, 6, 8), None) is None


def test_interval_of_the_number_needed():
    generator = np.random.default_rng(0)
    scores = (generator.random((5, 120)) < np.array([0.5, 0.7, 0.78, 0.82, 0.9])[:, None]).astype(float)
    sizes = (10, 20, 30, 40, 50)
    means = np.array([scores[:, generator.integers(0, 120, 120)].mean(1) for _ in range(4000)])
    widths = set()
    for target in (0.66, 0.7, 0.74, 0.78, 0.82, 0.86):
        found = np.array(
            [next((size for size, mean in zip(sizes, of, strict=True) if mean >= target), 1000) for of in means]
        )
        low, high = _needed_interval(scores, sizes, target, 0.6, 1)
        # A percentile is met where the shares of what lies below and above it leave room: three deviations of 1000.
        for value, level in ((low, 0.2), (high, 0.8)):
            value = 1000 if value is None else value
            assert (found < value).mean() < level + 0.04
            assert (found <= value).mean() > level - 0.04
        widths.add((low, high))
    assert len(widths) >= 4
    assert _needed_interval(scores, sizes, 1.0, 0.9, 1) == (None, None)


@pytest.mark.slow
def test_complementary_features_are_needed_less_than_copies():
    """Halves of the digits' pictures, and twice the same half: 32 new features come first, or none."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    upper, lower = x[:, :32], x[:, 32:]
    options = {"step": 8, "target_accuracy": 0.85, "l2": 1e-3}

    def curve(a, b, **more):
        return features_needed((a[:1200], b[:1200]), (a[1200:], b[1200:]), y[:1200], y[1200:], **options, **more)

    complementary, copies = curve(upper, lower, draws=3), curve(upper, upper)
    assert complementary.needed is not None
    assert complementary.needed <= 32
    assert copies.needed is None
    assert copies.needed_high is None
    # No feature of the copy has anything that the 32 before it lack.
    assert copies.accuracy[-1].value == pytest.approx(copies.accuracy[4].value, abs=0.02)
    # Diverse features first beat random ones at the same number.
    assert complementary.needed <= min(needed for needed in complementary.random_needed if needed)
    assert "more than all" in repr(copies)


def test_options_of_the_curve(capsys):
    _, _, train, test, y, ty = task()
    assert features_needed(train, test, y, ty).sizes == tuple(range(1, P + Q + 1))
    assert features_needed(train, test, y, ty, most=7, step=4).sizes == (4, 7)
    assert features_needed(train, test, y, ty, most=8, step=4, progress=True).sizes == (4, 8)
    assert "pivoted features" in capsys.readouterr().err
    curve = features_needed([*train, train[0]], [*test, test[0]], y, ty, "random", step=9)
    assert curve.widths == (P, Q, P)
    for options, message in [
        ({"step": 0}, "step: got 0"),
        ({"most": 14}, "most: got 14, expected 1 to 13"),
        ({"target_accuracy": 76}, "target_accuracy: got 76"),
        ({"draws": -1}, "draws: got -1"),
        ({"order": "diverse"}, "order: got 'diverse'"),
        ({"order": [1, 1]}, "columns: got 1 to 1"),
        ({"level": 1.0}, "level: got 1.0"),
    ]:
        with pytest.raises(InputError, match=message):
            features_needed(train, test, y, ty, **options)
    with pytest.raises(InputError, match=r"got widths \(8, 5\), expected \(5, 8\)"):
        features_needed(train, test[::-1], y, ty)
    with pytest.raises(InputError, match="features of 1 models, expected two for order='pivoted'"):
        features_needed(train[:1], test[:1], y, ty)
    with pytest.warns(AccuracyWarning, match="features_needed: 2 of 2 probes did not converge"):
        curve = features_needed(train, test, y, ty, step=7, iterations=1)
    assert "2 of 2 probes did not converge" in curve.table()
