"""Linear probes against scikit-learn, finite differences, and what must not change them."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcca import _memory
from streamcca.errors import AccuracyWarning, DTypeError, InputError, NonFiniteError
from streamcca.multiplicity.features.blocks import Features, column_statistics
from streamcca.multiplicity.features.probe import GRID, KORNBLITH_GRID, fit_probe, linear_probe
from streamcca.multiplicity.features.probe_fit import Fit
from streamcca.multiplicity.features.probe_labels import held_out


def rows_and_labels(n=300, d=7, classes=4, seed=0, noise=1.0):
    """Rows of unlike scales and means, and classes that depend on them, not separably."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, d))
    y = (x @ generator.standard_normal((d, classes)) + noise * generator.standard_normal((n, classes))).argmax(axis=1)
    y[:classes] = np.arange(classes)
    return x * np.geomspace(0.01, 100, d) + np.linspace(-50, 50, d), y


def many_labels(x, labels=3, seed=5):
    generator = np.random.default_rng(seed)
    z = (x - x.mean(0)) / x.std(0)
    logits = z @ generator.standard_normal((x.shape[1], labels)) + generator.standard_normal((len(x), labels))
    return (logits > 0.5).astype(np.uint8)


def direct_objective(z, y, weights, bias, l2):
    """The penalized mean loss, row by row."""
    total = 0.0
    for row, label in zip(z, y, strict=True):
        logits = row @ weights + bias
        total += np.log(np.exp(logits - logits[label]).sum())
    return total / len(z) + l2 / 2 * (weights**2).sum()


def sklearn_fit(z, y, c):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, tol=1e-10, max_iter=50_000).fit(z, y)


# ---------------------------------------------------------------------- against others


@pytest.mark.parametrize("l2", [1.0, 1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize(("n", "d", "classes"), [(300, 7, 4), (60, 90, 3)])
def test_scikit_learn_finds_the_same(n, d, classes, l2):
    x, y = rows_and_labels(n, d, classes)
    probe = linear_probe(x, y, l2=l2, tolerance=1e-8)
    z = (x - x.mean(0)) / x.std(0)
    other = sklearn_fit(z, y, 1 / (l2 * n))
    theirs = direct_objective(z, y, other.coef_.T, other.intercept_, l2)
    assert probe.converged
    assert not probe.note
    np.testing.assert_allclose(probe.weights, other.coef_.T, atol=1e-4)
    np.testing.assert_allclose(probe.bias, other.intercept_, atol=1e-3)
    assert abs(probe.objective - theirs) < 1e-8
    assert probe.objective <= theirs + 1e-11
    np.testing.assert_allclose(probe.objective, direct_objective(z, y, probe.weights, probe.bias, l2), rtol=1e-12)
    np.testing.assert_allclose(probe.loss, direct_objective(z, y, probe.weights, probe.bias, 0.0), rtol=1e-12)


def test_two_classes_are_scikit_learns_one_logit_at_twice_c():
    x, y = rows_and_labels(200, 5, 2)
    probe = linear_probe(x, y, l2=0.01, tolerance=1e-8)
    other = sklearn_fit((x - x.mean(0)) / x.std(0), y, 2 / (0.01 * 200))
    np.testing.assert_allclose(probe.weights[:, 1] - probe.weights[:, 0], other.coef_[0], atol=1e-4)
    np.testing.assert_allclose(probe.bias[1] - probe.bias[0], other.intercept_[0], atol=1e-4)


def test_raw_features_when_not_standardized():
    generator = np.random.default_rng(3)
    x = generator.standard_normal((250, 4)) + np.array([0, 1, 0, -1])
    y = (x.sum(1) + generator.standard_normal(250) > 0).astype(int) + (x[:, 0] > 0.5)
    probe = linear_probe(x, y, l2=0.01, standardize=False, tolerance=1e-8)
    other = sklearn_fit(x, y, 1 / (0.01 * 250))
    np.testing.assert_allclose(probe.weights, other.coef_.T, atol=1e-4)
    np.testing.assert_array_equal(probe.coefficients, probe.weights)
    assert (probe.center == 0).all()
    assert (probe.scale == 1).all()


def test_many_labels_are_independent_regressions():
    x, _ = rows_and_labels()
    labels = many_labels(x)
    probe = linear_probe(x, labels, l2=0.01, multilabel=True, tolerance=1e-8)
    z = (x - x.mean(0)) / x.std(0)
    for c in range(3):
        other = sklearn_fit(z, labels[:, c], 1 / (0.01 * len(x)))
        np.testing.assert_allclose(probe.weights[:, c], other.coef_[0], atol=1e-4)
        np.testing.assert_allclose(probe.bias[c], other.intercept_[0], atol=1e-4)
    answers = z @ probe.weights + probe.bias > 0
    np.testing.assert_array_equal(probe.predict(x), answers)
    assert probe.accuracy(x, labels) == pytest.approx((answers == labels).mean(), abs=1e-15)
    np.testing.assert_allclose(probe.correct(x, labels), (answers == labels).mean(axis=1))
    p = 1 / (1 + np.exp(-probe.predict_logits(x)))
    direct = -np.where(labels, np.log(p), np.log1p(-p)).sum(axis=1).mean()
    np.testing.assert_allclose(probe.loss, direct, rtol=1e-10)


@pytest.mark.parametrize("multilabel", [False, True])
def test_gradient_is_that_of_the_loss(multilabel):
    x, y = rows_and_labels(40, 5, 3)
    targets = many_labels(x).astype(bool) if multilabel else y
    mass = np.random.default_rng(1).uniform(0, 2, 40)
    fit = Fit(Features.of(x), targets, 3, multilabel)
    blocks = fit.prepared(mass)
    at = np.random.default_rng(2).standard_normal(6 * 3)
    _, slope = fit.loss_and_slope(at, blocks, mass)
    step = 1e-5
    for i in range(len(at)):
        ahead, behind = at.copy(), at.copy()
        ahead[i] += step
        behind[i] -= step
        difference = fit.loss_and_slope(ahead, blocks, mass)[0] - fit.loss_and_slope(behind, blocks, mass)[0]
        # Third derivatives of the loss are below 1 times |x|^3 here; rounding leaves 1e-16 / 1e-5.
        assert difference / (2 * step) == pytest.approx(slope[i], abs=2e-9)


@pytest.mark.parametrize("multilabel", [False, True])
def test_far_logits_neither_overflow_nor_vanish(multilabel):
    """Line searches try parameters like these; the loss of a far wrong answer is its distance, to rounding."""
    x, y = rows_and_labels(40, 5, 3)
    targets = np.eye(3, dtype=bool)[y] if multilabel else y
    fit = Fit(Features.of(x), targets, 3, multilabel)
    blocks = fit.prepared(np.ones(40))
    at = 1e4 * np.random.default_rng(2).standard_normal(6 * 3)
    loss, slope = fit.loss_and_slope(at, blocks, np.ones(40))
    logits = (x - x.mean(0)) / x.std(0) @ at[:15].reshape(5, 3) + at[15:]
    wrong = np.where(targets, -logits, logits).clip(0).sum(1) if multilabel else logits.max(1) - logits[range(40), y]
    assert loss == pytest.approx(wrong.mean(), rel=1e-6)
    assert np.isfinite(slope).all()


def test_logits_of_raw_coefficients():
    x, y = rows_and_labels()
    probe = linear_probe(x, y)
    np.testing.assert_allclose(x @ probe.coefficients + probe.intercepts, probe.predict_logits(x), atol=1e-8)
    np.testing.assert_array_equal(probe.predict(x), probe.predict_logits(x).argmax(1))
    assert probe.accuracy(x, y) == (probe.predict(x) == y).mean()


# ---------------------------------------------------------------------- what must not change it

L2, CLOSE = 0.05, {"atol": 2e-6}  # the gradient's tolerance over the curvature, and room


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_order_and_scale_do_not_matter(seed):
    generator = np.random.default_rng(seed)
    x, y = rows_and_labels(80, 4, 3, seed=seed % 1000)
    logits = linear_probe(x, y, l2=L2, tolerance=1e-8).predict_logits(x)
    rows, columns, classes = (generator.permutation(k) for k in (80, 4, 3))
    again = linear_probe(x[rows], y[rows], l2=L2, tolerance=1e-8)
    np.testing.assert_allclose(again.predict_logits(x), logits, **CLOSE)
    again = linear_probe(x[:, columns], y, l2=L2, tolerance=1e-8)
    np.testing.assert_allclose(again.predict_logits(x[:, columns]), logits, **CLOSE)
    again = linear_probe(x, classes[y], l2=L2, tolerance=1e-8)
    np.testing.assert_allclose(again.predict_logits(x)[:, classes], logits, **CLOSE)
    moved = x * generator.uniform(0.1, 10, 4) + generator.uniform(-5, 5, 4)
    again = linear_probe(moved, y, l2=L2, tolerance=1e-8)
    np.testing.assert_allclose(again.predict_logits(moved), logits, **CLOSE)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 3), min_size=80, max_size=80), st.booleans())
def test_weights_count_rows(times, multilabel):
    x, y = rows_and_labels(80, 4, 3)
    times = np.array(times)
    for c in range(3):
        times[np.flatnonzero(y == c)[:2]] = 1  # every class stays
    if multilabel:
        y = np.eye(3, dtype=int)[y]
    options = {"l2": L2, "tolerance": 1e-8, "multilabel": multilabel}
    weighted = linear_probe(x, y, weights=times, **options)
    repeated = linear_probe(np.repeat(x, times, axis=0), np.repeat(y, times, axis=0), **options)
    np.testing.assert_allclose(weighted.predict_logits(x), repeated.predict_logits(x), **CLOSE)
    assert weighted.objective == pytest.approx(repeated.objective, abs=1e-12)
    assert weighted.n == np.count_nonzero(times)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8])
def test_blocks_and_memory_do_not_change_a_bit(dtype, tmp_path):
    x, y = rows_and_labels(9001, 3, 3)  # two full blocks and a remainder
    x = np.clip((x - x.mean(0)) / x.std(0) * 20 + 100, 0, 255).astype(dtype)
    path = tmp_path / "rows.npy"
    np.save(path, x)
    mapped = np.load(path, mmap_mode="r")
    kept = linear_probe(x, y)
    formed = linear_probe(x, y, memory=0)
    from_file = linear_probe(mapped, y, memory=0)
    parts = linear_probe((x[:, :1], x[:, 1:]), y, memory=0)
    for other in (formed, from_file, parts):
        assert other.weights.tobytes() == kept.weights.tobytes()
        assert other.bias.tobytes() == kept.bias.tobytes()
        assert other.to_dict() == kept.to_dict()
    # A last block that were dropped would show.
    head = linear_probe(x[:-809], y[:-809])
    assert abs(head.weights - kept.weights).max() > 1e-5
    z = (x.astype(float) - x.mean(0, dtype=float)) / x.std(0, dtype=float)
    assert kept.loss == pytest.approx(direct_objective(z, y, kept.weights, kept.bias, 0.0), rel=1e-10)


def test_rows_of_a_file_are_never_all_in_memory(tmp_path):
    n, d = 24_000, 512
    path = tmp_path / "rows.npy"
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n, d))
    generator = np.random.default_rng(0)
    for first in range(0, n, 4000):
        out[first : first + 4000] = generator.standard_normal((4000, d), dtype=np.float32)
    y = (out[:, 0] > 0).astype(int)
    out.flush()
    del out
    before = _memory.reset_peak()
    probe = fit_probe(np.load(path, mmap_mode="r"), y, memory=0, iterations=2)
    grown = _memory.peak_resident() - before
    assert probe.iterations == 2
    assert grown < 24 << 20, f"{grown >> 20} MiB of {n * d * 4 >> 20} in the file"


# ---------------------------------------------------------------------- hard rows


def test_separable_rows_have_a_best_probe_with_a_penalty():
    y = np.repeat([0, 1], 20)
    x = np.random.default_rng(0).uniform(-1, 1, (40, 2)) + 6.0 * y[:, None]
    losses = [linear_probe(x, y, l2=l2, tolerance=1e-8) for l2 in (1e-2, 1e-4, 1e-6)]
    assert all(probe.converged and probe.accuracy(x, y) == 1.0 for probe in losses)
    assert losses[0].loss > losses[1].loss > losses[2].loss
    with pytest.raises(InputError, match=r"l2: got 0.*above 0"):
        linear_probe(x, y, l2=0.0)


def test_constant_columns_have_no_weight():
    x, y = rows_and_labels(1000, 4, 3)
    wide = np.concatenate([x[:, :2], np.full((1000, 1), 0.1), x[:, 2:], np.full((1000, 1), -1e9 / 3)], axis=1)
    probe, without = (linear_probe(rows, y, tolerance=1e-8) for rows in (wide, x))
    assert probe.constant == 2
    assert (probe.weights[[2, 5]] == 0).all()
    np.testing.assert_allclose(np.delete(probe.weights, [2, 5], axis=0), without.weights, atol=1e-5)
    other = wide.copy()
    other[:, [2, 5]] += 17.0
    np.testing.assert_array_equal(probe.predict_logits(other), probe.predict_logits(wide))


def test_statistics_survive_large_means():
    generator = np.random.default_rng(0)
    small = generator.integers(-50, 50, (9000, 3)).astype(float)
    mass = generator.integers(0, 3, 9000).astype(float)
    mean, deviation = column_statistics(Features.of(small + 1e12), mass)
    exact = mass @ small / mass.sum()
    np.testing.assert_allclose(mean - 1e12, exact, atol=2e-4)  # an ulp of 1e12
    np.testing.assert_allclose(deviation, np.sqrt(mass @ (small - exact) ** 2 / mass.sum()), rtol=1e-12)


def test_more_columns_than_rows_and_copies_of_a_column():
    x, y = rows_and_labels(40, 6, 3)
    once = linear_probe(x, y, l2=0.1, tolerance=1e-8)
    # Two copies share the weight and halve its penalty.
    twice = linear_probe(np.concatenate([x, x], axis=1), y, l2=0.2, tolerance=1e-8)
    np.testing.assert_allclose(twice.weights[:6], once.weights / 2, atol=1e-6)
    np.testing.assert_allclose(twice.weights[:6], twice.weights[6:], atol=1e-6)


def test_it_says_when_it_did_not_converge():
    x, y = rows_and_labels()
    with pytest.warns(AccuracyWarning, match=r"linear_probe: L-BFGS stopped after 2 iterations .*iterations="):
        probe = linear_probe(x, y, l2=1e-6, iterations=2)
    assert not probe.converged
    assert "NOT converged" in repr(probe)
    assert probe.gradient > probe.tolerance
    assert probe.note in probe.to_dict()["note"]


# ---------------------------------------------------------------------- the penalty


@pytest.mark.parametrize("criterion", ["loss", "accuracy"])
@pytest.mark.parametrize("multilabel", [False, True])
def test_validation_is_what_it_says(criterion, multilabel):
    x, y = rows_and_labels(200, 30, 3, noise=4.0)
    labels = many_labels(x) if multilabel else y
    grid = [1e-4, 1.0, 1e-2, 1e-1, 1e-3]
    probe = linear_probe(
        x, labels, l2="validate", grid=grid, criterion=criterion, multilabel=multilabel, seed=4, tolerance=1e-8
    )
    found = probe.validation
    assert found.grid == tuple(sorted(grid, reverse=True))
    out = held_out(labels.astype(bool) if multilabel else y, np.ones(200), 3, multilabel, 0.2, 4)
    assert found.rows == len(out)
    inside = np.setdiff1d(np.arange(200), out)
    for l2, loss, accuracy, converged in zip(found.grid, found.losses, found.accuracies, found.converged, strict=True):
        cold = linear_probe(x[inside], labels[inside], l2=l2, multilabel=multilabel, tolerance=1e-8)
        logits = cold.predict_logits(x[out])
        if multilabel:
            direct = np.logaddexp(0, np.where(labels[out], -logits, logits)).sum(1).mean()
        else:
            direct = (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(out)), y[out]]).mean()
        assert loss == pytest.approx(direct, abs=1e-4)
        assert accuracy == pytest.approx(cold.accuracy(x[out], labels[out]), abs=1e-12)
        assert converged
    best = max(found.accuracies) if criterion == "accuracy" else min(found.losses)
    values = found.accuracies if criterion == "accuracy" else found.losses
    assert found.chosen == found.grid[values.index(best)]  # index: the first, hence largest, of equal ones
    same = linear_probe(x, labels, l2=found.chosen, multilabel=multilabel, tolerance=1e-8)
    assert same.weights.tobytes() == probe.weights.tobytes()
    assert found.chosen not in (found.grid[0], found.grid[-1]) or "edge" in probe.note
    json.dumps(probe.to_dict(), allow_nan=False)


def test_validation_holds_out_every_class_and_never_all_of_it():
    y = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    out = held_out(y, np.ones(len(y)), 4, False, 0.3, 0)
    np.testing.assert_array_equal(np.bincount(y[out], minlength=4), [15, 3, 1, 0])
    assert (np.diff(out) > 0).all()
    assert not np.array_equal(out, held_out(y, np.ones(len(y)), 4, False, 0.3, 1))
    np.testing.assert_array_equal(
        np.bincount(y[held_out(y, np.ones(len(y)), 4, False, 0.9, 0)], minlength=4), [45, 9, 1, 0]
    )
    without = np.ones(len(y))
    without[:40] = 0
    assert (held_out(y, without, 4, False, 0.3, 0) >= 40).all()
    labels = np.zeros((30, 2), dtype=bool)
    labels[3, 0] = labels[:29, 1] = True  # a single row with one label, a single one without another
    for seed in range(20):
        out = held_out(labels, np.ones(30), 2, True, 0.5, seed)
        assert len(out) == 15
        assert not {3, 29} & set(out.tolist())


def test_an_edge_of_the_grid_is_noted():
    x, y = rows_and_labels(noise=0.1)
    probe = linear_probe(x, y, l2="validate", grid=[1.0, 0.1])
    assert probe.l2 == 0.1
    assert "edge of the grid" in probe.note
    assert "edge" in repr(probe.validation)


def test_grids():
    assert len(KORNBLITH_GRID) == 45
    np.testing.assert_allclose(np.diff(np.log10(GRID)), 0.5)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 2] * 20}, r"no training row has class 1 \(and so for 1 of 3 classes\)"),
        ({"labels": [0, 1] * 20, "classes": 3}, r"no training row has class 2"),
        ({"labels": [0, 1] * 20, "weights": [1, 0] * 20}, r"no training row has class 1"),
        ({"labels": [0] * 40}, r"classes 0 to 0.*at least 2"),
        ({"labels": [-1, 1] * 20}, r"classes -1 to 1"),
        ({"labels": [0, 5] * 20, "classes": 3}, r"C = 3"),
        ({"labels": [0, 1] * 19}, r"shape \(38,\) for 40 rows"),
        ({"labels": np.zeros((40, 2), int)}, r"expected \(n,\)"),
        ({"labels": np.zeros((40, 2), int), "multilabel": True}, r"no training row has label 0"),
        ({"labels": np.ones((40, 2), int), "multilabel": True}, r"every training row has label 0"),
        ({"labels": np.full((40, 2), 2), "multilabel": True}, r"expected 0 and 1"),
        ({"weights": [-1.0] + [1] * 39}, r"weights: .*none negative"),
        ({"l2": "best"}, r"l2: got 'best'"),
        ({"l2": -1.0}, r"l2: got -1"),
        ({"l2": "validate", "grid": []}, r"grid: got no penalty"),
        ({"l2": "validate", "validation": 0.001}, r"leaves none to hold out"),
        ({"l2": "validate", "validation": 1.5}, r"validation: got 1.5"),
        ({"l2": "validate", "criterion": "map"}, r"criterion: got 'map'"),
        ({"tolerance": 0.0}, r"tolerance"),
        ({"iterations": 0}, r"iterations"),
    ],
)
def test_refusals(change, message):
    x = np.random.default_rng(0).standard_normal((40, 3))
    options = {"labels": [0, 1] * 20, **change}
    with pytest.raises(InputError, match=message):
        linear_probe(x, **options)


def test_refused_features():
    x, y = rows_and_labels()
    probe = linear_probe(x, y)
    bad = x.copy()
    bad[17, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"row 17, column 2 is nan"):
        linear_probe(bad, y)
    with pytest.raises(NonFiniteError, match=r"row 17, column 2"):
        probe.predict_logits(bad)
    bad[17, 2] = 1e200
    with pytest.raises(NonFiniteError, match="column 2 holds numbers whose squares"), np.errstate(over="ignore"):
        linear_probe(bad, y)
    with pytest.raises(InputError, match="got 6 columns, expected 7"):
        probe.predict_logits(x[:, :6])
    with pytest.raises(InputError, match=r"rows as \(n, width\)"):
        linear_probe(x[0], y)
    with pytest.raises(DTypeError, match="complex"):
        linear_probe(x.astype(complex), y)
    with pytest.raises(DTypeError, match="labels: got float64"):
        linear_probe(x, y.astype(float))
    with pytest.raises(InputError, match="got 299 rows, expected 300"):
        linear_probe((x, x[1:]), y)


# ---------------------------------------------------------------------- features and results


def test_features_side_by_side_and_selected():
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((50, 3)), generator.integers(0, 9, (50, 4)).astype(np.uint8)
    both = np.concatenate([a, b], axis=1)
    joined = Features.of((a, b))
    np.testing.assert_array_equal(joined.read(0, 50), both)
    np.testing.assert_array_equal(joined.read(7, 19), both[7:19])
    picked = joined.select([6, 0, 3])
    np.testing.assert_array_equal(picked.read(1, 50), both[1:, [6, 0, 3]])
    np.testing.assert_array_equal(picked.select([2, 1]).read(0, 50), both[:, [3, 0]])
    beside = picked.beside(Features.of(a))
    np.testing.assert_array_equal(beside.read(0, 50), np.concatenate([both[:, [6, 0, 3]], a], axis=1))
    for wrong in ([7], [-1], [0, 0], [], [0.5], [[0]]):
        with pytest.raises(InputError, match="columns: got"):
            joined.select(wrong)
    assert Features.of([[1, 2], [3, 4]]).width == 2
    with pytest.raises(InputError, match="at least one row"):
        Features.of(np.zeros((0, 3)))


def test_results_are_plain_and_repeat():
    x, y = rows_and_labels()
    first, second = linear_probe(x, y), linear_probe(x, y)
    assert first.weights.tobytes() == second.weights.tobytes()
    assert "\n" not in repr(first)
    plain = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert plain["converged"] is True
    assert plain["width"] == 7
    assert "weights" not in plain
    with pytest.raises(AttributeError):
        first.l2 = 2.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_probe(x, y, iterations=1)  # says it in the result only
