"""Maps of different size on one grid: against the definition in NumPy, alone and through hooks."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
import reference
import torch
from scipy.signal import resample
from test_watch import Recorder, check, convnet, hooks_of, pooled
from torch import nn

import streamcca as sc
from streamcca.resize import resize_maps

METHODS = ("fourier", "average", "bilinear")


def areas(old, new):
    """Adaptive average pooling: cell i covers floor(i old / new) to ceil((i + 1) old / new)."""
    matrix = np.zeros((new, old))
    for i in range(new):
        first, last = i * old // new, -(-(i + 1) * old // new)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def triangles(old, new):
    """Antialiased linear interpolation: a triangle as wide as two new cells around the middle of each."""
    middles = (np.arange(new) + 0.5) * old / new
    matrix = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - middles[:, None]) * new / old)
    return matrix / matrix.sum(axis=1, keepdims=True)


def expected(x, size, by):
    if by == "fourier":
        return reference.lowpass(x, size)
    for axis, new in enumerate(size, start=2):
        matrix = {"average": areas, "bilinear": triangles}[by](x.shape[axis], new)
        x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return x


SIZES = [
    ((8,), (4,)), ((8,), (3,)), ((9,), (6,)), ((7,), (5,)), ((5,), (1,)), ((6,), (2,)),
    ((8, 8), (4, 4)), ((9, 7), (6, 3)), ((6, 8), (6, 2)), ((7, 6), (1, 1)), ((6, 7), (4, 7)),
    ((4, 6, 5), (2, 3, 4)), ((5, 4, 6), (5, 2, 6)),
]  # fmt: skip


@pytest.mark.parametrize("by", METHODS)
@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_against_the_definition(by, old, new, rng):
    x = rng.standard_normal((3, 2, *old))
    got = resize_maps(torch.from_numpy(x), new, by)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), expected(x, new, by), atol=1e-13)
    narrow = resize_maps(torch.from_numpy(x).float(), new, by)
    assert narrow.dtype == torch.float32
    np.testing.assert_allclose(narrow.numpy(), expected(x, new, by), atol=2e-6)


@pytest.mark.parametrize(("old", "new"), [*itertools.product((6, 7, 8, 9), (1, 2, 3, 4, 5, 6))])
def test_the_low_pass_is_that_of_scipy(old, new, rng):
    x = rng.standard_normal((2, 3, old))
    got = resize_maps(torch.from_numpy(x), (new,), "fourier").numpy()
    np.testing.assert_allclose(got, resample(x, new, axis=2), atol=1e-13)


@pytest.mark.parametrize(("old", "new"), [(12, 6), (12, 5), (15, 6), (15, 7), (9, 8)])
def test_slow_waves_stay_and_fast_ones_go(old, new):
    for f in range(old // 2 + 1):
        wave = np.cos(2 * np.pi * f * np.arange(old) / old + 0.3 * (2 * f < new))
        got = resize_maps(torch.from_numpy(wave)[None, None], (new,), "fourier").numpy().ravel()
        want = np.cos(2 * np.pi * f * np.arange(new) / new + 0.3 * (2 * f < new)) if 2 * f <= new else np.zeros(new)
        np.testing.assert_allclose(got, want, atol=1e-14)


@pytest.mark.parametrize("by", METHODS)
def test_constants_and_equal_sizes(by):
    maps = torch.full((2, 3, 9, 8), 0.7)
    torch.testing.assert_close(resize_maps(maps, (4, 5), by), torch.full((2, 3, 4, 5), 0.7))
    assert resize_maps(maps, (9, 8), by) is maps
    for dtype in (torch.float16, torch.bfloat16):
        got = resize_maps(maps.to(dtype), (4, 5), by)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, torch.full((2, 3, 4, 5), float(maps.to(dtype)[0, 0, 0, 0])))


# ---------------------------------------------------------------- through hooks


def positions(x):
    return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])


def run(model, layers, batches, **options):
    plain = Recorder(model, layers)
    with sc.watch(model, layers=layers, **options) as w:
        for batch in batches:
            model(batch)
    for handle in plain.handles:
        handle.remove()
    return w, plain


# Whether float32 products of these few rows reach 1e-6 is the instruction-set level's doing.
@pytest.mark.filterwarnings("ignore:rounding may have moved:streamcca.AccuracyWarning")
@pytest.mark.parametrize("by", METHODS)
@pytest.mark.parametrize("resize", ["smallest", (3, 3), [2, 3]])
def test_maps_of_different_size_give_equal_positions(by, resize):
    model = convnet()
    w, plain = run(model, ["a", "b", "c"], torch.randn(40, 3, 6, 6).split(15), resize=resize, resize_by=by)
    size = (3, 3) if resize == "smallest" else tuple(resize)
    assert set(w.counts.values()) == {40 * size[0] * size[1]}
    assert w.rows == f"positions (resized to {size[0]} x {size[1]} by {by})"
    assert repr(w) == f"Watch(3 layers, {w.moments.rows} rows: {w.rows})"
    rows = {name: positions(expected(plain.array(name), size, by)) for name in ("a", "b", "c")}
    for name, x in rows.items():
        check(w.moments, name, x)
    r = sc.svcca(w.moments, "a", "c", rank=2)
    rho, _, _ = reference.correlations(rows["a"], rows["c"], "rank", 2)
    # The bound does not know that maps are resized in float32, but the products, too, are float32.
    assert abs(r.mean - rho.mean()) <= r.error_bound
    assert hooks_of(model) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_maps_are_resized_in_float32(dtype):
    model = convnet()[:4].to(dtype)
    w, plain = run(model, ["b", "c"], torch.randn(30, 3, 6, 6, dtype=dtype).split(8), resize="smallest")
    for name in ("b", "c"):
        check(w.moments, name, positions(expected(plain.array(name), (3, 3), "fourier")))


@pytest.mark.parametrize("by", METHODS)
def test_autocast_does_not_reach_the_resizing(by):
    model = convnet()
    plain = Recorder(model, ["b", "c"])
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        sc.watch(model, layers=["b", "c"], resize=(2, 3), resize_by=by) as w,
    ):
        for batch in torch.randn(30, 3, 6, 6).split(8):
            model(batch)
    check(w.moments, "b", positions(expected(plain.array("b"), (2, 3), by)))


def test_one_and_three_axes():
    line = nn.Sequential(
        collections.OrderedDict(a=nn.Conv1d(2, 3, 3, padding=1), down=nn.AvgPool1d(2), b=nn.Conv1d(3, 4, 3, padding=1))
    )
    w, plain = run(line, ["a", "b"], torch.randn(20, 2, 12).split(6), resize="smallest", device="cpu")
    check(w.moments, "a", positions(expected(plain.array("a"), (6,), "fourier")))
    assert w.rows == "positions (resized to 6 by fourier)"
    block = nn.Sequential(
        collections.OrderedDict(a=nn.Conv3d(1, 3, 3, padding=1), down=nn.AvgPool3d(2), b=nn.Conv3d(3, 4, 1))
    )
    w, plain = run(block, ["a", "b"], torch.randn(20, 1, 4, 6, 4).split(6), resize="smallest", resize_by="bilinear")
    check(w.moments, "a", positions(expected(plain.array("a"), (2, 3, 2), "bilinear")))
    assert w.counts["b"] == 20 * 12


class FeaturesLast(nn.Module):
    """Swin and ConvNeXt normalize maps whose features come last."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(self.norm(x.movedim(1, -1)).movedim(-1, 1))


def test_features_last():
    w, plain = run(FeaturesLast(), ["norm", "conv"], torch.randn(30, 3, 8, 6).split(8), resize="smallest")
    assert w.counts["norm"] == 30 * 4 * 3
    check(w.moments, "norm", positions(expected(np.moveaxis(plain.array("norm"), -1, 1), (4, 3), "fourier")))


def test_other_outputs_are_left_alone():
    model = convnet()
    data = torch.randn(40, 3, 6, 6)
    w, plain = run(model, ["a", "c", "fc"], data.split(15), resize="smallest")
    assert w.rows == "samples (averaged over positions, resized to 3 x 3 by fourier)"
    check(w.moments, "a", plain.array("a", pooled))  # the low-pass keeps the mean
    check(w.moments, "fc", plain.array("fc"))
    w, plain = run(model, ["a", "c"], data.split(15), resize=(2, 2), resize_by="average", rows="flatten")
    assert w.rows == "samples (flattened, resized to 2 x 2 by average)"
    check(w.moments, "a", expected(plain.array("a"), (2, 2), "average").reshape(40, -1))

    def corner(maps):
        return maps[:, :, 0, 0]

    w, plain = run(
        model, ["a", "c"], data.split(15), resize=(2, 2), resize_by="average", rows={"a": corner, "*": "pool"}
    )
    assert w.rows == (
        "rows of corner (maps resized to 2 x 2 by average) or "
        "samples (averaged over positions, resized to 2 x 2 by average)"
    )
    check(w.moments, "a", expected(plain.array("a"), (2, 2), "average")[:, :, 0, 0])
    w, _ = run(nn.Sequential(nn.Linear(4, 3)), ["0"], torch.randn(30, 4).split(8), resize="smallest")
    assert w.rows == "samples"


class Reused(nn.Module):
    """A pool that runs twice, the second time on the smallest maps of all."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        x = self.pool(self.conv(x))
        return self.last(x), self.pool(x)


def test_calls_that_do_not_count_do_not_decide_the_smallest_size():
    model = Reused()
    data = torch.randn(30, 3, 8, 8)
    with pytest.warns(sc.StreamCCAWarning, match="called more than once in a forward, hence without moments: pool"):
        with sc.watch(model, resize="smallest") as w:
            model(data)
    assert w.counts == {"conv": 480, "pool": 0, "last": 480}
    with sc.watch(model, resize="smallest", call_index=0) as w:
        model(data)
    assert w.counts == {"conv": 480, "pool": 480, "last": 480}
    with sc.watch(model, resize="smallest", call_index=-1) as w:
        model(data)
    assert w.counts == {"conv": 120, "pool": 120, "last": 120}
    with pytest.warns(sc.StreamCCAWarning, match="called more than once in a forward"):
        other = nn.Sequential(nn.Conv2d(3, 4, 1))
        r = sc.compare(other, model, data, resize="smallest", rank=1, precision="float64")
    assert r.n == 480


def test_compare_takes_the_smallest_maps_of_both_models():
    torch.manual_seed(0)
    a = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2, padding=1))
    b = nn.Sequential(nn.Conv2d(3, 4, 3, stride=(2, 4), padding=1), nn.Conv2d(4, 5, 3, padding=1))
    data = torch.randn(90, 3, 8, 8)
    with torch.no_grad():
        maps = {"a0": a[0](data), "a1": a(data), "b0": b[0](data), "b1": b(data)}
    r = sc.compare(a, b, data.split(32), resize="smallest", resize_by="average", rank=3, precision="float64")
    assert r.rows == "positions (resized to 4 x 2 by average)"
    assert r.rows in repr(r)
    assert r.n == 90 * 8
    rows = {name: positions(expected(x.numpy(), (4, 2), "average")) for name, x in maps.items()}
    for i, j in itertools.product(range(2), range(2)):
        rho, _, _ = reference.correlations(rows[f"a{i}"], rows[f"b{j}"], "rank", 3)
        assert r.matrix[i, j] == pytest.approx(rho.mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("layers", "options", "sentence"),
    [
        (["a", "c"], {"resize": (6, 6)}, r"layer 'c' has maps of 3 x 3, smaller than 6 x 6; maps only become smaller"),
        (["a", "c"], {"resize": (3,)}, r"layer 'a' has maps of 6 x 6, expected 1 spatial axes as in \(3,\)"),
    ],
)
def test_sizes_that_do_not_fit(layers, options, sentence):
    model = convnet()
    with pytest.raises(sc.LayerError, match=sentence), sc.watch(model, layers=layers, **options):
        model(torch.randn(4, 3, 6, 6))
    assert hooks_of(model) == 0


@pytest.mark.parametrize("by", METHODS)
def test_whole_numbers_are_refused_as_rows(by):
    class Labels(nn.Module):
        def forward(self, x):
            return (x > 0).long()

    with pytest.raises(sc.DTypeError, match="view '0': got dtype int64"):
        with sc.watch(nn.Sequential(Labels()), resize=(2, 2), resize_by=by, rows="positions") as w:
            w._model(torch.randn(4, 3, 6, 6))


def test_the_smallest_of_unlike_maps():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.line = nn.Conv2d(1, 2, 1), nn.Conv1d(1, 2, 1)

        def forward(self, x):
            return self.flat(x), self.line(x.flatten(2))

    with pytest.raises(sc.LayerError, match=r"maps of 3 x 3 and 9, expected as many spatial axes in all"):
        with sc.watch(Mixed(), resize="smallest") as w:
            w._model(torch.randn(4, 1, 3, 3))


@pytest.mark.parametrize("resize", ["largest", 7, (0, 3), (2.0, 3), (True, 2), (), (2, 2, 2, 2)])
def test_what_is_no_size_is_refused(resize):
    with pytest.raises(sc.InputError, match=r"resize: got .*, expected None, 'smallest', or a size for each"):
        sc.watch(convnet(), resize=resize)
    with pytest.raises(sc.InputError, match="resize_by: got 'cubic', expected one of 'fourier', 'average', 'bilinear'"):
        sc.watch(convnet(), resize_by="cubic")


# ---------------------------------------------------------------- what 'auto' says that it chose


@pytest.mark.parametrize(
    ("layers", "rows", "said"),
    [
        (["a"], "auto", "positions"),
        (["a", "b"], "auto", "positions"),
        (["a"], "pool", "samples (averaged over positions)"),
        (["a", "c"], "auto", "samples (averaged over positions)"),
        (["fc"], "auto", "samples"),
        (["a", "fc"], "auto", "samples (averaged over positions)"),
        (["a", "c"], {"a": "pool", "c": "flatten"}, "samples (averaged over positions) or samples (flattened)"),
    ],
)
def test_auto_says_what_it_chose(layers, rows, said):
    model = convnet()
    w = sc.watch(model, layers=layers, rows=rows)
    assert repr(w) == f"Watch({len(layers)} layers, no rows yet)"
    with w:
        model(torch.randn(12, 3, 6, 6))
    assert w.rows == said
    assert repr(w) == f"Watch({len(layers)} layers, {w.moments.rows} rows: {said})"
    # What is said is what was done.
    per_sample = {"positions": 36}.get(said, 1)
    assert w.moments.rows == 12 * per_sample
    data = torch.randn(60, 3, 6, 6)
    r = sc.compare(model, model, data, layers=layers, rows=rows, rank=1, precision="float64")
    assert r.rows == said
    assert said in repr(r)


def test_auto_over_positions_and_tokens():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.mix, self.head = nn.Conv2d(3, 5, 2, stride=2), nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.mix(self.patches(x).flatten(2).movedim(1, -1)).mean(1))

    w, plain = run(Both(), ["patches", "mix"], torch.randn(30, 3, 6, 6).split(8))
    assert w.rows == "samples (averaged over positions or tokens)"
    check(w.moments, "patches", plain.array("patches", pooled))
    check(w.moments, "mix", plain.array("mix", lambda x: x.mean(1)))
