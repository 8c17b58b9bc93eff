"""What the emulated CUDA kernels do to rows before they are multiplied: checked, packed; see test_cuda_emulated.py.

In a build with STREAMCCA_EMULATE_CUDA=ON; elsewhere all of this is skipped.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference
import torch
from emulated_cuda import MOST, U32, Run, emulated, whole_numbers

pytestmark = emulated


@pytest.mark.parametrize("ladder", ["tensor", "hopper"])
def test_what_was_float16_in_one_block_may_be_bfloat16_in_the_next(ladder, rng):
    a, b = (torch.from_numpy(whole_numbers(rng, 900, 8, 30)) for _ in range(2))
    a[:, 0], b[:, 0] = a[:, 0] * 2, b[:, 0] + 1 / 64  # float16 numbers that are no bfloat16 ones
    run = Run([8, 8], ladder=ladder)
    for first, last, kind in ((0, 512, torch.float16), (512, 900, torch.bfloat16)):
        run.add(a[first:last].to(kind), b[first:last].half())
    shift = run.shifts()
    x, y = ((v.double().numpy() - s) for v, s in zip((a, b), shift, strict=True))
    for found, exact in zip(run.moments(), (np.triu(x.T @ x), x.T @ y, np.triu(y.T @ y)), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-3)


def spread(x, by):
    """The same values, rows `by` elements further apart."""
    wide = torch.zeros((len(x), x.shape[1] + by), dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("mean", [0, 3])
@pytest.mark.parametrize("width", [24, 21])
def test_rows_are_the_same_in_chunks_of_16_bytes_and_element_by_element(dtype, mean, width, rng):
    x = torch.from_numpy(rng.standard_normal((400, width)) + mean).to(getattr(torch, dtype))
    aligned, crooked = spread(x, -width % 8 or 8), spread(x, 8 - width % 8 + 1)
    assert x.stride(0) * x.element_size() % 16 == 0 or width == 21
    states = []
    for rows in (x, aligned, crooked, x.T.contiguous().T):
        run = Run([width], block=64)
        for first, last in itertools.pairwise((0, 290, 300, 301, 400)):  # ends within strips and slabs
            run.add(rows[first:last])
        states.append(run.native.save())
        tile = run.tiles()[0]  # nothing of the next row, or of what lies behind
        assert not tile[width:].any()
        assert not tile[:, width:].any()
    for state in states[1:]:
        for key in ("moments", "sums", "squares", "shift"):
            np.testing.assert_array_equal(state[key][0], states[0][key][0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e300])
def test_every_bad_value_is_found(dtype, value, rng):
    """In rows that lie densely, in chunks, or anyhow; also in the last columns; and of a list."""
    if value == -1e300 and dtype != "float64":
        value = -1e30 if dtype != "float16" else -np.inf
    for width in (24, 21):
        good = torch.from_numpy(rng.standard_normal((70, width))).to(getattr(torch, dtype))
        for row, column in ((0, 0), (69, width - 1), (int(rng.integers(70)), int(rng.integers(width)))):
            x = good.clone()
            x[row, column] = value
            for rows in (x, spread(x, -width % 8 or 8), spread(x, 9 - width % 8), x.T.contiguous().T):
                for weights in (None, np.ones(70)):
                    with pytest.raises(ValueError, match=f"row {row} of a batch"):
                        _ = Run([width]).add(rows, weights=weights).native.rows


@pytest.mark.parametrize("first", ["narrow", "wide"])
@pytest.mark.parametrize("mean", [0, 3])
def test_narrow_and_wide_batches_in_one_block(first, mean, rng):
    """The second and third plane are written late where a block began with bfloat16 rows, but of shifted groups."""
    d, values = 140, (rng.standard_normal((800, 140))).astype(np.float32)
    values[:, :128] += mean
    head = torch.from_numpy(values).bfloat16()
    parts = [(0, 256, "narrow"), (256, 270, first), (270, 300, "wide"), (300, 433, "narrow"), (433, 640, "wide")]
    parts += [(640, 768, "narrow"), (768, 800, "wide")]  # a block of narrow rows alone between others
    mixed, plain = Run([d], block=128), Run([d], block=128)
    for begin, end, kind in parts:
        rows = head[begin:end] if kind == "narrow" else torch.from_numpy(values[begin:end])
        mixed.add(rows)
        plain.add(rows.float())
    np.testing.assert_array_equal(mixed.moments()[0], plain.moments()[0])
    np.testing.assert_array_equal(mixed.native.save()["squares"][0], plain.native.save()["squares"][0])


def test_float16_rows_are_multiplied_as_such(rng):
    """Blocks of float16 rows alone take one product; any other row in a block, or a shift, and it is planes again."""
    values = rng.standard_normal((600, 135))
    values[:, 3] *= 1e-6  # numbers below the normal ones
    values[:, 4] *= 1e4
    halves = torch.from_numpy(values).half()
    other = torch.from_numpy(rng.standard_normal((600, 9)) + 5).half()  # with a shift
    runs = {kind: Run([135, 9], block=128) for kind in ("half", "float", "mixed")}
    for begin, end in ((0, 256), (256, 270), (270, 400), (400, 600)):
        rows = halves[begin:end], other[begin:end]
        runs["half"].add(*rows)
        runs["float"].add(*(x.float() for x in rows))
        runs["mixed"].add(*(x.float() if begin == 270 else x for x in rows))
    exact = halves.double().numpy()
    for k, (a, b) in enumerate(runs["half"].pairs):
        shift = [runs["half"].shifts()[v] for v in (a, b)]
        x, y = ((exact, other.double().numpy())[v] - shift[i] for i, v in enumerate((a, b)))
        scale = np.sqrt(np.outer((x**2).sum(0), (y**2).sum(0)))
        for run in runs.values():
            error = np.abs(run.moments()[k] - (np.triu(x.T @ y) if a == b else x.T @ y))
            assert (error <= 300 * U32 * scale).all()
    one, two, three = (run.moments()[0] for run in runs.values())
    assert (one != two).any()  # another order of sums, so the path was taken
    assert (two != three).any()
    assert (one != three).any()
    assert (runs["half"].moments()[2] == runs["float"].moments()[2]).all()  # shifted: planes on both sides


def test_weights_in_a_block_of_narrow_rows(rng):
    """Roots of weights are no bfloat16 numbers."""
    rows = torch.from_numpy(rng.standard_normal((600, 9))).bfloat16()
    run = Run([9]).add(rows[:260]).add(rows[260:], weights=np.full(340, 3.0))
    weights = np.r_[np.ones(260), np.full(340, 3.0)]
    found = run.host().covariance(0, 1)
    exact = reference.covariance(rows.double().numpy(), weights=weights)
    assert found[1][0] <= MOST
    assert (
        np.abs(found[0] - exact) <= 8 * max(found[1][0], 2 * U32) * np.sqrt(np.outer(found[1][2], found[1][2]))
    ).all()


def test_a_refused_batch_holds_back_all_later_ones(rng):
    """The host sees it only when it looks; meanwhile blocks fill and the head settles."""
    x = rng.standard_normal((2000, 3)).astype(np.float32)
    bad = x[200:900].copy()
    bad[650, 1] = np.nan
    run = Run([3], block=64).add(x[:200])
    run.add(bad)
    with pytest.raises(ValueError, match="row 650 of a batch .after 200 rows counted before"):
        run.add(x[900:])
    assert run.native.rows == 200
    run.add(x[200:])
    expected = Run([3], block=64).add(x)
    for key in ("moments", "sums", "squares", "shift"):
        np.testing.assert_array_equal(run.native.save()[key][0], expected.native.save()[key][0])


def test_the_first_of_several_bad_rows_is_named(rng):
    x, y = (rng.standard_normal((400, 300)).astype(np.float32) for _ in range(2))
    x[300, 7] = y[200, 250] = y[201, 3] = np.inf
    run = Run([300, 300]).add(x, y)
    with pytest.raises(ValueError, match="view 'v1', row 200"):
        _ = run.native.rows


def test_no_corner_of_a_batch_is_left_unchecked(rng):
    for n, d, row, column in [(33, 129, 0, 0), (33, 129, 32, 128), (33, 129, 32, 0), (64, 128, 63, 127), (1, 1, 0, 0)]:
        for layout in "CF":
            x = np.array(rng.standard_normal((n, d)), np.float32, order=layout)
            Run([d]).add(x)
            x[row, column] = np.nan
            run = Run([d]).add(x)
            with pytest.raises(ValueError, match=f"row {row} of a batch"):
                _ = run.native.rows
            skipping = Run([d], nonfinite="skip").add(x)
            assert (skipping.native.rows, skipping.native.skipped) == (n - 1, 1)


def test_rows_in_the_middle_of_an_element_are_refused():
    raw = np.zeros(4 * 40 + 1, np.uint8)
    rows = np.frombuffer(raw.data, np.float32, 40, offset=1).reshape(10, 4)
    with pytest.raises(ValueError, match="middle of an element"):
        Run([4]).add(rows)


def test_columns_of_the_stride_zero_and_backwards(rng):
    x = rng.standard_normal((300, 8)).astype(np.float32)
    for view in (x[::-1], x[:, ::-2], np.broadcast_to(x[:, :1], (300, 5)), np.broadcast_to(x[0], (300, 8))):
        d = view.shape[1]
        one, other = Run([d]).add(view), Run([d]).add(np.ascontiguousarray(view))
        np.testing.assert_array_equal(one.moments()[0], other.moments()[0])
