"""Teams whose threads take whole blocks each and hand the strips on: the bits of one thread, whatever is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import streamcca as sc

ROWS = 256 * 23 + 100
WIDTHS = {"x": 70, "y": 33}


def batch(dtype, rng, rows=ROWS):
    made = {name: rng.standard_normal((rows, width)) + 3 for name, width in WIDTHS.items()}
    if dtype == "bfloat16":
        return {name: torch.from_numpy(x).bfloat16() for name, x in made.items()}
    return {name: x.astype(dtype) for name, x in made.items()}


def same_state(a, b):
    """Everything that later rows and error bounds depend on, not only what can be read."""
    one, other = a.state_dict(), b.state_dict()
    assert one["meta"] == other["meta"]
    assert {k: v.tobytes() for k, v in one["tensors"].items()} == {k: v.tobytes() for k, v in other["tensors"].items()}


def moments(rows, threads, step=ROWS, weights=None, **options):
    m = sc.Moments(WIDTHS, threads=threads, **options)
    for first in range(0, ROWS, step):
        part = slice(first, first + step)
        m.update({name: x[part] for name, x in rows.items()}, weights=None if weights is None else weights[part])
    return m


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("threads", [2, 3, 5, 40])
def test_bits_of_one_thread(dtype, threads, isa, rng, same_bits):
    rows = batch(dtype, rng)
    same_bits(moments(rows, threads), moments(rows, 1))
    same_state(moments(rows, threads), moments(rows, 1))


@pytest.mark.parametrize("step", [511, 512, 1000, 2049])
@pytest.mark.parametrize("weighted", [False, True])
def test_any_cut_weighted_or_not(step, weighted, isa, rng, same_bits):
    rows = batch("float32", rng)
    weights = rng.integers(0, 3, ROWS).astype(float) if weighted else None
    same_bits(moments(rows, 3, step, weights), moments(rows, 1, 7, weights))


def test_weights_without_absent_rows(rng, same_bits):
    """Zero weights break the rows into short runs; without them whole blocks are there."""
    rows = batch("float32", rng)
    weights = rng.uniform(0.5, 2, ROWS)
    same_bits(moments(rows, 2, weights=weights), moments(rows, 1, 300, weights=weights))


@pytest.mark.parametrize("bad", [256, 300, 256 * 3 - 1, 256 * 9, 256 * 10 + 7, 256 * 20, ROWS - 101, ROWS - 1])
@pytest.mark.parametrize("view", ["x", "y"])
def test_a_bad_row_anywhere(bad, view, isa, rng, same_bits):
    """Skipped, it shifts the blocks after it; refused, it takes everything back."""
    rows = batch("float32", rng)
    rows[view][bad, 5] = np.nan
    without = {name: np.delete(x, bad, axis=0) for name, x in rows.items()}
    skipped = moments(rows, 4, nonfinite="skip")
    assert skipped.skipped == 1
    expected = sc.Moments(WIDTHS, threads=1)
    expected.update(without)
    assert np.array_equal(skipped.covariance("x", "y"), expected.covariance("x", "y"))
    assert np.array_equal(skipped.covariance(view, view), expected.covariance(view, view))

    refused = sc.Moments(WIDTHS, threads=4)
    refused.update({name: x[:200] for name, x in rows.items()})
    before = refused.copy()
    with pytest.raises(sc.NonFiniteError, match=rf"view '{view}', row {bad} of the batch"):
        refused.update(rows)
    same_bits(refused, before)


def test_after_what_was_left_pending(rng, same_bits):
    """A short batch leaves an unfilled block; a long one fills it first, and then goes on block by block."""
    rows = batch("float32", rng)
    m = sc.Moments(WIDTHS, threads=3)
    for first, last in ((0, 100), (100, 300), (300, 700), (700, ROWS)):
        m.update({name: x[first:last] for name, x in rows.items()})
    same_bits(m, moments(rows, 1))


def test_reset_and_copy_in_between(rng, same_bits):
    rows = batch("float32", rng)
    m = moments(rows, 2)
    m.reset()
    m.update(rows)
    same_bits(m, moments(rows, 1))
    copy = m.copy()
    copy.update(rows)
    m.update(rows)
    same_bits(m, copy)


PROGRAM = """
import sys
import numpy as np, streamcca as sc
x = np.random.default_rng(0).standard_normal((6000, 300)).astype(np.float32)
m = sc.Moments({"x": 300}, threads=int(sys.argv[1]))
m.update(x=x)
print(m.covariance("x").tobytes().hex()[:4000], hash(m.covariance("x").tobytes()))
"""


@pytest.mark.parametrize("limit", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_THREAD_LIMIT": "2"}, {"OMP_DYNAMIC": "true"}])
def test_fewer_threads_than_asked_for(limit, isa):
    """OpenMP may refuse threads; nothing may be left undone for that."""

    def run(threads, more):
        env = {**os.environ, "PYTHONHASHSEED": "0", "STREAMCCA_ISA": isa, **more}
        return subprocess.run([sys.executable, "-c", PROGRAM, str(threads)], env=env, capture_output=True, check=True)

    assert run(4, limit).stdout == run(1, {}).stdout
