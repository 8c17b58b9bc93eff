"""Matrices of measures, subspace angles and numbers of directions."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamcca as sc


def layers(n=400, seed=0):
    """Five layers: three versions of one latent, two of another."""
    rng = np.random.default_rng(seed)
    one, other = rng.standard_normal((n, 5)), rng.standard_normal((n, 5))
    views = {}
    for name, latent, noise in (
        ("a1", one, 0.1),
        ("b1", other, 0.1),
        ("a2", one, 0.3),
        ("b2", other, 0.3),
        ("a3", one, 0.5),
    ):
        views[name] = latent @ rng.standard_normal((5, 6)) + noise * rng.standard_normal((n, 6))
    return views


@pytest.fixture(scope="module")
def views():
    return layers()


@pytest.fixture(scope="module")
def moments(views):
    return sc.accumulate(views)


def test_cells_are_the_measures_of_pairs(views, moments):
    names = list(views)
    found = sc.similarity_matrix(moments, ["svcca", "cka", "pwcca_x", "regression_y", "procrustes_distance"])
    for name, matrix in found.items():
        assert (matrix.names_a, matrix.names_b, matrix.n) == (tuple(names), tuple(names), 400)
        for a in names:
            for b in names:
                r = sc.similarity(name, moments, a, b) if a != b else sc.similarity(name, views[a], views[a])
                assert matrix[a, b].mean == pytest.approx(r.mean, abs=1e-7)
                assert a == b or matrix[a, b].null_mean == pytest.approx(r.null_mean, abs=1e-7)
        symmetric = np.array_equal(matrix.matrix, matrix.matrix.T)
        assert symmetric == sc.MEASURES[name].symmetric


def test_mirrored_cells_have_their_views_exchanged():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, 7))
    m = sc.accumulate({"x": x, "y": x[:, :3] + rng.standard_normal((300, 3))})
    found = sc.similarity_matrix(m, "svcca", rank=None)
    cell, direct = found["y", "x"], sc.svcca(m, "y", "x")
    assert (cell.width_x, cell.width_y) == (3, 7)
    assert (cell.detail.rank_x, cell.detail.rank_y) == (direct.rank_x, direct.rank_y)
    np.testing.assert_allclose(np.abs(cell.detail.x_weights), np.abs(direct.x_weights), atol=1e-9)
    assert cell.detail.truncation.share_x == direct.truncation.share_x


def test_order_puts_alike_layers_side_by_side(moments):
    for measure in ("cka", "procrustes_angle"):
        found = sc.similarity_matrix(moments, measure)
        names = [found.names_a[i][0] for i in found.order()]
        assert "".join(names) in ("aaabb", "bbaaa")
        again = found.reordered(found.order())
        assert again["a1", "b2"].mean == found["a1", "b2"].mean
        assert again.order() in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]) or sorted(again.order()) == [0, 1, 2, 3, 4]


def test_written_and_read(moments, tmp_path):
    found = sc.similarity_matrix(moments, "cka", ["a1", "a2"], ["b1", "b2", "a3"])
    found.to_csv(tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["a"], row["b"]) for row in rows] == [(a, b) for a in ("a1", "a2") for b in ("b1", "b2", "a3")]
    assert [float(row["cka"]) for row in rows] == list(found.matrix.ravel())
    assert float(rows[0]["error_bound"]) == found["a1", "b1"].error_bound
    frame = found.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame.loc["a2", "b1"] == found["a2", "b1"].mean
    document = json.loads(json.dumps(found.to_dict()))
    assert document["matrix"] == found.matrix.tolist()
    assert document["cells"][0][0]["measure"] == "cka"
    assert "a2" in found.table()
    assert "2 x 3" in repr(found)


def test_intervals_in_the_cells():
    views = layers(960)
    g = sc.GroupMoments(dict.fromkeys(views, 6))
    for first in range(0, 960, 30):
        g.update({name: rows[first : first + 30] for name, rows in views.items()})
    found = sc.similarity_matrix(g, "cka", intervals=True)
    assert (found.low <= found.matrix).all()
    assert (found.matrix <= found.high).all()
    direct = sc.interval("cka", g, "a1", "b1")
    assert (found["a1", "b1"].low, found["a1", "b1"].high) == (direct.low, direct.high)
    assert "[" in found.table()
    assert {"low", "high", "effective_rows"} <= set(found.records()[0])
    plain = sc.similarity_matrix(g, "cka")
    assert not plain.has_intervals
    with pytest.raises(sc.InputError, match="no intervals"):
        plain.low  # noqa: B018


def test_from_gram_matrices(views):
    g = sc.gram(views["a1"], views["b1"])
    found = sc.similarity_matrix(g, ("rsa", "cka"))
    assert found["rsa"]["x", "y"].mean == sc.similarity("rsa", g).mean
    assert found["cka"]["x", "x"].mean == pytest.approx(1, abs=1e-12)


def test_picture(moments, tmp_path):
    from streamcca.plots import save_figure

    for measure in ("cka", "cka_angle", "pillai"):
        figure, ax = sc.similarity_matrix(moments, measure).plot(clustered=True)
        texts = [text.get_text() for text in ax.get_yticklabels()]
        assert sorted(texts) == ["a1", "a2", "a3", "b1", "b2"]
        save_figure(figure, tmp_path / f"{measure}.png")
        assert (tmp_path / f"{measure}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: sc.similarity_matrix(m, "ccka"), "measure 'ccka'"),
        (lambda m: sc.similarity_matrix(m, "cka", ["a1", "zz"]), "view 'zz'"),
        (lambda m: sc.similarity_matrix(m, "cka", ["a1", "a1"]), "each once"),
        (lambda m: sc.similarity_matrix(m, "cka", "a1"), "expected a list"),
        (lambda m: sc.similarity_matrix(m, "rsa"), "cannot be formed from Moments"),
        (lambda m: sc.similarity_matrix(m, "cka", intervals=True), "expected GroupMoments"),
        (lambda m: sc.similarity_matrix(m, "cka", ["a1"], ["b1"]).order(), "different views"),
        (lambda m: sc.similarity_matrix(m, "cka").reordered([0, 0, 1, 2, 3]), "each of 0 .. 4 once"),
        (lambda m: sc.similarity_matrix(m, "cka")["a1"], "name of a row"),
        (lambda m: sc.similarity_matrix(m, "cka")["a1", "q"], "view 'q'"),
    ],
)
def test_refusals(moments, call, words):
    with pytest.raises(sc.InputError, match=words):
        call(moments)


# ---------------------------------------------------------------------- subspaces


@given(st.integers(0, 10**6), st.lists(st.floats(-15, 0), min_size=1, max_size=4))
def test_small_angles_keep_their_digits(seed, exponents):
    angles = np.sort(10.0 ** np.array(exponents))
    rng = np.random.default_rng(seed)
    k = len(angles)
    basis = np.linalg.qr(rng.standard_normal((12, 2 * k)))[0]
    a, b = basis[:, :k], basis[:, :k] * np.cos(angles) + basis[:, k:] * np.sin(angles)
    mixed = [v @ (rng.standard_normal((k, k)) + 3 * np.eye(k)) for v in (a, b)]
    found = sc.principal_angles(*mixed)
    np.testing.assert_allclose(found.angles, angles, rtol=1e-9, atol=2e-14)
    assert found.overlap == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-12)
    assert found.distance == pytest.approx(np.linalg.norm(angles), abs=1e-12)
    np.testing.assert_allclose(sc.principal_angles(*mixed[::-1]).angles, found.angles, atol=2e-14)


def test_cosines_of_scores_are_canonical_correlations(views):
    x, y = (v - v.mean(axis=0) for v in (views["a1"], views["b1"]))
    found = sc.principal_angles(x, y)
    np.testing.assert_allclose(found.cosines, sc.cca(x, y).correlations, atol=1e-12)
    right = sc.principal_angles(np.eye(4)[:, :2], np.eye(4)[:, 2:])
    np.testing.assert_allclose(right.angles, np.pi / 2)
    assert right.overlap == 0
    inside = sc.principal_angles(x[:, :2], x)
    np.testing.assert_allclose(inside.angles, 0, atol=1e-14)
    assert "overlap" in repr(inside)
    assert len(inside.to_dict()["angles"]) == 2


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.ones((3, 2)), np.eye(3), "a: its columns depend on each other"),
        (np.eye(3), np.eye(4), "b: got columns of 4 numbers, expected 3"),
        (np.ones((2, 3)), np.eye(2), "a: got shape"),
        (np.eye(3), np.full((3, 1), np.nan), "b: it holds NaN"),
    ],
)
def test_no_subspace(a, b, words):
    with pytest.raises((sc.InputError, sc.NonFiniteError), match=words):
        sc.principal_angles(a, b)


# ---------------------------------------------------------------------- numbers of directions


@pytest.mark.parametrize("route", ["moments", "gram"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_of_directions(route, dtype):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((300, 12)) * np.arange(1, 13) ** -1.0).astype(dtype)
    s = np.linalg.svd(x.astype(np.float64) - x.mean(axis=0, dtype=np.float64), compute_uv=False)
    p, v = s / s.sum(), s**2
    found = sc.dimensions(sc.accumulate(x) if route == "moments" else sc.gram(x, x), "x", share=0.9)
    for name, truth in (
        ("effective_rank", np.exp(-np.sum(p * np.log(p)))),
        ("participation_ratio", v.sum() ** 2 / np.sum(v**2)),
        ("stable_rank", v.sum() / v[0]),
    ):
        bound = found.error_bounds[name]
        assert abs(getattr(found, name) - truth) <= bound
        assert bound < (1e-9 if dtype is np.float64 else 1e-2)
    assert found.variance_rank == int(np.searchsorted(np.cumsum(v) / v.sum(), 0.9) + 1)
    assert found.saturation == found.variance_rank / 12
    assert (found.numerical_rank, found.width, found.n) == (12, 12, 300)
    assert json.dumps(found.to_dict())


def test_directions_of_degenerate_layers():
    x = np.random.default_rng(0).standard_normal((50, 3))
    found = sc.dimensions(sc.accumulate(np.hstack([x, x, 0 * x])), "x")
    assert found.numerical_rank == 3
    assert found.effective_rank == pytest.approx(sc.dimensions(sc.accumulate(x)).effective_rank, rel=0.2)
    with pytest.raises(sc.InputError, match="constant"):
        sc.dimensions(sc.accumulate(0 * x))
    with pytest.raises(sc.InputError, match="view 'z'"):
        sc.dimensions(sc.accumulate(x), "z")
    with pytest.raises(sc.InputError, match="share: got 2"):
        sc.dimensions(sc.accumulate(x), share=2)
    with pytest.raises(sc.InputError, match="expected Moments or Gram"):
        sc.dimensions(x)
