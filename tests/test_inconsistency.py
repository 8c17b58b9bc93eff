"""Error inconsistency, kappa, intervals and their coverage, specialization: against direct computations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcca import errors
from streamcca.multiplicity.answers.inconsistency import OUTCOMES, error_inconsistency, specialization
from streamcca.multiplicity.answers.intervals import percentiles, wilson

booleans = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def table(both, only_a, only_b, neither):
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


@given(booleans)
def test_against_direct_computation(rows):
    a, b = (np.array(side) for side in zip(*rows, strict=True))
    found = error_inconsistency(a, b, draws=50)
    a1, a2, ei = np.mean(a), np.mean(b), np.mean(a != b)
    assert (found.accuracy_a, found.accuracy_b, found.inconsistency, found.n) == (a1, a2, ei, len(rows))
    assert found.lower_bound == pytest.approx(abs(a1 - a2), abs=1e-15)
    assert found.upper_bound == pytest.approx(min(a1 + a2, 2 - a1 - a2), abs=1e-15)
    assert found.lower_bound <= found.inconsistency <= found.upper_bound  # exactly, as all are n-ths
    assert found.independent == pytest.approx(a1 * (1 - a2) + a2 * (1 - a1), abs=1e-15)
    assert found.both_right + found.only_a + found.only_b + found.both_wrong == len(rows)
    assert found.interval[0] <= ei <= found.interval[1]
    expected = a1 * a2 + (1 - a1) * (1 - a2)
    if len({*a.tolist(), *b.tolist()}) == 1:
        assert found.kappa is None
        assert found.kappa_interval is None
    else:
        assert found.kappa == pytest.approx((1 - ei - expected) / (1 - expected), abs=1e-12)
        assert -1 <= found.kappa <= 1
        assert -1 <= found.kappa_interval[0] <= found.kappa_interval[1] <= 1


def test_kappa_against_scikit_learn():
    from sklearn.metrics import cohen_kappa_score

    a, b = table(50, 7, 3, 11)
    assert error_inconsistency(a, b).kappa == pytest.approx(cohen_kappa_score(a, b), rel=1e-12)


@given(booleans)
def test_exchange_of_models_and_of_right_and_wrong(rows):
    a, b = (np.array(side) for side in zip(*rows, strict=True))
    one, two, wrong = (error_inconsistency(*pair, draws=2) for pair in ((a, b), (b, a), (~a, ~b)))
    assert one.inconsistency == two.inconsistency == wrong.inconsistency
    assert one.independent == two.independent == pytest.approx(wrong.independent, abs=1e-15)
    assert one.kappa == two.kappa == wrong.kappa
    assert (one.only_a, one.only_b) == (two.only_b, two.only_a) == (wrong.only_b, wrong.only_a)


def test_the_bounds_are_attained():
    found = error_inconsistency(*table(50, 30, 0, 20))
    assert found.inconsistency == found.lower_bound == 0.3
    found = error_inconsistency(*table(50, 30, 20, 0))
    assert found.inconsistency == found.upper_bound == 0.5
    found = error_inconsistency(*table(56, 24, 14, 6))  # 0.8 and 0.7, independent
    assert found.inconsistency == pytest.approx(found.independent, abs=1e-15)
    assert found.kappa == pytest.approx(0, abs=1e-15)
    assert error_inconsistency(*table(50, 0, 0, 50)).kappa == 1


def test_wilson_against_scipy():
    from scipy.stats import binomtest

    for k, n in ((0, 1), (0, 10), (3, 10), (10, 10), (499, 1000)):
        for level in (0.5, 0.95, 0.999):
            expected = binomtest(k, n).proportion_ci(level, method="wilson")
            assert wilson(k, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_percentiles_leave_out_what_says_nothing():
    assert percentiles([1.0, math.nan, 3.0], 0.999999) == pytest.approx((1, 3), abs=1e-5)
    assert percentiles([math.nan], 0.95) is None
    assert percentiles(np.arange(101), 0.9) == pytest.approx((5, 95))


def test_intervals_of_kappa_are_seeded_and_widen_with_the_level():
    a, b = table(80, 6, 5, 9)
    assert error_inconsistency(a, b) == error_inconsistency(a, b)
    assert error_inconsistency(a, b).kappa_interval != error_inconsistency(a, b, seed=1).kappa_interval
    narrow, wide = (error_inconsistency(a, b, level).kappa_interval for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < error_inconsistency(a, b).kappa < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("accuracy", "kappa", "n"), [(0.95, 0.5, 200), (0.95, 0.9, 200), (0.97, 0.95, 500), (0.8, 0.5, 200), (0.7, 0.1, 60)]
)
def test_intervals_cover_what_they_promise(accuracy, kappa, n):
    chance = accuracy**2 + (1 - accuracy) ** 2
    split = (1 - chance - kappa * (1 - chance)) / 2
    shares = np.array([accuracy - split, split, split, 1 - accuracy - split])
    rng = np.random.default_rng(5)
    runs = 400
    hits = np.zeros(2)
    for counts in rng.multinomial(n, shares, size=runs):
        found = error_inconsistency(*table(*counts), draws=500)
        low, high = found.kappa_interval or (-1, 1)
        hits += [low <= kappa <= high, found.interval[0] <= 2 * split <= found.interval[1]]
    # 95 % less four standard deviations of 400 runs; the delta method and the bootstrap reach 76 % and 84 % here.
    assert np.all(hits / runs >= 0.95 - 4 * 0.011)
    assert np.all(hits / runs <= 0.995)


# ---------------------------------------------------------------------- specialization


def confidences(n=200, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), size=(2, n))
    return p[0], p[1], rng.random(n) < 0.7, rng.random(n) < 0.6, rng.integers(0, classes, n)


def test_angles_against_direct_computation():
    p, q, a, b, labels = confidences()
    found = specialization(p, q, a, b, labels)
    theta = np.array([math.degrees(math.atan2(x.max(), y.max())) - 45 for x, y in zip(p, q, strict=True)])
    parts = dict(zip(OUTCOMES, (a & b, a & ~b, ~a & b, ~a & ~b), strict=True))
    assert found.mean == pytest.approx(theta.mean())
    assert sum(found.rows.values()) == found.n == 200
    for key, part in parts.items():
        assert found.means[key] == pytest.approx(theta[part].mean())
        assert found.rows[key] == part.sum() == found.counts[key].sum()
        for k in range(36):
            low, high = -45 + 2.5 * k, -42.5 + 2.5 * k
            assert found.counts[key][k] == np.sum((theta[part] >= low) & (theta[part] < high))
    for c in range(4):
        assert found.class_means[c] == pytest.approx(theta[labels == c].mean())
        assert found.class_rows[c] == np.sum(labels == c)
    assert found.edges[0] == -45
    assert found.edges[-1] == 45


@given(st.integers(0, 500))
def test_exchange_of_models_turns_angles_round(seed):
    p, q, a, b, labels = confidences(30, 3, seed)
    one, two = specialization(p, q, a, b, labels), specialization(q, p, b, a, labels)
    assert one.mean == pytest.approx(-two.mean, abs=1e-12)
    assert one.rows["only a"] == two.rows["only b"]
    assert one.class_rows == two.class_rows


def test_positive_angles_mean_that_a_is_surer():
    found = specialization([0.9, 0.5], [0.5, 0.5], [True, True], [True, False])
    assert found.means["both right"] == pytest.approx(math.degrees(math.atan(0.9 / 0.5)) - 45)
    assert found.means["both right"] > 0
    assert found.means["only a"] == pytest.approx(0)
    assert (found.means["only b"], found.class_means) == (None, None)


def test_classes_without_rows_have_no_mean():
    found = specialization([0.9, 0.5], [0.5, 0.5], [True, True], [True, False], labels=[0, 2])
    assert found.class_means[1] is None
    assert found.class_rows == (1, 0, 1)


def test_results_are_plain_values():
    found = error_inconsistency(*table(5, 0, 0, 0))
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (plain["kappa"], plain["kappa_interval"], plain["interval"][0]) == (None, None, 0)
    assert "kappa none" in repr(found)
    p, q, a, b, labels = confidences()
    plain = json.loads(json.dumps(specialization(p, q, a, b, labels).to_dict(), allow_nan=False))
    assert len(plain["edges"]) == 37
    assert "\n" not in repr(specialization(p, q, a, b))


def test_refusals():
    a = np.ones(3, dtype=bool)
    with pytest.raises(errors.DTypeError, match="booleans"):
        error_inconsistency([1, 0, 1], a)
    with pytest.raises(errors.InputError, match="got 3 and 2 rows"):
        error_inconsistency(a, a[:2])
    with pytest.raises(errors.InputError, match="at least one row"):
        error_inconsistency(a[:0], a[:0])
    for level in (0, 1, 95, "x", True):
        with pytest.raises(errors.InputError, match="level"):
            error_inconsistency(a, a, level)
    with pytest.raises(errors.InputError, match=r"prob_b: got shape \(2,\)"):
        specialization([0.5] * 3, [0.5] * 2, a, a)
    with pytest.raises(errors.InputError, match="outside"):
        specialization([0.5] * 3, [1.5] * 3, a, a)
    with pytest.raises(errors.InputError, match="probability 0"):
        specialization([0.5] * 3, [0.0, 1, 1], a, a)
    with pytest.raises(errors.InputError, match="outside"):
        specialization([0.5] * 3, [np.nan, 1, 1], a, a)
    with pytest.raises(errors.InputError, match="labels"):
        specialization([0.5] * 3, [0.5] * 3, a, a, labels=[0, 1])
    with pytest.raises(errors.InputError, match="bins"):
        specialization([0.5] * 3, [0.5] * 3, a, a, bins=0)
