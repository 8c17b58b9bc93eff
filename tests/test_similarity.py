"""Every measure by name: against plain NumPy on all rows, what it declares, how measures hang together, slopes."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

import streamcca as sc
from streamcca.similarity.form import CANONICAL, Former

N = 300


def centered(x):
    return np.asarray(x, np.float64) - np.mean(x, axis=0, dtype=np.float64)


def scores(x, share=None):
    """Left singular vectors: all, or as many as hold a share of the variance."""
    u, s, _ = np.linalg.svd(centered(x), full_matrices=False)
    k = int((s > 1e-10 * s[0]).sum())
    if share is not None:
        k = int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), share - 1e-12) + 1)
    return u[:, :k]


def rhos(x, y, share=None):
    return np.linalg.svd(scores(x, share).T @ scores(y, share), compute_uv=False)


def weighted(x, y, own):
    u, rho, v = np.linalg.svd(scores(x).T @ scores(y), full_matrices=False)
    variates = scores(x) @ u if own == "x" else scores(y) @ v.T
    alpha = np.abs(variates.T @ centered(x if own == "x" else y)).sum(axis=1)
    return float(rho @ alpha / alpha.sum())


def align(k, m):
    return float(np.sum(k * m) / np.linalg.norm(k) / np.linalg.norm(m))


def gram(x):
    return centered(x) @ centered(x).T


def hsic(k, m):
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    trace = np.sum(k * m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (trace - 2 / (n - 2) * (one @ k) @ (m @ one)) / (n * (n - 3))


def debiased(x, y):
    k, m = gram(x), gram(y)
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def procrustes(x, y):
    x, y = centered(x), centered(y)
    return np.linalg.svd(x.T @ y, compute_uv=False).sum() / np.linalg.norm(x) / np.linalg.norm(y)


def explained(x, y):
    """Share of y's variance in the span of x."""
    return np.linalg.norm(scores(x).T @ centered(y)) ** 2 / np.linalg.norm(centered(y)) ** 2


def partly_white(x, alpha):
    u, s, v = np.linalg.svd(centered(x), full_matrices=False)
    s = s / np.sqrt(np.mean(s**2))
    return u * (alpha * s + 1 - alpha) @ v


def adjusted_rv(x, y):
    n, p = len(x), x.shape[1]
    c = np.corrcoef(np.hstack([x, y]), rowvar=False)
    adjusted = 1 - (n - 1) / (n - 2) * (1 - c**2)
    return adjusted[:p, p:].sum() / math.sqrt(adjusted[:p, :p].sum() * adjusted[p:, p:].sum())


def distances(x):
    return np.linalg.norm(centered(x)[:, None] - centered(x), axis=2)


def rbf(x, bandwidth=0.5):
    d = distances(x)
    k = np.exp(-((d / (bandwidth * np.median(d[np.triu_indices(len(d), 1)]))) ** 2) / 2)
    h = np.eye(len(k)) - 1 / len(k)
    return h @ k @ h


def upper(x):
    return distances(x)[np.triu_indices(len(x), 1)]


REFERENCE = {
    "svcca": lambda x, y: rhos(x, y, 0.99).mean(),
    "svcca_r2": lambda x, y: (rhos(x, y, 0.99) ** 2).mean(),
    "cca": lambda x, y: rhos(x, y).mean(),
    "mean_squared_cca": lambda x, y: (rhos(x, y) ** 2).mean(),
    "yanai": lambda x, y: (rhos(x, y) ** 2).sum() / math.sqrt(scores(x).shape[1] * scores(y).shape[1]),
    "pillai": lambda x, y: (rhos(x, y) ** 2).sum(),
    "pwcca_x": lambda x, y: weighted(x, y, "x"),
    "pwcca_y": lambda x, y: weighted(x, y, "y"),
    "pwcca": lambda x, y: (weighted(x, y, "x") + weighted(x, y, "y")) / 2,
    "cka": lambda x, y: align(gram(x), gram(y)),
    "debiased_cka": debiased,
    "cka_angle": lambda x, y: math.acos(align(gram(x), gram(y))),
    "rv": lambda x, y: align(gram(x), gram(y)),
    "adjusted_rv": adjusted_rv,
    "procrustes": procrustes,
    "procrustes_distance": lambda x, y: 2 - 2 * procrustes(x, y),
    "procrustes_angle": lambda x, y: math.acos(procrustes(x, y)),
    "bures": procrustes,
    "regression_y": explained,
    "regression_x": lambda x, y: explained(y, x),
    "shape": lambda x, y: procrustes(partly_white(x, 0.5), partly_white(y, 0.5)),
    "shape_angle": lambda x, y: math.acos(procrustes(partly_white(x, 0.5), partly_white(y, 0.5))),
    "rbf_cka": lambda x, y: align(rbf(x), rbf(y)),
    "rsa": lambda x, y: spearmanr(upper(x), upper(y)).statistic,
}
CASES = [(name, route) for name, m in sc.MEASURES.items() for route in ("moments", "gram", "qr") if route in m.sources]
CASES.append(("debiased_cka", "moments"))


def related(rows=N, widths=(7, 9), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, widths[0])) * np.arange(1, widths[0] + 1) ** -0.7
    y = x @ rng.standard_normal(widths) + rng.standard_normal((rows, widths[1]))
    return x + 3, y - 5


def formed(name, x, y, route, **options):
    if name == "debiased_cka" and route == "moments":
        return sc.similarity(name, x, y, strategy="covariance")
    strategy = {"moments": "covariance"}.get(route, route)
    return sc.similarity(name, x, y, strategy=strategy, **options)


def test_every_measure_has_a_reference_and_a_route():
    assert set(REFERENCE) == set(sc.MEASURES)
    assert {name for name, _ in CASES} == set(sc.MEASURES)


@pytest.mark.parametrize(("name", "route"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning")
def test_the_whole_data(name, route, dtype):
    x, y = (v.astype(dtype) for v in related())
    r = formed(name, x, y, route)
    truth = REFERENCE[name](x, y)
    size = max(1.0, abs(truth))
    assert abs(r.mean - truth) <= r.error_bound + 1e-14 * size
    assert abs(r.mean - truth) <= (1e-12 if dtype is np.float64 else 1e-5) * size
    # Procrustes from Gram matrices takes roots of small eigenvalues.
    assert r.error_bound <= (1e-10 if dtype is np.float64 else 0.03) * size
    declared = sc.MEASURES[name]
    assert (r.measure, r.kind, r.n, r.width_x, r.width_y) == (name, declared.kind, N, 7, 9)
    assert r.distance == (r.mean if declared.kind == "distance" else 1 - r.mean)
    assert declared.low <= r.mean <= declared.high
    assert declared.low <= r.null_mean <= declared.high + 1e-12


CHANGES = {
    "shift": lambda x, rng: x + 10 * rng.standard_normal(x.shape[1]),
    "scale": lambda x, rng: x * 10 ** rng.uniform(-3, 3),
    "rotation": lambda x, rng: x @ np.linalg.qr(rng.standard_normal((x.shape[1],) * 2))[0],
    "units": lambda x, rng: x * 10 ** rng.uniform(-1, 1, x.shape[1]),
    "linear": lambda x, rng: x @ (rng.standard_normal((x.shape[1],) * 2) + 2 * np.eye(x.shape[1])),
}


@pytest.mark.parametrize(("name", "route"), [case for case in CASES if case[1] != "qr"])
@pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning")
@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_what_a_measure_does_not_see(name, route, seed):
    """Declared invariances hold; every other change is seen."""
    declared, rng = sc.MEASURES[name], np.random.default_rng(seed)
    x, y = related(60, seed=seed)
    base = formed(name, x, y, route).mean
    for change, apply in CHANGES.items():
        for side in ("x", "y"):
            views = (apply(x, rng), y) if side == "x" else (x, apply(y, rng))
            moved = abs(formed(name, *views, route).mean - base)
            if change in (declared.invariant_x if side == "x" else declared.invariant_y):
                assert moved < 1e-7 * max(1, abs(base)), (change, side)
            elif name not in ("svcca", "svcca_r2"):  # which may keep all directions before and after
                assert moved > 1e-9, (change, side)


@pytest.mark.parametrize(("name", "route"), CASES)
def test_equal_views_order_and_symmetry(name, route):
    declared = sc.MEASURES[name]
    x, y = related(80)
    rng = np.random.default_rng(1)
    base = formed(name, x, y, route).mean
    order = rng.permutation(80)
    assert formed(name, x[order], y[order], route).mean == pytest.approx(base, abs=1e-9)
    assert abs(formed(name, x, y[order], route).mean - base) > 1e-3
    other = formed(name, y, x, route).mean
    assert (abs(other - base) < 1e-9) == declared.symmetric
    alike = declared.alike if math.isfinite(declared.alike) else x.shape[1]
    # Angles between views that are the same lose half of the digits.
    assert formed(name, x, x.copy(), route).mean == pytest.approx(alike, abs=1e-6)


@pytest.mark.parametrize(
    "name", [name for name, m in sc.MEASURES.items() if "moments" in m.sources or "gram" in m.sources]
)
def test_chance_levels(name):
    """Unrelated views score on average what `null_mean` says."""
    route = "moments" if "moments" in sc.MEASURES[name].sources else "gram"
    rng = np.random.default_rng(2)
    scales = [np.arange(1, d + 1) ** -0.5 for d in (20, 30)]
    found, said = [], []
    for _ in range(40):
        x, y = (rng.standard_normal((100, len(s))) * s for s in scales)
        r = formed(name, x, y, route)
        found.append(r.mean)
        said.append(r.null_mean)
    error = np.std(found) / math.sqrt(len(found))
    # Wachter's mean is asymptotic; angles are convex.
    assert abs(np.mean(found) - np.mean(said)) < 4 * error + 0.01 * abs(np.mean(found))


def test_how_measures_hang_together():
    x, y = related(200, (8, 8))
    white = [scores(v) for v in (x, y)]
    all_of = sc.similarities(x, y, alpha=0.0)
    assert all_of["yanai"].mean == pytest.approx(sc.cka(*white).mean, abs=1e-12)
    assert all_of["yanai"].mean == pytest.approx(all_of["mean_squared_cca"].mean, abs=1e-12)
    assert all_of["pillai"].mean == pytest.approx(8 * all_of["yanai"].mean, abs=1e-12)
    # The shape metric at its two ends; whitened views make Procrustes the mean correlation.
    assert all_of["shape"].mean == pytest.approx(all_of["cca"].mean, abs=1e-12)
    assert sc.procrustes(*white).mean == pytest.approx(all_of["cca"].mean, abs=1e-12)
    assert sc.similarity("shape", x, y, alpha=1.0).mean == pytest.approx(all_of["procrustes"].mean, abs=1e-12)
    assert all_of["procrustes_angle"].mean == pytest.approx(math.acos(all_of["procrustes"].mean), abs=1e-12)
    assert all_of["rv"].mean == all_of["cka"].mean
    # A regression on whitened views explains the mean square.
    assert sc.linear_regression(white[0], white[1]).mean == pytest.approx(all_of["yanai"].mean, abs=1e-12)
    # Bures similarity of the Gram matrices themselves (Tang et al. 2020).
    k, m = gram(x), gram(y)
    values, vectors = np.linalg.eigh(k)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    between = np.sqrt(np.linalg.eigvalsh(root @ m @ root)[-8:]).sum()
    assert all_of["bures"].mean == pytest.approx(between / math.sqrt(np.trace(k) * np.trace(m)), abs=1e-7)


@pytest.mark.parametrize(
    "name", [name for name, m in sc.MEASURES.items() if "moments" in m.sources and "pwcca" not in name]
)
def test_slopes(name):
    """The number follows its slopes when a few rows weigh a little more."""
    x, y = related(150, (6, 8))
    rng = np.random.default_rng(3)
    extra = rng.uniform(0, 1, 150) * (rng.random(150) < 0.2)

    def number(step):
        m = sc.Moments({"x": 6, "y": 8}, precision="float64")
        m.update({"x": x, "y": y}, weights=1 + step * extra)
        return m, Former(m, None if name not in CANONICAL else sc.Rule("rank", 4, 5), options={"alpha": 0.3})

    m, former = number(0)
    slopes = former.pair("x", "y").slopes(name)
    step = 1e-4
    ends = [number(s) for s in (step, -step)]
    change = sum(
        np.vdot(slope, (ends[0][0].covariance(a, b) - ends[1][0].covariance(a, b)) / (2 * step))
        for slope, (a, b) in ((slopes.x, "xx"), (slopes.y, "yy"), (slopes.cross, "xy"))
    )
    values = [f.pair("x", "y").form(name).mean for _, f in ends]
    # Adjusting for the number of rows sees all rows as one, whatever they weigh.
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(change, rel=1e-5, abs=1e-10)
    assert slopes.value == pytest.approx(former.pair("x", "y").form(name).mean, abs=1e-14)
    assert m.n == 150


def test_all_measures_at_once():
    x, y = related()
    all_of = sc.similarities(x, y)
    assert set(all_of) == {name for name, route in CASES if route == "moments"}
    assert not all_of.refused
    for name, r in all_of.items():
        assert r.mean == sc.similarity(name, x, y).mean, name
        assert name in all_of.table()
    assert json.loads(json.dumps(all_of.to_dict()))["results"]["cka"]["mean"] == all_of["cka"].mean
    with_grams = sc.similarities(x, y, strategy="gram")
    assert set(with_grams) == {name for name, route in CASES if route == "gram"}
    m = sc.accumulate({"a": x, "b": y, "c": x[:, :3]})
    assert "debiased_cka" not in sc.similarities(m, "a", "c")
    assert set(sc.similarities(m, "a", "b", measures=("cka", "pillai"))) == {"cka", "pillai"}
    q = sc.QRMoments({"a": 7, "b": 9})
    q.update(a=x, b=y)
    assert sc.similarities(q)["pwcca"].mean == pytest.approx(all_of["pwcca"].mean, abs=1e-12)


def test_rows_with_nan_are_left_out_of_all_but_debiased_cka():
    x, y = related()
    bad = x.copy()
    bad[7, 2] = np.nan
    found, kept = sc.similarities(bad, y, nonfinite="skip"), np.arange(N) != 7
    assert set(found) == set(sc.similarities(x, y)) - {"debiased_cka"}
    assert found["cka"].mean == pytest.approx(REFERENCE["cka"](x[kept], y[kept]), abs=1e-12)
    with pytest.raises(sc.InputError, match="expected 'raise' for debiased_cka"):
        sc.similarity("debiased_cka", bad, y, nonfinite="skip")


def test_what_is_refused_does_not_cost_the_others():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 28)), rng.standard_normal((30, 29))
    with pytest.warns(sc.SampleSizeWarning):
        all_of = sc.similarities(x, y)
    assert "too few" in all_of.refused["regression_x"]
    assert all_of["cka"].mean == pytest.approx(REFERENCE["cka"](x, y), abs=1e-12)
    with pytest.raises(sc.InputError, match="regression_x: it was refused"):
        all_of["regression_x"]
    with pytest.raises(sc.UnderdeterminedError, match="30 rows are too few for 29 directions"):
        sc.linear_regression(x, y, predict="x")


def test_ridge_path(tmp_path):
    x, y = related()
    path = sc.ridge_path(x, y, ridges=[0, 0.01, 1])
    for ridge, r in zip((0, 0.01, 1), path.results, strict=True):
        direct = sc.cca(x, y, ridge=ridge)
        assert r.mean == direct.mean
        np.testing.assert_array_equal(r.correlations, direct.correlations)
    assert path.means[0] > path.means[1] > path.means[2]
    assert path.correlations.shape == (3, 7)
    assert "0.01" in path.table()
    assert "3 ridges" in repr(path)
    assert json.loads(json.dumps(path.to_dict()))["ridges"] == [0, 0.01, 1]
    assert sc.ridge_path(sc.accumulate({"a": x, "b": y}), ridges=[1]).means[0] == path.means[2]
    figure, _ = path.plot()
    figure.savefig(tmp_path / "path.png")
    with pytest.raises(sc.InputError, match="ridge: got -1"):
        sc.ridge_path(x, y, ridges=[-1])
    with pytest.raises(sc.InputError, match="ridges: got none"):
        sc.ridge_path(x, y, ridges=[])


def test_a_result_travels():
    x, y = related()
    r = sc.similarity("shape", x, y)
    copy = pickle.loads(pickle.dumps(r))
    assert (copy.mean, copy.null_mean, repr(copy)) == (r.mean, r.null_mean, repr(r))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: sc.similarity("ckaa", x, y), "measure 'ckaa'.*cka"),
        (lambda x, y: sc.similarity("rsa", x, y, correlation="kendall"), "correlation: got 'kendall'"),
        (lambda x, y: sc.similarity("rsa", x, y, strategy="covariance"), "strategy"),
        (lambda x, y: sc.similarity("rsa", sc.accumulate({"x": x, "y": y})), "strategy 'covariance'"),
        (lambda x, y: sc.similarity("shape", x, y, alpha=1.5), "alpha: got 1.5"),
        (lambda x, y: sc.similarity("rbf_cka", x, y, bandwidth=0), "bandwidth: got 0"),
        (lambda x, y: sc.similarity("rbf_cka", x, np.where(np.arange(40)[:, None] < 5, y, 0)), "same"),
        (lambda x, y: sc.similarity("rsa", np.eye(40), y), "equally far"),
        (lambda x, y: sc.similarity("debiased_cka", sc.accumulate({"x": x, "y": y})), "moments"),
        (lambda x, y: sc.similarities(x, y, measures=["rsa", "shape"]), "no one route forms them all"),
        (lambda x, y: sc.linear_regression(x, y, predict="z"), "predict: got 'z'"),
        (lambda x, y: sc.similarity("adjusted_rv", x[:3], y[:3]), "3 rows, expected at least 4"),
        (lambda x, y: sc.similarity("shape", x, y * 0), "constant"),
    ],
)
def test_refusals(call, words):
    x, y = related(40)
    with pytest.raises(sc.InputError, match=words):
        call(x, y)
