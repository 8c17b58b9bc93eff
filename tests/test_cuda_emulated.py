"""The CUDA kernels themselves, each thread a fiber of the CPU (csrc/cuda/emulator.h).

In a build with STREAMCCA_EMULATE_CUDA=ON; elsewhere all of this is skipped.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcca import _backend

_cuda = pytest.importorskip("streamcca._cuda", reason="built without CUDA kernels")
pytestmark = pytest.mark.skipif(not _cuda.EMULATED, reason="built for a GPU; STREAMCCA_EMULATE_CUDA=ON emulates one")

LADDER = ("naive", "tiled", "tensor", "hopper")
U32, U64 = 2.0**-24, 2.0**-53
TILE = 128
# The relative error that sound kernels may report of float32 products: chains of a few dozen sums that are cut off.
# What the diagonal shows raises it, so without this a defect would excuse itself.
MOST = 32 * U32


class Run:
    """A native accumulator of views, and what it makes of rows."""

    def __init__(self, widths, pairs=None, ladder="tensor", block=256, precision="auto", nonfinite="raise"):
        names = [f"v{i}" for i in range(len(widths))]
        self.pairs = pairs or [(i, j) for i in range(len(widths)) for j in range(i, len(widths))]
        self.widths, self.configuration = widths, (names, widths, self.pairs, precision, nonfinite)
        self.native = _cuda.Accumulator(*self.configuration, ladder=ladder, block_rows=block)

    def add(self, *views, weights=None):
        self.native.update([x.__dlpack__(max_version=(1, 0)) for x in views], weights, 0)
        return self

    def moments(self):
        """Shifted second moments by pair, as rectangles (of a view with itself the upper triangle)."""
        state = self.native.save()
        result = []
        for (a, b), values in zip(self.pairs, state["moments"], strict=True):
            full = np.zeros((self.widths[a], self.widths[b]))
            full[np.triu_indices(self.widths[a]) if a == b else ...] = values if a == b else values.reshape(full.shape)
            result.append(full)
        return result

    def shifts(self):
        return self.native.save()["shift"]

    def host(self):
        core = _backend.Accumulator(*self.configuration, 0)
        core.restore(self.native.save())
        return core

    def tiles(self):
        return np.from_dlpack(self.native.tiles())


def whole_numbers(rng, n, d, largest):
    return rng.integers(-largest, largest + 1, (n, d)).astype(np.float32)


@pytest.mark.parametrize("ladder", LADDER)
@pytest.mark.parametrize(("dtype", "largest"), [("bfloat16", 15), ("float16", 31), ("float32", 31), ("float64", 4000)])
def test_sums_of_small_integers_are_exact(ladder, dtype, largest, rng):
    """Whatever the order: an entry in the wrong place, left out or taken twice shows in every digit."""
    widths, n = [129, 5, 128], 327
    rows = [whole_numbers(rng, n, d, largest) for d in widths]
    torch_rows = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in rows]
    run = Run(widths, [(0, 0), (2, 1), (0, 2), (1, 1)], ladder).add(*torch_rows)
    shift = run.shifts()
    for (a, b), found in zip(run.pairs, run.moments(), strict=True):
        exact = (rows[a] - shift[a]).T @ (rows[b] - shift[b])  # float64: shifts have few digits, sums fewer than 53
        np.testing.assert_array_equal(found, np.triu(exact) if a == b else exact)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("mean", [0, 40])
def test_each_rung_of_the_ladder_agrees_with_the_one_before(dtype, mean, rng):
    n, widths = 300, [131, 20]
    rows = [torch.from_numpy(rng.standard_normal((n, d)) + mean).to(getattr(torch, dtype)) for d in widths]
    naive, tiled, tensor = (Run(widths, ladder=ladder).add(*rows) for ladder in LADDER[:3])  # the last: see below
    unit = U64 if dtype == "float64" else U32
    for k, (a, b) in enumerate(naive.pairs):
        first = naive.moments()[k]
        scale = np.sqrt(np.outer(*(naive.native.save()["squares"][v] for v in (a, b))))
        # Tiled: chains of 128 rounded additions. On the tensor cores 8 products and the sum before are cut off, each by
        # a unit of the last place at most; chains have 16 such steps (narrow) or 4 (planes).
        for other, chain in ((tiled, 128), (tensor, 16 * 9 * 2 if unit == U32 else 300)):
            assert (np.abs(other.moments()[k] - first) <= (chain + 8) * unit * scale).all()
        if unit == U32:
            error = np.abs(tensor.moments()[k] - first) / np.where(scale > 0, scale, 1)
            assert np.sqrt((error**2).mean()) < 4 * U32  # and far below that on the whole


@pytest.mark.parametrize(("n", "weighted"), [(1, False), (64, False), (100, True), (289, False)])
def test_groups_of_warps_give_the_bits_of_single_ones(n, weighted, rng):
    """The same products in the same chains; views of one, two and three planes, with one another."""
    x = rng.standard_normal((n, 70)).astype(np.float32)
    tensors = [torch.from_numpy(x[:, :5] + 3).bfloat16(), torch.from_numpy(x[:, 5:20] + 3).half()]
    tensors += [torch.from_numpy(x), torch.from_numpy(x[:, 20:40]).bfloat16(), torch.from_numpy(x[:, 50:]).half()]
    weights = rng.integers(0, 4, n).astype(float) if weighted else None
    runs = [Run([v.shape[1] for v in tensors], ladder=rung, precision="float32") for rung in ("tensor", "hopper")]
    for run in runs:
        run.add(*tensors, weights=weights)
    one, other = (run.host() for run in runs)
    for pair in range(len(runs[0].pairs)):
        np.testing.assert_array_equal(one.covariance(pair, 0)[0], other.covariance(pair, 0)[0])


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "float64", "mixed"])
def test_units_of_two_tiles_give_the_bits_of_single_ones(kind, rng):
    """Together where one plane of each is multiplied, one after the other where not; an odd number of slabs."""
    widths, n = [300, 140], 64 * (7 if kind == "bfloat16" else 2) + 5  # the ring has four slots
    rows = [whole_numbers(rng, n, d, 31) + rng.standard_normal((n, d)) / 8 for d in widths]
    if kind == "mixed":  # groups of one plane and of three in one view
        rows[0][:, 128:256] = whole_numbers(rng, n, 128, 31)
    tensors = [torch.from_numpy(x).to(getattr(torch, "float32" if kind == "mixed" else kind)) for x in rows]
    one, other = (Run(widths, ladder=rung, block=960).add(*tensors) for rung in ("tensor", "hopper"))
    assert any(_cuda.NO_TILE not in unit for unit in other.native.units())
    for key in ("moments", "sums", "squares"):
        for a, b in zip(one.native.save()[key], other.native.save()[key], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("block", [131072, 8256])
@pytest.mark.parametrize("rung", ["tensor", "hopper"])
def test_long_parts_of_several_planes_are_settled_on_the_way(block, rung, rng):
    """Sums of planes go into float64 every 4096 rows: of a part of a block that is cut, and of a whole one."""
    x = rng.standard_normal((9000, 3)).astype(np.float32)
    run = Run([3], ladder=rung, block=block).add(torch.from_numpy(x))
    found, (relative, _, raw) = run.host().covariance(0, 1)
    assert relative <= MOST
    assert (np.abs(found - reference.covariance(x)) <= 8 * max(relative, U32) * np.sqrt(np.outer(raw, raw))).all()


@pytest.mark.parametrize(("width", "first"), [(512, "float64"), (1024, "float32")])
def test_moments_that_start_again_with_other_products(width, first, rng):
    """Products of the two types cut their blocks into different numbers of parts."""
    x = torch.zeros((300, width), dtype=torch.float64)
    x[:, ::100] = torch.from_numpy(rng.standard_normal((300, len(range(0, width, 100)))))
    kinds = [torch.float64, torch.float32] if first == "float64" else [torch.float32, torch.float64]
    run = Run([width], ladder="hopper", block=0).add(x.to(kinds[0]))
    run.native.tiles()
    run.native.reset()
    run.add(x.to(kinds[1]))
    fresh = Run([width], ladder="hopper", block=0).add(x.to(kinds[1]))
    np.testing.assert_array_equal(run.native.save()["moments"][0], fresh.native.save()["moments"][0])


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


def test_the_naive_rung_is_right(rng):
    rows = rng.standard_normal((700, 7))
    run = Run([7], ladder="naive").add(rows)
    np.testing.assert_allclose(run.host().covariance(0, 1)[0], reference.covariance(rows), rtol=0, atol=40 * U64)


@pytest.mark.parametrize("bits", [8, 9, 16, 17, 23, 24])
def test_every_digit_of_a_factor_arrives(bits, rng):
    """A product with one is exact if all planes of both sides take part in it."""
    whole = rng.integers(2 ** (bits - 1), 2**bits, 40) | 1
    values = (whole * 2.0 ** rng.integers(-60, 20, 40)).astype(np.float32)
    # A row of its own after a head of zeros, which fix a shift of zero.
    a, b = np.zeros((270, 40), np.float32), np.zeros((270, 1), np.float32)
    a[260], b[260] = values, 1
    for views in ((a, b), (b, a)):
        run = Run([x.shape[1] for x in views], [(0, 1)]).add(*views)
        assert all((shift == 0).all() for shift in run.shifts())
        np.testing.assert_array_equal(run.moments()[0].ravel(), values.astype(float))


def test_float32_rows_keep_float32_accuracy(rng):
    """Errors beside those of float32 arithmetic of NumPy on the same rows."""
    x = rng.standard_normal((512, 64)).astype(np.float32)
    found = np.triu(Run([64]).add(x).moments()[0])
    shifted = x - Run([64]).add(x).shifts()[0].astype(np.float32)
    exact = np.triu(shifted.astype(float).T @ shifted.astype(float))
    plain = np.triu((shifted.T @ shifted).astype(float))
    rms = lambda error: np.sqrt((error**2).mean())  # noqa: E731
    assert rms(found - exact) < 2 * rms(plain - exact)


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


@pytest.mark.parametrize("ladder", LADDER)
@pytest.mark.parametrize("block", [1024, 576])  # of four parts, and of one, since halves would be no whole stages
def test_parts_of_long_blocks(ladder, block, rng):
    """Few tiles: the rows of a block are shared out, and the parts added in their order."""
    x = whole_numbers(rng, 1500, 30, 20)
    whole, cut = Run([30], ladder=ladder, block=block), Run([30], ladder=ladder, block=block)
    whole.add(x)
    for first in range(0, 1500, 333):
        cut.add(x[first : first + 333])
    shifted = x.astype(float) - whole.shifts()[0]
    np.testing.assert_array_equal(whole.moments()[0], np.triu(shifted.T @ shifted))
    np.testing.assert_array_equal(whole.tiles(), cut.tiles())


@settings(max_examples=10)
@given(
    st.lists(st.integers(1, 330), min_size=0, max_size=4),
    st.sampled_from(["bfloat16", "float32", "float64"]),
    st.sampled_from([64, 128, 192, 256]),
)
def test_cuts_do_not_change_a_bit(cuts, dtype, block):
    rng = np.random.default_rng(7)
    x = torch.from_numpy(rng.standard_normal((331, 6)) + 0.5).to(getattr(torch, dtype))
    ends = [0, *sorted(set(cuts)), 331]
    whole, cut = Run([6], block=block).add(x), Run([6], block=block)
    for first, last in itertools.pairwise(ends):
        cut.add(x[first:last])
    one, other = whole.native.save(), cut.native.save()
    for key in ("moments", "sums", "squares", "shift"):
        np.testing.assert_array_equal(one[key][0], other[key][0])


def test_a_block_length_is_a_constant_of_the_kind(rng):
    """What the kernels are built with for users, once around: more rows than a block, and a rest."""
    x = rng.standard_normal((_cuda.BLOCK_ROWS + 300, 3)).astype(np.float32)
    run = Run([3], block=0).add(x)
    found, (relative, _, raw) = run.host().covariance(0, 1)
    assert relative <= MOST
    assert (np.abs(found - reference.covariance(x)) <= 8 * max(relative, U32) * np.sqrt(np.outer(raw, raw))).all()


@given(st.lists(st.integers(1, 700), min_size=1, max_size=4), st.data())
def test_the_schedule_has_every_wanted_tile_once(widths, data):
    every = [(i, j) for i in range(len(widths)) for j in range(i, len(widths))]
    pairs = data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    groups = [-(-d // TILE) for d in widths]
    first = np.r_[0, np.cumsum(groups)].astype(int)
    wanted = [
        (first[a] + r, first[b] + c)
        for a, b in pairs
        for r in range(groups[a])
        for c in range(r if a == b else 0, groups[b])
    ]
    native = Run(widths, pairs).native
    assert sorted(native.tasks()) == sorted(wanted)
    # Units: every tile once, two of one pair of views together, which need three groups at most.
    units = [[tile for tile in unit if tile != _cuda.NO_TILE] for unit in native.units()]
    assert sorted(itertools.chain.from_iterable(units)) == list(range(len(wanted)))
    assert all(len({group for tile in unit for group in native.tasks()[tile]}) <= 3 for unit in units)
    pair_of = np.repeat(
        range(len(pairs)), [groups[a] * (groups[a] + 1) // 2 if a == b else groups[a] * groups[b] for a, b in pairs]
    )
    assert all(len({pair_of[tile] for tile in unit}) == 1 for unit in units)
    assert sum(len(unit) == 1 for unit in units) <= len(pairs)


def test_matrices_on_the_device(rng):
    x, y = rng.standard_normal((700, 130)) + 3, rng.standard_normal((700, 6))
    run = Run([130, 6], [(0, 0), (0, 1), (1, 1)]).add(x, y)
    for pair in range(3):
        host = run.host().covariance(pair, 1)[0]
        found = np.from_dlpack(run.native.covariance(pair, 1, 0))
        np.testing.assert_allclose(found, host, rtol=1e-12, atol=1e-14)
        assert pair == 1 or (found == found.T).all()
    few = Run([6]).add(y[:100])
    with pytest.raises(ValueError, match="100 rows so far, expected at least 256"):
        few.native.covariance(0, 1, 0)
    tiles = run.tiles()
    assert tiles.shape == (len(run.native.tasks()), TILE, TILE)
    before = tiles.copy()
    run.add(x, y)  # the same memory, not a copy
    assert not np.array_equal(before, tiles)
    del run  # and it lives as long as someone looks
    assert np.isfinite(tiles).all()


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


def test_states_that_do_not_fit_are_refused(rng):
    run = Run([4]).add(rng.standard_normal((300, 4)))
    state = run.native.save()
    with pytest.raises(ValueError, match="'shift' has other sizes"):
        Run([5]).native.restore(state)
    with pytest.raises(ValueError, match="another type"):
        Run([4], precision="float32").native.restore(state)
    with pytest.raises(ValueError, match="multiple of 64"):
        Run([4], block=100)
    with pytest.raises(ValueError, match="expected one of 'best', 'naive', 'tiled', 'tensor'"):
        Run([4], ladder="wgmma")


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


@pytest.mark.parametrize("kind", ["relu", "one hot", "repeated", "heavy tails", "far mean"])
def test_bounds_hold_for_rows_that_round_alike(kind, rng):
    """The emulated tensor cores cut sums off, without guard bits; what that does to a diagonal is seen and reported."""
    n, d = 1024, 40
    x = {
        "relu": lambda: np.maximum(rng.standard_normal((n, d)), 0),
        "one hot": lambda: np.eye(d)[rng.integers(0, d, n)],
        "repeated": lambda: np.tile(rng.standard_normal((8, d)), (n // 8, 1)),
        "heavy tails": lambda: rng.standard_t(2, (n, d)),
        "far mean": lambda: rng.standard_normal((n, d)) + 1000,
    }[kind]()
    rows = torch.from_numpy(x).bfloat16()
    found, (relative, _, raw) = Run([d], block=512).add(rows).host().covariance(0, 1)
    exact = reference.covariance(rows.double().numpy())
    error = np.abs(found - exact)
    assert relative <= MOST
    assert (error <= 8 * max(relative, U32) * np.sqrt(np.outer(raw, raw))).all()
