"""Rows of bfloat16 numbers in dot products of pairs: which values may take that way, and that the others do not."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch

import streamcca as sc
from streamcca import _backend

U = 2.0**-24
LEVEL = "avx512_bf16"
pytestmark = pytest.mark.skipif(LEVEL not in _backend.isa_levels(), reason="this CPU has no dot products of bfloat16")


@pytest.fixture(autouse=True)
def level(monkeypatch):
    monkeypatch.setenv("STREAMCCA_ISA", LEVEL)


def accumulate(rows, step=None, **options):
    m = sc.Moments({name: x.shape[1] for name, x in rows.items()}, **options)
    n = len(next(iter(rows.values())))
    for first in range(0, n, step or n):
        m.update({name: x[first : first + (step or n)] for name, x in rows.items()})
    return m


def largest_error(m, a, b, rows):
    """Of the covariance, in units of the columns' root mean squares: narrow columns are not shifted."""
    x, y = (np.asarray(rows[v].double() if isinstance(rows[v], torch.Tensor) else rows[v], dtype=float) for v in (a, b))
    scale = np.sqrt(np.outer((x**2).mean(0), (y**2).mean(0)))
    return (np.abs(m.covariance(a, b) - reference.covariance(x, y)) / np.where(scale > 0, scale, 1)).max()


def bfloat16(array):
    return torch.from_numpy(np.asarray(array, dtype=np.float32)).bfloat16()


def test_every_bit_of_a_number_arrives(rng):
    """A product with one is exact, for all 256 significands, both signs, and exponents inside the limits."""
    significand = np.repeat(1 + np.arange(128) / 128, 2) * np.tile([1, -1], 128)
    values = significand * 2.0 ** rng.integers(-39, 58, size=256)
    rows = {"a": bfloat16(np.stack([values, -values])), "b": bfloat16([[1], [-1]])}
    np.testing.assert_array_equal(accumulate(rows).covariance("a", "b")[:, 0] / 2, values)
    np.testing.assert_array_equal(accumulate(rows).covariance("b", "a")[0] / 2, values)


@pytest.mark.parametrize("exponent", [-149, -133, -127, -126, -70, -41, -40, 57])
def test_numbers_that_the_instruction_would_lose(exponent):
    """Denormals count as zero there, and so do products below 2^-126: float32 multiply-adds take them."""
    x = np.array([[1.0], [-1.0], [3.0], [-3.0]]) * 2.0**exponent
    rows = {"x": torch.from_numpy(x.astype(np.float32)), "one": bfloat16([[1], [-1], [1], [-1]])}
    assert accumulate(rows).covariance("x", "one")[0, 0] == 8 * 2.0**exponent / 3


def test_what_is_let_through(rng):
    """Infinity and NaN, by request, must not become numbers."""
    x = bfloat16(rng.standard_normal((600, 40)))
    x[300, 3], x[301, 30] = float("nan"), float("inf")
    c = accumulate({"x": x}, nonfinite="propagate").covariance("x")
    assert np.isnan(c[3]).all()
    assert not np.isfinite(c[30]).any()
    good = np.delete(np.arange(40), [3, 30])
    assert np.isfinite(c[np.ix_(good, good)]).all()


@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 257, 511, 600, 1500])
def test_narrow_wide_and_shifted_columns_side_by_side(n, rng):
    x = rng.standard_normal((n, 100))
    x[:, 20:25] += 5  # shifted, hence no bfloat16 numbers any more
    rows = {"x": bfloat16(x), "f": rng.standard_normal((n, 37)).astype(np.float32), "y": bfloat16(x[:, :33]).relu()}
    m = accumulate(rows, pairs="all")
    if n > 1:
        for a in rows:
            for b in rows:
                # One block: 128 lines, whose roundings agree on the diagonal (docs/numerics.md).
                assert largest_error(m, a, b, rows) < 16 * U, (a, b)


@pytest.mark.parametrize("step", [1, 37, 256, 300])
@pytest.mark.parametrize("threads", [1, 3])
def test_bits_of_any_cut(step, threads, rng, same_bits):
    x = rng.standard_normal((1337, 90))
    x[:700, 40] += 4
    x[800:, 50] *= 1.001  # wide from there on
    rows = {"x": bfloat16(x), "y": bfloat16(x[:, :17])}
    same_bits(accumulate(rows, step, threads=threads), accumulate(rows, threads=1))


def test_reading_saving_and_merging_amid_a_block(tmp_path, rng, same_bits):
    rows = {"x": bfloat16(rng.standard_normal((1001, 70)))}
    whole = accumulate(rows)
    m = sc.Moments({"x": 70})
    for first in range(0, 1001, 111):
        m.update(x=rows["x"][first : first + 111])
        m.covariance("x")
        m.save(tmp_path / "state")
        m = sc.Moments.load(tmp_path / "state").copy()
    same_bits(m, whole)
    half = [accumulate({"x": rows["x"][part]}) for part in (slice(0, 333), slice(333, None))]
    half[0].merge(half[1])
    assert np.abs(half[0].covariance("x") - whole.covariance("x")).max() < 8 * U


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_rows_have_the_bits_of_the_level_below(dtype, rng, monkeypatch, same_bits):
    rows = {"x": rng.standard_normal((1000, 80)).astype(dtype)}
    ours = accumulate(rows)
    monkeypatch.setenv("STREAMCCA_ISA", "avx512")
    same_bits(ours, accumulate(rows))


def test_weighted_rows(rng):
    """Roots of weights make other numbers of most rows; powers of four do not."""
    x, weights = bfloat16(rng.standard_normal((900, 50))), rng.choice([1.0, 4.0], 900)
    m = sc.Moments({"x": 50})
    m.update(x=x, weights=weights)
    repeated = np.repeat(x.double().numpy(), weights.astype(int), axis=0)
    np.testing.assert_allclose(m.covariance("x", ddof=0), np.cov(repeated.T, ddof=0), atol=8 * U)
