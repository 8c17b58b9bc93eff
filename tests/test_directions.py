"""Variates of rows, loadings and importance of neurons, projections of layers."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import streamcca as sc
from streamcca import directions
from streamcca.directions import CanonicalProjection, project_layer, shared_directions
from streamcca.plots import plot_projections

N, DX, DY = 400, 7, 5


def views(seed=3, n=N, noise=0.7):
    """Two views with distinct correlations and large, different means; far from ill-conditioned."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, 5)) * [3, 2, 1.4, 0.9, 0.5]
    x = np.hstack([latent, np.zeros((n, DX - 5))]) + noise * rng.standard_normal((n, DX))
    y = latent + noise * rng.standard_normal((n, DY))
    mix_x, mix_y = np.linalg.qr(rng.standard_normal((DX, DX)))[0], np.linalg.qr(rng.standard_normal((DY, DY)))[0]
    return x @ mix_x * np.linspace(1, 3, DX) + 20, y @ mix_y - 7


def by(route, x, y):
    """Results of every route that keeps weights; ranks are kept by `rank` or all."""
    moments = sc.Moments({"a": x.shape[1], "b": y.shape[1]})
    moments.update(a=x, b=y)
    return {
        "svcca": lambda: sc.svcca(moments, "a", "b", rank=(4, 3)),
        "svcca all": lambda: sc.svcca(x, y, variance=1.0),
        "cca": lambda: sc.cca(x, y),
        "pwcca": lambda: sc.pwcca(x, y, side="y"),
        "qr": lambda: sc.cca(x, y, strategy="qr"),
        "qr cut": lambda: sc.svcca(x, y, rank=(4, 3), strategy="qr"),
        "sketch": lambda: sc.svcca(x, y, rank=4, strategy="sketch", directions=7, progress=False),
        "sketch once": lambda: sc.svcca(x, y, rank=4, strategy="sketch", directions=12, replay=False, progress=False),
    }[route]()


ROUTES = ["svcca", "svcca all", "cca", "pwcca", "qr", "qr cut", "sketch", "sketch once"]
# 2^-53 times the square of the condition (below 20) is 4e-14, and the shift of the moments leaves the means of 20
# deviations out of it; the rest is room for sums. The sketches hold all directions of these narrow views.
CLOSE = 1e-10


@pytest.mark.parametrize("route", ROUTES)
def test_variates_of_the_fitted_rows_have_unit_covariances_and_the_correlations(route):
    x, y = views()
    r = by(route, x, y)
    u, v = r.transform(x, y)
    m = len(r.correlations)
    assert u.shape == v.shape == (N, m)
    assert u.dtype == v.dtype == np.float64
    np.testing.assert_allclose(r.x_mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(r.y_mean, y.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(u.mean(axis=0), 0, atol=CLOSE)
    np.testing.assert_allclose(reference.covariance(u), np.eye(m), atol=CLOSE)
    np.testing.assert_allclose(reference.covariance(v), np.eye(m), atol=CLOSE)
    np.testing.assert_allclose(reference.covariance(u, v), np.diag(r.correlations), atol=CLOSE)


def test_variates_are_those_of_two_singular_value_decompositions():
    x, y = views()
    new = views(seed=4)[0][:50]
    r = sc.cca(x, y)
    ux, sx, vx = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    uy = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)[0]
    left, rho, _ = np.linalg.svd(ux.T @ uy, full_matrices=False)
    want = (new - x.mean(axis=0)) @ (vx.T / sx) @ left * np.sqrt(N - 1)
    got = r.transform(x=new)
    np.testing.assert_allclose(r.correlations, rho, atol=1e-12)
    signs = np.sign((got * want).sum(axis=0))
    np.testing.assert_allclose(got * signs, want, atol=1e-8)


def test_one_side_gives_an_array_and_two_a_pair():
    x, y = views()
    r = sc.cca(x, y)
    u, v = r.transform(x, y[:30])
    np.testing.assert_array_equal(r.transform(x), u)
    np.testing.assert_array_equal(r.transform(y=y[:30]), v)
    assert r.transform(x[:0]).shape == (0, 5)


def test_rows_of_every_kind(tmp_path, monkeypatch):
    x, y = views()
    r = sc.cca(x, y)
    want = (x - x.mean(axis=0)) @ r.x_weights
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for chunk in (1 << 20, 8 * DX * 7 + 1):  # whole, and seven rows at a time, which leaves one
        monkeypatch.setattr(directions, "_CHUNK_BYTES", chunk)
        kinds = [x, np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], mapped, tmp_path / "x.npy", torch.from_numpy(x)]
        for rows in [*kinds, torch.from_numpy(x).requires_grad_()]:
            np.testing.assert_allclose(r.transform(rows), want, atol=1e-12)
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            rows = torch.from_numpy(x).to(dtype)
            exact = rows.double().numpy()
            np.testing.assert_allclose(r.transform(rows), (exact - x.mean(axis=0)) @ r.x_weights, atol=1e-12)
        rows = x.astype(np.float16)
        np.testing.assert_allclose(r.transform(rows), (rows.astype(float) - x.mean(axis=0)) @ r.x_weights, atol=1e-12)
    np.testing.assert_array_equal(rows, x.astype(np.float16))  # the caller's rows are as they were
    assert np.isnan(r.transform(np.full((2, DX), np.nan))).all()


@given(st.integers(0, 2**32 - 1))
def test_an_affine_map_of_a_view_changes_variates_by_signs_only(seed):
    rng = np.random.default_rng(seed)
    x, y = views()
    u, sizes = np.linalg.qr(rng.standard_normal((DX, DX)))[0], np.exp(rng.uniform(-1, 1, DX))
    matrix, offset = u * sizes @ np.linalg.qr(rng.standard_normal((DX, DX)))[0], 10 * rng.standard_normal(DX)
    before, after = sc.cca(x, y), sc.cca(x @ matrix + offset, y)
    np.testing.assert_allclose(after.correlations, before.correlations, atol=1e-11)
    old, new = before.transform(x), after.transform(x @ matrix + offset)
    np.testing.assert_allclose(np.abs(old), np.abs(new), atol=1e-7)  # roundings over gaps of 0.01 and more
    assert np.diff(before.correlations).max() < -0.01


def test_float32_rows_far_from_zero_through_the_sketch():
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((600, 4))
    x, y = (
        (latent @ rng.standard_normal((4, 40)) + 0.1 * rng.standard_normal((600, 40)) + 300).astype(np.float32)
        for _ in range(2)
    )
    r = sc.svcca(x, y, rank=4, strategy="sketch", progress=False)
    u, v = r.transform(x, y)
    # The mean of float32 rows is no float32; only what is left of it along the basis keeps variates centered.
    assert np.abs(u.mean(axis=0)).max() < 1e-6
    np.testing.assert_allclose(reference.covariance(u, v), np.diag(r.correlations), atol=1e-5)


def test_what_has_no_weights_says_so():
    x, y = views(n=20)
    r = sc.svcca(x, y, rank=3, strategy="gram")
    for ask in (lambda: r.transform(x), lambda: r.loadings("x"), lambda: CanonicalProjection(r)):
        with pytest.raises(sc.InputError, match="strategy 'gram' has left no weights of the neurons of side 'x'"):
            ask()
    assert r.x_mean.shape == (0,)


def test_bad_rows_and_sides_are_refused():
    x, y = views()
    r = sc.cca(x, y)
    with pytest.raises(sc.InputError, match="neither x nor y"):
        r.transform()
    with pytest.raises(sc.InputError, match="got rows of 5 neurons for side 'x', expected 7"):
        r.transform(y)
    with pytest.raises(sc.InputError, match="two dimensions"):
        r.transform(x[0])
    with pytest.raises(sc.DTypeError, match="int64"):
        r.transform(np.zeros((3, DX), dtype=np.int64))
    with pytest.raises(sc.DTypeError, match="got list, expected an array"):
        r.transform([[1.0] * DX])
    with pytest.raises(sc.InputError, match="side"):
        r.loadings("z")


def test_means_are_left_out_of_small_dictionaries():
    r = sc.cca(*views())
    small, large = r.to_dict(), r.to_dict(weights=True)
    assert set(large) - set(small) == {"x_weights", "y_weights", "x_mean", "y_mean"}
    np.testing.assert_array_equal(json.loads(json.dumps(large))["x_mean"], r.x_mean)


@pytest.mark.parametrize("copied", [lambda r: r, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
@pytest.mark.parametrize("route", [r for r in ROUTES if r != "sketch once"])
def test_loadings_are_covariances_with_the_variates(route, copied):
    x, y = views()
    r = copied(by(route, x, y))
    u, v = r.transform(x, y)
    np.testing.assert_allclose(r.loadings("x"), reference.covariance(x, u), atol=CLOSE)
    np.testing.assert_allclose(r.loadings("y"), reference.covariance(y, v), atol=CLOSE)


def test_loadings_by_a_sketch_are_those_within_its_basis():
    rng = np.random.default_rng(2)
    scales = 0.7 ** np.arange(60)
    x, y = ((rng.standard_normal((300, 60)) * scales) @ np.linalg.qr(rng.standard_normal((60, 60)))[0] for _ in "xy")
    y[:, :30] += x[:, 30:]
    r = sc.svcca(x, y, rank=5, strategy="sketch", directions=20, power=1, progress=False)
    want, got = reference.covariance(x, r.transform(x)), r.loadings("x")
    # 0.7^20 of the spectrum lies beyond the basis, squared by the power step.
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_loadings_that_a_route_cannot_know_are_refused():
    x, y = views()
    r = sc.svcca(x, y, rank=(4, 2), strategy="sketch", directions=7, progress=False)
    np.testing.assert_allclose(r.loadings("y"), reference.covariance(y, r.transform(y=y)), atol=CLOSE)
    with pytest.raises(sc.InputError, match="side 'x' has 4 and there are 2 correlations"):
        r.loadings("x")
    with pytest.raises(sc.InputError, match="variances of the neurons of side 'y' are not known"):
        r.neuron_importance("y")
    with pytest.raises(sc.InputError, match=r"ridge of 0\.1"):
        sc.cca(x, y, ridge=0.1).loadings("x")


def explained(target, source):
    """R^2 of least squares, for each column of the target."""
    target, source = target - target.mean(axis=0), source - source.mean(axis=0)
    rest = target - source @ np.linalg.lstsq(source, target, rcond=None)[0]
    return 1 - (rest**2).sum(axis=0) / (target**2).sum(axis=0)


@pytest.mark.parametrize("route", ["svcca all", "cca", "pwcca", "qr"])
def test_importance_is_what_a_regression_on_the_other_view_explains(route):
    x, y = views()
    r = by(route, x, y)
    np.testing.assert_allclose(r.neuron_importance("x"), explained(x, y), atol=1e-11)
    np.testing.assert_allclose(r.neuron_importance("y"), explained(y, x), atol=1e-11)
    # Weighted by variances: |Qy'X|^2 / |X|^2, linear regression in Kornblith et al. 2019.
    q = reference.left_vectors(y)
    centered = x - x.mean(axis=0)
    want = np.linalg.norm(q.T @ centered) ** 2 / np.linalg.norm(centered) ** 2
    np.testing.assert_allclose(np.average(r.neuron_importance("x"), weights=x.var(axis=0)), want, atol=1e-11)


@pytest.mark.parametrize("route", ["svcca", "qr cut"])
def test_importance_after_truncation_is_what_passes_through_the_kept_directions(route):
    x, y = views()
    r = by(route, x, y)
    centered = x - x.mean(axis=0)
    ux, uy = reference.left_vectors(x, "rank", 4), reference.left_vectors(y, "rank", 3)
    left, rho, _ = np.linalg.svd(ux.T @ uy, full_matrices=False)
    h = ux @ left
    want = ((rho[:, None] * (h.T @ centered)) ** 2).sum(axis=0) / (centered**2).sum(axis=0)
    np.testing.assert_allclose(r.neuron_importance("x"), want, atol=1e-10)


def test_importance_of_copies_of_constants_and_of_noise():
    rng = np.random.default_rng(5)
    y = rng.standard_normal((3000, 3))
    x = np.column_stack([y[:, 0], -4 * y[:, 0] + 1, np.full(3000, 7.0), rng.standard_normal(3000), y[:, 1] + y[:, 2]])
    with pytest.warns(sc.StreamCCAWarning):  # a constant neuron, and a direction lost to the copy
        importance = sc.cca(x, y).neuron_importance("x")
    np.testing.assert_allclose(importance[[0, 1, 4]], 1, atol=1e-9)
    assert importance[2] == 0
    assert importance[3] < 0.01  # chance: 3 / 2999


def test_shared_directions_and_the_rows_that_drive_them():
    x, y = views()
    x[123, :5] += 300
    y[123] += 300
    r = sc.cca(x, y)
    u, v = r.transform(x, y)
    found = shared_directions(r, x, y, most=2, least=2, count=4)
    assert [d.index for d in found] == [0, 1, 3, 4]
    for d in found:
        both = (u[:, d.index] + v[:, d.index]) / 2
        assert d.correlation == r.correlations[d.index]
        np.testing.assert_array_equal(d.variates, both[d.rows])
        assert np.abs(both[d.rows]).min() >= np.sort(np.abs(both))[-4]
        assert (np.diff(np.abs(d.variates)) <= 0).all()
    assert found[0].rows[0] == 123
    assert "SharedDirection(0, correlation 0.9" in repr(found[0])
    only = shared_directions(r, y=y, most=9, least=9, count=1000)
    assert [d.index for d in only] == [0, 1, 2, 3, 4]
    assert len(only[0].rows) == N
    with pytest.raises(sc.InputError, match="400 of x and 9 of y"):
        shared_directions(r, x, y[:9])
    with pytest.raises(sc.InputError, match="most"):
        shared_directions(r, x, most=-1)


def test_results_of_a_comparison_and_of_scores_from_a_file(tmp_path):
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(6, 8), nn.Tanh()).double() for _ in range(2))
    data = torch.randn(300, 6, dtype=torch.float64)
    with torch.no_grad():
        x, y = a(data), b(data)
    loader = list(data.split(70))
    cells = [
        sc.compare(a, b, loader, ["1"], rank=4, strategy=strategy, progress=False)["1", "1"]
        for strategy in ("covariance", "replay")
    ]
    for name, model in (("a", a), ("b", b)):
        sc.subspace_scores(model, loader, ["1"], name=name, rank=4).save(tmp_path / name)
    saved = sc.compare(*(sc.SubspaceScores.load(tmp_path / name) for name in "ab"))["1", "1"]
    for r in [*cells, saved]:
        u, v = r.transform(x, y)
        np.testing.assert_allclose(reference.covariance(u, v), np.diag(r.correlations), atol=1e-9)
        np.testing.assert_allclose(r.loadings("y"), reference.covariance(y.numpy(), v), atol=1e-9)
    with pytest.raises(sc.InputError, match="variances"):
        saved.neuron_importance("x")
    assert cells[0].neuron_importance("x").shape == (8,)


# ---------------------------------------------------------------------- projections

KINDS = ["least-squares", "orthogonal"]


def matrix_of(x, r, k, kind):
    """The projection in plain NumPy, for columns of deviations."""
    w = r.x_weights[:, :k]
    if kind == "orthogonal":
        return w @ np.linalg.inv(w.T @ w) @ w.T
    s = reference.covariance(x)
    return s @ w @ np.linalg.inv(w.T @ s @ w) @ w.T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_projection_is_the_formula_keeps_its_variates_and_is_one(kind, k):
    x, y = views()
    r = sc.cca(x, y)
    project = CanonicalProjection(r, "x", k, kind=kind)
    rows = torch.from_numpy(views(seed=8)[0])
    got = project(rows).numpy()
    mean = x.mean(axis=0)
    np.testing.assert_allclose(got, mean + (rows.numpy() - mean) @ matrix_of(x, r, k, kind).T, atol=1e-10)
    np.testing.assert_allclose(r.transform(got)[:, :k], r.transform(rows)[:, :k], atol=1e-10)
    np.testing.assert_allclose(project(torch.from_numpy(got)).numpy(), got, atol=1e-10)
    assert np.linalg.matrix_rank(got - mean) == k
    assert list(project.parameters()) == []
    assert "width=7" in repr(project)
    assert f"directions={k}" in repr(project)


def test_least_squares_is_the_best_copy_and_orthogonal_the_least_norm():
    x, y = views()
    r = sc.cca(x, y)
    mean = x.mean(axis=0)
    u = r.transform(x)[:, :2]
    best = mean + u @ np.linalg.lstsq(u, x - mean, rcond=None)[0]
    got = {kind: CanonicalProjection(r, "x", 2, kind=kind)(torch.from_numpy(x)).numpy() for kind in KINDS}
    np.testing.assert_allclose(got["least-squares"], best, atol=1e-9)
    # Nearest to the mean among all rows with these variates: the solution of least norm.
    smallest = mean + np.linalg.lstsq(r.x_weights[:, :2].T, u.T, rcond=None)[0].T
    np.testing.assert_allclose(got["orthogonal"], smallest, atol=1e-9)
    assert ((x - got["least-squares"]) ** 2).sum() < 0.99 * ((x - got["orthogonal"]) ** 2).sum()


def test_least_squares_commutes_with_the_units_of_neurons():
    x, y = views()
    units = np.array([1e-3, 5, 1, 40, 0.2, 7, 300])
    for kind, same in (("least-squares", True), ("orthogonal", False)):
        plain = CanonicalProjection(sc.cca(x, y), "x", 2, kind=kind)(torch.from_numpy(x)).numpy()
        scaled = CanonicalProjection(sc.cca(x * units, y), "x", 2, kind=kind)(torch.from_numpy(x * units)).numpy()
        assert np.allclose(scaled / units, plain, atol=1e-7) == same


def test_side_y():
    x, y = views()
    r = sc.cca(x, y)
    got = CanonicalProjection(r, "y", 5)(torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(got, y, atol=1e-10)  # as many as there are neurons


def test_outputs_of_every_layout():
    r = sc.cca(*views())
    project = CanonicalProjection(r, "x", 2)
    rows = torch.from_numpy(views(seed=9)[0][:24])
    want = project(rows)
    assert torch.equal(project(rows.reshape(2, 12, DX)), want.reshape(2, 12, DX))
    maps = rows.reshape(2, 3, 4, DX).movedim(-1, 1)
    assert torch.equal(project(maps), want.reshape(2, 3, 4, DX).movedim(-1, 1))
    volumes = rows.reshape(2, 3, 2, 2, DX).movedim(-1, 1)
    assert torch.equal(project(volumes), want.reshape(2, 3, 2, 2, DX).movedim(-1, 1))
    signals = rows.reshape(2, 12, DX).movedim(-1, 1)
    with pytest.raises(sc.InputError, match=r"shape \(2, 7, 12\), expected 7 neurons on axis -1"):
        project(signals)
    assert torch.equal(CanonicalProjection(r, "x", 2, axis=1)(signals), want.reshape(2, 12, DX).movedim(-1, 1))
    last = CanonicalProjection(r, "x", 2, axis=-1)
    assert torch.equal(last(rows.reshape(2, 3, 4, DX)), want.reshape(2, 3, 4, DX))
    assert torch.equal(last(rows), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_output_type_is_that_of_the_input(dtype):
    x, y = views()
    r = sc.cca(x, y)
    project = CanonicalProjection(r, "x", 3)
    rows = torch.from_numpy(x).to(dtype)
    exact = project(rows.double())
    for module in (project, copy.deepcopy(project).float()):
        got = module(rows)
        assert got.dtype == dtype
        # One rounding of the result (at most 64), and the products in float32 where the rows are narrower.
        unit = torch.finfo(dtype).eps if module is project else max(torch.finfo(dtype).eps, 2.0**-23)
        assert (got.double() - exact).abs().max() <= 64 * 8 * unit
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = project(rows)
    assert torch.equal(got, project(rows))
    with pytest.raises(sc.DTypeError, match=r"torch\.int64"):
        project(torch.zeros(3, DX, dtype=torch.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_transposed_projection(kind):
    x, y = views()
    r = sc.cca(x, y)
    project = CanonicalProjection(r, "x", 2, kind=kind)
    rows = torch.from_numpy(x[:6]).requires_grad_()
    upstream = torch.from_numpy(np.random.default_rng(0).standard_normal((6, DX)))
    project(rows).backward(upstream)
    want = upstream.numpy() @ matrix_of(x, r, 2, kind)
    np.testing.assert_allclose(rows.grad.numpy(), want, atol=1e-10)


def test_state_and_copies():
    x, y = views()
    r = sc.cca(x, y)
    project = CanonicalProjection(r, "x", 2)
    rows = torch.from_numpy(x)
    other = CanonicalProjection(r, "x", 2, kind="orthogonal")
    assert not torch.equal(other(rows), project(rows))
    other.load_state_dict(project.state_dict())
    assert set(project.state_dict()) == {"mean", "encoder", "decoder"}
    for twin in (other, copy.deepcopy(project), pickle.loads(pickle.dumps(project))):
        assert torch.equal(twin(rows), project(rows))
    assert project.to("meta").mean.device.type == "meta"
    assert copy.deepcopy(other).float().encoder.dtype == torch.float32


def test_what_cannot_be_projected_is_refused():
    r = sc.cca(*views())
    for k in (0, 6, 2.0, True):
        with pytest.raises(sc.InputError, match="directions: got"):
            CanonicalProjection(r, "x", k)
    with pytest.raises(sc.InputError, match="kind: got"):
        CanonicalProjection(r, kind="skew")
    with pytest.raises(sc.InputError, match="axis: got 0"):
        CanonicalProjection(r, axis=0)
    with pytest.raises(sc.InputError, match=r"shape \(3, 5\), expected 7 neurons"):
        CanonicalProjection(r)(torch.zeros(3, 5))


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, DX), nn.Tanh(), nn.Linear(DX, 3)).double()


def test_a_layer_is_projected_inside_the_block_only():
    model, project = net(), CanonicalProjection(sc.cca(*views()), "x", 2)
    data = torch.randn(5, 4, dtype=torch.float64)
    before = model(data)
    want = model[2](project(model[1](model[0](data))))
    with project_layer(model, "1", project) as nothing:
        assert nothing is None
        assert torch.equal(model(data), want)
        model(data).sum().backward()
        twin, thawed = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        shallow = copy.copy(model[1])
        assert torch.equal(shallow(model[0](data)), torch.tanh(model[0](data)))
    assert torch.equal(model(data), before)
    assert torch.equal(twin(data), before)
    assert torch.equal(thawed(data), before)
    assert model[0].weight.grad is not None
    with pytest.raises(RuntimeError, match="inside"), project_layer(model, "1", project):
        raise RuntimeError("inside")
    with pytest.raises(sc.InputError, match="expected 7 neurons"), project_layer(model, "2", project):
        model(data)
    assert torch.equal(model(data), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_projection_takes_the_axis_that_the_layer_tells():
    x, y = views()
    project = CanonicalProjection(sc.cca(x, y), "x", 2)
    rows = torch.from_numpy(x[:24])
    convolution = nn.Sequential(nn.Conv1d(DX, DX, 1, bias=False)).double()
    nn.init.eye_(convolution[0].weight[:, :, 0].detach())
    with torch.no_grad():
        convolution[0].weight[:, :, 0] = torch.eye(DX)
    signals = rows.reshape(2, 12, DX).movedim(-1, 1)
    with project_layer(convolution, "0", project), torch.no_grad():
        got = convolution(signals)
    assert torch.allclose(got, project(rows).reshape(2, 12, DX).movedim(-1, 1), atol=1e-12)


class Block(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return {"tuple": (x, "attention"), "dict": {"x": x}, "number": 3}[self.kind]


def test_outputs_that_are_no_tensor():
    model = nn.Sequential(Block("tuple"))
    with project_layer(model, "0", lambda x: x + 1):
        got = model(torch.zeros(2))
    assert torch.equal(got[0], torch.ones(2))
    assert got[1] == "attention"
    for kind in ("dict", "number"):
        model = nn.Sequential(Block(kind))
        with pytest.raises(sc.LayerError, match="layer '0' returned a"), project_layer(model, "0", lambda x: x):
            model(torch.zeros(2))


def test_layers_that_cannot_be_meant_are_refused():
    model = net()
    for layer, message in (("*", "names 3 layers"), ("7", "no layer '7'")):
        with pytest.raises(sc.LayerError, match=message), project_layer(model, layer, lambda x: x):
            raise AssertionError
    with pytest.raises(sc.InputError, match="expected a CanonicalProjection"), project_layer(model, "0", 3):
        raise AssertionError
    assert not any(module._forward_hooks for module in model.modules())


def test_compiled_models_are_projected_too():
    model, project = net(), CanonicalProjection(sc.cca(*views()), "x", 2)
    data = torch.randn(5, 4, dtype=torch.float64)
    compiled = torch.compile(model, backend="eager")
    before = compiled(data)
    with project_layer(compiled, "1", project):
        assert torch.allclose(compiled(data), model[2](project(model[1](model[0](data)))), atol=1e-12)
    assert torch.equal(compiled(data), before)


# ---------------------------------------------------------------------- the example


def test_the_example_finds_that_few_directions_are_enough(tmp_path, capsys):
    path = Path(__file__).parent.parent / "examples/compression.py"
    spec = importlib.util.spec_from_file_location("compression", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.DRAWS = 2
    found = example.run(tmp_path / "p.png", width=20, epochs=8)
    assert (tmp_path / "p.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "within 1 point" in out
    whole = found["random"][1][-1]  # all 20: nothing is lost
    assert whole > 0.7
    assert found["random, orthogonal"][1][-1] == pytest.approx(whole, abs=0.01)
    for name in ("own logits (CCA)", "principal"):
        ks, means = found[name]
        assert ks[0] == 1
        assert means[9] > whole - 0.03
        assert means[0] < 0.5
    assert found["own logits (CCA)"][0][-1] == 10


def test_plot_of_projections():
    figure, ax = plot_projections({"a": ([1, 2, 4], [0.1, 0.5, 0.9]), "a, skew": ([1, 2], [0.1, 0.4])}, full=0.95)
    solid, dashed = ax.get_lines()[:2]
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert solid.get_color() == dashed.get_color()
    np.testing.assert_array_equal(solid.get_ydata(), [0.1, 0.5, 0.9])
    assert figure is ax.figure
