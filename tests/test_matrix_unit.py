"""Float32 products on a unit that multiplies narrow numbers: digits, what it cannot take, blocks of its own length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import streamcca as sc
from streamcca import _backend

U = 2.0**-24
pytestmark = pytest.mark.skipif("amx" not in _backend.isa_levels(), reason="this CPU has no matrix unit")


@pytest.fixture
def amx(monkeypatch):
    monkeypatch.setenv("STREAMCCA_ISA", "amx")


def errors(m, a, b, rows):
    """Of the covariance, in units of the columns' deviations."""
    x, y = (np.asarray(rows[v].double() if isinstance(rows[v], torch.Tensor) else rows[v], dtype=float) for v in (a, b))
    x, y = x - x.mean(0), y - y.mean(0)
    exact = x.T @ y / (len(x) - 1)
    scale = np.sqrt(np.outer((x**2).sum(0), (y**2).sum(0))) / (len(x) - 1)
    return np.abs(m.covariance(a, b) - exact) / np.where(scale > 0, scale, 1)


def accumulate(rows, step=None, threads=None, **options):
    m = sc.Moments({name: x.shape[1] for name, x in rows.items()}, threads=threads, **options)
    n = len(next(iter(rows.values())))
    for first in range(0, n, step or n):
        m.update({name: x[first : first + (step or n)] for name, x in rows.items()})
    return m


@pytest.mark.parametrize(("bits", "lost"), [(8, 0), (16, 0), (22, 0), (23, 0), (24, 1)])
def test_every_digit_arrives(bits, lost, amx, rng):
    """A product with one is exact if all digits take part in it, on either side; a unit has 23 bits."""
    whole = rng.integers(2 ** (bits - 1), int(0.99 * 2**bits), size=40)
    values = (whole * 2.0 ** rng.integers(-90, 30, size=40)).astype(np.float32)
    a = np.stack([values, -values])
    b = np.array([[1], [-1]], dtype=np.float32)
    for rows in ({"a": a, "b": b}, {"b": b, "a": a}):
        found = accumulate(rows).covariance("a", "b")[:, 0] / 2
        np.testing.assert_allclose(found, values.astype(float), rtol=lost * 2.0 ** (1 - bits), atol=0)
    if lost:
        assert (found != values).any()


def test_values_that_need_a_unit_twice_as_large(amx):
    """Three digits from -128 to 127 end at 2^23 - 32896, a little below what 23 bits hold."""
    near = np.array([2**24 - 1, 2**24 - 65794, 2**24 - 65793, 2**24 - 65792, 2**24 - 2**15, 2**23], dtype=np.float32)
    rows = {"x": np.stack([near, -near]), "y": np.array([[1], [-1]], dtype=np.float32)}
    found = accumulate(rows).covariance("x", "y")[:, 0] / 2
    np.testing.assert_allclose(found, near, rtol=2.0**-23)


@pytest.mark.parametrize("spikes", [1, 3])
def test_columns_that_consist_of_a_peak(spikes, amx, rng):
    """What three orders leave out goes by the largest values; where that counts, the fourth is formed."""
    x = rng.standard_normal((2048, 48)).astype(np.float32)
    for block in range(4):
        x[512 * block : 512 * block + spikes, ::2] *= 1e4
    rows = {"x": x}
    assert errors(accumulate(rows), "x", "x", rows).max() < 6 * U


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 511, 512, 513, 1500])
def test_mixed_rows(rows, amx, rng):
    kinds = {
        "bfloat16": torch.from_numpy(rng.standard_normal((rows, 50))).bfloat16(),
        "float16": rng.standard_normal((rows, 35)).astype(np.float16),
        "float32": (rng.standard_normal((rows, 70)) + 1).astype(np.float32),
    }
    m = accumulate(kinds)
    if rows > 1:
        for a in kinds:
            for b in kinds:
                assert errors(m, a, b, kinds).max() < 6 * U


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("n", [2, 31, 33, 513, 1300])
def test_bfloat16_rows(n, offset, amx, rng):
    """Narrow where no column is shifted; far from zero one is, and then has more bits than bfloat16 holds."""
    x = torch.from_numpy(rng.standard_normal((n, 96)) + np.where(np.arange(96) % 40 == 7, offset, 0)).bfloat16()
    rows = {"x": x}
    assert errors(accumulate(rows), "x", "x", rows).max() < 6 * U


def test_bfloat16_rows_too_small_for_products_of_bfloat16(amx, rng):
    """To the unit numbers below 2^-126 are zero; digits have a unit of their own."""
    scales = np.where(np.arange(40) % 3 == 0, 2.0**-61, 1.0)
    rows = {"x": torch.from_numpy(rng.standard_normal((700, 40)) * scales).bfloat16()}
    assert errors(accumulate(rows), "x", "x", rows).max() < 6 * U


def test_columns_that_the_unit_cannot_take(amx, rng):
    """One with a largest magnitude below 2^-100 takes the vector kernels, as do its neighbors."""
    x = rng.standard_normal((1200, 70)) * np.repeat([1e-18, 1.0, 1e-13, 1e15, 1e-16, 1.0, 1e-3], 10)
    x[:, 25] *= 1e-25
    x[:, 3] = 0
    x[:, 4] = 5
    rows = {"x": x.astype(np.float32), "y": rng.standard_normal((1200, 40)).astype(np.float32)}
    m = accumulate(rows)
    taken = np.arange(70) != 25  # its squares are below what float32 holds, its products with others are not
    assert errors(m, "x", "x", rows)[np.ix_(taken, taken)].max() < 1e-6
    assert errors(m, "x", "y", rows).max() < 1e-6
    assert (m.covariance("x")[3] == 0).all()


def test_a_block_that_the_unit_cannot_take_between_others(amx, rng, same_bits):
    """Blocks are added in their order, whether they were waiting together or not."""
    x = rng.standard_normal((4000, 40)).astype(np.float32)
    x[1024:1536, 7] = 1e-32
    x[1024:1100, 7] = -1e-32
    rows = {"x": x}
    whole = accumulate(rows, threads=1)
    assert errors(whole, "x", "x", rows).max() < 6 * U
    for step in (100, 512, 513, 2000):
        for threads in (1, 2, 3):
            same_bits(accumulate(rows, step, threads), whole)


def test_values_that_are_not_finite_go_where_they_go_elsewhere(rng, monkeypatch):
    x = rng.standard_normal((700, 40)).astype(np.float32)
    x[600, 5], x[650, 20] = np.nan, np.inf
    results = []
    for level in ("avx512", "amx"):
        monkeypatch.setenv("STREAMCCA_ISA", level)
        results.append(np.isnan(accumulate({"x": x}, nonfinite="propagate").covariance("x")))
    np.testing.assert_array_equal(*results)
    assert results[0].any()
    assert not results[0].all()


@pytest.mark.parametrize("levels", [("amx", "avx512"), ("avx512", "amx"), ("amx", "baseline"), ("amx", "amx")])
@pytest.mark.parametrize("pending", [0, 100, 255, 256, 300, 511])
@pytest.mark.parametrize("weighted", [False, True])
def test_pending_rows_travel_between_levels(levels, pending, weighted, rng, monkeypatch):
    """Blocks are twice as long here: what waits in one level may be more than a block of another."""
    rows, before = {"x": rng.standard_normal((1400, 33)).astype(np.float32) + 2}, 512 + pending
    weights = rng.random(1400) + 0.5 if weighted else np.ones(1400)
    monkeypatch.setenv("STREAMCCA_ISA", levels[0])
    m = sc.Moments({"x": 33})
    m.update(x=rows["x"][:before], weights=weights[:before])
    monkeypatch.setenv("STREAMCCA_ISA", levels[1])
    r = sc.Moments({"x": 33})
    r.load_state_dict(m.state_dict())
    np.testing.assert_allclose(r.mean("x"), m.mean("x"), rtol=1e-13)
    np.testing.assert_allclose(r.covariance("x"), m.covariance("x"), rtol=1e-5, atol=1e-6)
    r.update(x=rows["x"][before:], weights=weights[before:])
    exact = np.cov(rows["x"].astype(float), rowvar=False, aweights=weights, ddof=0)
    mean = np.average(rows["x"].astype(float), axis=0, weights=weights)
    np.testing.assert_allclose(r.mean("x"), mean, rtol=1e-6)
    np.testing.assert_allclose(r.covariance("x") * (1 - 1 / weights.sum()), exact, atol=1e-6)
    if levels[0] == levels[1]:
        m.update(x=rows["x"][before:], weights=weights[before:])
        assert r.covariance("x").tobytes() == m.covariance("x").tobytes()


def test_the_unit_is_taken_where_products_are_many(rng, monkeypatch):
    def bits(width, level):
        if level:
            monkeypatch.setenv("STREAMCCA_ISA", level)
        else:
            monkeypatch.delenv("STREAMCCA_ISA", raising=False)
        return accumulate({"x": x[:, :width]}).covariance("x").tobytes()

    x = rng.standard_normal((300, 512)).astype(np.float32)
    assert bits(64, None) == bits(64, "avx512") != bits(64, "amx")
    assert bits(512, None) == bits(512, "amx") != bits(512, "avx512")


def test_more_accurate_than_the_vector_kernels(rng, monkeypatch):
    """Squares of bfloat16 values, unshifted, would round alike in chains of 256; the unit's chains are short."""
    rows = {"x": torch.from_numpy(np.maximum(0, rng.standard_normal((20_000, 64)))).bfloat16()}
    largest = {}
    for level in ("avx512", "amx"):
        monkeypatch.setenv("STREAMCCA_ISA", level)
        largest[level] = errors(accumulate(rows), "x", "x", rows).max()
    assert largest["amx"] < 1e-7
    assert largest["amx"] < largest["avx512"]
