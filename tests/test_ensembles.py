"""Ensembles of models against direct computations: pairs, all pairs, greedy; exact decompositions."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from streamcca import errors
from streamcca.multiplicity.answers.ensembles import all_pair_ensembles, greedy_ensemble, pair_ensemble
from streamcca.multiplicity.answers.inconsistency import error_inconsistency
from streamcca.multiplicity.answers.predictions import Predictions, block_kind

RULES = ("probability", "logit", "geometric")
TEMPERATURES = np.array([0.7, 1.0, 1.6, 2.5, 4.0, 1.2, 0.9])


def group(models=4, n=80, classes=3, seed=0, noise=1.5):
    rng = np.random.default_rng(seed)
    signal = rng.normal(scale=1.5, size=(n, classes))
    labels = np.argmax(signal, axis=1)
    logits = {f"m{i}": signal + rng.normal(scale=noise, size=signal.shape) for i in range(models)}
    return Predictions.of_logits(logits, labels).calibrated(TEMPERATURES[:models])


def together(p, names, rule):
    """Votes of an ensemble, by its definition; the geometric mean through probabilities, not logits."""
    scaled = [p.logits(name) / p.temperatures[p.index(name)] for name in names]
    if rule == "probability":
        return np.argmax(np.mean([softmax(z, axis=1) for z in scaled], axis=0), axis=1)
    if rule == "logit":
        return np.argmax(np.mean(scaled, axis=0), axis=1)
    geometric = np.exp(np.mean([log_softmax(z, axis=1) for z in scaled], axis=0))
    return np.argmax(geometric / geometric.sum(axis=1, keepdims=True), axis=1)


@pytest.mark.parametrize("rule", RULES)
def test_pairs_against_direct_computation(rule):
    p = group()
    for a, b in itertools.permutations(p.names, 2):
        found = pair_ensemble(p, a, b, rule, draws=20)
        right = together(p, (a, b), rule) == p.labels
        first, second = p.correct[p.index(a)], p.correct[p.index(b)]
        assert found.accuracy == right.mean()
        assert (found.accuracy_a, found.accuracy_b) == (first.mean(), second.mean())
        assert found.improvement_mean == pytest.approx(right.mean() - (first.mean() + second.mean()) / 2, abs=1e-15)
        assert found.improvement_best == pytest.approx(right.mean() - max(first.mean(), second.mean()), abs=1e-15)
        assert found.inconsistency == np.mean(first != second) == error_inconsistency(first, second).inconsistency
        assert found.conversion == right[first != second].mean()
        for i, j, k in itertools.product((0, 1), repeat=3):
            assert found.counts[i][j][k] == np.sum((first == i) & (second == j) & (right == k))


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(RULES), st.integers(1, 60))
def test_the_decomposition_is_exact(seed, rule, n):
    p = group(2, n, 3, seed)
    found = pair_ensemble(p, "m0", "m1", rule, draws=5)
    counts = np.array(found.counts)
    assert counts.sum() == n
    right = counts[1, 1, 1] + (counts[1, 0, 1] + counts[0, 1, 1]) + counts[0, 0, 1]
    assert right == round(found.accuracy * n)
    assert found.accuracy == right / n
    converted = 0 if found.conversion is None else found.inconsistency * found.conversion
    assert found.accuracy == pytest.approx(found.both_right + converted + found.both_wrong, abs=1e-15)
    assert (found.conversion is None) == (found.inconsistency == 0)
    swapped = pair_ensemble(p, "m1", "m0", rule, draws=5)
    assert (swapped.accuracy, swapped.conversion) == (found.accuracy, found.conversion)
    if rule == "probability":
        assert counts[1, 1, 0] == 0  # two that agree are not overruled


def test_logit_and_geometric_means_vote_alike_and_differ_from_probabilities():
    p = group(4, 3000, 5)
    votes = {rule: together(p, ("m0", "m3"), rule) for rule in RULES}
    assert np.array_equal(votes["logit"], votes["geometric"])
    assert np.mean(votes["logit"] != votes["probability"]) > 0.01
    found = {rule: pair_ensemble(p, "m0", "m3", rule) for rule in RULES}
    assert found["logit"].counts == found["geometric"].counts != found["probability"].counts
    assert found["geometric"].rule == "geometric"
    assert block_kind("geometric") == "logit"


def test_temperatures_weigh_models():
    logits = {"a": [[2.0, 0.0]], "b": [[0.0, 1.0]]}
    p = Predictions.of_logits(logits, [0])
    assert pair_ensemble(p, "a", "b").accuracy == 1
    assert pair_ensemble(p.calibrated([10, 1]), "a", "b").accuracy == 0


def test_intervals_hold_what_was_found():
    p = group(2, 300)
    found = pair_ensemble(p, "m0", "m1")
    for key, (low, high) in found.intervals.items():
        assert low < getattr(found, key) < high, key
    wide = pair_ensemble(p, "m0", "m1", level=0.999)
    assert all(wide.intervals[key][0] < found.intervals[key][0] for key in found.intervals)
    assert found == pair_ensemble(p, "m0", "m1")


def test_intervals_of_improvement_against_a_bootstrap_of_rows():
    p = group(2, 150)
    found = pair_ensemble(p, "m0", "m1", draws=4000)
    right = together(p, ("m0", "m1"), "probability") == p.labels
    a, b = p.correct
    rows = np.random.default_rng(1).integers(0, 150, size=(4000, 150))
    direct = {
        "improvement_mean": right[rows].mean(axis=1) - (a[rows].mean(axis=1) + b[rows].mean(axis=1)) / 2,
        "improvement_best": right[rows].mean(axis=1) - np.maximum(a[rows].mean(axis=1), b[rows].mean(axis=1)),
    }
    for key, values in direct.items():
        assert found.intervals[key] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.01), key


def test_intervals_of_improvement_cover():
    # The truth: improvement of a pair on very many rows.
    big = pair_ensemble(group(2, 200_000, seed=99), "m0", "m1", draws=1)
    hits = 0
    for seed in range(200):
        low, high = pair_ensemble(group(2, 250, seed=seed), "m0", "m1", draws=400).intervals["improvement_mean"]
        hits += low <= big.improvement_mean <= high
    assert 0.88 <= hits / 200 <= 0.99  # 95 %, four standard deviations (0.0155) below


def test_models_without_inconsistency_have_no_conversion():
    p = Predictions.of_logits({"a": [[1, 0.0]] * 4, "b": [[2, 0.0]] * 4}, [0, 0, 0, 1])
    found = pair_ensemble(p, "a", "b")
    assert (found.inconsistency, found.conversion, found.intervals["conversion"]) == (0, None, None)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["counts"] == [[[1, 0], [0, 0]], [[0, 0], [0, 3]]]
    assert plain["intervals"]["conversion"] is None
    assert "conversion none" in repr(found)
    assert "none" in found.table()
    assert all_pair_ensembles(p).to_dict()["conversion"] == [[None, None], [None, None]]


# ---------------------------------------------------------------------- all pairs


@pytest.mark.parametrize("rows", [1, 33, None])
@pytest.mark.parametrize("rule", RULES)
def test_all_pairs_are_the_pairs(rule, rows):
    p = group(5)
    found = all_pair_ensembles(p, rule, rows=rows)
    for i, a in enumerate(p.names):
        assert found.accuracy[i, i] == p.accuracies[i]
        assert found.improvement_mean[i, i] == found.improvement_best[i, i] == found.inconsistency[i, i] == 0
        assert np.isnan(found.conversion[i, i])
        for j, b in enumerate(p.names):
            if i != j:
                one = pair_ensemble(p, a, b, rule, draws=1)
                for key in ("accuracy", "improvement_mean", "improvement_best", "inconsistency", "conversion"):
                    assert getattr(found, key)[i, j] == getattr(one, key), key
    json.dumps(found.to_dict(), allow_nan=False)
    assert "\n" not in repr(found)


@given(st.integers(0, 1000))
def test_order_of_models_rows_and_classes_does_not_matter(seed):
    p = group(4, 40, 3, seed)
    rng = np.random.default_rng(seed)
    order, rows, classes = rng.permutation(4), rng.permutation(40), rng.permutation(3)
    names = [p.names[i] for i in order]
    logits = {name: (p.logits(name) + rng.normal(size=(40, 1)))[rows][:, classes] for name in names}
    moved = Predictions.of_logits(logits, np.argsort(classes)[p.labels][rows]).calibrated(p.temperatures[order])
    before, after = all_pair_ensembles(p), all_pair_ensembles(moved)
    for key in ("accuracy", "improvement_mean", "improvement_best", "inconsistency", "conversion"):
        assert np.array_equal(getattr(before, key)[np.ix_(order, order)], getattr(after, key), equal_nan=True)


# ---------------------------------------------------------------------- greedy


def greedily(p, start, candidates, rule, rows):
    """Names, and accuracies on all rows, of an ensemble that grows as it is defined."""
    members, left = [start], list(candidates)
    while left:
        gains = [np.mean((together(p, [*members, name], rule) == p.labels)[rows]) for name in left]
        members.append(left.pop(int(np.argmax(gains))))
    return members, [together(p, members[: k + 1], rule) == p.labels for k in range(len(members))]


@pytest.mark.parametrize("rows", [9, None])
@pytest.mark.parametrize("rule", RULES)
def test_greedy_against_direct_computation(rule, rows):
    p = group(6, 70, noise=2.5)
    everything = np.ones(70, dtype=bool)
    names, right = greedily(p, "m2", [name for name in p.names if name != "m2"], rule, everything)
    found = greedy_ensemble(p, "m2", rule=rule, rows=rows)
    assert list(found.names) == names
    assert list(found.selection_accuracies) == [one.mean() for one in right]
    assert (found.held_out_accuracies, found.held_out_rows, found.selection_rows) == (None, 0, 70)
    assert found.best_size == int(np.argmax([one.mean() for one in right])) + 1
    assert found.best == found.names[: found.best_size]
    assert "too high" in found.note
    assert "no rows were held out" in found.note


@pytest.mark.parametrize("rows", [9, None])
def test_greedy_with_rows_held_out(rows):
    p = group(6, 90, noise=2.5)
    mask = np.random.default_rng(0).random(90) < 0.5
    names, right = greedily(p, "m0", p.names[1:], "probability", mask)
    found = greedy_ensemble(p, "m0", selection=mask, rows=rows)
    assert list(found.names) == names
    assert list(found.selection_accuracies) == [one[mask].mean() for one in right]
    assert list(found.held_out_accuracies) == [one[~mask].mean() for one in right]
    assert (found.selection_rows, found.held_out_rows) == (mask.sum(), (~mask).sum())
    assert "no rows" not in found.note


def test_greedy_chosen_on_another_set():
    p, other = group(5, 60, seed=1, noise=2.5), group(5, 45, seed=2, noise=2.5)
    names, right = greedily(other, "m4", ["m1", "m3", "m0"], "logit", np.ones(45, dtype=bool))
    found = greedy_ensemble(p, "m4", ["m1", "m3", "m0"], rule="logit", selection=other)
    assert list(found.names) == names
    assert list(found.selection_accuracies) == [one.mean() for one in right]
    expected = [np.mean(together(p, names[: k + 1], "logit") == p.labels) for k in range(4)]
    assert list(found.held_out_accuracies) == expected
    assert (found.selection_rows, found.held_out_rows) == (45, 60)


def test_greedy_stops_at_its_size_and_prefers_the_first_of_equals():
    logits = {"a": [[1, 0.0], [1, 0.0]], "b": [[0, 3.0], [0, 3.0]], "c": [[0, 3.0], [0, 3.0]]}
    p = Predictions.of_logits(logits, [0, 1])
    assert greedy_ensemble(p, "a", ["c", "b"], size=2).names == ("a", "c")
    assert greedy_ensemble(p, "a", size=1).names == ("a",)
    assert greedy_ensemble(p, "a").best_size == 1  # nothing is gained
    found = greedy_ensemble(p, "a")
    assert json.loads(json.dumps(found.to_dict()))["names"] == ["a", "b", "c"]
    assert len(found.table().splitlines()) == 5
    assert "\n" not in repr(found)


def test_choosing_and_measuring_on_the_same_rows_is_biased():
    # Models that guess: whatever the choice, the truth is 1/2.
    rng = np.random.default_rng(0)
    p = Predictions.of_logits({f"m{i}": rng.normal(size=(200, 2)) for i in range(12)}, rng.integers(0, 2, 200))
    found = greedy_ensemble(p, "m0", selection=np.arange(200) < 100)
    assert max(found.selection_accuracies) > 0.6
    assert found.held_out_accuracies[found.best_size - 1] < 0.6


def test_refusals():
    p = group(3)
    with pytest.raises(errors.InputError, match="twice"):
        pair_ensemble(p, "m0", "m0")
    with pytest.raises(errors.InputError, match="no model 'm7'"):
        pair_ensemble(p, "m0", "m7")
    with pytest.raises(errors.InputError, match="rule"):
        pair_ensemble(p, "m0", "m1", "mean")
    with pytest.raises(errors.InputError, match="level"):
        pair_ensemble(p, "m0", "m1", level=2)
    with pytest.raises(errors.InputError, match="got 1 model"):
        all_pair_ensembles(p.select(["m0"]))
    unlabeled = Predictions.of_logits({name: p.logits(name) for name in p.names})
    for ask in (lambda: pair_ensemble(unlabeled, "m0", "m1"), lambda: all_pair_ensembles(unlabeled)):
        with pytest.raises(errors.InputError, match="has no labels"):
            ask()
    with pytest.raises(errors.InputError, match="has no labels"):
        greedy_ensemble(p, "m0", selection=unlabeled)
    with pytest.raises(errors.InputError, match="each once"):
        greedy_ensemble(p, "m0", ["m1", "m0"])
    with pytest.raises(errors.InputError, match="size"):
        greedy_ensemble(p, "m0", size=4)
    for mask in (np.ones(80, dtype=bool), np.zeros(80, dtype=bool), np.ones(3, dtype=bool), np.arange(80)):
        with pytest.raises(errors.InputError, match="selection"):
            greedy_ensemble(p, "m0", selection=mask)
    with pytest.raises(errors.InputError, match="no model 'm2'"):
        greedy_ensemble(p, "m0", selection=p.select(["m0", "m1"]))
