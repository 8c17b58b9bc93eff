"""All layer pairs of two models in one pass, against whole activations in NumPy."""

from __future__ import annotations

import collections
import json
import warnings

import numpy as np
import pytest
import reference
import torch
from test_watch import Recorder, convnet, hooks_of, mlp, pooled, positions
from torch import nn

import streamcca as sc

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning")


def models():
    a, b = mlp(), mlp()
    torch.manual_seed(9)
    for p in b.parameters():
        nn.init.normal_(p, std=0.4)
    return a, b


def expected_matrix(rows_a, rows_b, variance):
    return np.array([[reference.correlations(x, y, "variance", variance)[0].mean() for y in rows_b] for x in rows_a])


def test_matrix_against_numpy():
    a, b = models()
    data = torch.randn(500, 8)
    layers = ["0", "1", "4"]
    plain_a, plain_b = Recorder(a, layers), Recorder(b, layers)
    r = sc.compare(a, b, data.split(64), layers=layers, variance=0.9, precision="float64")
    want = expected_matrix([plain_a.array(n) for n in layers], [plain_b.array(n) for n in layers], 0.9)
    np.testing.assert_allclose(r.matrix, want, atol=1e-11)
    assert r.layers_a == r.layers_b == ("0", "1", "4")
    assert r.n == 500
    assert r.rows == "samples"
    assert r["0", "4"].mean == r.matrix[0, 2]
    assert r["0", "4"].rank_y <= 3
    assert np.all(r.error_bounds < 1e-9)
    assert np.all((r.null_matrix > 0) & (r.null_matrix < 1))


def test_each_model_runs_once_a_batch():
    a, b = models()
    calls = collections.Counter()
    for name, model in (("a", a), ("b", b)):
        model.register_forward_hook(lambda *_, name=name: calls.update([name]))
    sc.compare(a, b, torch.randn(300, 8).split(100), layers=["0", "2", "4"])
    assert calls == {"a": 3, "b": 3}


def test_a_model_with_itself():
    a, _ = models()
    calls = collections.Counter()
    a.register_forward_hook(lambda *_: calls.update(["a"]))
    r = sc.compare(a, a, torch.randn(300, 8).split(100), layers=["0", "2"], precision="float64")
    assert calls == {"a": 3}
    calls.clear()
    sc.compare(a, a, torch.randn(300, 8), layers=["0", "2"], precision="float64")
    assert calls == {"a": 2}  # a tensor is cut into batches once, for both
    np.testing.assert_allclose(np.diag(r.matrix), 1, atol=1e-12)
    np.testing.assert_allclose(r.matrix, r.matrix.T, atol=1e-12)


def test_convolutions():
    a, b = convnet(), convnet()
    torch.manual_seed(3)
    for p in b.parameters():
        nn.init.normal_(p, std=0.3)
    data = torch.randn(40, 3, 6, 6)
    for layers, transform, rows in [
        (["a", "b"], positions, "positions"),
        (["a", "c"], pooled, "samples (averaged over positions)"),
    ]:
        plain_a, plain_b = Recorder(a, layers), Recorder(b, layers)
        r = sc.compare(a, b, data.split(16), layers=layers, variance=0.9, precision="float64")
        for plain in (plain_a, plain_b):
            for handle in plain.handles:
                handle.remove()
        want = expected_matrix(
            [plain_a.array(n, transform) for n in layers], [plain_b.array(n, transform) for n in layers], 0.9
        )
        np.testing.assert_allclose(r.matrix, want, atol=1e-10)
        assert r.rows == rows
        assert rows in r.table()


def test_different_layers_and_measures():
    a, b = models()
    data = torch.randn(400, 8)
    r = sc.compare(a, b, data, layers="4", layers_b=nn.ReLU, measure="pwcca", side="y", precision="float64")
    assert r.matrix.shape == (1, 2)
    assert r["4", "1"].measure == "pwcca"
    assert r["4", "1"].side == "y"
    with torch.no_grad():
        want = reference.pwcca(a(data).numpy(), b[:2](data).numpy(), "y")
    assert r["4", "1"].mean == pytest.approx(want, abs=1e-9)
    c = sc.compare(a, b, data, layers="0", measure="cca", rank=(3, 2))
    assert (c["0", "0"].rank_x, c["0", "0"].rank_y) == (3, 2)
    for bad in ({"side": "z"}, {"rows": "all"}, {"device": "tpu"}, {"progress": "x"}):
        with pytest.raises(sc.InputError, match="got '"):
            sc.compare(a, b, data, layers="0", **bad)
    with pytest.raises(sc.DeviceError, match="no CUDA kernels"):
        sc.compare(a, b, data, layers="0", device="cuda")
    for wrong in (("zz", "1"), ("4", "zz")):
        with pytest.raises(sc.LayerError, match="there is no layer 'zz'"):
            r[wrong]
    with pytest.raises(sc.InputError, match="expected result"):
        r["4"]


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 5)

    def forward(self, *, x):
        return self.lin(x)


def test_batches_of_every_kind():
    a, b = models()
    x = torch.randn(200, 8)
    expected = sc.compare(a, b, x.split(50), layers="0").matrix
    labels = torch.zeros(200)
    for loader in (
        x,
        [(p, labels[:50]) for p in x.split(50)],
        [[p] for p in x.split(50)],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=50),
        (p for p in x.split(50)),
        [p.numpy() for p in x.split(50)],
    ):
        np.testing.assert_array_equal(sc.compare(a, b, loader, layers="0").matrix, expected)
    k = Keywords()
    named = [{"x": p, "labels": labels} for p in x.split(50)]
    assert sc.compare(k, k, named, layers="lin").n == 200
    custom = sc.compare(
        a, b, [{"deep": {"input": p}} for p in x.split(50)], layers="0", forward=lambda m, d: m(d["deep"]["input"])
    )
    np.testing.assert_array_equal(custom.matrix, expected)


def test_modes_gradients_and_hooks_are_as_before():
    a, b = models()
    a.train()
    a[1].eval()
    b.eval()
    b[3].train()
    before = [[m.training for m in model.modules()] for model in (a, b)]
    seen = []
    a[0].register_forward_hook(lambda m, _i, out: seen.append((m.training, out.requires_grad)))
    hooks = [hooks_of(a), hooks_of(b)]
    sc.compare(a, b, torch.randn(100, 8), layers="0")
    assert seen == [(False, False)]
    assert [[m.training for m in model.modules()] for model in (a, b)] == before
    assert [hooks_of(a), hooks_of(b)] == hooks

    def broken():
        yield torch.randn(50, 8)
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        sc.compare(a, b, broken(), layers="0")
    with pytest.raises(RuntimeError):
        sc.compare(a, b, [torch.randn(50, 9)], layers="0")
    with pytest.raises(sc.LayerError):
        sc.compare(a, b, [torch.randn(50, 8)], layers="9")
    assert [[m.training for m in model.modules()] for model in (a, b)] == before
    assert [hooks_of(a), hooks_of(b)] == hooks
    assert all(p.grad is None for p in a.parameters())


def test_batch_norm_statistics_are_left_alone():
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sc.compare(model, model, torch.randn(200, 8) + 3, layers=["0", "1"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_bad_comparisons():
    a, b = models()
    with pytest.raises(sc.InputError, match="the loader is empty"):
        sc.compare(a, b, [], layers="0")
    with pytest.raises(sc.InputError, match="loader: got NoneType, expected an iterable"):
        sc.compare(a, b, None, layers="0")
    with pytest.raises(sc.LayerError, match="there is no layer 'fc'"):
        sc.compare(a, b, torch.randn(10, 8), layers="fc")

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(8, 5)
            self.spare = nn.Linear(8, 5)

        def forward(self, x):
            return self.lin(x)

    with pytest.raises(sc.LayerError, match="layer 'spare' was never called in 1 forward passes"):
        sc.compare(Half(), Half(), torch.randn(100, 8), layers=["lin", "spare"])
    with pytest.warns(sc.StreamCCAWarning, match="never called"):
        r = sc.compare(Half(), Half(), torch.randn(100, 8))
    assert r.layers_a == ("lin",)
    with pytest.raises(sc.LayerError, match="no layer of one of the models was called"):
        sc.compare(Half(), Half(), torch.randn(100, 8), layers="lin", layers_b="spare")
    with pytest.raises(sc.UnderdeterminedError, match=r"n = 5 rows are too few"):
        sc.compare(a, b, torch.randn(5, 8), layers="0", variance=1.0)


def test_one_warning_a_kind_not_one_a_cell():
    a, b = models()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        r = sc.compare(a, b, torch.randn(13, 8), layers=["0", "2"], variance=0.999)
    kinds = [w.category for w in caught]
    assert len(kinds) == len(set(kinds))
    assert any(cell.warnings for row in r.results for cell in row)


def test_result_prints_plots_and_serializes(tmp_path):
    a, b = models()
    r = sc.compare(a, b, torch.randn(300, 8), layers=["0", "2", "4"])
    data = json.loads(json.dumps(r.to_dict()))
    assert data["matrix"] == r.matrix.tolist()
    assert data["layers_a"] == ["0", "2", "4"]
    assert "\n" not in repr(r)
    table = r.table().splitlines()
    assert len(table) == 5
    assert "n = 300 samples" in table[-1]
    for result in (r, r["0", "0"]):
        figure, ax = result.plot()
        assert ax.figure is figure
        figure.savefig(tmp_path / "p.png")
        same_figure, same_ax = result.plot(ax=ax)
        assert (same_figure, same_ax) == (figure, ax)
    assert (tmp_path / "p.png").stat().st_size > 5000
