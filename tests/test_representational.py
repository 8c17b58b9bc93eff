"""RM of many models from scores: against `SubspaceScores.pair`, against loops over pairs, in little memory."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import streamcca as sc
from streamcca.multiplicity.insides.finite_sample import finite_sample_rows
from streamcca.multiplicity.insides.representational import representational_multiplicity
from streamcca.multiplicity.insides.score_blocks import ScoreBlocks
from streamcca.multiplicity.relation.resampling import jackknife, pair_mean, pairs_within
from streamcca.pairing import correlate

GROUPS = {"a": ["a0", "a1", "a2"], "b": ["b0", "b1"], "c": ["c0"]}
NAMES = [name for members in GROUPS.values() for name in members]
LAYERS = ("1", "2")


def net(seed, width=9):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 5))


def probe(n=240):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1))


def scores_of(model, name="m", rows=None, **options):
    options = {"rank": 3, "precision": "float64", "progress": False} | options
    return sc.subspace_scores(model, probe() if rows is None else rows, LAYERS, name=name, **options)


_SCORES = {name: scores_of(net(i), name) for i, name in enumerate(NAMES)}


@pytest.fixture
def many():
    return dict(_SCORES)


def paired(scores, layer, a, b, measure, **options):
    sides = ("x", "y") if measure == "pwcca" else ("",)
    return [scores[a].pair(layer, scores[b], layer, measure=measure, side=side, **options)[0] for side in sides]


@pytest.mark.parametrize("measure", ["svcca", "cca", "pwcca"])
@pytest.mark.parametrize("rule", [{"rank": 3}, {"variance": 0.9, "rank": None}, {"nuclear": 0.9, "rank": None}])
def test_all_pairs_are_what_pair_gives(measure, rule):
    scores = {name: scores_of(net(i), name, **rule) for i, name in enumerate(NAMES)}
    rm = representational_multiplicity(scores, GROUPS, measure=measure)
    assert rm.names == tuple(NAMES)
    assert rm.layers == LAYERS
    for layer, name in enumerate(LAYERS):
        for i, j in itertools.combinations(range(6), 2):
            results = paired(scores, name, NAMES[i], NAMES[j], measure)
            want = {
                "distances": 1 - np.mean([r.mean for r in results]),
                "chance": np.mean([r.null_mean for r in results]),
                "error_bounds": np.mean([r.error_bound for r in results]),
            }
            for key, value in want.items():
                matrix = getattr(rm, key)[layer]
                # One product of stacked scores sums in another order than that of the pair: a few roundings.
                assert matrix[i, j] == pytest.approx(value, rel=1e-6 if key == "error_bounds" else 1e-13, abs=2e-14)
                assert matrix[i, j] == matrix[j, i]
        assert not np.diag(rm.distances[layer]).any()
        assert rm.ranks[layer].tolist() == [scores[name_].ranks[name] for name_ in NAMES]


def test_groups(many):
    rm = representational_multiplicity(many, GROUPS)
    layers = rm.distances
    d = layers.mean(axis=0)
    a, b = [0, 1, 2], [3, 4]
    pairs = [d[i, j] for i, j in itertools.combinations(a, 2)]
    within = rm.within["a"]
    assert within.mean.value == pytest.approx(np.mean(pairs), rel=1e-13)
    assert within.sd == pytest.approx(np.std(pairs, ddof=1), rel=1e-12)
    assert within.pairs == 3
    for layer in range(2):
        own = np.mean([layers[layer, i, j] for i, j in itertools.combinations(a, 2)])
        assert within.per_layer[layer].value == pytest.approx(own, rel=1e-13)
    scaled = layers / (1 - rm.chance)
    own = np.mean([scaled[:, i, j] for i, j in itertools.combinations(a, 2)])
    assert within.relative_to_chance.value == pytest.approx(own, rel=1e-13)
    (want,) = jackknife(lambda w: pair_mean(d, w, pairs_within(a)), [a], 6, 0.95)
    assert within.mean == want
    assert want.low < want.value < want.high
    # Two models: the number, without an interval; one: nothing.
    assert rm.within["b"].mean.value == pytest.approx(d[3, 4])
    assert rm.within["b"].mean.low is None
    assert rm.within["b"].sd is None
    assert rm.within["c"].mean.value is None
    between = rm.between_groups("b", "a")
    assert between is rm.between["a", "b"]
    assert between.mean.value == pytest.approx(d[np.ix_(a, b)].mean(), rel=1e-13)
    excess = d[np.ix_(a, b)].mean() - (np.mean(pairs) + d[3, 4]) / 2
    assert between.excess.value == pytest.approx(excess, rel=1e-11)
    for layer, one in enumerate(between.excess_per_layer):
        m = layers[layer]
        inside = np.mean([m[i, j] for i, j in itertools.combinations(a, 2)])
        assert one.value == pytest.approx(m[np.ix_(a, b)].mean() - (inside + m[3, 4]) / 2, rel=1e-10)
    assert rm.between["a", "c"].excess.value is None
    matrix = rm.group_matrix()
    assert matrix[0] == [within.mean.value, between.mean.value, rm.between["a", "c"].mean.value]
    assert matrix[2][2] is None
    np.testing.assert_allclose(rm.chance_by_layer, [rm.chance[layer][np.triu_indices(6, 1)].mean() for layer in (0, 1)])
    with pytest.raises(sc.InputError, match="no group 'z'"):
        rm.between_groups("a", "z")
    with pytest.raises(sc.InputError, match="'a' twice"):
        rm.between_groups("a", "a")


def test_what_is_told(many):
    rm = representational_multiplicity(many, GROUPS)
    text = rm.table()
    for part in ("SVCCA", "rank=3", "240 rows (samples)", "2 layers", "jackknife", "excess"):
        assert part in text
    plain = json.loads(json.dumps(rm.to_dict(), allow_nan=False))
    assert plain["groups"] == GROUPS
    assert plain["within"]["a"]["mean"]["value"] == rm.within["a"].mean.value
    assert plain["distances"] == rm.distances.tolist()
    assert "distances" not in rm.to_dict(matrices=False)
    for item in (rm, rm.within["a"], rm.between["a", "b"]):
        assert "\n" not in repr(item)
    with pytest.raises(ValueError, match="read-only"):
        rm.distances[0, 0, 0] = 1


def test_percentile_intervals(many):
    one, other = (
        representational_multiplicity(many, {"a": NAMES}, method="percentile", draws=50, seed=seed) for seed in (0, 0)
    )
    assert one.within["a"] == other.within["a"]
    mean = one.within["a"].mean
    assert mean.low < mean.value < mean.high
    assert mean.low >= one.matrix[np.triu_indices(6, 1)].min()


def test_files_block_by_block(many, tmp_path, monkeypatch):
    paths = {}
    for name, scores in many.items():
        paths[name] = tmp_path / name
        scores.save(paths[name])
    want = representational_multiplicity(many, GROUPS)
    size = max(path.stat().st_size for path in paths.values())
    loads = []
    load = sc.SubspaceScores.load
    monkeypatch.setattr(sc.SubspaceScores, "load", classmethod(lambda _, path: loads.append(path) or load(path)))
    for memory, blocks, reads in ((1, 6, 21), (10 * size, 3, 12), (1 << 30, 1, 6)):
        loads.clear()
        got = representational_multiplicity(paths, GROUPS, memory=memory)
        assert len(ScoreBlocks(paths, NAMES, None, memory).blocks) == blocks
        assert len(loads) == reads
        for key in ("distances", "chance", "error_bounds"):
            np.testing.assert_allclose(getattr(got, key), getattr(want, key), rtol=1e-6, atol=2e-14)
        assert got.within["a"].mean.value == pytest.approx(want.within["a"].mean.value, rel=1e-13)
    loads.clear()
    with pytest.raises(sc.MissingFileError):
        representational_multiplicity({**paths, "c0": tmp_path / "none"}, GROUPS)


def test_layers_by_position():
    """Architectures that name their layers differently."""

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 7), nn.Linear(7, 4)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)))

    scores = {"m": scores_of(net(0), "m"), "n": scores_of(net(1), "n")}
    scores["o"] = sc.subspace_scores(Other(), probe(), name="o", rank=3, precision="float64", progress=False)
    layers = {"m": ["2", "1"], "n": ["2", "1"], "o": ["last", "first"]}
    rm = representational_multiplicity(scores, {"a": ["m", "n"], "b": ["o"]}, layers=layers)
    assert rm.layers == ("2", "1")
    for layer in range(2):
        want, _ = scores["m"].pair(layers["m"][layer], scores["o"], layers["o"][layer], measure="svcca")
        assert rm.distances[layer, 0, 2] == pytest.approx(want.distance, abs=1e-13)
    with pytest.raises(sc.InputError, match="'o' has first, last, and 'm' 1, 2"):
        representational_multiplicity(scores, {"a": ["m", "n", "o"]})
    with pytest.raises(sc.InputError, match="got none for model 'o'"):
        representational_multiplicity(scores, {"a": ["m", "o"]}, layers={"m": ["1"]})
    with pytest.raises(sc.LayerError, match="no layer 'zz'"):
        representational_multiplicity(scores, {"a": ["m", "o"]}, layers={"m": ["1"], "o": ["zz"]})
    with pytest.raises(sc.InputError, match="'n' has 1, and 'm' 1, 2"):
        representational_multiplicity(scores, {"a": ["m", "n"]}, layers={"m": ["1", "2"], "n": ["1"]})


def test_what_does_not_go_together(many):
    def rm(other, groups=None, **options):
        return representational_multiplicity({**many, "b0": other}, groups or GROUPS, **options)

    with pytest.raises(sc.ReplayError, match="240 and 100 rows"):
        rm(scores_of(net(9), "b0", probe(100)))
    swapped = scores_of(net(9), "b0", probe().flip(0))
    with pytest.raises(sc.ReplayError, match="other inputs"):
        rm(swapped)
    assert rm(swapped, allow_other_probe=True).n == 240
    with pytest.raises(sc.InputError, match="rank=3 and rank=2; make them by one rule"):
        rm(scores_of(net(9), "b0", rank=2))
    with pytest.raises(sc.InputError, match="ridges"):
        rm(scores_of(net(9), "b0", ridge=0.1))
    for groups, match in (
        ({"a": ["a0", "zz"]}, "no model 'zz'"),
        ({"a": ["a0", "a1"], "b": ["a1"]}, "in one group only|twice"),
        ({"a": []}, "at least one"),
        ({}, "groups"),
        ({"a": "a0"}, "expected a list"),
    ):
        with pytest.raises(sc.InputError, match=match):
            representational_multiplicity(many, groups)
    for options in ({"measure": "cka"}, {"method": "bca"}, {"level": 95}, {"memory": 0}):
        with pytest.raises(sc.InputError, match=next(iter(options))):
            representational_multiplicity(many, GROUPS, **options)


def test_refusals_and_warnings_are_those_of_pairs():
    few = {name: scores_of(net(i), name, probe(4)) for i, name in enumerate("xyz")}
    with pytest.raises(sc.UnderdeterminedError, match="models 'x' and 'y'.*too few"):
        representational_multiplicity(few, {"a": list("xyz")})
    with pytest.warns(sc.SampleSizeWarning, match=r"x:1 and y:1.*5 more") as told:
        rm = representational_multiplicity(few, {"a": list("xyz")}, allow_underdetermined=True)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert rm.warnings == (str(told[0].message),)
    np.testing.assert_allclose(rm.matrix, 0, atol=1e-7)
    # Chance leaves no distance at all: the share of it is said to be 1, not 0 / 0.
    assert rm.within["a"].relative_to_chance.value == 1
    rough = {name: scores_of(net(i), name, precision="float32", rank=5) for i, name in enumerate("xy")}
    kinds = {
        type(note) for layer in LAYERS for _, note in rough["x"].pair(layer, rough["y"], layer, measure="svcca")[1]
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        representational_multiplicity(rough, {"a": ["x", "y"]})
    assert {w.category for w in caught} == kinds


@pytest.mark.slow
def test_memory_does_not_grow_with_the_models(tmp_path):
    """Peak of 10, 20 and 40 models' files under a budget of 4 of them: the same but for the small matrices."""
    n, k = 1000, 12
    generator = torch.Generator().manual_seed(0)
    rows, paths = torch.randn(n, 40, generator=generator), {}
    for i in range(40):
        torch.manual_seed(i)
        model = nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 20))
        paths[f"m{i}"] = tmp_path / f"m{i}"
        sc.subspace_scores(model, rows, LAYERS, rank=k, precision="float64", progress=False).save(paths[f"m{i}"])
    size = paths["m0"].stat().st_size
    budget = 20 * size
    peaks = []
    representational_multiplicity(paths, {"g": ["m0", "m1"]}, memory=budget)  # what is imported late
    for count in (10, 20, 40):
        tracemalloc.start()
        rm = representational_multiplicity(paths, {"g": list(paths)[:count]}, memory=budget)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    own = rm.distances.nbytes * 6  # three matrices a layer, and what the summary makes of them
    assert max(peaks) <= budget
    assert peaks[2] - peaks[0] <= own + 0.1 * peaks[0]


# ---------------------------------------------------------------------- finite samples of rows


@pytest.mark.parametrize("rule", [{"rank": 3}, {"variance": 0.9, "rank": None}, {"nuclear": 0.8, "rank": None}])
def test_all_rows_give_the_stored_subspaces(rule):
    scores = {name: scores_of(net(i), name, **rule) for i, name in enumerate(NAMES)}
    groups = {"a": NAMES[:3], "b": NAMES[3:]}
    rm = representational_multiplicity(scores, groups)
    got = finite_sample_rows(scores, groups, [240], draws=2)
    np.testing.assert_allclose(got.mean[0], [rm.within[g].mean.value for g in groups], rtol=1e-10)
    np.testing.assert_allclose(got.sd[0], 0, atol=1e-12)


def test_fewer_rows_are_fitted_anew(tmp_path):
    """All directions kept: the same as streamcca on those rows alone."""
    nets = [nn.Sequential(nn.Linear(6, 4), nn.Tanh()) for _ in range(3)]
    for i, model in enumerate(nets):
        torch.manual_seed(i)
        nn.init.normal_(model[0].weight)
    options = {"variance": 1.0, "precision": "float64", "progress": False}
    scores = {}
    for i, model in enumerate(nets):
        sc.subspace_scores(model, probe(), name=str(i), **options).save(tmp_path / str(i))
        scores[str(i)] = tmp_path / str(i)
    got = finite_sample_rows(scores, {"a": ["0", "1", "2"]}, [40], draws=3, seed=5)
    assert got.of == "rows"
    for d in range(3):
        rows = np.sort(np.random.default_rng((5, 40, d)).choice(240, 40, replace=False))
        some = probe()[torch.from_numpy(rows)]
        own = {str(i): sc.subspace_scores(model, some, name=str(i), **options) for i, model in enumerate(nets)}
        want = representational_multiplicity(own, {"a": ["0", "1", "2"]})
        # The nets compute in float32, in batches of other sizes.
        assert got.draws[0][d, 0] == pytest.approx(want.within["a"].mean.value, abs=1e-6)
    json.dumps(got.to_dict(), allow_nan=False)


def test_fewer_rows_of_a_cut_view_by_hand(many):
    got = finite_sample_rows(many, {"a": ["a0", "a1"]}, [30], draws=1, seed=2)
    rows = np.sort(np.random.default_rng((2, 30, 0)).choice(240, 30, replace=False))
    want = []
    for layer in LAYERS:
        u = [reference.left_vectors(many[name][layer].projections[rows], "rank", 3) for name in ("a0", "a1")]
        want.append(1 - np.linalg.svd(u[0].T @ u[1], compute_uv=False).mean())
    assert got.mean[0, 0] == pytest.approx(np.mean(want), abs=1e-10)


def test_rows_that_are_too_few_or_too_many(many):
    got = finite_sample_rows(many, {"a": ["a0", "a1"], "c": ["c0"]}, [4, 5], draws=1)
    assert np.isnan(got.mean[0]).all()
    assert np.isfinite(got.mean[1, 0])
    assert np.isnan(got.mean[1, 1])
    assert got.to_dict()["mean"][0] == [None, None]
    with pytest.raises(sc.InputError, match="at most the 240 rows"):
        finite_sample_rows(many, {"a": ["a0", "a1"]}, [241])
    ridged = {name: scores_of(net(i), name, ridge=0.1) for i, name in enumerate("xy")}
    with pytest.raises(sc.InputError, match="ridge"):
        finite_sample_rows(ridged, {"a": ["x", "y"]}, [40])


def test_projections_are_what_pairs_are_formed_from(many):
    x, y = many["a0"]["1"], many["b0"]["1"]
    cross = x.projections.T @ y.projections / 239
    want = correlate(x.truncated, y.truncated, x.cross_covariance(y), kept=True, measure="svcca")[0]
    assert correlate(x.truncated, y.truncated, cross, kept=True, measure="svcca")[0].mean == want.mean


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 40))
def test_order_of_models_and_budget_change_nothing(order, share):
    scores = {name: _SCORES[name] for name in (NAMES[i] for i in order)}
    memory = share * next(iter(scores.values())).nbytes
    groups = {group: sorted(members, key=list(scores).index) for group, members in GROUPS.items()}
    groups = {group: groups[group] for group in sorted(groups, key=lambda g: order.index(NAMES.index(GROUPS[g][0])))}
    got, want = (representational_multiplicity(_SCORES, g, memory=m) for g, m in ((groups, memory), (GROUPS, 1 << 30)))
    place = [got.names.index(name) for name in NAMES]
    np.testing.assert_allclose(got.distances[:, place][:, :, place], want.distances, rtol=0, atol=1e-13)
    for name, group in want.within.items():
        assert got.within[name].mean.value == pytest.approx(group.mean.value, abs=1e-13)
    assert got.between_groups("a", "b").excess.value == pytest.approx(want.between["a", "b"].excess.value, abs=1e-13)


@pytest.mark.slow
def test_quick_benchmark(tmp_path):
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks", "multiplicity", "--quick", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert set(result["seconds"]) == {"forward", "scores", "pairs"}
    assert len(result["ratio_of_each"]) == 8
    assert "all pairs from files" in done.stdout
