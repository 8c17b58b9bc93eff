"""The CUDA kernels themselves, each thread a fiber of the CPU (csrc/cuda/emulator.h): products and the state.

In a build with STREAMCCA_EMULATE_CUDA=ON; elsewhere all of this is skipped.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference
import torch
from emulated_cuda import LADDER, MOST, TILE, U32, U64, Run, _cuda, emulated, whole_numbers
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = emulated


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
