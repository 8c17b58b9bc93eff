"""One set of tests for every device that moments can live on.

Where the CUDA kernels are emulated (a build with STREAMCCA_EMULATE_CUDA=ON) they run on CPU memory; where there is
neither a GPU nor the emulator those on "cuda" are skipped, or fail if STREAMCCA_REQUIRE_CUDA=1 is set.
"""

from __future__ import annotations

import copy
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch

import streamcca as sc
from streamcca import devices

U = {"float32": 2.0**-24, "float64": 2.0**-53}
# The relative error of moments that sound kernels may report: chains of a few hundred roundings, or of a few dozen cuts
# of the tensor cores, for rows that do not round alike.
MOST = {"float32": 32 * U["float32"], "float64": 16 * U["float64"]}
TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def is_emulated():
    return bool(devices._extension().EMULATED)


def rows_on(device, values, dtype="float32"):
    """Rows of a type on a device, as a torch tensor with the strides of `values`."""
    tensor = torch.from_numpy(np.asarray(values)).to(TORCH[dtype])
    return tensor.cuda() if device == "cuda" and not is_emulated() else tensor


def accumulate(device, rows, cuts=(), weights=None, **options):
    """Moments of tensors by view, given in batches that end at `cuts`."""
    m = sc.Moments({name: x.shape[1] for name, x in rows.items()}, device=device, **options)
    n = len(next(iter(rows.values())))
    ends = [*cuts, n]
    for first, last in zip([0, *cuts], ends, strict=True):
        part = None if weights is None else weights[first:last]
        m.update({name: x[first:last] for name, x in rows.items()}, weights=part)
    return m


def as_float64(x):
    return x.double().cpu().numpy()


def check_moments(m, rows, weights=None):
    """Every mean and covariance, within eight deviations of the rounding that the moments report.

    That covers products and sums; rounding the difference to the shift adds two units of each factor, and the answer
    that they are compared with is a float64 sum of n terms itself.
    """
    values = {name: as_float64(x) for name, x in rows.items()}
    unit = U[m.precision]
    raw, relative = {}, 2 * unit
    for name in values:
        if (name, name) in m.pairs:
            _, (size, _, squares) = m._covariance(name, name)
            assert size <= MOST[m.precision], (name, size)  # else a defect would excuse itself
            raw[name], relative = squares, max(relative, size)
    for a, b in m.pairs:
        exact = reference.covariance(values[a], values[b], weights)
        scale = np.sqrt(np.outer(raw[a], raw[b]))
        error = np.abs(m.covariance(a, b) - exact)
        own = 4 * np.sqrt(len(values[a])) * U["float64"]
        assert (error <= (8 * relative + 4 * unit + own) * scale + 1e-300).all(), (a, b, (error / scale).max() / unit)
    for name, x in values.items():
        w = np.ones(len(x)) if weights is None else weights
        spread = np.sqrt(raw[name]) + np.abs(x).max(0)
        np.testing.assert_array_less(np.abs(m.mean(name) - w @ x / w.sum()), 4 * unit * spread + 1e-300)


@pytest.mark.parametrize("dtype", list(TORCH))
@pytest.mark.parametrize(
    ("n", "width", "other"), [(2, 1, 3), (255, 5, 127), (256, 128, 1), (257, 129, 2), (523, 17, 131)]
)
def test_moments_agree_with_numpy(device, dtype, n, width, other, rng):
    signal = rng.standard_normal((n, 1))
    rows = {
        "a": rows_on(device, 3 + signal + 0.5 * rng.standard_normal((n, width)), dtype),
        "b": rows_on(device, np.maximum(signal + rng.standard_normal((n, other)), 0), dtype),
    }
    m = accumulate(device, rows, cuts=[n // 3])
    assert (m.n, m.rows, m.precision) == (n, n, "float64" if dtype == "float64" else "float32")
    check_moments(m, rows)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_cuts_do_not_change_a_bit(device, dtype, rng):
    rows = {name: rows_on(device, rng.standard_normal((600, d)) + 1, dtype) for name, d in (("a", 9), ("b", 4))}
    whole = accumulate(device, rows)
    for cuts in ([255, 256, 257], [17, 34, 51, 300, 555], [1, 31, 32, 33, 511, 512]):
        m = accumulate(device, rows, cuts)
        for a, b in m.pairs:
            np.testing.assert_array_equal(m.covariance(a, b), whole.covariance(a, b))
        np.testing.assert_array_equal(m.mean("a"), whole.mean("a"))


def test_reading_changes_nothing(device, rng):
    rows = {"a": rows_on(device, rng.standard_normal((700, 12)))}
    plain, read = accumulate(device, rows), sc.Moments({"a": 12}, device=device)
    for first in range(0, 700, 70):
        read.update(a=rows["a"][first : first + 70])
        assert np.isfinite(read.covariance("a")).all()
    np.testing.assert_array_equal(read.covariance("a"), plain.covariance("a"))


def test_rows_where_they_lie(device, rng):
    """Channels first, transposed, every second row or column: no copy, the same bits as of one."""
    maps = rows_on(device, rng.standard_normal((31, 11, 3, 5)))  # samples, channels, positions
    tokens = maps.flatten(2).transpose(1, 2)  # (samples, m, width), rows of channels
    copied = tokens.reshape(-1, 11).contiguous()
    sides = {"given": sc.Moments({"x": 11}, device=device), "copied": sc.Moments({"x": 11}, device=device)}
    sides["given"].update(x=tokens[:20])
    sides["given"].update(x=tokens[20:])
    sides["copied"].update(x=copied)
    np.testing.assert_array_equal(sides["given"].covariance("x"), sides["copied"].covariance("x"))

    large = rows_on(device, rng.standard_normal((80, 600)))
    for view in (large.T[:, ::3], large.T[::2, 5:], large[:, 40:47]):
        m, twin = (sc.Moments({"x": view.shape[1]}, device=device) for _ in range(2))
        m.update(x=view)
        twin.update(x=view.contiguous())
        np.testing.assert_array_equal(m.covariance("x"), twin.covariance("x"))
        check_moments(m, {"x": view})


def test_wanted_pairs_of_several_views(device, rng):
    widths = {"a": 130, "b": 3, "c": 257, "d": 1}
    shared = rng.standard_normal((300, 4))
    rows = {
        name: rows_on(device, shared @ rng.standard_normal((4, d)) + rng.standard_normal((300, d)))
        for name, d in widths.items()
    }
    pairs = [("a", "a"), ("b", "b"), ("c", "c"), ("d", "d"), ("c", "a"), ("b", "d"), ("a", "d")]
    m = accumulate(device, rows, [100], pairs=pairs)
    check_moments(m, rows)
    with pytest.raises(sc.InputError, match="was not accumulated"):
        m.covariance("b", "c")


def test_weights_count_rows(device, rng):
    x = rng.standard_normal((500, 6)) + 2
    weights = rng.integers(0, 4, 500).astype(float)
    rows = {"a": rows_on(device, x)}
    m = accumulate(device, rows, [123], weights)
    assert m.n == weights.sum()
    assert m.rows == (weights > 0).sum()
    check_moments(m, rows, weights)
    # A weight of zero is an absent row, to the bit, whatever is in it.
    ones = (weights > 0).astype(float)
    holes = x.copy()
    holes[weights == 0] = np.nan
    absent = accumulate(device, {"a": rows_on(device, holes)}, [77, 401], ones)
    present = accumulate(device, {"a": rows_on(device, x[weights > 0])})
    np.testing.assert_array_equal(absent.covariance("a"), present.covariance("a"))


@pytest.mark.parametrize(("value", "before"), [(np.nan, 0), (np.inf, 300), (-np.inf, 0), (1e30, 300)])
def test_bad_values_are_refused_and_nothing_is_counted(device, value, before, rng):
    good = {"a": rng.standard_normal((before + 600, 5)), "b": rng.standard_normal((before + 600, 3))}
    bad = {name: x[before:].copy() for name, x in good.items()}
    bad["b"][417, 1] = value
    m = sc.Moments({"a": 5, "b": 3}, device=device)
    if before:
        m.update({name: rows_on(device, x[:before]) for name, x in good.items()})
    kind = sc.NonFiniteError if not np.isfinite(value) else sc.InputError
    with pytest.raises(kind, match="view 'b', row 417"):  # a device works behind, so the read tells
        m.update({name: rows_on(device, x) for name, x in bad.items()})
        _ = m.n
    assert m.n == before
    m.update({name: rows_on(device, x[before:]) for name, x in good.items()})
    expected = accumulate(device, {name: rows_on(device, x) for name, x in good.items()})
    np.testing.assert_array_equal(m.covariance("a", "b"), expected.covariance("a", "b"))
    check_moments(m, {name: rows_on(device, x) for name, x in good.items()})


def test_bad_rows_are_skipped_in_all_views(device, rng):
    x, y = rng.standard_normal((900, 5)), rng.standard_normal((900, 3))
    bad = np.array([0, 3, 255, 256, 300, 899])
    holes = x.copy()
    holes[bad, rng.integers(0, 5, len(bad))] = [np.nan, np.inf, -np.inf, np.nan, np.inf, np.nan]
    m = accumulate(device, {"a": rows_on(device, holes), "b": rows_on(device, y)}, [10, 256, 700], nonfinite="skip")
    assert (m.rows, m.n, m.skipped) == (894, 894, 6)
    check_moments(m, {name: rows_on(device, np.delete(v, bad, axis=0)) for name, v in (("a", x), ("b", y))})
    weights = rng.integers(1, 4, 900).astype(float)
    m = accumulate(device, {"a": rows_on(device, holes)}, [10, 700], weights, nonfinite="skip")
    assert m.n == np.delete(weights, bad).sum()
    check_moments(m, {"a": rows_on(device, np.delete(x, bad, axis=0))}, np.delete(weights, bad))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bad_values_pass_on_request(device, dtype, rng):
    x = rng.standard_normal((600, 4))
    x[550, 2] = np.nan
    m = accumulate(device, {"a": rows_on(device, x, dtype)}, nonfinite="propagate")
    found = np.isnan(m.covariance("a"))
    assert found[2].all()
    assert found[:, 2].all()
    assert not np.delete(np.delete(found, 2, 0), 2, 1).any()


def test_the_same_state_on_every_device(device, rng, tmp_path):
    rows = rng.standard_normal((700, 10)) + 5
    here = accumulate(device, {"a": rows_on(device, rows[:400])})
    here.save(tmp_path / "state")
    for where in ("cpu", device):
        m = sc.Moments.load(tmp_path / "state", device=where)
        np.testing.assert_array_equal(m.mean("a"), here.mean("a"))
        np.testing.assert_allclose(m.covariance("a"), here.covariance("a"), rtol=1e-13, atol=1e-14)
        m.update(a=rows_on(where, rows[400:]))
        check_moments(m, {"a": rows_on("cpu", rows)})
    for twin in (copy.deepcopy(here), pickle.loads(pickle.dumps(here))):
        np.testing.assert_allclose(twin.covariance("a"), here.covariance("a"), rtol=1e-13, atol=1e-14)
    few = accumulate(device, {"a": rows_on(device, rows[:100])})  # the shift is still open
    few.save(tmp_path / "few")
    for where in ("cpu", device):
        m = sc.Moments.load(tmp_path / "few", device=where)
        m.update(a=rows_on(where, rows[100:]))
        check_moments(m, {"a": rows_on("cpu", rows)})


@pytest.mark.parametrize(("first", "second"), [(400, 300), (100, 600), (600, 50), (100, 100)])
def test_merges_across_devices(device, first, second, rng):
    rows = rng.standard_normal((first + second, 10)) + np.arange(10)
    for places in ((device, device), (device, "cpu"), ("cpu", device)):
        m, part = (
            accumulate(where, {"a": rows_on(where, x)})
            for where, x in zip(places, (rows[:first], rows[first:]), strict=True)
        )
        m.merge(part)
        assert m.n == first + second
        check_moments(m, {"a": rows_on("cpu", rows)})
        m.merge(sc.Moments({"a": 10}, device=places[0]))
        assert m.n == first + second


@pytest.mark.filterwarnings("ignore::streamcca.errors.AccuracyWarning")
def test_similarity_agrees_with_the_cpu(device, decaying):
    x, y = decaying(700, 60, 40)
    for dtype in ("bfloat16", "float32", "float64"):
        here, there = (
            accumulate(where, {"a": rows_on(where, x, dtype), "b": rows_on(where, y, dtype)})
            for where in (device, "cpu")
        )
        for measure in (sc.svcca, sc.cca, sc.pwcca):
            one, other = measure(here, "a", "b"), measure(there, "a", "b")
            assert (one.rank_x, one.rank_y) == (other.rank_x, other.rank_y)
            assert abs(one.mean - other.mean) <= 2 * max(one.error_bound, other.error_bound)


def test_reset_and_empty_batches(device, rng):
    m = sc.Moments({"a": 4}, device=device)
    m.update(a=rows_on(device, np.zeros((0, 4))))
    assert m.n == 0
    for n in (300, 100):
        m.update(a=rows_on(device, rng.standard_normal((n, 4)) + 7))
        m.reset()
        assert m.n == 0
    rows = {"a": rows_on(device, rng.standard_normal((400, 4)), "float64")}
    m.update(rows)
    check_moments(m, rows)


def test_shapes_types_and_names_are_refused(device, rng):
    m = sc.Moments({"a": 4, "b": 2}, device=device)
    a, b = rows_on(device, rng.standard_normal((9, 4))), rows_on(device, rng.standard_normal((9, 2)))
    for batch, kind, message in [
        ({"a": b, "b": b}, sc.InputError, "rows of width 2, expected 4"),
        ({"a": a, "b": b[:8]}, sc.InputError, "got 8 rows, expected 9"),
        ({"a": a.int(), "b": b}, sc.DTypeError, "expected float16, bfloat16"),
        ({"a": a[0], "b": b}, sc.InputError, "rows as"),
        ({"a": [[1.0] * 4], "b": b}, sc.DTypeError, "__dlpack__"),
        ({"a": a.to_sparse(), "b": b}, sc.DTypeError, "dense"),
    ]:
        with pytest.raises(kind, match=message):
            m.update(batch)
    for weights, message in (([1.0], "got 1 values for 9 rows"), ([-1.0] * 9, "weight is -1")):
        with pytest.raises(sc.InputError, match=message):
            m.update(a=a, b=b, weights=weights)
    m.update(a=a, b=b)
    with pytest.raises(sc.DTypeError, match="got float64 rows"):
        m.update(a=a.double(), b=b)
    assert m.n == 9


def test_no_device_follows_the_first_batch(device, rng):
    m = sc.Moments({"a": 4})
    m.update(a=rows_on(device, rng.standard_normal((300, 4))))
    expected = device if device == "cpu" or not is_emulated() else "cpu"  # emulated rows are in CPU memory
    assert isinstance(m._core, devices.CudaAccumulator) == (expected == "cuda")
    if expected == "cuda":
        with pytest.raises(sc.DeviceError, match="CPU memory"):
            m.update(a=rng.standard_normal((300, 4)))


@pytest.mark.parametrize(
    ("device", "kind", "message"),
    [
        ("gpu", sc.InputError, "expected None or 'cpu'"),
        ("cuda:x", sc.InputError, "cuda:1"),
        ("cuda:99", sc.DeviceError, "no CUDA kernels.*device='cpu'"),
    ],
)
def test_other_devices_are_refused(device, kind, message):
    with pytest.raises(kind, match=message):
        sc.Moments({"a": 4}, device=device)


def test_a_build_without_kernels_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "streamcca._cuda", None)
    monkeypatch.delattr(sc, "_cuda", raising=False)
    with pytest.raises(sc.DeviceError, match="device: got 'cuda'.*has no CUDA kernels; .* device='cpu'"):
        sc.Moments({"a": 4}, device="cuda")


class _Stream:
    def __init__(self, number, device="cuda:0"):
        self.cuda_stream, self.device = number, torch.device(device)


class _DeviceTensor:
    """What streamcca asks a tensor on a GPU, so that its streams can be told without one."""

    __module__ = "torch.stand_in"

    def __init__(self, device="cuda:0"):
        self.is_cuda, self.device = True, torch.device(device)
        self.readers, self.exports = [], []

    def record_stream(self, stream):
        self.readers.append(stream.cuda_stream)

    def __dlpack__(self, **options):
        self.exports.append(options["stream"])
        return "capsule"


@pytest.mark.parametrize(
    ("first", "then", "reader", "waits_for"),
    [
        ("cuda:0", "cuda:0", 7, -1),  # one stream: nobody waits
        ("cuda:1", "cuda:0", 9, 9),  # rows of two devices, of which the kernels refuse one
        ("cupy 7", "cuda:0", 7, -1),  # CuPy works on torch's stream
        ("cupy 5", "cuda:0", 5, 5),
        ("cupy 0", "cuda:0", 0, 1),  # the default stream, as DLPack numbers it
    ],
)
def test_rows_are_read_on_the_stream_of_the_first_view(monkeypatch, first, then, reader, waits_for):
    """Tensors of other streams make it wait, and torch learns who reads their memory."""
    current = {"cuda:0": _Stream(7), "cuda:1": _Stream(9, "cuda:1")}
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[str(device)])
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda number, device: _Stream(number, device))
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: _Stream(0, device))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    if first.startswith("cupy"):
        stream = SimpleNamespace(ptr=int(first[5:]))
        cupy = SimpleNamespace(cuda=SimpleNamespace(get_current_stream=lambda: stream))
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        queue = devices._Queue(type("ndarray", (), {"__module__": "cupy"})())
    else:
        queue = devices._Queue(_DeviceTensor(first))
    tensor = _DeviceTensor(then)
    assert devices._capsule(tensor, "a", queue, emulated=False) == "capsule"
    assert (tensor.readers, tensor.exports) == ([reader], [waits_for])
