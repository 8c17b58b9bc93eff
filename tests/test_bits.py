"""The same bits for any cut into batches and any number of threads; merge; resume."""

from __future__ import annotations

import threading

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import streamcca as sc

ROWS = 1100
RNG = np.random.default_rng(5)
X = RNG.standard_normal((ROWS, 67)) * np.exp(RNG.standard_normal(67)) + 3
Y = RNG.standard_normal((ROWS, 30)) + X[:, :30]


def accumulate(cuts, dtype, threads=None, weights=None):
    m = sc.Moments({"x": 67, "y": 30}, threads=threads)
    x, y = X.astype(dtype), Y.astype(dtype)
    for first, last in zip([0, *cuts], [*cuts, ROWS], strict=True):
        w = None if weights is None else weights[first:last]
        m.update(x=x[first:last], y=y[first:last], weights=w)
    return m


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("step", [1, 7, 97, 255, 256, 257, 512, 1099])
def test_any_batch_size_gives_the_same_bits(dtype, step, same_bits, isa):
    same_bits(accumulate(range(step, ROWS, step), dtype), accumulate([], dtype))


@given(st.lists(st.integers(0, ROWS), max_size=12), st.booleans())
def test_any_cut_gives_the_same_bits(cuts, weighted):
    weights = np.arange(ROWS) % 3 if weighted else None
    a, b = accumulate(sorted(cuts), "float32", weights=weights), accumulate([], "float32", weights=weights)
    assert a.covariance("x", "y").tobytes() == b.covariance("x", "y").tobytes()
    assert a.mean("x").tobytes() == b.mean("x").tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_number_of_threads_gives_the_same_bits(dtype, same_bits, isa):
    one = accumulate([300], dtype, threads=1)
    for threads in (2, 3, 4, 7):
        same_bits(accumulate([300], dtype, threads=threads), one)


def test_wide_views_on_many_threads(same_bits, isa):
    x = np.random.default_rng(0).standard_normal((600, 777)).astype(np.float32)
    results = []
    for threads in (1, 2, 3, 4):
        m = sc.Moments({"x": 777}, threads=threads)
        m.update(x=x[:100])
        m.update(x=x[100:])
        results.append(m)
    for m in results[1:]:
        same_bits(m, results[0])


def test_each_update_from_its_own_thread_counts_every_row():
    m = sc.Moments({"x": 40}, precision="float32")
    x = np.random.default_rng(0).integers(-3, 4, size=(4000, 40)).astype(np.float32)
    parts = np.array_split(x, 80)

    def work(mine):
        for part in mine:
            m.update(x=part)

    threads = [threading.Thread(target=work, args=(parts[i::8],)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert m.n == 4000
    # Small integers sum exactly in any order, so the scatter is right to the last few bits.
    np.testing.assert_allclose(m.covariance("x"), reference.covariance(x), rtol=1e-13, atol=1e-13)


# ---------------------------------------------------------------- merge


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cut", [0, 1, 100, 256, 700, 1099, ROWS])
def test_merge_of_a_split_is_the_whole(dtype, cut, isa):
    whole, a, b = (sc.Moments({"x": 67, "y": 30}) for _ in range(3))
    x, y = X.astype(dtype), Y.astype(dtype)
    whole.update(x=x, y=y)
    a.update(x=x[:cut], y=y[:cut])
    b.update(x=x[cut:], y=y[cut:])
    a.merge(b)
    assert a.n == a.rows == ROWS
    assert b.n == ROWS - cut
    unit = 2.0**-24 if dtype == "float32" else 2.0**-53
    scale = np.sqrt(np.outer(np.diag(whole.covariance("x")), np.diag(whole.covariance("y"))))
    assert np.max(np.abs(a.covariance("x", "y") - whole.covariance("x", "y")) / scale) < 40 * unit
    np.testing.assert_allclose(a.mean("x"), whole.mean("x"), rtol=40 * unit)


def test_empty_moments_are_the_identity_of_merge(same_bits):
    full, empty = accumulate([500], "float32"), sc.Moments({"x": 67, "y": 30})
    before = full.copy()
    full.merge(empty)
    same_bits(full, before)
    empty.merge(full)
    same_bits(empty, full)
    # The rows still pending came along: both go on to the same bits.
    for m in (empty, full):
        m.update(x=X[:300].astype("f4"), y=Y[:300].astype("f4"))
    same_bits(empty, full)


def test_merge_with_itself_doubles_the_rows():
    m = accumulate([], "float64")
    before = m.covariance("x", ddof=0)
    m.merge(m)
    assert m.n == 2 * ROWS
    np.testing.assert_allclose(m.covariance("x", ddof=0), before, rtol=1e-13, atol=1e-13)


def test_merge_in_any_order_within_rounding():
    parts = []
    for rows in np.array_split(np.arange(ROWS), 6):
        m = sc.Moments({"x": 67, "y": 30})
        m.update(x=X[rows], y=Y[rows])
        parts.append(m)
    whole = accumulate([], "float64").covariance("x")
    scale = np.sqrt(np.outer(np.diag(whole), np.diag(whole)))
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 5, 0, 4, 1, 3]):
        total = sc.Moments({"x": 67, "y": 30})
        for i in order:
            total.merge(parts[i])
        assert np.max(np.abs(total.covariance("x") - whole) / scale) < 30 * 2.0**-53


@pytest.mark.parametrize("light_first", [True, False])
def test_merge_of_a_light_part_with_a_far_mean(light_first):
    """Ten rows a million deviations away must not cost the others their digits."""
    rng = np.random.default_rng(1)
    far = np.round(rng.standard_normal((10, 2)) * 1024) / 1024
    near = np.round(rng.standard_normal((3000, 2)) * 1024) / 1024 + 2.0**20
    a, b = sc.Moments({"x": 2}), sc.Moments({"x": 2})
    (a if light_first else b).update(x=far)
    (b if light_first else a).update(x=near)
    a.merge(b)
    x = np.concatenate([far, near])
    exact = reference.exact_covariance_entry(x[:, 0], x[:, 1])
    assert a.covariance("x")[0, 1] == pytest.approx(exact, rel=1e-14)


def test_merge_of_different_precisions():
    a, b = accumulate([], "float32"), accumulate([], "float64")
    a.merge(b)
    np.testing.assert_allclose(a.covariance("x", ddof=0), reference.covariance(X, ddof=0), rtol=1e-5, atol=1e-5)
    # An object that was asked for a precision keeps it, also if it was empty.
    wide = sc.Moments({"x": 67, "y": 30}, precision="float64")
    wide.merge(accumulate([], "float32"))
    assert wide.precision == "float64"
    wide.update(x=np.full((2, 67), 1e30), y=np.full((2, 30), 1e30))
    assert np.isfinite(wide.covariance("x")).all()


def test_merge_refuses_other_views():
    a = sc.Moments({"x": 2})
    for other in (sc.Moments({"x": 3}), sc.Moments({"y": 2}), sc.Moments({"x": 2}, pairs=[])):
        with pytest.raises(sc.InputError, match=r"merge: the other moments have other views or pairs"):
            a.merge(other)
    with pytest.raises(sc.InputError, match="got dict, expected Moments"):
        a.merge({})


# ---------------------------------------------------------------- any history, against a model that keeps the rows


class History(RuleBasedStateMachine):
    """Random updates, merges, copies, saves and resets, against all rows kept in a list."""

    @initialize(precision=st.sampled_from(["float32", "float64"]))
    def start(self, precision):
        self.rng = np.random.default_rng(0)
        self.precision = precision
        self.m = sc.Moments({"x": 5, "y": 3}, precision=precision)
        self.kept = np.empty((0, 8))
        self.merged = False

    def rows(self, n):
        return np.round(self.rng.standard_normal((n, 8)) * 64 + 10) / 64

    def add(self, m, z):
        m.update(x=z[:, :5], y=z[:, 5:])

    @rule(n=st.integers(0, 300))
    def update(self, n):
        z = self.rows(n)
        self.add(self.m, z)
        self.kept = np.concatenate([self.kept, z])

    @rule(n=st.integers(0, 300))
    def merge(self, n):
        z = self.rows(n)
        other = sc.Moments({"x": 5, "y": 3}, precision=self.precision)
        self.add(other, z)
        self.m.merge(other)
        self.merged = self.merged or n > 0
        self.kept = np.concatenate([self.kept, z])

    @rule()
    def refused_batch(self):
        bad = np.full((4, 5), np.nan)
        with pytest.raises(sc.NonFiniteError):
            self.m.update(x=bad, y=np.zeros((4, 3)))

    @rule()
    def round_trip(self):
        twin = sc.Moments({"x": 5, "y": 3}, precision=self.precision)
        twin.load_state_dict(self.m.state_dict())
        self.m = twin.copy()

    @rule()
    def reset(self):
        self.m.reset()
        self.kept = np.empty((0, 8))
        self.merged = False

    @invariant()
    def counts_and_covariance(self):
        assert self.m.n == len(self.kept)
        if len(self.kept) < 2:
            return
        unit = 2.0**-24 if self.precision == "float32" else 2.0**-53
        exact = reference.covariance(self.kept[:, :5], self.kept[:, 5:])
        scale = np.sqrt(np.outer(self.kept[:, :5].var(0), self.kept[:, 5:].var(0)))
        assert np.all(np.abs(self.m.covariance("x", "y") - exact) <= 60 * unit * scale + 1e-300)
        if not self.merged:
            batch = sc.Moments({"x": 5, "y": 3}, precision=self.precision)
            self.add(batch, self.kept)
            assert batch.covariance("x", "y").tobytes() == self.m.covariance("x", "y").tobytes()


TestHistory = History.TestCase


@pytest.mark.parametrize("first", ["float32", "float64"])
@pytest.mark.parametrize("second", ["float32", "float64"])
def test_after_a_reset_nothing_of_the_past_is_left(first, second, rng, same_bits):
    """The memory of the state is used again; its contents must not be."""
    m = sc.Moments({"a": 70, "b": 5})
    m.update(a=rng.standard_normal((700, 70)).astype(first), b=rng.standard_normal((700, 5)).astype(first) + 3)
    for rows in (1, 300, 900):
        a, b = rng.standard_normal((rows, 70)).astype(second), rng.standard_normal((rows, 5)).astype(second)
        weights = rng.random(rows) if rows == 300 else None
        m.reset()
        assert (m.n, m.rows) == (0, 0)
        m.update(a=a, b=b, weights=weights)
        fresh = sc.Moments({"a": 70, "b": 5})
        fresh.update(a=a, b=b, weights=weights)
        if rows == 1:
            np.testing.assert_array_equal(m.mean("a"), fresh.mean("a"))
        else:
            same_bits(m, fresh)
