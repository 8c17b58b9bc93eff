"""Mixed features and stacked probes against direct computation; their intervals against simulation."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from streamcca.errors import AccuracyWarning, InputError
from streamcca.multiplicity.features.blocks import Features
from streamcca.multiplicity.features.mixing import SHARES, feature_mixing, mix_features
from streamcca.multiplicity.features.probe import linear_probe
from streamcca.multiplicity.features.probe_intervals import accuracy_estimate, crossed_mean, difference_estimate
from streamcca.multiplicity.features.stacked import _counted, stacked_probe


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def two_views(n=500, p=6, q=9, seed=0):
    """Features of two models, each of which knows a part of what the classes depend on."""
    generator = np.random.default_rng(seed)
    hidden = generator.standard_normal((n, 4))
    a = hidden[:, :3] @ generator.standard_normal((3, p)) + 0.5 * generator.standard_normal((n, p))
    b = hidden[:, 1:] @ generator.standard_normal((3, q)) + 0.5 * generator.standard_normal((n, q))
    y = (hidden @ generator.standard_normal((4, 3))).argmax(1)
    half = n // 2
    return (a[:half], b[:half], a[half:], b[half:]), y[:half], y[half:]


# ---------------------------------------------------------------------- which features


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_mixtures_have_the_shares_that_were_asked_for(base, other, share, seed):
    drawn = mix_features(base, other, share, seed=seed)
    dimension = min(base, other)
    assert drawn.dtype == np.int64
    assert len(drawn) == dimension
    assert (np.diff(drawn) > 0).all()
    assert drawn[0] >= 0
    assert drawn[-1] < base + other
    assert np.count_nonzero(drawn < base) == int(np.floor(share * dimension + 0.5))
    np.testing.assert_array_equal(drawn, mix_features(base, other, share, seed=seed))


@pytest.mark.parametrize("seed", range(5))
def test_draws_are_nested(seed):
    base = [{c for c in mix_features(20, 30, share, seed=seed).tolist() if c < 20} for share in SHARES]
    other = [{c for c in mix_features(20, 30, share, seed=seed).tolist() if c >= 20} for share in SHARES]
    assert all(small <= large for small, large in itertools.pairwise(base))
    assert all(small >= large for small, large in itertools.pairwise(other))


def test_every_feature_is_drawn_equally_often():
    counts = np.zeros(8 + 12)
    for seed in range(2000):
        counts[mix_features(8, 12, 0.5, seed=seed)] += 1
    # 4 of 8 and 4 of 12: binomial, five deviations
    assert abs(counts[:8] - 1000).max() < 5 * np.sqrt(2000 / 4)
    assert abs(counts[8:] - 2000 / 3).max() < 5 * np.sqrt(2000 * 2 / 9)


def test_dimension_is_at_most_that_of_the_base():
    assert len(mix_features(10, 4, 1.0, dimension=10)) == 10
    with pytest.raises(InputError, match="dimension: got 11, expected 1 to 10"):
        mix_features(10, 40, 0.5, dimension=11)
    with pytest.raises(InputError, match="takes 7 of the other model, which has 4; expected dimension=4"):
        mix_features(10, 4, 0.25, dimension=10)
    with pytest.raises(InputError, match="share: got 1.5"):
        mix_features(10, 4, 1.5)


# ---------------------------------------------------------------------- the study


def test_each_probe_is_that_of_its_columns():
    (a, b, ta, tb), y, ty = two_views()
    mixed = feature_mixing(a, b, ta, tb, y, ty, draws=3, seed=7, l2=0.01, dimension=5)
    both, test = np.concatenate([a, b], axis=1), np.concatenate([ta, tb], axis=1)
    scores = np.empty((5, 3, len(ty)))
    for i, share in enumerate(SHARES):
        for j in range(3):
            columns = mix_features(6, 9, share, 5, [7, j])
            probe = linear_probe(both[:, columns], y, l2=0.01)
            scores[i, j] = probe.predict(test[:, columns]) == ty
    np.testing.assert_array_equal(mixed.accuracies, scores.mean(2))
    assert mixed.shares == SHARES
    np.testing.assert_allclose([e.value for e in mixed.accuracy], scores.mean((1, 2)))
    np.testing.assert_allclose(mixed.deviations, scores.mean(2).std(1, ddof=1))
    means = scores.mean((1, 2))
    np.testing.assert_allclose(
        [e.value for e in mixed.over_line], means - np.array(SHARES) * means[4] - (1 - np.array(SHARES)) * means[0],
        atol=1e-12,
    )  # fmt: skip
    np.testing.assert_allclose([e.value for e in mixed.over_best], means - max(means[0], means[4]), atol=1e-12)
    best = scores[4] if means[4] >= means[0] else scores[0]
    assert mixed.over_best[2] == difference_estimate(scores[2] - best, 0.95)
    assert mixed.over_line[0] == mixed.over_line[4] == (0, 0, 0, 0)
    assert mixed.over_best[4 if means[4] >= means[0] else 0] == (0, 0, 0, 0)
    assert mixed.best_share == SHARES[int(means.argmax())]
    assert (mixed.n_train, mixed.n_test, mixed.dimension, mixed.l2) == (250, 250, 5, 0.01)
    json.dumps(mixed.to_dict(), allow_nan=False)
    assert "\n" not in repr(mixed)
    assert len(mixed.table().splitlines()) == 7


def test_all_features_of_a_model_are_probed_once():
    (a, b, ta, tb), y, ty = two_views(p=5, q=5)
    mixed = feature_mixing(a, b, ta, tb, y, ty, shares=[1, 0], draws=4)
    assert mixed.probes == 2
    assert mixed.deviations == (0.0, 0.0)
    assert mixed.shares == (0.0, 1.0)
    assert mixed.accuracy[1].value == linear_probe(a, y).accuracy(ta, ty)


def test_gains_need_both_ends():
    (a, b, ta, tb), y, ty = two_views()
    mixed = feature_mixing(a, b, ta, tb, y, ty, shares=[0.5, 1], draws=1)
    assert mixed.over_line is None
    assert mixed.over_best is None
    assert mixed.deviations is None
    assert " - " in mixed.table()
    json.dumps(mixed.to_dict(), allow_nan=False)


def test_more_labels_than_one():
    (a, b, ta, tb), y, ty = two_views()
    options = {"multilabel": True, "l2": 0.01}
    mixed = feature_mixing(
        a, b, ta, tb, np.eye(3, dtype=int)[y], np.eye(3, dtype=int)[ty], draws=1, shares=[1], **options
    )
    probe = linear_probe(a, np.eye(3, dtype=int)[y], **options)
    assert mixed.accuracy[0].value == pytest.approx(probe.accuracy(ta, np.eye(3, dtype=int)[ty]), abs=1e-12)


def test_refusals_and_warnings(capsys):
    (a, b, ta, tb), y, ty = two_views()
    with pytest.raises(InputError, match="got widths 9 and 6, expected 6 and 9"):
        feature_mixing(a, b, tb, ta, y, ty)
    with pytest.raises(InputError, match="expected 250 as in features 0"):
        feature_mixing(a, b[1:], ta, tb, y, ty)
    with pytest.raises(InputError, match="0 draws"):
        feature_mixing(a, b, ta, tb, y, ty, draws=0)
    with pytest.raises(InputError, match="level: got 95"):
        feature_mixing(a, b, ta, tb, y, ty, level=95)
    with pytest.raises(InputError, match=r"labels: got shape \(249,\) for 250 rows"):
        feature_mixing(a, b, ta, tb, y, ty[1:])
    with pytest.raises(TypeError, match="ridge"):
        feature_mixing(a, b, ta, tb, y, ty, ridge=1)
    with pytest.warns(AccuracyWarning, match="feature_mixing: 2 of 2 probes did not converge"):
        mixed = feature_mixing(a, b, ta, tb, y, ty, draws=2, shares=[0.5], iterations=1, progress=True)
    assert "2 of 2 probes did not converge" in mixed.table()
    assert "2.00/2.00" in capsys.readouterr().err


def test_complementary_halves_of_digits_beat_each_alone(digits):
    """The upper and the lower half of the pictures: each probe has 32 features, and half of each says more."""
    x, y = digits
    upper, lower = x[:, :32], x[:, 32:]
    mixed = feature_mixing(upper[:1200], lower[:1200], upper[1200:], lower[1200:], y[:1200], y[1200:], draws=5, l2=1e-3)
    assert mixed.best_share in (0.25, 0.5, 0.75)
    for i in (1, 2, 3):
        assert mixed.over_best[i].low > 0
        assert mixed.over_line[i].low > 0
    # Against a copy of itself nothing is gained that the draw of distinct pixels does not give.
    twin = feature_mixing(upper[:1200], upper[:1200], upper[1200:], upper[1200:], y[:1200], y[1200:], draws=5, l2=1e-3)
    assert twin.over_best[2].value < 0 < mixed.over_best[2].value


# ---------------------------------------------------------------------- intervals


def test_crossed_mean_is_the_analysis_of_variance():
    generator = np.random.default_rng(0)
    values = generator.standard_normal((4, 30)) + generator.standard_normal((4, 1)) + generator.standard_normal(30)
    mean, error, freedom = crossed_mean(values, 0.95)
    assert mean == pytest.approx(values.mean())
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    of_draws, of_rows = 30 * values.mean(1).var(ddof=1), 4 * values.mean(0).var(ddof=1)
    of_rest = (rest**2).sum() / (3 * 29)
    assert error**2 == pytest.approx((of_draws + of_rows - of_rest) / 120)
    scatter = of_draws**2 / 3 + of_rows**2 / 29 + of_rest**2 / 87
    assert freedom == pytest.approx((of_draws + of_rows - of_rest) ** 2 / scatter)
    assert crossed_mean(values[:1], 0.95) == pytest.approx((values[0].mean(), values[0].std(ddof=1) / 30**0.5, 29))


@pytest.mark.parametrize(("draw", "row", "rest"), [(0.05, 0.3, 0.3), (0.0, 0.5, 0.2), (0.2, 0.0, 0.3)])
def test_differences_are_covered(draw, row, rest):
    generator = np.random.default_rng(1)
    runs, inside, squared = 1500, 0, []
    for _ in range(runs):
        values = (
            draw * generator.standard_normal((5, 1))
            + row * generator.standard_normal(60)
            + rest * generator.standard_normal((5, 60))
        )
        estimate = difference_estimate(values, 0.95)
        inside += estimate.low <= 0.0 <= estimate.high
        squared.append(estimate.error**2)
    assert inside / runs > 0.935
    truth = draw**2 / 5 + row**2 / 60 + rest**2 / 300
    assert np.mean(squared) > 0.95 * truth
    assert np.mean(squared) < 1.5 * truth  # it is never below what one effect alone would give


@pytest.mark.parametrize("accuracy", [0.5, 0.9, 0.99])
def test_accuracies_are_covered(accuracy):
    generator = np.random.default_rng(2)
    inside = 0
    for _ in range(2000):
        estimate = accuracy_estimate((generator.random((1, 150)) < accuracy).astype(float), 0.95)
        inside += estimate.low <= accuracy <= estimate.high
    assert inside / 2000 > 0.93


def test_accuracies_of_several_draws_are_covered():
    """Rows of unlike difficulty, draws of unlike quality."""
    generator = np.random.default_rng(4)
    inside = 0
    for _ in range(1500):
        logit = 2 + 1.5 * generator.standard_normal(100) + 0.3 * generator.standard_normal((5, 1))
        estimate = accuracy_estimate((generator.random((5, 100)) < 1 / (1 + np.exp(-logit))).astype(float), 0.95)
        inside += estimate.low <= 0.8078 <= estimate.high  # the mean of the logistic of N(2, 1.53^2), by quadrature
    assert inside / 1500 > 0.93


def test_wilson_at_the_ends():
    n, z2 = 80, scipy.stats.t.ppf(0.975, 79) ** 2
    low, high = accuracy_estimate(np.ones((3, n)), 0.95)[2:]
    assert (low, high) == pytest.approx((n / (n + z2), 1.0))
    low, high = accuracy_estimate(np.zeros((1, n)), 0.95)[2:]
    assert (low, high) == pytest.approx((0.0, z2 / (n + z2)))
    scores = (np.arange(n) < 60).astype(float)[None]
    # The standard error divides by n - 1: that is the n of Wilson's interval here.
    direct = scipy.stats.binomtest(int(0.75 * 4 * (n - 1)), 4 * (n - 1)).proportion_ci(method="wilson")
    estimate = accuracy_estimate(scores, 0.95)
    assert estimate.low < direct.low < 0.75 < direct.high < estimate.high
    n_effective, p = n - 1, 0.75
    half = np.sqrt(z2) * np.sqrt(p * (1 - p) / n_effective + z2 / (4 * n_effective**2)) / (1 + z2 / n_effective)
    middle = (p + z2 / (2 * n_effective)) / (1 + z2 / n_effective)
    assert (estimate.low, estimate.high) == pytest.approx((middle - half, middle + half))


def test_no_difference_in_any_row_is_not_certainty():
    low, high = difference_estimate(np.zeros((2, 50)), 0.95)[2:]
    assert (low, high) == pytest.approx((-(1 - 0.025 ** (1 / 50)), 1 - 0.025 ** (1 / 50)))


# ---------------------------------------------------------------------- stacked


def test_stacked_probes_against_direct_computation():
    (a, b, ta, tb), y, ty = two_views(800)
    stacked = stacked_probe({"a": (a, ta), "b": (b.astype(np.float32), tb)}, y, ty, l2=0.01)
    alone = linear_probe(a, y, l2=0.01)
    joined = linear_probe(np.concatenate([a, b.astype(np.float32)], axis=1), y, l2=0.01)
    test = np.concatenate([ta, tb], axis=1)
    np.testing.assert_allclose(stacked.scores["a"], alone.predict_logits(ta), atol=1e-12)
    np.testing.assert_allclose(stacked.scores["stacked"], joined.predict_logits(test), atol=1e-9)
    for name, estimate in stacked.accuracy.items():
        assert estimate.value == (stacked.scores[name].argmax(1) == ty).mean()
    gain = stacked.gains[0]
    right, before = joined.predict(test) == ty, alone.predict(ta) == ty
    more, less = int((right & ~before).sum()), int((~right & before).sum())
    assert (gain.over, gain.only_stacked, gain.only_alone) == ("a", more, less)
    assert gain.gain == pytest.approx(right.mean() - before.mean())
    assert gain.p_value == pytest.approx(scipy.stats.binomtest(more, more + less, 0.5).pvalue)
    n, p, q = 402, (more + 0.5) / 402, (less + 0.5) / 402
    half = scipy.stats.norm.ppf(0.975) * np.sqrt((p + q - (p - q) ** 2) / n)
    assert (gain.low, gain.high) == pytest.approx((p - q - half, p - q + half))
    assert stacked.best == max("ab", key=lambda name: stacked.accuracy[name].value)
    json.dumps(stacked.to_dict(), allow_nan=False)
    assert "\n" not in repr(stacked)
    assert len(stacked.table().splitlines()) == 4
    assert "\n" not in repr(gain)


def test_gains_of_paired_rows_are_covered():
    generator = np.random.default_rng(3)
    inside = 0
    for _ in range(2000):
        difference = generator.choice([-1.0, 0.0, 1.0], p=[0.02, 0.92, 0.06], size=200)
        gain = _counted("a", difference, 0.95)
        inside += gain.low <= 0.04 <= gain.high
    assert inside / 2000 > 0.935
    same = _counted("a", np.zeros(50), 0.95)
    assert same.p_value == 1.0
    assert same.low < 0 < same.high


def test_stacked_probes_of_many_labels():
    (a, b, ta, tb), y, ty = two_views(600)
    labels, test_labels = np.eye(3, dtype=int)[y], np.eye(3, dtype=int)[ty]
    features = {"a": (a, ta), "b": (b, tb)}
    stacked = stacked_probe(features, labels, test_labels, multilabel=True, l2=0.01, seed=5)
    right = {name: ((scores > 0) == test_labels).mean(1) for name, scores in stacked.scores.items()}
    generator = np.random.default_rng(0)
    for gain in stacked.gains:
        difference = right["stacked"] - right[gain.over]
        assert gain.gain == pytest.approx(difference.mean(), abs=1e-12)
        means = difference[generator.integers(0, 300, (4000, 300))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        assert (gain.low, gain.high) == pytest.approx((low, high), abs=0.1 * (high - low))
        assert gain.p_value is None
    again = stacked_probe(features, labels, test_labels, multilabel=True, l2=0.01, seed=5)
    assert again.gains == stacked.gains
    json.dumps(stacked.to_dict(), allow_nan=False)
    stacked.table()


def test_stacking_halves_of_digits_gains(digits):
    x, y = digits
    halves = {"upper": (x[:1200, :32], x[1200:, :32]), "lower": (x[:1200, 32:], x[1200:, 32:])}
    stacked = stacked_probe(halves, y[:1200], y[1200:])
    assert all(gain.low > 0 and gain.p_value < 1e-6 for gain in stacked.gains)
    twice = stacked_probe({"a": halves["upper"], "b": halves["upper"]}, y[:1200], y[1200:])
    assert all(gain.low < 0 < gain.high for gain in twice.gains)


def test_stacked_refusals():
    (a, b, ta, tb), y, ty = two_views()
    with pytest.raises(InputError, match="expected at least two models"):
        stacked_probe({"a": (a, ta)}, y, ty)
    with pytest.raises(InputError, match="none of them called 'stacked'"):
        stacked_probe({"a": (a, ta), "stacked": (b, tb)}, y, ty)
    with pytest.raises(InputError, match="expected 6 as the probe was trained on"):
        stacked_probe({"a": (a, tb), "b": (b, tb)}, y, ty)
    with pytest.raises(InputError, match="as in features 0"):
        stacked_probe({"a": (a, ta), "b": (b[1:], tb)}, y, ty)
    with pytest.warns(AccuracyWarning, match="probes of a, b, stacked did not converge"):
        stacked_probe({"a": (a, ta), "b": (b, tb)}, y, ty, iterations=1)


def test_features_objects_are_taken_too():
    (a, b, ta, tb), y, ty = two_views()
    first = [3, 1]
    pair = {"a": (Features.of(a).select(first), Features.of(ta).select(first)), "b": (b, tb)}
    by_hand = {"a": (a[:, first], ta[:, first]), "b": (b, tb)}
    assert stacked_probe(pair, y, ty).accuracy == stacked_probe(by_hand, y, ty).accuracy
