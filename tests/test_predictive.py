"""Predictive multiplicity against direct computations, row by row; its identities and invariances."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from streamcca import errors
from streamcca.multiplicity.answers.predictions import Predictions, save_logits
from streamcca.multiplicity.answers.predictive import (
    contested_rows,
    disagreements,
    error_inconsistencies,
    predictive_multiplicity,
)
from streamcca.multiplicity.answers.row_means import RowMeans

MEANS = ("probability_variance", "top_variance", "vote_variance", "disagreement", "jensen_shannon", "any_ambiguity")
AGAINST = ("ambiguity", "discrepancy", "churn", "churn_of_correct")


def group(models=5, n=60, classes=4, seed=0, noise=1.0):
    """Models that share a signal and differ by noise, and labels that go with the signal."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(scale=2, size=(n, classes))
    labels = np.argmax(signal + rng.normal(scale=0.7, size=signal.shape), axis=1)
    logits = {f"m{i}": signal + rng.normal(scale=noise, size=signal.shape) for i in range(models)}
    return logits, labels


def directly(logits, labels, baseline, ddof=1, top="majority"):
    """Every statistic from its definition, one row after the other; values of single rows."""
    p = np.stack([softmax(z, axis=1) for z in logits.values()])
    votes = np.argmax(np.stack(list(logits.values())), axis=2)
    models, n, classes = p.shape
    rows = {key: [] for key in (*MEANS, "ambiguity", "churn")}
    base = list(logits).index(baseline)
    others = [m for m in range(models) if m != base]
    for x in range(n):
        shares = [sum(vote == c for vote in votes[:, x]) / models for c in range(classes)]
        target = shares.index(max(shares)) if top == "majority" else labels[x]
        rows["probability_variance"].append(sum(np.var(p[:, x, c], ddof=ddof) for c in range(classes)))
        rows["top_variance"].append(np.var(p[:, x, target], ddof=ddof))
        rows["vote_variance"].append(1 - sum(share**2 for share in shares))
        rows["disagreement"].append(np.mean([a != b for a, b in itertools.combinations(votes[:, x], 2)]))
        rows["jensen_shannon"].append(entropy(p[:, x].mean(axis=0)) - np.mean([entropy(q) for q in p[:, x]]))
        rows["any_ambiguity"].append(len(set(votes[:, x])) > 1)
        rows["ambiguity"].append(any(votes[m, x] != votes[base, x] for m in others))
        rows["churn"].append(np.mean([votes[m, x] != votes[base, x] for m in others]))
    rows = {key: np.array(values, dtype=float) for key, values in rows.items()}
    shares = [np.mean(votes[m] != votes[base]) for m in others]
    rows["discrepancy"] = (votes[others[int(np.argmax(shares))]] != votes[base]).astype(float)
    rows["churn_of_correct"] = rows["churn"][votes[base] == labels]
    return rows


@pytest.mark.parametrize("top", ["majority", "label"])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(("models", "classes"), [(2, 2), (5, 4), (8, 3)])
def test_against_direct_computation(models, classes, ddof, top):
    logits, labels = group(models, 61, classes, seed=models)
    p = Predictions.of_logits(logits, labels)
    baseline = p.names[int(np.argmax(p.accuracies))]
    expected = directly(logits, labels, baseline, ddof, top)
    found = predictive_multiplicity(p, ddof=ddof, top=top, rows=17)
    assert found.baseline == baseline
    assert set(expected) == {*MEANS, *AGAINST}
    for key, rows in expected.items():
        assert getattr(found, key) == pytest.approx(rows.mean(), rel=1e-12, abs=1e-15), key
        error = rows.std(ddof=1) / math.sqrt(len(rows))
        assert found.standard_errors[key] == pytest.approx(error, rel=1e-10, abs=1e-15), key
    accuracies = [np.mean(np.argmax(z, axis=1) == labels) for z in logits.values()]
    assert found.accuracy_mean == pytest.approx(np.mean(accuracies), rel=1e-14)
    assert found.accuracy_variance == pytest.approx(np.var(accuracies, ddof=ddof), rel=1e-10, abs=1e-16)
    assert found.accuracy_sd == pytest.approx(np.std(accuracies, ddof=ddof), rel=1e-10, abs=1e-16)


def test_two_models_have_the_jensen_shannon_divergence_of_scipy():
    logits, _ = group(2)
    p = Predictions.of_logits(logits)
    expected = np.mean(jensenshannon(p.probabilities("m0"), p.probabilities("m1"), axis=1) ** 2)
    assert predictive_multiplicity(p).jensen_shannon == pytest.approx(expected, rel=1e-10)


@settings(max_examples=30)
@given(st.integers(2, 7), st.integers(1, 30), st.integers(2, 6), st.integers(0, 10_000))
def test_identities(models, n, classes, seed):
    logits, labels = group(models, n, classes, seed)
    p = Predictions.of_logits(logits, labels)
    found = predictive_multiplicity(p)
    assert found.disagreement == pytest.approx(models / (models - 1) * found.vote_variance, rel=1e-12, abs=1e-15)
    pairs = disagreements(p)
    assert found.disagreement == pytest.approx(pairs[np.triu_indices(models, 1)].mean(), rel=1e-12, abs=1e-15)
    churns = [predictive_multiplicity(p, name).churn for name in p.names]
    assert np.mean(churns) == pytest.approx(found.disagreement, rel=1e-12, abs=1e-15)  # over ordered pairs
    assert 0 <= found.jensen_shannon <= math.log(models)
    assert found.churn <= found.discrepancy <= found.ambiguity <= found.any_ambiguity
    assert found.churns[found.discrepancy_model] == found.discrepancy
    assert found.top_variance <= found.probability_variance
    # Votes of the same rows cannot differ more often than any two of the models do.
    assert found.any_ambiguity <= pairs[np.triu_indices(models, 1)].sum() + 1e-12


def values(found):
    return [getattr(found, key) for key in MEANS] + [found.standard_errors[key] for key in MEANS]


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_order_of_models_rows_and_classes_does_not_matter(seed, models):
    logits, labels = group(models, 20, 4, seed)
    rng = np.random.default_rng(seed)
    before = predictive_multiplicity(Predictions.of_logits(logits, labels), "m0", top="label")
    rows, classes, order = rng.permutation(20), rng.permutation(4), rng.permutation(models)
    names = [f"m{i}" for i in order]
    constant = rng.normal(size=(20, 1))
    moved = {name: (logits[name] + constant)[rows][:, classes] for name in names}
    place = np.argsort(classes)
    after = predictive_multiplicity(Predictions.of_logits(moved, place[labels][rows]), "m0", top="label")
    assert values(after) == pytest.approx(values(before), rel=1e-9, abs=1e-13)
    for key in AGAINST:
        assert getattr(after, key) == pytest.approx(getattr(before, key), rel=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 13, 59, 60, 61, 1000])
def test_block_size_does_not_matter(rows):
    logits, labels = group()
    p = Predictions.of_logits(logits, labels)
    assert values(predictive_multiplicity(p, rows=rows)) == pytest.approx(values(predictive_multiplicity(p)), rel=1e-12)
    assert contested_rows(p, 5, rows=rows).to_dict() == contested_rows(p, 5).to_dict()


def test_equal_models_have_no_multiplicity():
    logits, labels = group(1)
    found = predictive_multiplicity(Predictions.of_logits({"a": logits["m0"], "b": logits["m0"]}, labels))
    assert [getattr(found, key) for key in (*MEANS, *AGAINST)] == [0] * 10
    assert found.accuracy_variance == 0


def test_ties_of_the_majority_go_to_the_lowest_class():
    # Votes 1, 1, 0, 0: class 0, whose probability does not vary, although that of class 1 does.
    half = math.log(0.3)
    logits = {
        "a": [[half, 0.0, -1.0]],
        "b": [[half, 0.0, -1.0]],
        "c": [[0.0, -9, -9]],
        "d": [[0.0, -9, -9]],
    }
    p = Predictions.of_logits(logits)
    found = predictive_multiplicity(p)
    expected = np.var([p.probabilities(name)[0, 0] for name in p.names], ddof=1)
    assert found.top_variance == pytest.approx(expected, rel=1e-12)
    assert contested_rows(p).disagreed[0].majority == 0


def test_baseline_is_the_first_of_the_most_accurate():
    logits = {"a": [[1, 0], [1, 0.0]], "b": [[1, 0], [0, 1.0]], "c": [[1, 0], [0, 1.0]]}
    found = predictive_multiplicity(Predictions.of_logits(logits, [0, 1]))
    assert (found.baseline, found.ambiguity, found.discrepancy, found.discrepancy_model) == ("b", 0.5, 0.5, "a")
    assert dict(found.churns) == {"a": 0.5, "c": 0.0}
    assert found.churn == 0.25


def test_without_labels_what_needs_them_is_none():
    logits, _ = group()
    found = predictive_multiplicity(Predictions.of_logits(logits))
    assert (found.baseline, found.accuracy_mean, found.ambiguity, found.churn) == (None, None, None, None)
    found = predictive_multiplicity(Predictions.of_logits(logits), "m3")
    assert found.churn > 0
    assert found.churn_of_correct is None


def test_a_baseline_that_is_never_right_has_no_churn_of_correct():
    logits = {"a": [[1, 0.0]], "b": [[0, 1.0]]}
    assert predictive_multiplicity(Predictions.of_logits(logits, [1]), "a").churn_of_correct is None


def test_one_row_has_no_standard_error():
    found = predictive_multiplicity(Predictions.of_logits({"a": [[1, 0.0]], "b": [[0, 1.0]]}, [1]))
    assert set(found.standard_errors.values()) == {None}
    assert found.disagreement == 1


def test_calibration_moves_variances_but_no_votes():
    logits, labels = group()
    p = Predictions.of_logits(logits, labels)
    before, after = predictive_multiplicity(p), predictive_multiplicity(p.calibrated([1, 2, 3, 4, 5]))
    assert before.disagreement == after.disagreement
    assert before.probability_variance != after.probability_variance


def test_results_are_plain_values():
    logits, labels = group()
    p = Predictions.of_logits(logits, labels, name="noise-3")
    found = predictive_multiplicity(p)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["name"] == "noise-3"
    assert plain["standard_errors"]["churn"] > 0
    assert "\n" not in repr(found)
    assert "churn from m" in found.table()
    rows = contested_rows(p, 3)
    assert json.loads(json.dumps(rows.to_dict(), allow_nan=False))["agreed"]
    assert len(rows.table().splitlines()) == 1 + len(rows.agreed) + len(rows.disagreed)
    assert "\n" not in repr(rows)


def test_memory_does_not_grow_with_rows(tmp_path):
    peaks = []
    for n in (20_000, 80_000):
        for m in ("a", "b", "c"):
            logits = np.random.default_rng(ord(m)).normal(size=(n, 10)).astype(np.float32)
            save_logits(tmp_path / m, {"test": logits})
        p = Predictions.load({m: tmp_path / m for m in ("a", "b", "c")}, "test", labels=np.zeros(n, dtype=np.int64))
        tracemalloc.start()
        try:
            predictive_multiplicity(p, rows=2000)
            contested_rows(p, rows=2000)
            peaks.append(tracemalloc.get_traced_memory()[1] / n)
        finally:
            tracemalloc.stop()
    # What grows is what is kept for votes against the baseline, a few tens of bytes a row; probabilities take 240.
    assert peaks[1] * 80_000 - peaks[0] * 20_000 < 60 * 60_000


# ---------------------------------------------------------------------- pairs


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 1000))
def test_pair_matrices_against_numpy(models, n, seed):
    logits, labels = group(models, n, 3, seed)
    p = Predictions.of_logits(logits, labels)
    votes = np.argmax(np.stack(list(logits.values())), axis=2)
    for a, b in itertools.product(range(models), repeat=2):
        assert disagreements(p)[a, b] == np.mean(votes[a] != votes[b])
        assert error_inconsistencies(p)[a, b] == np.mean((votes[a] == labels) != (votes[b] == labels))


def test_pair_matrices_count_every_row_of_several_products(monkeypatch):
    monkeypatch.setattr("streamcca.multiplicity.answers.predictive._PRODUCT_ROWS", 7)
    logits, labels = group(4, 50)
    p = Predictions.of_logits(logits, labels)
    correct = p.correct
    expected = [[np.mean(a != b) for b in correct] for a in correct]
    assert np.array_equal(error_inconsistencies(p), expected)


@given(st.integers(0, 1000))
def test_error_inconsistency_lies_within_its_bounds(seed):
    logits, labels = group(4, 30, 3, seed)
    p = Predictions.of_logits(logits, labels)
    a = p.accuracies[:, None]
    found = error_inconsistencies(p)
    assert np.all(found >= np.abs(a - a.T) - 1e-15)
    upper = np.minimum(a + a.T, 2 - a - a.T)
    np.fill_diagonal(upper, 1)
    assert np.all(found <= upper + 1e-15)
    assert np.all(found <= disagreements(p))  # one right, one wrong: they vote differently


# ---------------------------------------------------------------------- rows to look at


def test_contested_rows_are_those_of_the_largest_variance():
    logits, labels = group(6, 200, 4, seed=3)
    p = Predictions.of_logits(logits, labels)
    probabilities = np.stack([softmax(z, axis=1) for z in logits.values()])
    variance = probabilities.var(axis=0, ddof=1).sum(axis=1)
    shares = np.array([np.bincount(votes).max() / 6 for votes in p.votes.T])
    found = contested_rows(p, 7, agreement=5 / 6, rows=31)
    for rows, part in ((found.agreed, shares >= 5 / 6 - 1e-12), (found.disagreed, shares < 5 / 6 - 1e-12)):
        places = np.flatnonzero(part)
        assert [row.row for row in rows] == list(places[np.argsort(-variance[places])][:7])
        for row in rows:
            assert row.variance == pytest.approx(variance[row.row], rel=1e-12)
            assert row.share == shares[row.row]
            assert row.label == labels[row.row]
            assert row.votes == tuple(p.votes[:, row.row])
            np.testing.assert_allclose(row.confidences, probabilities[:, row.row].max(axis=1), rtol=1e-12)


def test_equal_rows_are_contested_in_their_order():
    p = Predictions.of_logits({"a": [[2, 0.0]] * 9, "b": [[1, 0.0]] * 9})
    found = contested_rows(p, 4, rows=2)
    assert [row.row for row in found.agreed] == [0, 1, 2, 3]
    assert found.disagreed == ()


# ---------------------------------------------------------------------- means


def test_means_of_blocks_keep_their_digits():
    rng = np.random.default_rng(0)
    rows = 1e6 + rng.normal(size=1000)
    sums = RowMeans()
    for part in np.split(rows, [1, 2, 400, 999]):
        sums.add({"x": part})
    assert sums.means["x"] == pytest.approx(rows.mean(), rel=1e-15)
    assert sums.standard_errors["x"] == pytest.approx(rows.std(ddof=1) / math.sqrt(1000), rel=1e-9)


def test_refusals():
    logits, labels = group(2)
    p = Predictions.of_logits(logits, labels)
    with pytest.raises(errors.InputError, match="got 1 model, expected at least 2"):
        predictive_multiplicity(p.select(["m0"]))
    with pytest.raises(errors.InputError, match="got 1 model"):
        contested_rows(p.select(["m0"]))
    with pytest.raises(errors.InputError, match="no model 'm5'"):
        predictive_multiplicity(p, "m5")
    with pytest.raises(errors.InputError, match="ddof"):
        predictive_multiplicity(p, ddof=2)
    with pytest.raises(errors.InputError, match="'majority', 'label'"):
        predictive_multiplicity(p, top="vote")
    with pytest.raises(errors.InputError, match="has no labels"):
        predictive_multiplicity(Predictions.of_logits(logits), top="label")
    with pytest.raises(errors.InputError, match="has no labels"):
        error_inconsistencies(Predictions.of_logits(logits))
    for bad in (0, True, 1.5):
        with pytest.raises(errors.InputError, match="count"):
            contested_rows(p, bad)
    with pytest.raises(errors.InputError, match="agreement"):
        contested_rows(p, agreement=0)
