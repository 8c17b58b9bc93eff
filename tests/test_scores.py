"""Scores that are saved and compared later; many models and checkpoints from them."""

from __future__ import annotations

import collections
import copy
import dataclasses
import json

import numpy as np
import pytest
import reference
import torch
from safetensors.torch import save_file
from test_compare import models
from test_watch import Recorder, convnet, hooks_of, mlp
from torch import nn

import streamcca as sc
from streamcca import store
from streamcca.kept_rows import KeptRows
from streamcca.sweep import checksum

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning")
LAYERS = ["0", "2", "4"]


def three():
    nets = []
    for seed in range(3):
        torch.manual_seed(seed)
        net = mlp()
        for p in net.parameters():
            nn.init.normal_(p, std=0.4, generator=torch.Generator().manual_seed(seed))
        nets.append(net)
    return nets


def probe(n=300):
    return list(torch.randn(n, 8, generator=torch.Generator().manual_seed(5)).split(50))


def test_scores_are_left_singular_vectors():
    model = mlp()
    plain = Recorder(model, LAYERS)
    s = sc.subspace_scores(model, probe(), LAYERS, variance=0.9, precision="float64")
    for name in LAYERS:
        want = reference.left_vectors(plain.array(name)[:300], "variance", 0.9)
        got = s[name].scores
        assert got.shape == want.shape == (300, s.ranks[name])
        signs = np.sign((got * want).sum(axis=0))
        np.testing.assert_allclose(got * signs, want, atol=1e-9)
        np.testing.assert_allclose(s[name].mean, plain.array(name)[:300].mean(axis=0), atol=1e-12)
    assert s.n == 300
    assert s.rows == "samples"
    assert s.nbytes == 8 * 300 * sum(s.ranks.values())
    assert "variance=0.9" in repr(s)
    with pytest.raises(sc.LayerError, match="no layer 'zz'"):
        s["zz"]
    assert hooks_of(model) == len(LAYERS)  # the recorder's


@pytest.mark.parametrize("measure", ["svcca", "pwcca"])
def test_scores_give_what_the_models_give(measure):
    a, b = models()
    want = sc.compare(a, b, probe(), layers=LAYERS, measure=measure, variance=0.95, precision="float64")
    sa, sb = (
        sc.subspace_scores(m, probe(), LAYERS, name=n, variance=0.95, precision="float64")
        for m, n in ((a, "a"), (b, "b"))
    )
    got = sc.compare(sa, sb, measure=measure)
    # Ties at 1 (linear layers on the same inputs) leave PWCCA's weights to rounding, and the bound says so.
    assert np.all(np.abs(got.matrix - want.matrix) <= (0 if measure == "svcca" else got.error_bounds) + 1e-11)
    assert got.strategy == "scores"
    assert got["0", "4"].rank_x == want["0", "4"].rank_x
    assert got.layers_a == want.layers_a
    json.dumps(got.to_dict())
    same = sc.compare(sa, sa)
    np.testing.assert_allclose(np.diag(same.matrix), 1, atol=1e-12)


def test_files(tmp_path):
    a, b = models()
    sa, sb = (sc.subspace_scores(m, probe(), LAYERS, name=n, rank=3) for m, n in ((a, "a"), (b, "b")))
    for name, s in (("a", sa), ("b", sb)):
        s.save(tmp_path / name)
    la, lb = (sc.SubspaceScores.load(tmp_path / name) for name in "ab")
    want, got = sc.compare(sa, sb, measure="pwcca"), sc.compare(la, lb, measure="pwcca")
    assert got.to_dict() == want.to_dict()
    assert repr(la) == repr(sa)
    assert (la.n, la.rows, la.rule, la.ridge, la.probe, la.ranks) == (
        sa.n,
        sa.rows,
        sa.rule,
        sa.ridge,
        sa.probe,
        sa.ranks,
    )
    whole = (tmp_path / "a").read_bytes()
    for position in (len(whole) // 2, len(whole) - 9, 120):
        damaged = bytearray(whole)
        damaged[position] ^= 4
        (tmp_path / "bad").write_bytes(bytes(damaged))
        with pytest.raises(sc.StateFileError, match="damaged|version|expected one"):
            sc.SubspaceScores.load(tmp_path / "bad")
    m = sc.Moments({"a": 2})
    m.update(a=np.ones((3, 2)))
    m.save(tmp_path / "moments")
    with pytest.raises(sc.StateFileError, match=r"streamcca\.moments\), expected one written by SubspaceScores.save"):
        sc.SubspaceScores.load(tmp_path / "moments")
    with pytest.raises(sc.StateFileError, match=r"streamcca\.scores\), expected one written by Moments.save"):
        sc.Moments.load(tmp_path / "a")
    with pytest.raises(sc.MissingFileError, match="SubspaceScores.save"):
        sc.SubspaceScores.load(tmp_path / "none")


def test_other_rows_are_refused():
    a, b = models()
    sa = sc.subspace_scores(a, probe(), LAYERS, name="a", rank=3)
    shifted = [x + 1 for x in probe()]
    sb = sc.subspace_scores(b, shifted, LAYERS, name="b", rank=3)
    with pytest.raises(sc.ReplayError, match=r"'a' and 'b' rest on other inputs"):
        sc.compare(sa, sb)
    assert sc.compare(sa, sb, allow_other_probe=True).n == 300
    swapped = sc.subspace_scores(b, probe()[::-1], LAYERS, name="b", rank=3)
    with pytest.raises(sc.ReplayError, match="other inputs"):
        sc.compare(sa, swapped)
    fewer = sc.subspace_scores(b, probe()[:-1], LAYERS, name="b", rank=3)
    with pytest.raises(sc.ReplayError, match="300 and 250 rows"):
        sc.compare(sa, fewer, allow_other_probe=True)
    with pytest.raises(sc.InputError, match="read only once"):
        sc.subspace_scores(a, iter(probe()), LAYERS, keep_rows=False)


def test_three_models_cost_three_passes():
    nets = three()
    calls = collections.Counter()
    for i, net in enumerate(nets):
        net.register_forward_hook(lambda *_, i=i: calls.update([i]))
    r = sc.compare(nets, probe(), layers=LAYERS, precision="float64")
    assert calls == {0: 6, 1: 6, 2: 6}
    assert r.names == ("model 0", "model 1", "model 2")
    assert r.layers == tuple(LAYERS)
    assert r.matrix.shape == (3, 3, 3)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        want = sc.compare(nets[i], nets[j], probe(), layers=LAYERS, precision="float64").matrix
        np.testing.assert_allclose(r[r.names[i], r.names[j]].matrix, want, atol=1e-11)
        np.testing.assert_allclose(r.matrix[:, i, j], np.diag(want), atol=1e-11)
        np.testing.assert_allclose(r.matrix[:, j, i], np.diag(want), atol=1e-11)
    assert "3 models" in repr(r)
    assert "3 pairs" in r.table()
    json.dumps(r.to_dict())
    for bad, sentence in (
        (("model 0", "x"), "no model 'x'"),
        (("model 1", "model 0"), "in the order"),
        ("x", "expected result"),
    ):
        with pytest.raises(sc.InputError, match=sentence):
            r[bad]
    with pytest.raises(sc.LayerError, match="no layer"):
        r.layer_matrix("9")


def test_names_loaders_and_scores_of_many_models():
    nets = dict(zip("xyz", three(), strict=True))
    r = sc.compare(nets, dict.fromkeys("xyz", probe()), layers="0", rank=4)
    assert r.names == ("x", "y", "z")
    again = sc.compare(list(r.scores))
    np.testing.assert_array_equal(again.matrix, r.matrix)
    with pytest.raises(sc.InputError, match="one for each of"):
        sc.compare(nets, {"x": probe()}, layers="0")
    with pytest.raises(sc.InputError, match="at least two"):
        sc.compare([nets["x"]], probe())
    with pytest.raises(sc.InputError, match="same name"):
        sc.compare([r.scores[0], r.scores[0]])
    with pytest.raises(sc.InputError, match="model_b: got NoneType"):
        sc.compare(nets["x"])


def test_checkpoints(tmp_path):
    nets = three()
    states = {"a": copy.deepcopy(nets[1].state_dict()), "b": nets[2].state_dict(), "c": tmp_path / "c.safetensors"}
    save_file(nets[0].state_dict(), states["c"])
    torch.save(nets[2].state_dict(), tmp_path / "b.pt")
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    r = sc.compare(model, states, probe(), layers=LAYERS, precision="float64")
    want = sc.compare({"a": nets[1], "b": nets[2], "c": nets[0]}, probe(), layers=LAYERS, precision="float64")
    np.testing.assert_array_equal(r.matrix, want.matrix)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(x.equal(y) for x, y in zip(model.state_dict().values(), before.values(), strict=True))
    with pytest.raises(sc.InputError, match="checkpoint 'z': it does not fit this Sequential"):
        sc.compare(model, {"a": states["a"], "z": convnet().state_dict()}, probe(), layers=LAYERS)
    with pytest.raises(sc.MissingFileError, match="expected a checkpoint"):
        sc.compare(model, [states["a"], tmp_path / "none.pt"], probe(), layers=LAYERS)
    with pytest.raises(sc.InputError, match="nothing is unpickled here"):
        sc.compare(model, [states["a"], tmp_path / "b.pt"], probe(), layers=LAYERS)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_state_of_the_model_itself_is_not_overwritten():
    old, model = three()[:2]
    states = {"old": old.state_dict(), "now": model.state_dict()}
    got = sc.compare(model, states, probe(), layers=LAYERS, precision="float64")
    want = sc.compare({"old": old, "now": copy.deepcopy(model)}, probe(), layers=LAYERS, precision="float64")
    assert want.matrix[:, 0, 1].min() < 0.99
    np.testing.assert_array_equal(got.matrix, want.matrix)
    with pytest.raises(sc.InputError, match="got one state dict"):
        sc.compare(model, model.state_dict(), probe(), layers=LAYERS)


def test_names_of_scores():
    a, b = (sc.subspace_scores(net, probe(), "0", rank=3) for net in three()[:2])
    with pytest.raises(sc.InputError, match=r"same name \(model, model\)"):
        sc.compare([a, b])
    r = sc.compare({"first": a, "second": b})
    assert r.names == ("first", "second")
    assert r["first", "second"].matrix.shape == (1, 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rank": (3, 5)}, r"rank: got \(3, 5\), expected one integer"),
        ({"nonfinite": "skip"}, "nonfinite: it is for two models"),
        ({"memory": 10**9}, "memory: it is for two models"),
        ({"strategy": "replay"}, "strategy: it is for two models"),
        ({"layers_b": "0"}, "layers_b: it is for two models"),
        ({"ridge": float("nan")}, "ridge: got nan"),
        ({"ridge": True}, "ridge: got True"),
    ],
)
def test_options_that_many_models_do_not_have(options, sentence):
    with pytest.raises(sc.InputError, match=sentence):
        sc.compare(three(), probe(), layers="0", **options)


def test_ridges_must_agree():
    net = three()[0]
    a, b = (sc.subspace_scores(net, probe(), "0", name=str(r), rank=3, ridge=np.float32(r)) for r in (0, 0.5))
    with pytest.raises(sc.InputError, match=r"ridges 0 and 0\.5"):
        sc.compare(a, b)
    with pytest.raises(sc.InputError, match="ridge: got -1"):
        sc.compare(net, net, probe(), layers="0", ridge=-1)


@dataclasses.dataclass
class Batch:
    texts: list
    extra: object = None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a", "b"], ["a", "c"]),
        ({"x": 1}, {"y": 1}),
        ({"x": 1}, {"x": 1.0}),
        (Batch(["a"]), Batch(["b"])),
        ([["a"], ["b"]], [["a", "b"]]),
        (np.array(["a", "b"]), np.array(["a", "c"])),
        (np.float32(1), np.float32(2)),
        (torch.ones(2).to_sparse(), torch.zeros(2).to_sparse()),
        (torch.complex(torch.ones(2), torch.ones(2)), torch.complex(torch.ones(2), torch.ones(2)).conj()),
        (torch.ones(2, 3), torch.ones(3, 2)),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.tensor(3), torch.tensor(4)),
        (b"a", b"b"),
        (None, 0),
    ],
)
def test_checksums_tell_batches_apart(one, other):
    assert checksum(one) == checksum(copy.deepcopy(one))
    assert checksum(one) != checksum(other)


def test_texts_are_part_of_the_probe():
    model = mlp()

    def forward(net, batch):
        net(torch.tensor([[float(len(text))] * 8 for text in batch]))

    a, b = (
        sc.subspace_scores(model, [[c * k for k in range(1, 40)]], "0", name=c, rank=1, forward=forward) for c in "ab"
    )
    assert a.probe != b.probe
    with pytest.raises(sc.ReplayError, match="other inputs"):
        sc.compare(a, b)


def test_a_file_whose_parts_do_not_fit(tmp_path):
    s = sc.subspace_scores(mlp(), probe(), "0", rank=3)
    s.save(tmp_path / "good")
    state = store.read_state(tmp_path / "good", store.SCORES_FORMAT)
    for change in (
        lambda m, t: t.update({"scores.0": t["scores.0"][:-1]}),
        lambda m, t: t.update({"scale.0": t["scale.0"] * np.nan}),
        lambda m, t: t.update({"vectors.0": t["vectors.0"].ravel()}),
        lambda m, t: m["layers"][0]["native"].update(width=0),
        lambda m, t: m["layers"][0]["native"].update(width=-1),
        lambda m, t: m["layers"][0]["native"].update(lowest_rank=9),
        lambda m, t: m["layers"][0]["native"].pop("unit"),
        lambda m, t: m.pop("rule"),
        lambda m, t: m.update(version=2),
    ):
        meta, tensors = copy.deepcopy(state["meta"]), dict(state["tensors"])
        change(meta, tensors)
        store.write_state(tmp_path / "bad", {"meta": meta, "tensors": tensors}, store.SCORES_FORMAT)
        with pytest.raises(sc.StateFileError, match="do not fit|got version 2"):
            sc.SubspaceScores.load(tmp_path / "bad")


class Passes:
    """A loader that counts how often it is read; without a length."""

    def __init__(self, batches):
        self.batches, self.count = batches, 0

    def __iter__(self):
        self.count += 1
        return iter(self.batches)


def bits(scores):
    return [(name, layer.scores.tobytes(), layer.mean.tobytes()) for name, layer in scores.layers.items()]


@pytest.mark.parametrize(
    ("net", "layers", "shape", "options"),
    [
        (mlp, LAYERS, (8,), {"variance": 0.9}),
        (mlp, LAYERS, (8,), {"rank": 3, "ridge": 0.5, "precision": "float64"}),
        (convnet, ["a", "b"], (3, 6, 6), {"rows": "pool", "rank": 3}),
        (convnet, ["a", "b"], (3, 6, 6), {"rows": "positions", "nuclear": 0.8}),
        (convnet, ["a", "b"], (3, 6, 6), {"rows": "flatten", "rank": 2, "precision": "float32"}),
    ],
)
def test_kept_rows_give_the_bits_of_two_passes(net, layers, shape, options):
    model, x = net(), torch.randn(130, *shape, generator=torch.Generator().manual_seed(3))
    found = {}
    for keep in (False, True, "auto"):
        loader = Passes(x.split(48))
        found[keep] = sc.subspace_scores(model, loader, layers, keep_rows=keep, **options)
        assert loader.count == (1 if keep else 2)
        assert bits(found[keep]) == bits(found[False])
        assert found[keep].probe == found[False].probe
        assert found[keep].n == found[False].n
    once = sc.subspace_scores(model, iter(x.split(48)), layers, **options)
    assert bits(once) == bits(found[False])


def test_rows_are_kept_within_a_budget(monkeypatch):
    model, batches = mlp(), probe()
    want = bits(sc.subspace_scores(model, batches, "0", rank=3))
    taken = 4 * 300 * model[0].out_features
    monkeypatch.setattr("streamcca.kept_rows.BUDGET", taken)
    loader = Passes(batches)
    sc.subspace_scores(model, loader, "0", rank=3)
    assert loader.count == 1
    monkeypatch.setattr("streamcca.kept_rows.BUDGET", taken - 1)
    for keep, passes in (("auto", 2), (True, 1)):
        loader = Passes(batches)
        assert bits(sc.subspace_scores(model, loader, "0", rank=3, keep_rows=keep)) == want
        assert loader.count == passes
    assert bits(sc.subspace_scores(model, iter(batches), "0", rank=3, keep_rows=True)) == want
    with pytest.raises(sc.InputError, match="read only once, and its rows take"):
        sc.subspace_scores(model, iter(batches), "0", rank=3)
    with pytest.raises(sc.InputError, match="keep_rows: got 'yes'"):
        sc.subspace_scores(model, batches, "0", rank=3, keep_rows="yes")


def test_the_first_batch_says_whether_all_will_fit(monkeypatch):
    monkeypatch.setattr("streamcca.kept_rows.BUDGET", 4 * 299)
    row = {"a": torch.ones(50, 1)}
    kept = KeptRows("auto", repeatable=True, batches=6)
    kept.add(row)
    assert not kept.complete
    assert not list(kept.drain())
    kept.add(row)  # no more
    assert not list(kept.drain())
    with pytest.raises(sc.InputError, match="read only once"):
        KeptRows("auto", repeatable=False, batches=6).add(row)
    unknown = KeptRows("auto", repeatable=True, batches=None)
    for count in range(6):
        unknown.add(row)
        assert unknown.complete == (count < 5)
    assert not list(unknown.drain())  # what was kept so far is let go


def test_kept_rows_are_no_views():
    """A layer that writes all its outputs to the same memory."""

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory = torch.empty(50, 8)

        def forward(self, x):
            return self.memory.copy_(x.tanh())

    found = [sc.subspace_scores(nn.Sequential(Same()), probe(), "0", rank=3, keep_rows=keep) for keep in (True, False)]
    assert bits(found[0]) == bits(found[1])


def test_pictures_of_many_models():
    r = sc.compare(three(), probe(), layers=LAYERS, rank=3)
    figure, ax = r.plot()
    assert "mean of 3 layers" in ax.get_title()
    assert r.plot("0")[1].get_title().endswith("layer 0")
    assert [t.get_text() for t in ax.get_xticklabels()] == list(r.names)
    assert figure.axes
