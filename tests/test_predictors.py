"""RM and PM as predictors, against scikit-learn's least squares; finite samples of models."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

import streamcca as sc
from streamcca.multiplicity.insides.finite_sample import finite_sample_models
from streamcca.multiplicity.relation.predictors import foretell, foretelling_curves, left_out_r2


def data(groups=7, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    rm, pm = rng.random((2, groups))
    return rm, pm, 2 * rm - pm + 1 + noise * rng.standard_normal(groups)


def by_hand(y, x, labels):
    """R^2 with scikit-learn's fits, group by group, against the mean of the other points."""
    splits = list(LeaveOneGroupOut().split(x, y, labels))
    foretold = cross_val_predict(LinearRegression(), x, y, groups=labels, cv=LeaveOneGroupOut())
    base = np.empty(len(y))
    for rest, out in splits:
        base[out] = y[rest].mean()
    return 1 - ((y - foretold) ** 2).sum() / ((y - base) ** 2).sum(), foretold


def test_left_out_groups_are_foretold_as_by_scikit_learn():
    rm, pm, y = data()
    got = foretell(y, {"rm": rm, "pm": pm}, permutations=99)
    for name, x in (("rm", rm[:, None]), ("pm", pm[:, None]), ("both", np.stack([rm, pm], axis=1))):
        want, foretold = by_hand(y, x, np.arange(7))
        fit = LinearRegression().fit(x, y)
        assert got[name].r2 == pytest.approx(want, rel=1e-10)
        np.testing.assert_allclose(got[name].foretold, foretold, rtol=1e-10)
        assert got[name].intercept == pytest.approx(fit.intercept_)
        np.testing.assert_allclose(list(got[name].slopes.values()), fit.coef_, rtol=1e-10)
        assert (got[name].groups, got[name].points, got[name].permutations) == (7, 7, 99)
    assert got["both"].predictors == ("rm", "pm")
    json.dumps({name: one.to_dict() for name, one in got.items()}, allow_nan=False)
    assert "R2" in repr(got["rm"])


def test_models_of_a_group_are_left_out_together():
    rng = np.random.default_rng(3)
    labels = list("aaabbbcccddd")
    x = rng.standard_normal((12, 1)) + np.repeat(np.arange(4), 3)[:, None]
    y = x[:, 0] + np.repeat(rng.standard_normal(4), 3)
    got = foretell(y, {"x": x[:, 0]}, labels=labels)["x"]
    want, _ = by_hand(y, x, np.repeat(np.arange(4), 3))
    assert got.r2 == pytest.approx(want, rel=1e-10)
    assert got.r2 != pytest.approx(by_hand(y, x, np.arange(12))[0], rel=1e-3)
    # Targets go by whole groups: 4! ways.
    blocks = y.reshape(4, 3)
    r2 = [by_hand(blocks[list(o)].ravel(), x, np.repeat(np.arange(4), 3))[0] for o in itertools.permutations(range(4))]
    assert (got.exact, got.permutations) == (True, 24)
    assert got.p == (np.array(r2) >= want - 1e-9).mean()
    uneven = foretell(y[1:], {"x": x[1:, 0]}, labels=labels[1:])["x"]
    assert uneven.p is None
    assert "differ in size" in uneven.note


def test_p_values_of_few_and_of_many_permutations():
    rm, _, y = data(groups=5, noise=0.5)
    got = foretell(y, {"rm": rm})["rm"]
    r2 = [by_hand(np.array(o), rm[:, None], np.arange(5))[0] for o in itertools.permutations(y)]
    assert got.exact
    assert got.p == (np.array(r2) >= got.r2 - 1e-12).mean()
    drawn = foretell(y, {"rm": rm}, permutations=100)["rm"]
    assert not drawn.exact
    assert abs(drawn.p - got.p) < 4 * (got.p * (1 - got.p) / 100) ** 0.5 + 1e-2
    line = np.arange(12.0)
    assert foretell(line, {"x": line}, permutations=99)["x"].p == 0.01


def test_what_is_unrelated_foretells_nothing():
    r2 = [
        foretell(y, {"x": x}, permutations=1)["x"].r2 for x, y in np.random.default_rng(0).standard_normal((200, 2, 8))
    ]
    assert np.mean(np.array(r2) < 0) > 0.6
    assert np.mean(r2) < 0


def test_too_few_groups_and_constants_say_so():
    got = foretell([1, 2, 4], {"rm": [1, 2, 3], "pm": [3, 1, 1]}, permutations=9)
    assert got["both"].r2 is None
    assert got["both"].note == "3 groups, at least 4 are needed for 2 predictors"
    assert "leaves no residual" in got["rm"].note
    assert got["rm"].r2 is not None
    flat = foretell([1, 2, 3, 4], {"rm": [0.1 + 0.2] * 3 + [0.3], "pm": [1, 2, 2, 4]})
    assert (flat["rm"].r2, flat["rm"].note) == (None, "all values of rm are equal")
    assert flat["both"].note == "all values of rm are equal"
    same = foretell([2, 2, 2, 2], {"pm": [1, 2, 2, 4]})["pm"]
    assert same.note == "all values of the target are equal"
    json.dumps([one.to_dict() for one in (*got.values(), *flat.values(), same)], allow_nan=False)
    assert np.isnan(left_out_r2(np.ones(5), np.arange(5.0)[:, None]))


def test_predictors_that_say_the_same_are_as_good_as_one():
    rm, _, y = data()
    both = foretell(y, {"rm": rm, "copy": 1e6 * rm}, permutations=9)
    assert both["both"].r2 == pytest.approx(both["rm"].r2, rel=1e-8)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([1, 2, 3], {}), "got none"),
        (([1, 2, 3], {"rm": [1, 2]}), "'rm'.*shape"),
        (([1, 2, np.nan], {"rm": [1, 2, 3]}), "target.*not finite"),
        (([1, 2, 3], {"rm": [1, 2, 3], "both": [1, 2, 3]}), "named 'both'"),
    ],
)
def test_what_is_no_data(arguments, match):
    with pytest.raises(sc.InputError, match=match):
        foretell(*arguments)
    with pytest.raises(sc.InputError, match="labels"):
        foretell([1, 2, 3], {"rm": [1, 2, 3]}, labels=["a"])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-10, 10))
def test_r2_does_not_hang_on_units(seed, scale, shift):
    rm, pm, y = data(seed=seed)
    x = np.stack([rm, pm], axis=1)
    order = np.random.default_rng(seed).permutation(7)
    want = left_out_r2(y, x)
    np.testing.assert_allclose(left_out_r2(scale * y + shift, x * [scale, -1] + shift), want, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(left_out_r2(y[order], x[order]), want, rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------------- finite samples


def matrix(models=9, seed=0):
    d = np.random.default_rng(seed).random((models, models))
    return d + d.T


def test_finite_sample_of_models():
    d, groups = matrix(), {"a": [0, 2, 4, 6], "b": [1, 3, 5, 7]}
    got = finite_sample_models(d, groups)
    assert (got.counts, got.exact) == ((2, 3, 4), (True, True, True))
    for g, members in enumerate(groups.values()):
        for k, count in enumerate(got.counts):
            values = [
                np.mean([d[a, b] for a, b in itertools.combinations(subset, 2)])
                for subset in itertools.combinations(members, count)
            ]
            np.testing.assert_allclose(np.sort(got.draws[k][:, g]), np.sort(values), rtol=1e-12)
            assert got.sd[k, g] == pytest.approx(np.std(values), abs=1e-15)
    # A mean over pairs of all subsets is the mean of all pairs.
    np.testing.assert_allclose(got.mean, np.tile(got.mean[-1], (3, 1)), rtol=1e-12)
    json.dumps(got.to_dict(), allow_nan=False)
    assert "+-" in got.table()
    assert "of models: 2, 3, 4" in repr(got)


def test_finite_samples_are_drawn_where_there_are_many():
    d, groups = matrix(14), {"a": list(range(10)), "b": [10, 11, 12, 13]}
    got = finite_sample_models(d, groups, [2, 5], draws=100, seed=1)
    assert got.exact == (False, False)
    assert [len(values) for values in got.draws] == [100, 100]
    assert np.isnan(got.draws[1][:, 1]).all()
    assert got.to_dict()["mean"][1][1] is None
    assert "-" in got.table()
    np.testing.assert_array_equal(got.draws[0], finite_sample_models(d, groups, [2], draws=100, seed=1).draws[0])
    own = d[:10, :10]
    truth, spread = own[np.triu_indices(10, 1)].mean(), own[np.triu_indices(10, 1)].std()
    assert abs(got.mean[0, 0] - truth) < 4 * spread / 10
    assert got.sd[1, 0] < got.sd[0, 0]
    with pytest.raises(sc.InputError, match="counts"):
        finite_sample_models(d, groups, [1])


def test_curves():
    rng = np.random.default_rng(0)
    y = rng.random(6)
    rm = [y + s * rng.standard_normal((20, 6)) for s in (1.0, 0.05)]
    pm = rng.random(6)
    got = foretelling_curves([2, 5], {"rm": rm, "pm": [pm, pm]}, y)
    assert list(got) == ["rm", "pm", "both"]
    for k in range(2):
        want = [by_hand(y, row[:, None], np.arange(6))[0] for row in rm[k]]
        assert got["rm"][k].value == pytest.approx(np.mean(want))
        assert got["rm"][k].sd == pytest.approx(np.std(want, ddof=1))
        assert got["rm"][k].draws == 20
        together = [by_hand(y, np.stack([row, pm], axis=1), np.arange(6))[0] for row in rm[k]]
        assert got["both"][k].value == pytest.approx(np.mean(together))
    assert (got["pm"][0].sd, got["pm"][0].draws) == (None, 1)
    assert got["rm"][1].value > 0.9 > got["rm"][0].value
    nothing = foretelling_curves([2], {"rm": [np.full((3, 6), np.nan)]}, y)["rm"][0]
    assert (nothing.value, nothing.draws) == (None, 0)
    json.dumps([point.to_dict() for point in (*got["rm"], nothing)], allow_nan=False)
    with pytest.raises(sc.InputError, match="expected \\(draws, 6\\)"):
        foretelling_curves([2], {"rm": rm}, y)
    with pytest.raises(sc.InputError, match="2 and 20 draws"):
        foretelling_curves([2], {"rm": rm[:1], "pm": [np.ones((2, 6))]}, y)
