"""strategy=: every route from the data to the same numbers, and what each refuses."""

from __future__ import annotations

import numpy as np
import pytest

import streamcca as sc

ROUTES = ("covariance", "gram", "qr")


@pytest.fixture
def views(decaying):
    return decaying(400, 30, 20)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("rule", [{"variance": 0.9}, {"nuclear": 0.9}, {"rank": (5, 7)}])
def test_all_routes_agree(views, route, rule, tmp_path):
    x, y = views
    truth = sc.svcca(x, y, **rule)
    r = sc.svcca(x, y, strategy=route, **rule)
    assert (r.strategy, r.rank_x, r.rank_y) == (route, truth.rank_x, truth.rank_y)
    np.testing.assert_allclose(r.correlations, truth.correlations, atol=1e-10)
    assert r.to_dict()["strategy"] == route
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    for data in ((tmp_path / "x.npy", tmp_path / "y.npy"), (zip(np.split(x, 4), np.split(y, 4), strict=True),)):
        assert sc.svcca(*data, strategy=route, **rule).mean == pytest.approx(truth.mean, abs=1e-10)


def test_pwcca_and_weights_by_qr(views):
    x, y = views
    by_qr, truth = (sc.pwcca(x, y, side="y", strategy=s) for s in ("qr", "covariance"))
    assert by_qr.mean == pytest.approx(truth.mean, abs=1e-10)
    np.testing.assert_allclose(np.abs(by_qr.x_weights), np.abs(truth.x_weights), atol=1e-7)
    assert by_qr.precision == "float64 (QR)"


def test_an_ill_conditioned_view_goes_by_qr(rng):
    """The covariance route warns and names what helps; QR keeps the digits."""
    latent = rng.standard_normal((2000, 6))
    x = latent @ np.diag(np.geomspace(1, 1e-7, 6)) @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    y = latent + rng.standard_normal((2000, 6))
    truth = sc.cca(latent, y, strategy="qr")
    with pytest.warns(sc.AccuracyWarning, match="strategy='qr'"):
        rough = sc.cca(x, y, allow_inaccurate=True)
    fine = sc.cca(x, y, strategy="qr")
    np.testing.assert_allclose(fine.correlations, truth.correlations, atol=1e-8)
    assert fine.error_bound < 1e-6 < rough.error_bound


def test_states_go_their_own_way(views):
    x, y = views
    m = sc.QRMoments({"a": 30, "b": 20})
    m.update(a=x, b=y)
    assert sc.svcca(m, "a", "b", rank=5).strategy == "qr"
    assert sc.svcca(m, rank=5).mean == sc.svcca(x, y, rank=5, strategy="qr").mean
    with pytest.raises(sc.InputError, match="QRMoments, which are of strategy 'qr'"):
        sc.svcca(m, "a", "b", strategy="covariance")
    with pytest.raises(sc.InputError, match="QRMoments, which are of strategy 'qr'"):
        sc.cka(m, "a", "b")
    with pytest.raises(sc.InputError, match="ridge: strategy='qr'"):
        sc.cca(x, y, ridge=0.1, strategy="qr")
    with pytest.raises(sc.InputError, match="folder: got a folder"):
        sc.cca(x, y, folder="f", strategy="qr")
    with pytest.raises(sc.InputError, match="got 'qr', expected one of 'auto', 'covariance', 'gram'"):
        sc.cka(x, y, strategy="qr")
