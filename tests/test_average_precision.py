"""Average precision against scikit-learn and against the 11-point definition, taken literally."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcca import errors
from streamcca.multiplicity.answers.average_precision import average_precision


def eleven_points(truth, scores):
    """Mean over t = 0, 1/10, ... of the largest precision at a recall of at least t, in whole numbers."""
    total = Fraction(0)
    for t in range(11):
        best = Fraction(0)
        for threshold in set(scores):
            above = [yes for yes, score in zip(truth, scores, strict=True) if score >= threshold]
            if Fraction(sum(above), sum(truth)) >= Fraction(t, 10):
                best = max(best, Fraction(sum(above), len(above)))
        total += best
    return float(total / 11)


rows = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=40).filter(
    lambda rows: any(yes for yes, _ in rows)
)


@given(rows)
def test_eleven_points_against_their_definition(rows):
    truth, scores = zip(*rows, strict=True)
    found = average_precision(np.array(truth)[:, None], np.array(scores, dtype=float)[:, None])
    assert found.mean == found.per_class[0] == pytest.approx(eleven_points(truth, scores), rel=1e-12)


@given(rows)
def test_area_against_scikit_learn(rows):
    from sklearn.metrics import average_precision_score

    truth, scores = zip(*rows, strict=True)
    found = average_precision(np.array(truth)[:, None], np.array(scores, dtype=float)[:, None], "area")
    assert found.mean == pytest.approx(average_precision_score(truth, scores), rel=1e-12)


def test_several_classes_against_scikit_learn():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    truth, scores = rng.random((300, 6)) < 0.2, rng.normal(size=(300, 6)).round(1)
    found = average_precision(truth, scores, "area")
    assert found.mean == pytest.approx(average_precision_score(truth, scores, average="macro"), rel=1e-12)
    assert found.per_class == pytest.approx(average_precision_score(truth, scores, average=None), rel=1e-12)
    assert found.positives == tuple(truth.sum(axis=0))
    eleven = average_precision(truth.astype(int), scores)
    assert eleven.per_class == pytest.approx([eleven_points(*pair) for pair in zip(truth.T, scores.T, strict=True)])


def test_recalls_that_are_tenths_are_reached():
    # 3 of 10 positives at full precision, the others after as many wrong rows: 0.3 in float64 would be missed.
    truth = [True] * 3 + [False] * 20 + [True] * 7
    scores = np.arange(30, 0, -1.0)
    found = average_precision(np.array(truth)[:, None], scores[:, None])
    assert found.mean == pytest.approx((4 * 1 + 7 * 10 / 30) / 11, rel=1e-12)


@given(rows, st.integers(0, 100))
def test_order_of_rows_and_monotone_scores_do_not_matter(rows, seed):
    truth, scores = (np.array(side) for side in zip(*rows, strict=True))
    order = np.random.default_rng(seed).permutation(len(truth))
    for kind in ("eleven", "area"):
        before = average_precision(truth[:, None], scores[:, None], kind)
        after = average_precision(truth[order][:, None], np.exp(scores / 3.0)[order][:, None], kind)
        assert after.mean == pytest.approx(before.mean, rel=1e-12)


def test_one_class_a_row():
    labels = np.array([0, 2, 1, 2])
    scores = np.random.default_rng(0).normal(size=(4, 3))
    assert average_precision(labels, scores) == average_precision(np.eye(3, dtype=bool)[labels], scores)


def test_classes_without_positive_rows_do_not_count():
    found = average_precision([[1, 0], [0, 0]], [[1.0, 0.0], [0.0, 1.0]])
    assert found.per_class == (1.0, None)
    assert found.mean == 1
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["per_class"] == [1.0, None]
    assert "11 points" in repr(found)


def test_best_and_worst():
    truth = np.array([[True], [True], [False], [False]])
    for kind in ("eleven", "area"):
        assert average_precision(truth, [[4.0], [3], [2], [1]], kind).mean == 1
        assert average_precision(truth, [[1.0], [1], [1], [1]], kind).mean == 0.5


def test_refusals():
    with pytest.raises(errors.InputError, match="'eleven', 'area'"):
        average_precision([[1]], [[1.0]], "voc")
    with pytest.raises(errors.InputError, match="no class has a positive"):
        average_precision([[0]], [[1.0]])
    with pytest.raises(errors.InputError, match="0 or 1"):
        average_precision([[2]], [[1.0]])
    with pytest.raises(errors.InputError, match=r"expected \(2, 1\)"):
        average_precision([[1]], [[1.0], [2.0]])
    with pytest.raises(errors.InputError, match="classes 0 to 1"):
        average_precision([0, 2], np.zeros((2, 2)))
    with pytest.raises(errors.NonFiniteError):
        average_precision([[1]], [[np.nan]])
    with pytest.raises(errors.DTypeError):
        average_precision([[0.5]], [[1.0]])
    with pytest.raises(errors.DTypeError):
        average_precision([[1]], [["a"]])
