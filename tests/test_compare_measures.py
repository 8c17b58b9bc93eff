"""Any measure of all pairs of layers of two models, and its interval."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import streamcca as sc

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning")


def net(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(12, 9), torch.nn.Tanh(), torch.nn.Linear(9, 5))


@pytest.fixture(scope="module")
def models():
    return net(0), net(1)


@pytest.fixture(scope="module")
def loader():
    torch.manual_seed(2)
    return list(torch.randn(1200, 12).split(50))


def activations(model, loader):
    x, found = torch.cat(loader), {}
    with torch.no_grad():
        for name, module in model.named_children():
            x = module(x)
            found[name] = x.double().numpy()
    return found


def test_several_measures_from_one_pass(models, loader):
    names = ["svcca", "cka", "procrustes_angle", "regression_x", "pwcca"]
    found = sc.compare(*models, loader, measure=names, precision="float64")
    assert list(found) == ["svcca", "cka", "procrustes_angle", "regression_x", "pwcca_x"]
    a, b = (activations(model, loader) for model in models)
    for name, comparison in found.items():
        assert (comparison.layers_a, comparison.layers_b, comparison.n) == (tuple(a), tuple(b), 1200)
        assert (comparison.measure, comparison.rows, comparison.strategy) == (name, "samples", "covariance")
        for x in a:
            for y in b:
                assert comparison[x, y].mean == pytest.approx(sc.similarity(name, a[x], b[y]).mean, abs=1e-6)
        assert "chance level" in comparison.table()
        assert json.dumps(comparison.to_dict())
    one = sc.compare(*models, loader, measure="cka", precision="float64")
    np.testing.assert_array_equal(one.matrix, found["cka"].matrix)
    alone = sc.compare(*models, loader, precision="float64")
    np.testing.assert_allclose(alone.matrix, found["svcca"].matrix, atol=1e-12)
    sides = sc.compare(*models, loader, measure=["pwcca"], side="y", precision="float64")
    np.testing.assert_allclose(
        sides["pwcca_y"].matrix, sc.compare(*models, loader, measure="pwcca", side="y", precision="float64").matrix
    )


def test_intervals_from_a_pass_over_models(models, loader):
    found = sc.compare(*models, loader, measure="svcca", rank=3, intervals=True, precision="float64")
    plain = sc.compare(*models, loader, measure="svcca", rank=3, precision="float64")
    assert (found.low <= found.matrix).all()
    assert (found.matrix <= found.high).all()
    np.testing.assert_allclose([[cell.plain for cell in row] for row in found.results], plain.matrix, atol=1e-12)
    assert found["0", "2"].parts == 24
    assert "[interval]" in found.table()
    with pytest.raises(sc.InputError, match="no intervals"):
        plain.low  # noqa: B018


def test_picture(models, loader, tmp_path):
    from streamcca.plots import save_figure

    found = sc.compare(*models, loader, measure=["cka", "cka_angle", "pillai"], intervals=True)
    for name, comparison in found.items():
        figure, _ = comparison.plot()
        save_figure(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"measure": "ckaa"}, "measure 'ckaa'"),
        ({"measure": []}, "measure: got none"),
        ({"measure": "rsa"}, "cannot be formed from Moments"),
        ({"measure": "cka", "strategy": "gram"}, "strategy: got 'gram' for cka"),
        ({"measure": "cka", "ridge": 1.0}, "ridge: got 1 for cka"),
        ({"measure": "cka", "folder": "somewhere"}, "folder: got a folder"),
        ({"measure": "cka", "power": 1}, "power: got 1"),
        ({"intervals": True, "parts": 3}, "parts: got 3"),
        ({"intervals": True, "memory": 10**9}, "memory: the parts of the rows"),
        ({"measure": "cka", "rank": 2}, "no functions of canonical correlations"),
        ({"measure": "pwcca", "intervals": True}, "its slopes are not known"),
    ],
)
def test_refusals(models, loader, options, words):
    with pytest.raises(sc.InputError, match=words):
        sc.compare(*models, loader, **options)


def test_many_models_know_three_measures(models, loader):
    with pytest.raises(sc.InputError, match="of two models side by side"):
        sc.compare(list(models), loader, measure="cka")
    with pytest.raises(sc.InputError, match="24 parts|got 2 parts"):
        sc.compare(*models, loader[:2], intervals=True)
    with pytest.raises(sc.MemoryLimitError):
        sc.compare(*models, loader, measure="cka", memory=100)
