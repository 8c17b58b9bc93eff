"""CKA and Procrustes: against the whole data in NumPy, by both routes, and what unrelated views score."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import streamcca as sc


def centered(x):
    x = np.asarray(x, dtype=np.float64)
    return x - x.mean(axis=0)


def cka(x, y):
    x, y = centered(x), centered(y)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def hsic(k, m):
    """Song et al. 2012, equation 5, with whole kernel matrices."""
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    trace = np.sum(k * m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (trace - 2 / (n - 2) * (one @ k) @ (m @ one)) / (n * (n - 3))


def debiased(x, y):
    k, m = (centered(v) @ centered(v).T for v in (x, y))
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def procrustes(x, y):
    x, y = (centered(v) / np.linalg.norm(centered(v)) for v in (x, y))
    return np.linalg.svd(x.T @ y, compute_uv=False).sum()


MEASURES = {
    "cka": (sc.cka, cka),
    "debiased": (lambda *data, **options: sc.cka(*data, debiased=True, **options), debiased),
    "procrustes": (sc.procrustes, procrustes),
}
ROUTES = ("covariance", "gram")


def related(rows=200, widths=(30, 45), seed=0, offset=3.0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, widths[0])) * np.arange(1, widths[0] + 1) ** -0.5
    y = x @ rng.standard_normal((widths[0], widths[1])) + 2 * rng.standard_normal((rows, widths[1]))
    return x + offset, y - offset


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("widths", [(30, 45), (300, 10)])
def test_the_whole_data(name, route, dtype, widths):
    measure, reference = MEASURES[name]
    x, y = (v.astype(dtype) for v in related(widths=widths))
    r = measure(x, y, strategy=route)
    error = abs(r.mean - reference(x, y))
    assert error <= max(r.error_bound, 1e-13)
    assert error <= (1e-12 if dtype is np.float64 and (name, route) != ("procrustes", "gram") else 1e-6)
    assert r.error_bound < (1e-6 if dtype is np.float64 else 1e-2)
    assert (r.strategy, r.n, r.width_x, r.width_y) == (route, 200, *widths)
    assert float(r) == r.mean
    assert r.distance == 1 - r.mean


@pytest.mark.parametrize("name", MEASURES)
def test_every_kind_of_data(name, tmp_path):
    measure, reference = MEASURES[name]
    x, y = related(offset=1e4)
    truth = reference(x - 1e4, y + 1e4)
    for view, rows in (("x", x), ("y", y)):
        np.save(tmp_path / f"{view}.npy", rows)
    batches = [(torch.from_numpy(x[i : i + 33]), torch.from_numpy(y[i : i + 33])) for i in range(0, 200, 33)]
    for data in ((x, y), (tmp_path / "x.npy", tmp_path / "y.npy"), (batches,), (iter(batches),)):
        for route in ROUTES:
            given_data = (iter(batches),) if not isinstance(data[0], list) and len(data) == 1 else data
            assert measure(*given_data, strategy=route).mean == pytest.approx(truth, abs=1e-9)
    assert measure(sc.gram(x, y), "x", "y").mean == pytest.approx(truth, abs=1e-9)
    if name != "debiased":
        m = sc.accumulate({"a": x, "b": y})
        assert measure(m, "a", "b").mean == pytest.approx(truth, abs=1e-9)


@given(st.integers(0, 10**6), st.sampled_from(sorted(MEASURES)), st.sampled_from(ROUTES))
def test_invariances(seed, name, route):
    measure, _ = MEASURES[name]
    rng = np.random.default_rng(seed)
    x, y = related(rows=40, widths=(6, 9), seed=seed)
    base = measure(x, y, strategy=route).mean
    turned = rng.uniform(0.1, 50) * x @ np.linalg.qr(rng.standard_normal((6, 6)))[0] + rng.standard_normal(6)
    order = rng.permutation(40)
    assert measure(turned, y, strategy=route).mean == pytest.approx(base, abs=1e-7)
    assert measure(y, x, strategy=route).mean == pytest.approx(base, abs=1e-7)
    assert measure(x[order], y[order], strategy=route).mean == pytest.approx(base, abs=1e-7)
    assert measure(x, turned, strategy=route).mean == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("n", "p", "q", "wanted"), [(100, 1000, 1000, 0.909), (256, 1096, 512, 0.735)])
def test_what_unrelated_views_score(route, n, p, q, wanted):
    """The biased value of Gaussian views, sqrt(pq / ((n + p)(n + q))), is known; the debiased one is near 0."""
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((n, p)), rng.standard_normal((n, q))
    r = sc.cka(x, y, strategy=route)
    assert r.mean == pytest.approx(wanted, abs=0.01)
    assert r.null_mean == pytest.approx(np.sqrt(p * q / ((n + p) * (n + q))), abs=0.01)
    unbiased = sc.cka(x, y, debiased=True, strategy=route)
    assert abs(unbiased.mean) < 0.03
    assert unbiased.null_mean == 0


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_chance_of_decaying_spectra(route, power):
    rng = np.random.default_rng(5)
    scales = [np.arange(1, d + 1) ** -power for d in (25, 40)]
    found, expected = {"cka": [], "procrustes": []}, {"cka": [], "procrustes": []}
    for _ in range(60):
        x, y = (rng.standard_normal((120, len(s))) * s for s in scales)
        for name in found:
            r = MEASURES[name][0](x, y, strategy=route)
            found[name].append(r.mean)
            expected[name].append(r.null_mean)
    for name, values in found.items():
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - np.mean(expected[name])) < 4 * error + 0.02 * np.mean(values)


@pytest.mark.parametrize("route", ROUTES)
def test_bounds_are_neither_too_small_nor_silly(route):
    ratios = {name: [] for name in MEASURES}
    for seed in range(25):
        x, y = (v.astype(np.float32) for v in related(rows=80, widths=(20, 60), seed=seed))
        for name, (measure, reference) in MEASURES.items():
            r = measure(x, y, strategy=route)
            ratios[name].append(r.error_bound / max(abs(r.mean - reference(x, y)), 1e-16))
    for name, values in ratios.items():
        assert min(values) >= 1, name
        # The roots of small eigenvalues make Procrustes from Gram matrices a coarse affair.
        assert np.median(values) < (1e5 if (name, route) == ("procrustes", "gram") else 1e3), name


def test_refusals():
    x, y = related()
    with pytest.raises(sc.InputError, match="give the rows themselves"):
        sc.cka(sc.accumulate({"a": x, "b": y}), "a", "b", debiased=True)
    with pytest.raises(sc.InputError, match="nonfinite: got 'skip'"):
        sc.cka(x, y, nonfinite="skip")
    for route in ROUTES:
        with pytest.raises(sc.InputError, match="expected at least 4"):
            sc.cka(x[:3], y[:3], debiased=True, strategy=route)
        with pytest.raises(sc.InputError, match="view 'y': every neuron is constant"):
            sc.cka(x, np.ones_like(y), strategy=route)
        with pytest.raises(sc.InputError, match="view 'x': every neuron is constant"):
            sc.procrustes(np.ones_like(x), y, strategy=route)
        with pytest.raises(sc.InputError, match="divides by zero"):
            sc.cka(np.eye(5), np.eye(5), debiased=True, strategy=route)


def test_results_are_plain():
    x, y = related()
    r = sc.cka(x, y)
    assert repr(r).startswith(f"cka {r.mean:.6f} +- ")
    assert set(r.to_dict()) >= {"measure", "mean", "error_bound", "null_mean", "n", "strategy"}


def test_debiased_cka_of_wide_arrays_finds_its_way(monkeypatch):
    """The route is chosen before arrays become batches, whose number of rows nobody knows."""
    x, y = related(rows=60, widths=(3000, 2000))
    monkeypatch.setattr(sys.modules[sc.plan.__module__], "available_memory", lambda: (64 << 20, "free memory"))
    r = sc.cka(x, y, debiased=True)
    assert r.strategy == "gram"
    assert r.mean == pytest.approx(debiased(x, y), abs=1e-9)
