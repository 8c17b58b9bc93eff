"""Intervals: parts of rows, slopes times parts, effective rows, and how often the population's number is covered."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from benchmarks.coverage import Population
from hypothesis import given
from hypothesis import strategies as st

import streamcca as sc
from streamcca.similarity.estimates import each_left_out
from streamcca.similarity.form import Former
from streamcca.similarity.groups import _runs, merged
from streamcca.similarity.intervals import sample


def coverage(population, name, n, repetitions, **options):
    found = []
    for seed in range(repetitions):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sc.SampleSizeWarning)
            groups = population.group if population.group > 1 else None
            found.append(sc.interval(name, *population.draw(n, seed), groups=groups, **options))
    truth = population.truth(name)
    return found, sum(truth in f for f in found) / repetitions, truth


# ---------------------------------------------------------------------- parts


def test_parts_together_are_all_rows():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1000, 6)), rng.standard_normal((1000, 4))
    whole = sc.accumulate({"x": x, "y": y})
    for groups in (None, 7, rng.integers(0, 100, 1000)):
        g = sc.group_moments(x, y, groups=groups)
        assert (g.n, g.rows, len(g.parts)) == (1000, 1000, 32)
        np.testing.assert_allclose(g.total.covariance("x", "y"), whole.covariance("x", "y"), atol=1e-14)
    assert sc.cka(g.total).mean == pytest.approx(sc.cka(x, y).mean, abs=1e-14)


def parts_that_differ(dx, dy):
    """Parts of other lengths and means, so that each is off in both: rows, as they are and less the means of all."""
    rng = np.random.default_rng(5)
    g, rows = sc.GroupMoments({"x": dx, "y": dy}, parts=9), []
    for part in range(9):
        z = rng.standard_normal((40 + 9 * part, 3))
        x, y = (z @ rng.standard_normal((3, d)) + rng.standard_normal((len(z), d)) for d in (dx, dy))
        rows.append((x + rng.standard_normal(dx), y + rng.standard_normal(dy)))
        g.update(x=rows[-1][0], y=rows[-1][1])
    means = [np.concatenate([part[i] for part in rows]).mean(axis=0) for i in (0, 1)]
    return g, [tuple(view - mean for view, mean in zip(part, means, strict=True)) for part in rows]


@pytest.mark.parametrize("widths", [(6, 4), (4, 6), (5, 5)])
def test_bias_of_cka_and_of_the_nuclear_norm_against_rows(widths):
    """The formulas of the docstrings, from the rows and whole bases."""
    g, parts = parts_that_differ(*widths)
    n = sum(len(x) for x, _ in parts)
    shares = np.array([len(x) / n for x, _ in parts])
    terms = []
    for a, b in ((0, 0), (1, 1), (0, 1)):
        own = [part[a].T @ part[b] / len(part[a]) for part in parts]
        whole = np.einsum("p,pij->ij", shares, own)
        terms.append(((whole**2).sum() - shares**2 @ [(s**2).sum() for s in own]) / (1 - shares @ shares))
    assert sc.interval("cka", g, "x", "y").estimate == pytest.approx(
        terms[2] / math.sqrt(terms[0] * terms[1]), abs=1e-12
    )

    x, y = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    cross, size = x.T @ y / (n - 1), math.sqrt((x**2).sum() * (y**2).sum()) / (n - 1)
    u, s, v = np.linalg.svd(cross)
    k = len(s)
    noise = [u.T @ (px.T @ py / len(px) - cross) @ v.T * len(px) / n * math.sqrt(9 / 8) for px, py in parts]
    bias = 0.0
    for i in range(k):
        for j in range(i):
            turn = sum((e[i, j] - e[j, i]) ** 2 for e in noise)
            bias += math.sqrt((s[i] + s[j]) ** 2 + turn) - (s[i] + s[j])
        for outside in (sum((e[k:, i] ** 2).sum() for e in noise), sum((e[i, k:] ** 2).sum() for e in noise)):
            bias += math.sqrt(s[i] ** 2 + outside) - s[i]
    found = sc.interval("bures", g, "x", "y")
    assert bias / size > 1e-3
    assert found.estimate == pytest.approx(s.sum() / size - bias / size, abs=1e-12)


@given(st.integers(1, 500), st.integers(1, 60), st.integers(8, 40))
def test_runs_cover_every_row_once_and_tear_no_group_apart(rows, step, parts):
    runs = _runs(rows, step, parts)
    assert runs[0][0] == 0
    assert runs[-1][1] == rows
    for (_, last), (first, _) in itertools.pairwise(runs):
        assert last == first
        assert last % step == 0
    assert len(runs) <= parts


@pytest.mark.parametrize("kind", ["npy", "memmap", "batches", "samples", "torch"])
def test_every_kind_of_data(kind, tmp_path):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((960, 5)).astype(np.float32), rng.standard_normal((960, 3)).astype(np.float32)
    whole = sc.cka(x, y).mean
    if kind in ("npy", "memmap"):
        for name, rows in (("x", x), ("y", y)):
            np.save(tmp_path / f"{name}.npy", rows)
        paths = [tmp_path / f"{name}.npy" for name in "xy"]
        data = paths if kind == "npy" else [np.load(path, mmap_mode="r") for path in paths]
    elif kind == "batches":
        data = [[(x[i : i + 30], y[i : i + 30]) for i in range(0, 960, 30)]]
    elif kind == "samples":
        data = [x.reshape(96, 10, 5), y.reshape(96, 10, 3)]
    else:
        data = [torch.from_numpy(x), torch.from_numpy(y)]
    g = sc.group_moments(*data)
    assert (g.rows, len(g.parts)) == (960, 32)
    assert sc.cka(g.total).mean == pytest.approx(whole, abs=1e-6)
    assert sc.interval("cka", *data).plain == pytest.approx(whole, abs=1e-6)


def test_a_group_stays_in_one_part_over_all_batches():
    rng = np.random.default_rng(2)
    g = sc.GroupMoments({"a": 2, "b": 2}, parts=8)
    numbers = rng.integers(-5, 40, 600)
    # A column that is the number of the group does not vary inside a part that has one group alone.
    rows = np.column_stack([numbers, rng.standard_normal(600)]).astype(np.float64)
    for first in range(0, 600, 50):
        part = slice(first, first + 50)
        g.update(a=rows[part], b=rows[part], groups=numbers[part], weights=np.ones(50))
    seen = [round(p.n * p.mean("a")[0]) for p in g.parts]
    assert sum(seen) == numbers.sum()
    again = sc.GroupMoments({"a": 2, "b": 2}, parts=8)
    order = rng.permutation(600)
    again.update(a=rows[order], b=rows[order], groups=numbers[order])
    assert [p.n for p in g.parts] == [p.n for p in again.parts]


def test_each_part_left_out():
    rng = np.random.default_rng(3)
    rows = [rng.standard_normal((20 + i, 3)) for i in range(9)]
    parts = [sc.accumulate({"x": part}) for part in rows]
    for i, rest in enumerate(each_left_out(parts)):
        others = np.concatenate(rows[:i] + rows[i + 1 :])
        assert rest.n == len(others)
        np.testing.assert_allclose(rest.covariance("x"), np.cov(others, rowvar=False), atol=1e-13)
    assert [p.n for p in parts] == [20 + i for i in range(9)]
    assert merged(parts).n == sum(map(len, rows))


# ---------------------------------------------------------------------- standard errors


@pytest.mark.parametrize(
    "name",
    ["cca", "svcca", "svcca_r2", "pillai", "cka", "cka_angle", "adjusted_rv", "procrustes", "shape", "regression_x"],
)
def test_first_order_is_the_jackknife_of_many_rows(name):
    """Forming the measure again without each part gives the same standard error, and the influences one by one."""
    x, y = Population(np.linspace(0.9, 0.2, 6), decay=1.0).draw(4000, 0)
    g = sc.group_moments(x, y)
    options = {"rank": 4} if name.startswith("svcca") else {}
    first, exact = (sc.interval(name, g, corrected=False, exact=e, **options) for e in (False, True))
    assert first.plain == exact.plain == first.estimate
    assert first.standard_error == pytest.approx(exact.standard_error, rel=0.03)
    assert (first.low, first.high) == pytest.approx((exact.low, exact.high), abs=0.1 * exact.standard_error)
    rule = sc.Rule("rank", 4, 4) if options else None
    former = Former(g.total, rule, {"allow_underdetermined": False, "allow_inaccurate": False})
    pair = former.pair("x", "y")
    influences = [sample(g, former, False, e).estimate(name, pair).influences for e in (False, True)]
    np.testing.assert_allclose(*influences, atol=0.15 * np.abs(influences[1]).max())


def test_bootstrap_is_near_the_jackknife():
    g = sc.group_moments(*Population([0.8, 0.5, 0.3]).draw(2000, 0))
    one, other = (sc.interval("cka", g, method=m) for m in ("jackknife", "bootstrap"))
    assert other.low == pytest.approx(one.low, abs=0.4 * one.standard_error)
    assert other.high == pytest.approx(one.high, abs=0.4 * one.standard_error)
    assert other.method == "bootstrap"


def test_level_and_text():
    g = sc.group_moments(*Population([0.8, 0.5, 0.3]).draw(2000, 0))
    narrow, wide = sc.interval("cca", g, level=0.5), sc.interval("cca", g, level=0.99)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high
    assert "effective rows" in repr(wide)
    assert wide.to_dict()["level"] == 0.99


def test_alike_views_have_no_interval_to_speak_of():
    x, _ = Population([0.5] * 4).draw(1000, 0)
    for name in ("cka", "procrustes", "cca"):
        found = sc.interval(name, x, x @ np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0])
        assert found.low == pytest.approx(1, abs=1e-6)
        assert found.high <= 1


# ---------------------------------------------------------------------- groups, bias, coverage


def test_rows_of_a_group_are_not_independent():
    population = Population(np.linspace(0.9, 0.1, 10), group=49)
    x, y = population.draw(9800, 0)
    found = sc.interval("cca", x, y, groups=49)
    # Half of the variance is the group's, on both sides: 1 + 48 / 4 = 13 rows count for one.
    assert 9800 / found.effective_rows == pytest.approx(13, rel=0.2)
    assert found.null_mean > 2 * sc.null_mean(10, 10, 9800)
    rng = np.random.default_rng(0)
    order = rng.permutation(9800)
    alone = sc.interval("cca", x[order], y[order])
    assert alone.effective_rows > 5 * found.effective_rows
    by_number = sc.interval("cca", x[order], y[order], groups=np.repeat(np.arange(200), 49)[order])
    assert by_number.effective_rows == pytest.approx(found.effective_rows, rel=0.2)


@pytest.mark.parametrize(
    ("name", "n"), [("cca", 300), ("yanai", 300), ("cka", 300), ("procrustes", 300), ("regression_y", 300)]
)
def test_few_rows_are_corrected_and_covered(name, n):
    population = Population(np.linspace(0.9, 0.2, 6))
    found, covered, truth = coverage(population, name, n, 60)
    plain = np.mean([f.plain for f in found]) - truth
    estimate = np.mean([f.estimate for f in found]) - truth
    assert plain > 0
    scatter = np.std([f.estimate for f in found])
    assert abs(estimate) < max(0.01, 3 * scatter / math.sqrt(60))
    assert np.mean([f.standard_error for f in found]) == pytest.approx(scatter, rel=0.35)
    assert covered >= 0.85
    assert all(f.corrected for f in found)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k", "group"), [(200, 5, 1), (2000, 20, 1), (6000, 20, 49)])
def test_coverage(n, k, group):
    """95 % intervals cover 92 to 98 %, within what so many repetitions can tell; all of it: benchmarks/coverage.py."""
    population = Population(np.linspace(0.9, 0.3, k), group=group)
    found, covered, truth = coverage(population, "cca", n, 40)
    assert covered >= 0.92 - 3 * math.sqrt(0.05 * 0.95 / 40)
    assert np.mean([f.estimate for f in found]) == pytest.approx(truth, abs=0.01)


# ---------------------------------------------------------------------- differences


def test_a_difference_is_known_better_than_both_numbers():
    rng = np.random.default_rng(0)
    truth, found = 0.0, []
    for _ in range(40):
        g = sc.GroupMoments({"a": 4, "b": 4, "c": 4}, parts=32)
        for _ in range(32):
            a = rng.standard_normal((30, 4)) * rng.uniform(0.5, 2)
            noise = rng.standard_normal((30, 4))
            g.update(a=a, b=a + noise, c=a + 0.9 * noise + 0.4359 * rng.standard_normal((30, 4)))
        found.append(sc.difference("cka", g, ("a", "b"), ("a", "c")))
    inside = np.mean([f.low <= truth <= f.high for f in found])
    assert inside >= 0.85
    assert np.mean([f.standard_error for f in found]) < 0.7 * np.mean([f.first.standard_error for f in found])
    assert np.std([f.estimate for f in found]) == pytest.approx(np.mean([f.standard_error for f in found]), rel=0.35)
    small = [f.p_value < 0.05 for f in found]
    assert np.mean(small) < 0.15
    assert np.mean(small) == pytest.approx(1 - inside)
    assert "p=" in repr(found[0])
    assert found[0].to_dict()["first"]["measure"] == "cka"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: sc.interval("rsa", x, y), "rsa: intervals are for measures that moments can form"),
        (lambda x, y: sc.interval("pwcca", x, y), "exact=True"),
        (lambda x, y: sc.interval("cka", x, y, level=95), "level: got 95"),
        (lambda x, y: sc.interval("cka", x, y, method="bca"), "method: got 'bca'"),
        (lambda x, y: sc.interval("cka", x, y, parts=4), "parts: got 4"),
        (lambda x, y: sc.interval("cka", x, y, groups=0), "groups: got 0"),
        (lambda x, y: sc.interval("cka", x, y, groups=np.zeros(3, int)), "groups: got an array"),
        (lambda x, y: sc.interval("cka", x, y, groups=60), "got 4 parts with rows, expected at least 8"),
        (lambda x, y: sc.interval("cka", [(x, y)]), "got 1 parts with rows"),
        (lambda x, y: sc.interval("cka", []), "empty"),
        (lambda x, y: sc.interval("cka", x, y[:-1]), "199 rows, expected 200"),
        (lambda x, y: sc.interval("cka", x.reshape(20, 10, 4), y.reshape(10, 20, 4)), "samples and rows"),
        (lambda x, y: sc.difference("cka", x, ("x", "y"), ("x", "y")), "expected GroupMoments"),
        (lambda x, y: sc.GroupMoments({"a": 2}, parts=True), "parts: got True"),
    ],
)
def test_refusals(call, words):
    x, y = Population([0.5] * 4).draw(200, 0)
    with pytest.raises(sc.InputError, match=words):
        call(x, y)


def test_too_few_rows_are_said():
    x, y = Population([0.5] * 20).draw(90, 0)
    with pytest.warns(sc.SampleSizeWarning, match=r"n = 90 rows.*\(20, 20\) kept directions"):
        sc.interval("cca", x, y)


def test_pwcca_by_leaving_out():
    x, y = Population([0.8, 0.5, 0.3]).draw(500, 0)
    found = sc.interval("pwcca_x", x, y, exact=True)
    assert found.plain == pytest.approx(sc.pwcca(x, y).mean, abs=1e-12)
    assert found.corrected
    assert found.estimate < found.plain
