"""SVCCA per spatial frequency: against complex SVD of whole data in NumPy, and answers known beforehand."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import reference
import torch

import streamcca as sc
from streamcca.frequencies import Spectra, _of_parts, coefficients, frequencies_of, hermitian
from streamcca.resize import resize_maps
from streamcca.significance import complex_null_mean


def maps(rng, n, cx, cy, size, noise=0.6, decay=1.0):
    """Two stacks of maps that share signals, with channels of unequal strength and more power in slow waves."""
    c = max(cx, cy)
    distance = np.sqrt(sum(np.square(g) for g in np.meshgrid(*(np.fft.fftfreq(s) * s for s in size), indexing="ij")))
    filters = (1 + distance) ** -decay
    axes = tuple(range(2, 2 + len(size)))
    common = rng.standard_normal((n, c, *size))
    views = []
    for channels in (cx, cy):
        own = common[:, :channels] + noise * rng.standard_normal((n, channels, *size))
        own = np.fft.ifftn(np.fft.fftn(own, axes=axes) * filters, axes=axes).real
        mixed = np.linalg.qr(rng.standard_normal((channels, channels)))[0] * np.arange(1, channels + 1) ** -0.5
        views.append(np.ascontiguousarray(np.moveaxis(np.tensordot(mixed, own, axes=(1, 1)), 0, 1)))
    return views


def check(result, x, y, rule="full", value=None, atol=1e-9):
    rho, ranks = reference.frequency_correlations(x, y, rule, value)
    assert result.per_frequency.shape == tuple(map(min, zip(x.shape[2:], y.shape[2:], strict=True)))
    for f, correlations in rho.items():
        assert (result.ranks_x[f], result.ranks_y[f]) == ranks[f]
        error = abs(result.per_frequency[f] - correlations.mean())
        assert error <= min(result.error_bounds[f], atol), f
    want = np.mean([correlations.mean() for correlations in rho.values()])
    assert abs(result.mean - want) <= min(result.error_bound, atol)


SIZES = [(4, 4), (3, 5), (4, 5), (5, 4), (1, 6), (1, 1), (2, 2), (6,), (7,), (2, 3, 4)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("rule", "value"), [("variance", 0.9), ("nuclear", 0.8), ("rank", 2), ("full", None)])
def test_against_numpy(size, rule, value, rng):
    x, y = maps(rng, 60, 5, 4, size)
    options = {"variance": 1.0} if rule == "full" else {rule: value}
    check(sc.svcca_fourier(x, y, **options), x, y, rule, value)


UNLIKE = [
    ((8, 8), (4, 4)),
    ((6, 7), (5, 4)),
    ((4, 6), (8, 3)),
    ((5, 9), (2, 9)),
    ((12,), (6,)),
    ((3, 3), (1, 1)),
    ((4, 4, 6), (4, 2, 3)),
]


@pytest.mark.parametrize(("size_x", "size_y"), UNLIKE, ids=str)
def test_maps_of_different_size(size_x, size_y, rng):
    large = tuple(map(max, zip(size_x, size_y, strict=True)))
    x, y = maps(rng, 80, 4, 3, large)
    x, y = reference.lowpass(x, size_x), reference.lowpass(y, size_y)
    check(sc.svcca_fourier(x, y, variance=0.95), x, y, "variance", 0.95)


@pytest.mark.parametrize(
    ("old", "new"), [*UNLIKE[:2], ((5, 9), (2, 9)), ((12,), (6,)), ((4, 4, 6), (4, 2, 3)), ((7, 6), (7, 6))], ids=str
)
def test_coefficients_are_those_of_resized_maps(old, new, rng):
    x = rng.standard_normal((3, 2, *old))
    resized = resize_maps(torch.from_numpy(x), new, "fourier").numpy()
    want = np.fft.rfftn(resized, axes=range(2, x.ndim), norm="forward")
    np.testing.assert_allclose(coefficients(x, new), want, atol=1e-15)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_frequency_is_there_once(size):
    seen = [f.index for f in frequencies_of(size)] + [f.mirror for f in frequencies_of(size) if not f.real]
    assert sorted(seen) == sorted(np.ndindex(*size))
    assert all(f.index[-1] <= size[-1] // 2 for f in frequencies_of(size))


def test_shift_invariant_data_are_compared_as_whole_maps(rng):
    """Theorem 1 of the paper: with every circular shift in the data, frequencies are uncorrelated."""
    x, y = maps(rng, 60, 2, 2, (3, 4), noise=1.0)
    shifts = list(itertools.product(range(3), range(4)))
    all_x, all_y = (np.concatenate([np.roll(v, shift, axis=(2, 3)) for shift in shifts]) for v in (x, y))
    whole = sc.svcca(all_x.reshape(720, -1), all_y.reshape(720, -1), variance=1.0)
    assert (whole.rank_x, whole.rank_y) == (24, 24)
    r = sc.svcca_fourier(all_x, all_y, variance=1.0)
    assert r.mean == pytest.approx(whole.mean, abs=1e-10)


def test_the_same_bits_for_every_cut_into_batches(rng):
    x, y = maps(rng, 700, 3, 2, (5, 4))
    x = np.ascontiguousarray(x, dtype=np.float32)
    whole = sc.svcca_fourier(x, y)
    # One mapping of all numbers, bounds included.
    for cuts in ([1, 2, 300], [256, 512], list(range(7, 700, 7)), [699]):
        parts = zip(np.split(x, cuts), np.split(y, cuts), strict=True)
        assert sc.svcca_fourier(parts).to_dict() == whole.to_dict()
    assert sc.svcca_fourier(torch.from_numpy(x), torch.from_numpy(y), threads=1).to_dict() == whole.to_dict()


def test_large_batches_are_taken_in_pieces(rng, monkeypatch):
    x, y = maps(rng, 50, 3, 2, (4, 4))
    whole = sc.svcca_fourier(x, y)
    monkeypatch.setattr("streamcca.frequencies._CHUNK_BYTES", 10_000)
    assert sc.svcca_fourier(x, y).to_dict() == whole.to_dict()


def test_files_that_are_mapped(rng, tmp_path):
    x, y = maps(rng, 50, 3, 2, (4, 4))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert sc.svcca_fourier(mapped, y).to_dict() == sc.svcca_fourier(x, y).to_dict()


def test_identical_and_rotated_maps(rng):
    x, y = maps(rng, 100, 4, 4, (4, 6))
    for other in (x, np.roll(x, (1, 3), axis=(2, 3)), 100 - 3 * x):
        r = sc.svcca_fourier(x, other)
        np.testing.assert_allclose(r.per_frequency, 1, atol=1e-12)
        assert 1 - r.mean <= r.error_bound < 1e-9
    before = sc.svcca_fourier(x, y)
    mixing = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    turned = np.moveaxis(np.tensordot(mixing, x, axes=(1, 1)), 0, 1)
    for other, same in ((turned, y), (np.roll(x, (3, 2), axis=(2, 3)), np.roll(y, (3, 2), axis=(2, 3)))):
        after = sc.svcca_fourier(other, same)
        np.testing.assert_allclose(after.per_frequency, before.per_frequency, atol=1e-10)
        np.testing.assert_array_equal(after.ranks_x, before.ranks_x)


def test_a_frequency_that_is_not_shared():
    """Known answer: y holds the wave of x along the width at its own frequency, and noise of its own elsewhere."""
    generator = np.random.default_rng(5)
    n, size = 4000, (4, 6)
    x, y = generator.standard_normal((2, n, 1, *size))
    spectrum = np.fft.rfft2(y)
    spectrum[:, :, 0, 2] = np.fft.rfft2(x)[:, :, 0, 2] * np.exp(0.7j)
    r = sc.svcca_fourier(x, np.fft.irfft2(spectrum, s=size))
    shared = np.zeros(size, dtype=bool)
    shared[0, 2] = shared[0, 4] = True
    np.testing.assert_allclose(r.per_frequency[shared], 1, atol=1e-12)
    assert np.all(r.per_frequency[~shared] < 0.06)
    assert (r.ranks_x == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_of_maps(dtype, rng):
    x, y = (torch.from_numpy(v).to(dtype) for v in maps(rng, 60, 4, 3, (4, 3)))
    r = sc.svcca_fourier(x.requires_grad_(), y, variance=0.9)
    check(r, x.detach().double().numpy(), y.double().numpy(), "variance", 0.9)
    assert r.n == 60


@pytest.mark.filterwarnings("ignore:rounding may have moved:streamcca.AccuracyWarning")
def test_maps_far_from_zero(rng):
    """The transform spreads the rounding of the mean over all frequencies, and the bounds know."""
    x, y = maps(rng, 100, 4, 3, (7, 6))
    errors, bounds = [], []
    for offset in (1e4, 1e6, 1e8):
        far_x, far_y = x + offset, y - offset
        r = sc.svcca_fourier(far_x, far_y, rank=2)
        # The offset rounds the maps themselves, which is no error of the measure; taking it away is exact.
        rho, _ = reference.frequency_correlations(far_x - offset, far_y + offset, "rank", 2)
        errors.append(np.abs(r.per_frequency - [[rho[i, j].mean() for j in range(6)] for i in range(7)]))
        bounds.append(r.error_bounds)
    assert np.all(np.array(errors) <= bounds)
    assert np.max(errors[-1]) > 1e-10  # which a bound of the products alone would miss
    ratio = np.sqrt(np.mean(np.square(bounds[-1])) / np.mean(np.square(errors[-1])))
    assert 10 < ratio < 3000


def test_what_the_transform_leaves_of_nothing_is_no_signal(rng):
    """Slow waves only: at other frequencies there is nothing but rounding, which would correlate at random."""
    x, y = maps(rng, 300, 3, 3, (15, 14))
    slow = np.zeros((15, 8))
    slow[[-1, 0, 1], :2] = 1
    slow_x, slow_y = (np.fft.irfft2(np.fft.rfft2(v) * slow, s=(15, 14)) for v in (x, y))
    with pytest.warns(sc.StreamCCAWarning, match=r"holds no signal above rounding, and is left out \(and \d+ more"):
        r = sc.svcca_fourier(slow_x, slow_y, variance=0.9)
    alive = np.zeros((15, 14), dtype=bool)
    for i, j in itertools.product((-1, 0, 1), (-1, 0, 1)):
        alive[i, j] = True
    assert (np.isfinite(r.per_frequency) == alive).all()
    assert ((r.ranks_x > 0) == alive).all()
    rho, _ = reference.frequency_correlations(x, y, "variance", 0.9)
    assert r.mean == pytest.approx(np.mean([rho[f].mean() for f in zip(*np.nonzero(alive), strict=True)]), abs=1e-9)
    assert json.dumps(r.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("size", "n"), [((7, 7), 200), ((17,), 100000), ((6, 11), 200), ((13, 13), 200), ((17,), 200), ((9, 10), 200)]
)
def test_constant_maps_have_their_mean_only(size, n, rng):
    ones = np.ones((1, 1, *size))
    x, y = (rng.standard_normal((n, 2, *[1] * len(size))) * ones for _ in "xy")
    with pytest.warns(sc.StreamCCAWarning, match="holds no signal above rounding"):
        r = sc.svcca_fourier(x, y, variance=1.0)
    assert np.isfinite(r.per_frequency).sum() == 1
    flat = [v.reshape(n, 2, -1)[:, :, 0] for v in (x, y)]
    assert r.mean == pytest.approx(sc.svcca(*flat, variance=1.0).mean, abs=1e-12)
    with pytest.raises(sc.InputError, match="no frequency of these maps holds a signal above rounding on both sides"):
        sc.svcca_fourier(0 * x, y)


@pytest.mark.parametrize("imaginary", [1.0, 1e-6])
def test_errors_of_parts_are_those_of_complex_covariances(imaginary, rng):
    """A linear function of [[A, -B], [B, A]] varies as its errors say that it does, or a little less."""
    c, relative, trials = 3, 1e-3, 4000
    raw = rng.uniform(0.5, 2, 2 * c)
    raw[1::2] *= imaginary
    _, _, raw_of_both = rounding = _of_parts((relative, 0.0, raw))
    errors = relative * np.sqrt(np.outer(raw, raw)) * rng.standard_normal((trials, 2 * c, 2 * c))
    for gradient in (hermitian(rng.standard_normal((2 * c, 2 * c))), np.kron(np.eye(2), rng.standard_normal((c, c)))):
        seen = np.mean([np.sum(gradient * hermitian(error)) ** 2 for error in errors])
        model = np.sum(gradient**2 * rounding[0] ** 2 * np.outer(raw_of_both, raw_of_both))
        assert 0.2 < seen / model < 1.1


def test_too_few_samples(rng):
    x, y = maps(rng, 5, 8, 8, (3, 3), decay=0)
    with pytest.raises(
        sc.UnderdeterminedError, match=r"frequency \(0, 0\): n = 5 samples are too few for \(4, 4\) kept"
    ):
        sc.svcca_fourier(x, y, variance=0.999)
    with pytest.warns(sc.SampleSizeWarning, match="every correlation is 1 whatever the data .and 4 more frequencies"):
        r = sc.svcca_fourier(x, y, variance=1.0, allow_underdetermined=True)
    assert r.mean == pytest.approx(1)
    assert r.error_bound < 1e-9  # four samples less their mean cannot hold more directions
    x, y = maps(rng, 10, 6, 6, (3, 3), decay=0)
    with pytest.warns(sc.SampleSizeWarning, match=r"\(6, 6\) kept directions force 3 of the 6 correlations to 1"):
        sc.svcca_fourier(x, y, rank=6)


def test_rank_that_is_not_there(rng):
    x, y = maps(rng, 60, 4, 4, (3, 4))
    x[:, 3] = x[:, 0] + x[:, 1]
    r = sc.svcca_fourier(x, y, rank=(3, 4))
    assert (r.ranks_x == 3).all()
    assert (r.ranks_y == 4).all()
    with pytest.raises(sc.InputError, match=r"frequency \(0, 0\) of x: rank 4 was asked for, but only 3 directions"):
        sc.svcca_fourier(x, y, rank=4)


def test_directions_below_rounding_widen_the_bound(rng):
    x, y = maps(rng, 60, 4, 4, (3, 4))
    x[:, 3] = x[:, 0] + x[:, 1]
    with pytest.warns(
        sc.AccuracyWarning, match="directions below rounding are left out; within rounding, 1 ranks besid"
    ):
        r = sc.svcca_fourier(x, y, variance=1.0)
    assert (r.ranks_x == 3).all()
    assert r.error_bound > 0.3


@pytest.mark.parametrize(("kx", "ky", "n"), [(1, 1, 20), (1, 4, 30), (4, 3, 40), (8, 8, 60), (10, 8, 15)])
def test_chance_level_of_complex_numbers(kx, ky, n, rng):
    means = []
    for _ in range(300):
        bases = []
        for k in (kx, ky):
            z = rng.standard_normal((n, k)) + 1j * rng.standard_normal((n, k))
            bases.append(np.linalg.qr(z - z.mean(axis=0))[0])
        means.append(np.clip(np.linalg.svd(bases[0].conj().T @ bases[1], compute_uv=False), 0, 1).mean())
    assert complex_null_mean(1, 1, 3) == pytest.approx(2 / 3)  # rho^2 is uniform
    exact = min(kx, ky) == 1
    tolerance = 5 * np.std(means) / math.sqrt(len(means)) + (0 if exact else 0.02 * np.mean(means))
    assert complex_null_mean(kx, ky, n) == pytest.approx(np.mean(means), abs=tolerance)


def test_chance_of_each_frequency(rng):
    x, y = rng.standard_normal((2, 200, 3, 4, 5))
    r = sc.svcca_fourier(x, y, variance=1.0)
    assert r.null_means[0, 0] == r.null_means[2, 0] == sc.null_mean(3, 3, 200)
    assert r.null_means[1, 1] == complex_null_mean(3, 3, 200) == r.null_means[3, 4]
    assert r.mean == pytest.approx(r.null_mean, abs=0.01)
    one = sc.svcca_fourier(x, y, rank=1)
    assert (one.null_means[2, 0], one.null_means[2, 1]) == (sc.null_mean(1, 1, 200), complex_null_mean(1, 1, 200))
    assert r.null_mean == pytest.approx(r.null_means.mean())
    assert r.error_bound == pytest.approx(r.error_bounds.mean())


def test_bad_values(rng):
    x, y = maps(rng, 30, 3, 2, (4, 4))
    spoiled = x.copy()
    spoiled[17, 2, 1, 3] = np.nan
    with pytest.raises(sc.NonFiniteError, match="x: map 17 holds NaN, infinity or a value too large .* in channel 2"):
        sc.svcca_fourier(spoiled, y)
    keep = np.arange(30) != 17
    skipped = sc.svcca_fourier(spoiled, y, nonfinite="skip", variance=0.9)
    assert skipped.n == 29
    assert skipped.to_dict() == sc.svcca_fourier(x[keep], y[keep], variance=0.9).to_dict()
    with pytest.raises(sc.NonFiniteError, match="batch 1: y: map 3 holds NaN"):
        y_bad = y.copy()
        y_bad[13] = np.inf
        sc.svcca_fourier([(x[:10], y[:10]), (x[10:], y_bad[10:])])


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        (
            (np.ones((9, 4)), np.ones((9, 4))),
            sc.InputError,
            r"x: got an array of shape \(9, 4\), expected maps \(n, ch",
        ),
        ((np.ones((9, 4, 3)), [1.0]), sc.InputError, r"y: got a list, expected maps \(n, channels, height, width\)"),
        (
            (np.ones((9, 4, 3)), np.ones((9, 4, 3, 3))),
            sc.InputError,
            "maps of x are 3 and those of y 3 x 3, expected as m",
        ),
        ((np.ones((9, 4, 3)), np.ones((8, 4, 3))), sc.InputError, "x has 9 maps and y 8; both sides must see the same"),
        ((np.ones((9, 4, 3), int), np.ones((9, 4, 3))), sc.DTypeError, "x: got maps of int64, expected float16"),
        (
            (torch.ones(9, 4, 3).int(), np.ones((9, 4, 3))),
            sc.DTypeError,
            "x: got maps of torch.int32, expected float16",
        ),
        ((torch.ones(9, 4, 3, device="meta"), np.ones((9, 4, 3))), sc.DeviceError, "x: got maps on meta, .* with .cpu"),
        ((np.ones((9, 4, 3)),), sc.InputError, r"expected two arrays of maps \(x, y\), or one iterable"),
        (([],), sc.InputError, "the data hold no maps"),
        (([(np.ones((9, 4, 3)),)],), sc.InputError, "batch 0: got tuple, expected a pair"),
        (
            ([(np.ones((9, 4, 3)),) * 2, (np.ones((9, 4, 2)),) * 2],),
            sc.InputError,
            r"batch 1: x: got maps of shape \(4, 2\)",
        ),
    ],
)
def test_data_that_cannot_be_used(data, error, sentence):
    with pytest.raises(error, match=sentence):
        sc.svcca_fourier(*data)


def test_maps_too_large_for_the_memory(monkeypatch):
    monkeypatch.setattr("streamcca._memory.available_memory", lambda: (1 << 20, "a limit"))
    zeros = np.broadcast_to(np.float32(0), (4, 64, 64, 64))
    with pytest.raises(sc.MemoryLimitError, match=r"a limit leaves 0.0 GiB; resize or pool the maps, or take fewer"):
        Spectra(zeros, zeros)


def test_options(rng):
    x, y = maps(rng, 30, 3, 2, (4, 4))
    with pytest.raises(sc.InputError, match="got variance and rank, expected only one"):
        sc.svcca_fourier(x, y, variance=0.9, rank=2)
    with pytest.raises(sc.InputError, match="nonfinite: got 'propagate', expected one of 'raise', 'skip'"):
        sc.svcca_fourier(x, y, nonfinite="propagate")


def test_result(rng):
    x, y = maps(rng, 100, 4, 3, (4, 6))
    r = sc.svcca_fourier(x, y, variance=0.9)
    assert r.distance == 1 - r.mean
    assert (r.n, r.channels_x, r.channels_y, r.size_x, r.size_y) == (100, 4, 3, (4, 6), (4, 6))
    assert f"SVCCA per frequency {r.mean:.6f} +- {r.error_bound:.1e} (chance {r.null_mean:.4f}), variance=0.9" in repr(
        r
    )
    assert "of 4 and" in repr(r)
    assert "at 4 x 6 frequencies, n=100" in repr(r)
    assert "\n" not in repr(r)
    plain = json.loads(json.dumps(r.to_dict(), allow_nan=False))
    np.testing.assert_array_equal(plain["per_frequency"], r.per_frequency)
    assert plain["truncation"] == {"name": "variance", "x": 0.9, "y": 0.9}
    with pytest.raises(ValueError, match="read-only"):
        r.per_frequency[0, 0] = 0


def test_pictures(rng, tmp_path):
    x, y = maps(rng, 100, 4, 3, (5, 6))
    figure, ax = sc.svcca_fourier(x, y).plot()
    figure.savefig(tmp_path / "plane.png")
    assert (tmp_path / "plane.png").stat().st_size > 5000
    image = ax.get_images()[0]
    # Zero frequency, the first in the result, lies at (0, 0) of the picture.
    left, right, low, high = image.get_extent()
    drawn = image.get_array()
    assert drawn[int(-low), int(-left)] == sc.svcca_fourier(x, y).per_frequency[0, 0]
    assert (right - left, high - low) == (6, 5)
    line = sc.svcca_fourier(x[:, :, 0], y[:, :, 0])
    _, ax = line.plot()
    index, values = ax.lines[0].get_data()
    assert values[list(index).index(0)] == line.per_frequency[0]
    with pytest.raises(sc.InputError, match="maps with three axes have no picture"):
        sc.svcca_fourier(*maps(rng, 40, 2, 2, (2, 2, 2))).plot()
