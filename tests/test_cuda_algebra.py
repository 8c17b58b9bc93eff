"""Decompositions where the moments live: truncation and CCA of covariances that stay on a device."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from test_cuda import is_emulated, rows_on

import streamcca as sc
from streamcca.device_algebra import DeviceCross, DeviceSymmetric, cross_operand, decomposed_there
from streamcca.devices import CudaAccumulator

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning", "ignore::streamcca.StreamCCAWarning")
on_the_device = pytest.mark.parametrize("device", ["cuda"], indirect=True)
ROWS = 600


@pytest.fixture
def views(decaying):
    return decaying(ROWS, 40, 30)


def moments_of(device, views, rows=ROWS, **options):
    m = sc.Moments({"a": views[0].shape[1], "b": views[1].shape[1]}, device=device, **options)
    a, b = (rows_on(device, x[:rows], "float64") for x in views)
    m.update(a=a, b=b)
    return m


@pytest.fixture
def no_copies(device, library, monkeypatch):
    """Moments that are copied to the CPU as a whole are a failure."""
    if device == "cuda":
        monkeypatch.setattr(CudaAccumulator, "_host", lambda _: pytest.fail("the moments were copied to the CPU"))


CASES = {
    "svcca variance": lambda m: sc.svcca(m, variance=0.9),
    "svcca nuclear": lambda m: sc.svcca(m, nuclear=0.8),
    "svcca rank": lambda m: sc.svcca(m, rank=(7, 5)),
    "svcca everything": lambda m: sc.svcca(m, variance=1.0),
    "cca": lambda m: sc.cca(m, "a", "b"),
    "cca turned": lambda m: sc.cca(m, "b", "a"),
    "cca with a ridge": lambda m: sc.cca(m, ridge=1e-3),
    "svcca with a ridge": lambda m: sc.svcca(m, rank=6, ridge=1e-2),
    "pwcca": lambda m: sc.pwcca(m, rank=8),
    "pwcca of y": lambda m: sc.pwcca(m, side="y"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_that_of_the_cpu(device, library, views, case, no_copies):
    m = moments_of(device, views)
    assert decomposed_there(m) is (None if device == "cpu" else library)
    found, right = CASES[case](m), CASES[case](moments_of("cpu", views))
    assert (found.rank_x, found.rank_y) == (right.rank_x, right.rank_y)
    assert found.numerical_rank_x == right.numerical_rank_x
    assert abs(found.mean - right.mean) <= found.error_bound + right.error_bound
    within = found.correlation_error_bounds + right.correlation_error_bounds
    assert (np.abs(found.correlations - right.correlations) <= within).all()
    assert found.error_bound == pytest.approx(right.error_bound, rel=0.5, abs=1e-13)
    np.testing.assert_allclose(found.correlation_error_bounds, right.correlation_error_bounds, rtol=0.5, atol=1e-13)
    for mine, theirs in ((found.x_weights, right.x_weights), (found.x_mean, right.x_mean)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7 * np.abs(theirs).max())


@pytest.mark.parametrize("rule", [{"variance": 0.99}, {"rank": 12}], ids=str)
def test_leading_directions_of_a_wide_view(device, library, rng, rule, no_copies, monkeypatch):
    """Wide enough for Lanczos: no whole decomposition, and a certificate that no direction was missed."""
    scale = np.arange(1, 521.0) ** -2
    x = rng.standard_normal((ROWS, 520)) * scale @ np.linalg.qr(rng.standard_normal((520, 520)))[0] + 1
    m = sc.Moments({"a": 520}, device=device, precision="float64")
    m.update(a=rows_on(device, x, "float64"))
    asked = []
    for name in ("decompose", "none_above"):
        whole = getattr(DeviceSymmetric, name)
        monkeypatch.setattr(
            DeviceSymmetric,
            name,
            lambda self, *args, name=name, whole=whole: (asked.append(name), whole(self, *args))[1],
        )
    found = sc.truncate(m, **rule)
    assert asked == ([] if device == "cpu" else ["none_above"])
    values, vectors = np.linalg.eigh(np.cov(x.T))
    k = found.rank
    assert k == (12 if "rank" in rule else np.argmax(np.cumsum(values[::-1]) >= 0.99 * values.sum()) + 1)
    np.testing.assert_allclose(found.singular_values**2 / (ROWS - 1), values[::-1][:k], rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(found.vectors * vectors[:, ::-1][:, :k], axis=0)), 1, rtol=1e-9)


@on_the_device
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("rows", [300, 512, ROWS])
def test_rounding_and_means_are_those_of_the_whole_state(device, views, precision, rows):
    m = moments_of(device, views, rows, precision=precision)
    host = m._cpu_core()
    for view, name in enumerate("ab"):
        relative, unit, raw = m._core.uncertainty(m._pair_of(name, name)[0], 1.0)
        _, (right, right_unit, right_raw) = host.covariance(m._pair_of(name, name)[0], 1.0)
        assert (relative, unit) == (pytest.approx(right, rel=1e-9), right_unit)
        np.testing.assert_allclose(raw, right_raw, rtol=1e-12)
        np.testing.assert_allclose(m._core.mean(view), host.mean(view), rtol=1e-13)


def test_few_rows_are_decomposed_on_the_cpu(device, library, views):
    """Until the shift is fixed there is nothing on the device."""
    m = moments_of(device, views, 200)
    assert decomposed_there(m) is None
    found, right = sc.svcca(m, rank=5), sc.svcca(moments_of("cpu", views, 200), rank=5)
    np.testing.assert_allclose(found.correlations, right.correlations, atol=1e-10)


@on_the_device
def test_without_cupy_moments_are_copied(device, views, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    m = moments_of(device, views)
    assert decomposed_there(m) is None
    found, right = sc.svcca(m, rank=5), sc.svcca(moments_of("cpu", views), rank=5)
    np.testing.assert_allclose(found.correlations, right.correlations, atol=1e-10)


@pytest.mark.parametrize("case", ["constant", "not finite", "dead neurons", "rank too high"])
def test_awkward_views(device, library, views, case):
    a, b = (x.copy() for x in views)
    options, how = {}, {"rank": 5}
    if case == "constant":
        a[:] = 3
    if case == "dead neurons":
        a[:, 3], b[:, 0], how = 2, 0, {"variance": 1.0}
    if case == "not finite":
        a[7, 2], options = np.nan, {"nonfinite": "propagate"}
    if case == "rank too high":
        a[:, 3:] = a[:, :1]
    m = moments_of(device, (a, b), **options)
    if case == "dead neurons":
        found, right = sc.cca(m), sc.cca(moments_of("cpu", (a, b)))
        np.testing.assert_allclose(found.correlations, right.correlations, atol=1e-9)
        assert (found.rank_x, found.rank_y) == (39, 29)
        assert not found.x_weights[3].any()
        assert sc.svcca(m, **how).rank_x == 39
        return
    with pytest.raises(sc.InputError, match=r"view 'a': (every neuron is constant|the moments are not finite|rank 5)"):
        sc.svcca(m, **how)


@on_the_device
def test_operands(library, rng):
    x = rng.standard_normal((30, 12))
    c, cross = x.T @ x, rng.standard_normal((12, 7))
    values, vectors = np.linalg.eigh(c)
    values, vectors = values[::-1], vectors[:, ::-1]
    operand = DeviceSymmetric(library.asarray(c), library)
    root = vectors[:, :3] * np.sqrt(values[:3])
    assert operand.none_above(root, values[3] * 1.001)
    assert not operand.none_above(root, values[3] * 0.999)
    assert operand.sum_of_squares() == pytest.approx((c**2).sum())
    np.testing.assert_allclose(operand.multiply(cross), c @ cross)
    live, scale = np.ones(12), np.sqrt(c.diagonal())
    live[4] = scale[4] = 0
    operand.prepare(live, 0.5, scale)
    keep = live > 0
    expected = (c[np.ix_(keep, keep)] + 0.5 * np.eye(11)) / np.outer(scale[keep], scale[keep])
    np.testing.assert_allclose(operand.decompose()[:11], np.linalg.eigvalsh(expected)[::-1], rtol=1e-12)
    found, leading = operand.leading(2)
    np.testing.assert_allclose(np.abs(leading[keep].T @ np.linalg.eigh(expected)[1][:, [-1, -2]]), np.eye(2), atol=1e-9)
    assert len(found) == 2
    across = DeviceCross(library.asarray(cross), library)
    np.testing.assert_allclose(across.multiply_transposed(c), cross.T @ c)
    across.scale(np.arange(12.0), np.arange(7.0))
    scaled = np.arange(12.0)[:, None] * cross * np.arange(7.0)
    np.testing.assert_allclose(across.project(c[:, :2], np.eye(7)[:, :3]), c[:, :2].T @ scaled[:, :3])
    assert across.shape == (12, 7)


@on_the_device
def test_a_failed_callback_is_raised(device, library, views, monkeypatch):
    """An exception of CuPy passes through the native solver."""
    m = moments_of(device, views)
    monkeypatch.setattr(DeviceSymmetric, "decompose", lambda _: (_ for _ in ()).throw(MemoryError("device")))
    with pytest.raises(MemoryError, match="device"):
        sc.svcca(m, nuclear=0.9)
    monkeypatch.undo()


def test_layers(device, library, no_copies):
    torch.manual_seed(0)
    nets = [torch.nn.Sequential(torch.nn.Linear(20, 12), torch.nn.Tanh(), torch.nn.Linear(12, 8)) for _ in range(2)]
    batches = list(torch.randn(400, 20).split(90))
    right = sc.compare(*nets, batches, rank=4)
    if device == "cuda" and not is_emulated():
        nets, batches = [net.cuda() for net in nets], [x.cuda() for x in batches]
    found = sc.compare(*nets, batches, rank=4, device=device)
    np.testing.assert_allclose(found.matrix, right.matrix, atol=1e-5)
    assert (found.error_bounds < 1e-4).all()


@on_the_device
def test_cross_operands_keep_their_memory(device, library, views):
    """The moments may change, or go, while variates that were found of them wait for their bounds."""
    m = moments_of(device, views)
    operand = cross_operand(m, "a", "b")
    expected = m.covariance("a", "b")
    m.reset()
    np.testing.assert_allclose(operand.multiply(np.eye(30)), expected, atol=1e-12)


@on_the_device
def test_the_benchmark_runs(device, library):
    """Small shapes; its answers are checked by itself, its times mean nothing here."""
    from benchmarks import cuda

    results = list(cuda.run_cuda(quick=True, rounds=1))
    assert len(results) == 9
    bars = [bar for result in results for bar in result["bars"]]
    assert all(np.isfinite(bar["measured"]) for bar in bars)
    assert len(bars) >= 10
    assert "ResNet-50" in cuda.format_cuda(results[-1])
