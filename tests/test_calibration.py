"""Temperature scaling against SciPy's minimizer and scikit-learn; calibration errors against direct computations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from streamcca import errors
from streamcca.multiplicity.answers.calibration import brier_score, expected_calibration_error, temperature_scaling
from streamcca.multiplicity.answers.predictions import Predictions, save_logits


def answers(n=400, classes=5, scale=3.0, seed=0):
    """Logits that are `scale` times those which the labels were drawn from."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(scale=1.5, size=(n, classes))
    labels = np.array([rng.choice(classes, p=p) for p in softmax(truth, axis=1)])
    return scale * truth, labels


def nll(logits, labels, temperature):
    return -np.mean(log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels])


@pytest.mark.parametrize("scale", [0.02, 0.3, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("classes", [2, 5, 30])
def test_against_scipy(scale, classes):
    logits, labels = answers(300, classes, scale)
    found = temperature_scaling(logits, labels)
    best = minimize_scalar(
        lambda t: nll(logits, labels, math.exp(t)), bounds=(-6, 6), method="bounded", options={"xatol": 1e-12}
    )
    # A minimum is flat: SciPy finds the place to the root of what it finds the value to.
    assert found.temperature == pytest.approx(math.exp(best.x), rel=1e-6)
    assert found.nll_after <= best.fun + 1e-13
    assert found.nll_after == pytest.approx(nll(logits, labels, found.temperature), rel=1e-12)
    assert found.nll_before == pytest.approx(nll(logits, labels, 1), rel=1e-12)
    assert found.at_bound is None
    assert found.iterations <= 12
    step = 1e-5  # the slope at the optimum, by central differences
    slope = nll(logits, labels, found.temperature * (1 + step)) - nll(logits, labels, found.temperature * (1 - step))
    assert abs(slope / (2 * step)) < 1e-9


def test_against_scikit_learn():
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.metrics import brier_score_loss, log_loss

    logits, labels = answers(500, 4)

    class Given(ClassifierMixin, BaseEstimator):
        """A classifier whose features are its logits."""

        def fit(self, x, y):
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, x):
            return x

        def predict(self, x):
            return self.classes_[np.argmax(x, axis=1)]

    found = temperature_scaling(logits, labels)
    theirs = CalibratedClassifierCV(FrozenEstimator(Given().fit(logits, labels)), method="temperature")
    theirs.fit(logits, labels)
    ours = softmax(logits / found.temperature, axis=1)
    np.testing.assert_allclose(theirs.predict_proba(logits), ours, atol=1e-5)
    assert found.nll_after == pytest.approx(log_loss(labels, ours), rel=1e-9)
    assert found.nll_after <= log_loss(labels, theirs.predict_proba(logits)) + 1e-12
    assert found.brier_after == pytest.approx(brier_score_loss(labels, ours), rel=1e-9)
    assert found.brier_before == pytest.approx(brier_score_loss(labels, softmax(logits, axis=1)), rel=1e-9)
    assert brier_score(ours, labels) == pytest.approx(found.brier_after, rel=1e-12)
    assert found.accuracy == np.mean(np.argmax(logits, axis=1) == labels)


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(2, 6), st.floats(0.01, 50), st.integers(0, 10_000))
def test_the_likelihood_never_falls_and_votes_stay(n, classes, scale, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(scale=scale, size=(n, classes)), rng.integers(0, classes, n)
    found = temperature_scaling(logits, labels)
    assert found.nll_after <= found.nll_before
    assert 1e-3 <= found.temperature <= 1e3
    for other in (found.temperature * 1.01, found.temperature * 0.99):
        if 1e-3 <= other <= 1e3:
            assert found.nll_after <= nll(logits, labels, other) + 1e-9
    p = Predictions.of_logits({"m": logits}).calibrated([found.temperature])
    assert np.array_equal(p.votes[0], np.argmax(logits, axis=1))


def test_rounding_does_not_raise_the_likelihood_either():
    # Logits that are calibrated already: what is left to gain is less than rounding.
    for seed in range(40):
        logits, labels = answers(50, 3, 1.0, seed)
        logits = logits / temperature_scaling(logits, labels).temperature
        found = temperature_scaling(logits, labels)
        assert found.nll_after <= found.nll_before
        assert found.temperature == pytest.approx(1, rel=1e-7)


@given(st.integers(0, 1000), st.floats(0.2, 5))
def test_scaled_logits_have_a_scaled_temperature(seed, factor):
    logits, labels = answers(60, 3, 1.0, seed)
    one, two = temperature_scaling(logits, labels), temperature_scaling(factor * logits, labels)
    if one.at_bound is None and two.at_bound is None:
        assert two.temperature == pytest.approx(factor * one.temperature, rel=1e-7)


@given(st.integers(0, 1000))
def test_a_constant_on_a_row_and_the_order_do_not_matter(seed):
    logits, labels = answers(50, 3, 2.0, seed)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(50)
    before = temperature_scaling(logits, labels).temperature
    after = temperature_scaling((logits + rng.normal(size=(50, 1)))[rows], labels[rows]).temperature
    assert after == pytest.approx(before, rel=1e-7)


@pytest.mark.parametrize("size", [0.1, 5.0, 50.0, 500.0])
def test_separated_rows_end_at_the_lower_bound(size):
    found = temperature_scaling(size * np.eye(4), np.arange(4))
    assert (found.temperature, found.at_bound) == (pytest.approx(1e-3), "lower")
    assert found.nll_after <= found.nll_before
    found = temperature_scaling(size * np.eye(4), np.arange(4), bounds=(0.5, 2))
    assert (found.temperature, found.at_bound) == (0.5, "lower")
    assert "lower bound" in repr(found)


def test_logits_that_mislead_end_at_the_upper_bound():
    found = temperature_scaling(5 * np.eye(4), (np.arange(4) + 1) % 4)
    assert (found.temperature, found.at_bound) == (pytest.approx(1e3), "upper")
    assert found.nll_after == pytest.approx(math.log(4), abs=0.01)


def test_logits_of_any_size_have_an_end():
    logits = np.array([[1e308, -1e308, 0.0], [0.0, 1e200, 1.0], [1e-300, 0.0, 0.0], [5.0, 1.0, 5.0]])
    found = temperature_scaling(logits, [0, 1, 1, 0])
    assert math.isfinite(found.nll_after)
    assert found.nll_after <= found.nll_before
    found = temperature_scaling(logits, [1, 2, 1, 0])
    assert found.at_bound == "upper"


def test_logits_that_say_nothing_keep_their_temperature():
    found = temperature_scaling(np.full((6, 3), 2.0), [0, 1, 2, 0, 1, 1])
    assert (found.temperature, found.at_bound, found.iterations) == (1.0, None, 0)
    assert found.nll_before == found.nll_after == pytest.approx(math.log(3))


def test_rows_beyond_one_block_count(monkeypatch):
    logits, labels = answers(300, 4)
    whole = temperature_scaling(logits, labels)
    monkeypatch.setattr("streamcca.multiplicity.answers.calibration._BLOCK_BYTES", 8 * 4 * 7)
    parts = temperature_scaling(logits, labels)
    for key in ("temperature", "nll_before", "nll_after", "brier_after", "ece_before", "ece_after", "accuracy"):
        assert getattr(parts, key) == pytest.approx(getattr(whole, key), rel=1e-9), key


def test_stored_logits_give_the_same_temperature(tmp_path):
    logits, labels = answers(400, 10)
    save_logits(tmp_path / "m", {"test": logits.astype(np.float32)})
    kept = Predictions.load({"m": tmp_path / "m"}, "test", labels).logits("m")
    exact = temperature_scaling(logits, labels).temperature
    assert temperature_scaling(kept, labels).temperature == pytest.approx(exact, rel=1e-4)


# ---------------------------------------------------------------------- calibration errors


def directly(p, labels, bins, kind):
    confidence, correct = p.max(axis=1), np.argmax(p, axis=1) == labels
    total = 0.0
    if kind == "width":
        parts = [(confidence > i / bins) & (confidence <= (i + 1) / bins) for i in range(bins)]
    else:
        parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    for part in parts:
        if np.size(confidence[part]):
            total += len(confidence[part]) / len(p) * abs(np.mean(correct[part]) - np.mean(confidence[part]))
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
@pytest.mark.parametrize("kind", ["width", "mass"])
def test_calibration_error_against_direct_computation(bins, kind):
    logits, labels = answers(210, 5, 1.7)
    p = softmax(logits, axis=1)
    found = expected_calibration_error(p, labels, bins=bins, bin_kind=kind)
    assert found == pytest.approx(directly(p, labels, bins, kind), rel=1e-10)
    result = temperature_scaling(logits, labels, bins=bins, bin_kind=kind)
    assert result.ece_before == pytest.approx(found, rel=1e-10)
    after = softmax(logits / result.temperature, axis=1)
    assert result.ece_after == pytest.approx(directly(after, labels, bins, kind), rel=1e-8)


def test_equal_mass_with_rows_that_do_not_divide():
    p = np.column_stack([np.linspace(0.5, 1, 10), 1 - np.linspace(0.5, 1, 10)])
    counts = np.bincount(np.arange(10) * 4 // 10)
    assert counts.max() - counts.min() <= 1
    assert 0 <= expected_calibration_error(p, np.zeros(10, dtype=int), bins=4, bin_kind="mass") <= 1


def test_edges_belong_to_the_bin_below():
    p = np.array([[0.6, 0.4], [0.7, 0.3]])
    # Of 5 bins, (0.4, 0.6] holds 0.6 and (0.6, 0.8] holds 0.7; in one bin they would make up for each other.
    assert expected_calibration_error(p, [0, 1], bins=5) == pytest.approx((0.4 + 0.7) / 2)


def test_results_are_plain_values():
    logits, labels = answers(40, 3)
    found = temperature_scaling(logits, labels)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["temperature"] == found.temperature
    assert "\n" not in repr(found)


def test_refusals():
    logits, labels = answers(20, 3)
    with pytest.raises(errors.InputError, match="bounds"):
        temperature_scaling(logits, labels, bounds=(2, 3))
    with pytest.raises(errors.InputError, match="labels"):
        temperature_scaling(logits, labels[:-1])
    with pytest.raises(errors.NonFiniteError, match="row 0"):
        temperature_scaling([[np.nan, 0.0]], [0])
    with pytest.raises(errors.InputError, match="'width', 'mass'"):
        temperature_scaling(logits, labels, bin_kind="equal")
    with pytest.raises(errors.InputError, match="bins"):
        temperature_scaling(logits, labels, bins=0)
    with pytest.raises(errors.InputError, match="softmax of logits"):
        expected_calibration_error(logits, labels)
    with pytest.raises(errors.InputError, match="softmax of logits"):
        brier_score([[0.5, 0.6]], [0])
