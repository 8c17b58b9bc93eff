"""Sketches, range finders and their replays on every device, as arrays of NumPy and of CuPy."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch
from test_cuda import is_emulated
from test_sketch import assert_certified, spectrum_rows

import streamcca as sc
from streamcca.arrays import to_host
from streamcca.devices import CudaAccumulator
from streamcca.passes import PairPasses
from streamcca.sketch import Sketch
from streamcca.sketch_route import sketch_svcca
from streamcca.subspace import Rule

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning", "ignore::streamcca.SampleSizeWarning")
on_the_device = pytest.mark.parametrize("device", ["cuda"], indirect=True)
RANK = Rule("rank", 6, 6)


@pytest.fixture(autouse=True)
def _several_tiles(monkeypatch):
    monkeypatch.setattr(sys.modules["streamcca.wide"], "TILE", 48)


@pytest.fixture
def views(library):
    return tuple(library.asarray(x) for x in spectrum_rows(500, 100, 40, 0.6, noise=1e-3))


class Batches:
    """Pairs of batches that can be read again from any row on."""

    def __init__(self, views, size=70):
        self.views, self.size, self.rows = views, size, len(views[0])

    def batches(self, first):
        for row in range(first, self.rows, self.size):
            yield tuple(x[row : row + self.size] for x in self.views)

    def __iter__(self):
        return self.batches(0)


def kinds(state):
    return {type(getattr(state, name)) for name in ("_kept", "_new", "_shift", "_sums", "_squares")}


def test_a_sketch_lives_where_its_rows_are(library, views):
    sketch = Sketch(100, 12)
    for x, _ in Batches(views):
        sketch.update(x)
    assert kinds(sketch) == {type(views[0])}
    assert_certified(sketch, to_host(views[0]).astype(np.float64))
    assert all(type(x) is np.ndarray for x in (sketch.mean, sketch.variances, sketch.eigenvalues()))
    np.testing.assert_allclose(sketch.mean, to_host(views[0]).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("double", [False, True])
def test_the_same_sketch_as_on_the_cpu(device, library, views, double):
    dtype = np.float64 if double else np.float32
    here, there = Sketch(100, 12, dtype), Sketch(100, 12, dtype, device="cpu")
    for x, _ in Batches(views):
        here.update(x.astype(dtype))
        there.update(x.astype(dtype))
    assert kinds(there) == {np.ndarray}
    mine, theirs = here.eigenvalues(), there.eigenvalues()
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=(1e-13 if double else 1e-6) * theirs[0])
    np.testing.assert_allclose(here.delta, there.delta, rtol=1e-2)


def test_merged_copied_and_saved(library, views, tmp_path):
    """Also between devices; and a copy is none of the original."""
    parts = []
    for x, _ in Batches(views, 170):
        parts.append(Sketch(100, 12))
        parts[-1].update(x)
    whole, host = parts[0].copy(), Sketch(100, 12, device="cpu")
    for part in parts:
        host.merge(part)
    for part in parts[1:]:
        whole.merge(part)
    whole.save(tmp_path / "s")
    for sketch in (whole, host, pickle.loads(pickle.dumps(whole)), Sketch.load(tmp_path / "s")):
        assert sketch.n == 500
        assert_certified(sketch, to_host(views[0]).astype(np.float64))
    assert parts[0].n == 170
    assert kinds(host) == {np.ndarray}
    assert kinds(whole) == {type(views[0])}


def test_a_loaded_sketch_goes_on_to_the_same_bits(device, library, views, tmp_path):
    whole, half = Sketch(100, 12), Sketch(100, 12)
    whole.update(views[0])
    half.update(views[0][:333])
    half.save(tmp_path / "s")
    half = Sketch.load(tmp_path / "s", device)
    half.update(views[0][333:])
    state, other = (x.state_dict()["tensors"] for x in (whole, half))
    assert {k: v.tobytes() for k, v in state.items()} == {k: v.tobytes() for k, v in other.items()}


@pytest.mark.parametrize(
    "options", [{}, {"power": 1}, {"power": 2}, {"range_finder": True, "power": 1}, {"replay": False}], ids=str
)
@pytest.mark.parametrize("rows", ["arrays", "batches"])
def test_svcca_agrees_with_the_cpu(library, views, options, rows):
    data = views if rows == "arrays" else (Batches(views),)
    there = tuple(to_host(x) for x in views)
    found, _ = sketch_svcca(PairPasses(data), RANK, directions=16, **options)
    right, _ = sketch_svcca(PairPasses(there), RANK, directions=16, **options)
    assert abs(found.mean - right.mean) <= found.error_bound + right.error_bound
    if "replay" not in options:
        np.testing.assert_allclose(found.correlations, right.correlations, atol=2e-4)
    dense = sc.svcca(*there, rank=6, strategy="covariance")
    assert abs(found.mean - dense.mean) <= found.error_bound + dense.error_bound
    assert type(found.x_weights) is np.ndarray


def test_a_share_takes_more_directions(library, views, monkeypatch):
    monkeypatch.setattr(sys.modules["streamcca.sketch_result"], "_FIRST_DIRECTIONS", 6)
    found = sc.svcca(*views, variance=0.95, strategy="sketch")
    dense = sc.svcca(*(to_host(x) for x in views), variance=0.95, strategy="covariance")
    assert (found.rank_x, found.rank_y) == (dense.rank_x, dense.rank_y)
    assert abs(found.mean - dense.mean) <= found.error_bound + dense.error_bound


@pytest.mark.parametrize("options", [{"power": 1}, {"range_finder": True, "power": 1}], ids=str)
def test_a_job_that_was_broken_off_goes_on_to_the_same_bits(library, views, options, tmp_path):
    whole, _ = sketch_svcca(PairPasses((Batches(views),)), RANK, directions=16, **options)
    for stop in (2, 20):

        class Broken(Batches):
            served = 0

            def batches(self, first, stop=stop):
                for batch in super().batches(first):
                    Broken.served += 1
                    if Broken.served == stop:
                        raise KeyboardInterrupt
                    yield batch

        how = {"directions": 16, "checkpoint": tmp_path / "job", "checkpoint_seconds": 0, **options}
        with pytest.raises(KeyboardInterrupt):
            sketch_svcca(PairPasses((Broken(views),)), RANK, **how)
        again, _ = sketch_svcca(PairPasses((Batches(views),)), RANK, **how)
        assert again.correlations.tobytes() == whole.correlations.tobytes()
        assert not (tmp_path / "job").exists()


def test_bad_rows_are_refused_and_nothing_is_counted(library, views):
    sketch = Sketch(100, 12)
    sketch.update(views[0][:50])
    bad = views[0][50:90].copy()
    bad[3, 7] = float("nan")
    with pytest.raises(sc.NonFiniteError, match="row 3"):
        sketch.update(bad)
    narrow = views[0][50:90].astype(np.float16)
    narrow[2, 1] = float("inf")
    with pytest.raises(sc.NonFiniteError, match="row 2"):
        sketch.update(narrow)
    with pytest.raises(sc.InputError, match="99 neurons"):
        sketch.update(views[0][:, :99])
    assert sketch.n == 50
    sketch.update(views[0][50:])
    assert_certified(sketch, to_host(views[0]).astype(np.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors(device, library, dtype):
    x = torch.from_numpy(spectrum_rows(300, 60, 20, 0.5)[0]).to(dtype)
    sketch = Sketch(60, 10, device=device)
    sketch.update(x.cuda() if device == "cuda" and not is_emulated() else x)
    assert_certified(sketch, x.double().numpy())
    assert kinds(sketch) == {type(library.zeros(1))}


@pytest.mark.parametrize("options", [{"rank": 4}, {"rank": 4, "power": 1}, {"variance": 0.9}], ids=str)
def test_layers_agree_with_the_cpu(device, library, options, monkeypatch):
    monkeypatch.setattr(sys.modules["streamcca.sketch_result"], "_FIRST_DIRECTIONS", 6)
    torch.manual_seed(0)
    nets = [torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.Tanh(), torch.nn.Linear(40, 24)) for _ in range(2)]
    batches = list(torch.randn(250, 20).split(90))
    right = sc.compare(*nets, batches, strategy="sketch", allow_inaccurate=True, **options)
    if device == "cuda" and not is_emulated():
        nets, batches = [net.cuda() for net in nets], [x.cuda() for x in batches]
    made = []
    keep = Sketch._allocate
    monkeypatch.setattr(Sketch, "_allocate", lambda self, library: (made.append(library), keep(self, library))[1])
    found = sc.compare(*nets, batches, strategy="sketch", allow_inaccurate=True, device=device, **options)
    assert set(made) == {library}
    np.testing.assert_allclose(found.matrix, right.matrix, atol=1e-4)


@on_the_device
def test_gram_matrices_follow_their_rows(device, library, views, monkeypatch):
    made = []
    begin = CudaAccumulator.__init__

    def noted(self, *args, **options):
        made.append(self)
        begin(self, *args, **options)

    monkeypatch.setattr(CudaAccumulator, "__init__", noted)
    found = sc.svcca(*views, rank=6, strategy="gram")
    assert len(made) == 2
    right = sc.svcca(*(to_host(x) for x in views), rank=6, strategy="gram")
    assert len(made) == 2
    assert abs(found.mean - right.mean) <= found.error_bound + right.error_bound


@on_the_device
def test_a_device_without_cupy_is_said(device, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(sc.DeviceError, match="needs CuPy"):
        Sketch(10, 2, device="cuda")


@on_the_device
def test_rows_of_another_device_than_the_current_one_are_copied(device, library, views, monkeypatch):
    if not is_emulated():
        pytest.skip("one GPU")
    monkeypatch.setattr(type(library.cuda.Device()), "id", 1)
    sketch = Sketch(100, 12)
    sketch.update(views[0])
    assert kinds(sketch) == {np.ndarray}
    assert_certified(sketch, to_host(views[0]).astype(np.float64))
