"""Triangular factors on every device, as arrays of NumPy and of CuPy."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch
from test_cuda import is_emulated

import streamcca as sc
from streamcca import qr_blocks
from streamcca.qr import QRMoments

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning", "ignore::streamcca.SampleSizeWarning")
on_the_device = pytest.mark.parametrize("device", ["cuda"], indirect=True)
ROWS = 700


@pytest.fixture(autouse=True)
def _shallow_blocks(monkeypatch):
    """Several blocks on a device, too, of a depth of its own."""
    monkeypatch.setattr(qr_blocks, "block_depth", depth)
    monkeypatch.setattr(sys.modules["streamcca.qr_state"], "block_depth", depth)


def depth(width, on_device=False):
    return 96 if on_device else 128


@pytest.fixture
def views(rng, library):
    x = rng.standard_normal((ROWS, 9)) * 10.0 ** -np.arange(9) + 3
    y = x[:, :5] + 0.3 * rng.standard_normal((ROWS, 5)) * 10.0 ** -np.arange(5)
    return library.asarray(x), library.asarray(y)


def host(array):
    return array if isinstance(array, np.ndarray) else array.get()


def fed(views, cuts=(), weights=None, **options):
    m = QRMoments({"x": views[0].shape[-1], "y": views[1].shape[-1]}, **options)
    ends = [*cuts, len(views[0])]
    for first, last in zip([0, *cuts], ends, strict=True):
        x, y = (view[first:last] for view in views)
        m.update(x=x, y=y, weights=None if weights is None else weights[first:last])
    return m


def kind(m):
    return {type(array) for array in (m._state.pending, m._state.roots, m._state.factor) if array is not None}


def assert_right(m, views, weights=None):
    x = np.hstack([host(v).astype(np.float64) for v in views])
    w = np.ones(len(x)) if weights is None else weights
    mean = w @ x / w.sum()
    joint = (x - mean).T @ ((x - mean) * w[:, None])
    scale = np.sqrt(np.outer(joint.diagonal(), joint.diagonal()))
    factor = m.factor()
    assert type(factor.centered) is np.ndarray
    np.testing.assert_allclose(factor.mean, mean, rtol=1e-14, atol=1e-14)
    assert (np.abs(factor.centered.T @ factor.centered - joint) <= 1e-13 * scale).all()
    assert m.n == w.sum()


@pytest.mark.parametrize("rows", [1, 2, 60, 95, 96, 97, 500, ROWS])
def test_a_factor_lives_where_its_rows_are(views, rows):
    some = [x[:rows] for x in views]
    m = fed(some)
    assert kind(m) == {type(views[0])}
    assert_right(m, some)


def test_any_cut_gives_the_same_bits(views):
    whole = fed(views).state_dict()["tensors"]
    for cuts in ((1, 2, 96, 97, 300), (350,), tuple(range(50, ROWS, 50))):
        other = fed(views, cuts).state_dict()["tensors"]
        assert {k: v.tobytes() for k, v in whole.items()} == {k: v.tobytes() for k, v in other.items()}


def test_weights_and_skipped_rows(views, rng, library):
    weights = rng.integers(0, 4, ROWS).astype(float)
    assert_right(fed(views, (100, 333), weights), views, weights)
    bad = views[0].copy()
    bad[50, 1] = float("nan")
    bad[600, 2] = float("inf")
    m = fed((bad, views[1]), (100,), nonfinite="skip")
    good = np.delete(np.arange(ROWS), [50, 600])
    assert m.skipped == 2
    assert_right(m, [host(v)[good] for v in views])
    strict = fed([v[:90] for v in views])
    with pytest.raises(sc.NonFiniteError, match="row 10"):
        strict.update(x=bad[40:90], y=views[1][40:90])
    strict.update(x=views[0][90:], y=views[1][90:])
    assert_right(strict, views)


def test_positions_of_maps(views, library):
    three = [v.reshape(ROWS // 7, 7, -1) for v in views]
    assert_right(fed(three), views)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors(device, library, rng, dtype):
    x = torch.from_numpy(rng.standard_normal((300, 6))).to(dtype)
    there = x.cuda() if device == "cuda" and not is_emulated() else x
    m = fed((there, there[:, 1:]), (100,), device=device)
    assert kind(m) == {type(library.zeros(1))}
    assert_right(m, (x.double().numpy(), x[:, 1:].double().numpy()))
    assert m.factor().row_unit == {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}[dtype]


def test_merged_copied_and_saved(device, views, tmp_path):
    """Between devices, whose blocks have other depths; loaded on the same one it goes on to the same bits."""
    first, second = fed([v[:333] for v in views]), fed([v[333:] for v in views])
    here, there = QRMoments({"x": 9, "y": 5}), QRMoments({"x": 9, "y": 5}, device="cpu")
    for part in (first, second):
        here.merge(part)
        there.merge(part)
    first.save(tmp_path / "m")
    for where in ("cpu", device):
        loaded = QRMoments.load(tmp_path / "m", where)
        if where == device:
            loaded.update(x=views[0][333:], y=views[1][333:])
            found, whole = (m.state_dict()["tensors"] for m in (loaded, fed(views)))
            assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in whole.items()}
        else:
            loaded.update(x=host(views[0][333:]), y=host(views[1][333:]))
        assert_right(loaded, views)
    for m in (here, there, here.copy(), pickle.loads(pickle.dumps(here))):
        assert_right(m, views)
    assert kind(there) == {np.ndarray}
    assert kind(here) == kind(here.copy()) == {type(views[0])}
    assert first.rows == 333


def test_correlations_agree_with_the_cpu(views):
    found = sc.cca(*views, strategy="qr")
    right = sc.cca(*(host(v) for v in views), strategy="qr")
    assert (np.abs(found.correlations - right.correlations) <= 2 * right.correlation_error_bounds).all()
    np.testing.assert_allclose(found.correlation_error_bounds, right.correlation_error_bounds, rtol=0.5)
    assert found.strategy == "qr"


def test_layers_agree_with_the_cpu(device, library):
    torch.manual_seed(0)
    nets = [torch.nn.Sequential(torch.nn.Linear(20, 12), torch.nn.Tanh(), torch.nn.Linear(12, 8)) for _ in range(2)]
    batches = list(torch.randn(400, 20).split(90))
    right = sc.compare(*nets, batches, strategy="qr")
    if device == "cuda" and not is_emulated():
        nets, batches = [net.cuda() for net in nets], [x.cuda() for x in batches]
    found = sc.compare(*nets, batches, strategy="qr", device=device)
    # A GPU's layers are others' already.
    np.testing.assert_allclose(found.matrix, right.matrix, atol=1e-12 if device == "cpu" or is_emulated() else 1e-5)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_job_that_was_broken_off_goes_on(views, stop, tmp_path):
    """The file is read on the CPU; the rows that follow decide where it goes on."""

    class Batches:
        rows, served = ROWS, 0

        def batches(self, first):
            for row in range(first, ROWS, 100):
                self.served += 1
                if self.served == stop:
                    raise KeyboardInterrupt
                yield tuple(x[row : row + 100] for x in views)

        def __iter__(self):
            return self.batches(0)

    keep = sys.modules["streamcca.checkpoint"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keep, "SECONDS", 0)
        sc.cca(Batches(), strategy="qr", folder=tmp_path / "job")
    stop = 0
    found = sc.cca(Batches(), strategy="qr", folder=tmp_path / "job")
    whole = sc.cca(*views, strategy="qr")
    assert found.correlations.tobytes() == whole.correlations.tobytes()


@on_the_device
def test_a_factor_that_does_not_fit_on_the_device(device, library, views, monkeypatch):
    if not is_emulated():
        pytest.skip("a GPU's memory is what it is")
    monkeypatch.setattr(type(library.cuda.Device()), "mem_info", (1 << 16, 1 << 33))
    with pytest.raises(sc.MemoryLimitError, match=r"on cuda:0, of which 0\.1 MiB are free"):
        QRMoments({"x": 9, "y": 5}, device="cuda")


@on_the_device
def test_a_device_that_is_not_the_current_one(device):
    with pytest.raises(sc.DeviceError, match=r"cuda:1"):
        QRMoments({"x": 9}, device="cuda:1")
