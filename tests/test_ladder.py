"""Means along the ladder against a direct computation; which pairs stand where; tasks and their receipts."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from scipy import stats

import streamcca as sc
import streamcca.multiplicity as mm
from streamcca.multiplicity.models.methods import Method
from streamcca.multiplicity.models.sources import StudyModel, TrainedFile
from streamcca.multiplicity.study.rungs import chosen_pairs, ladder_pairs
from streamcca.multiplicity.study.tasks import Task, run_tasks, stable_hash
from streamcca.multiplicity.study.workers import Workers


def symmetric(rng, models):
    half = rng.random((models, models))
    return half + half.T


def left_out(values, pairs, groups, level=0.95):
    """Slope of the rungs' means, and its interval from leaving one model out after the other."""

    def slope(without):
        means = [np.mean([values[a, b] for a, b in some if without not in (a, b)]) for some in pairs.values()]
        return np.polyfit(np.arange(len(means)), means, 1)[0]

    parts = []
    for group in groups:
        each = np.array([slope(model) for model in group])
        parts.append(((len(group) - 1) / len(group) * ((each - each.mean()) ** 2).sum(), len(group) - 1))
    error = sum(part for part, _ in parts)
    freedom = error**2 / sum(part**2 / free for part, free in parts)
    return slope(None), stats.t.ppf((1 + level) / 2, freedom) * error**0.5


@pytest.mark.parametrize("seed", range(5))
def test_slope_and_interval_are_those_of_a_direct_jackknife(seed):
    rng = np.random.default_rng(seed)
    values = symmetric(rng, 9)
    groups = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    pairs = {"a": [(0, 1), (0, 2), (1, 2)], "b": [(i, j) for i in (0, 1, 2) for j in (3, 4, 5)]}
    pairs["c"] = [(i, j) for i in (0, 1, 2) for j in (6, 7, 8)]
    found = mm.along_ladder(values, {name: np.array(some) for name, some in pairs.items()}, groups)
    value, half = left_out(values, pairs, groups)
    assert found.slope.value == pytest.approx(value, rel=1e-10)
    assert found.slope.high - found.slope.value == pytest.approx(half, rel=1e-9)
    assert found.means["b"].value == pytest.approx(np.mean([values[p] for p in pairs["b"]]), rel=1e-12)
    step = found.steps["a", "b"]
    assert step.value == pytest.approx(found.means["b"].value - found.means["a"].value, rel=1e-9)


def test_unknown_pairs_and_single_models():
    values = symmetric(np.random.default_rng(0), 6)
    values[0, 2] = values[2, 0] = np.nan
    pairs = {"a": np.array([[0, 1]]), "b": np.array([[0, 2], [1, 2]]), "c": np.array([[0, 3], [1, 3]])}
    found = mm.along_ladder(values, pairs, [[0, 1], [2], [3], [4, 5]])
    assert found.means["b"].value == values[1, 2]  # the known one
    assert found.means["a"].low is None  # of two models none can be spared
    assert found.means["c"].low is not None  # the single model stays, those of the base are left out
    nothing = mm.along_ladder(np.full((6, 6), np.nan), pairs, [[0, 1], [2], [3], [4, 5]])
    assert nothing.rungs == ()
    assert nothing.slope.value is None
    json.dumps(nothing.to_dict(), allow_nan=False)


def model(name, group, **settings):
    data = settings.pop("data", "digits")
    return StudyModel(name, group, Method(group, **settings), data, ("features",), TrainedFile("nowhere"))


def test_pairs_stand_on_the_highest_rung_on_which_they_differ(tmp_path):
    config = mm.StudyConfig.from_table(
        {"group": [{"name": "base"}], "features": {"base": "base", "accuracy_band": 0.1}}, tmp_path
    )
    models = [
        model("base 0", "base"),
        model("base 1", "base"),
        model("drop 0", "drop", dropout=0.2),
        model("wide 0", "wide", width=64, dropout=0.2),
        model("simclr 0", "simclr", framework="contrastive", augmentation="strong", width=64),
        model("other 0", "other", data="other", width=64),
        model("bad 0", "bad"),
    ]
    accuracies = {one.name: 0.9 for one in models} | {"bad 0": 0.7, "drop 0": 0.81}
    found = ladder_pairs(config, models, accuracies)
    assert list(found.pairs) == ["reinit", "hyper-parameter", "architecture", "framework", "data set"]
    assert found.pairs["reinit"] == [("base 0", "base 1")]
    assert found.pairs["hyper-parameter"] == [("base 0", "drop 0"), ("base 1", "drop 0")]
    assert found.left_out == 2  # both pairs with the bad model
    assert found.target == pytest.approx(0.895)


def test_probed_pairs_spread_over_models_and_groups():
    pairs = {"a": [(f"base {i}", f"{group} {j}") for group in "xyz" for i in range(3) for j in range(3)]}
    chosen = chosen_pairs(pairs, 6)["a"]
    assert len(set(chosen)) == 6
    assert sorted(other[0] for _, other in chosen) == ["x", "x", "y", "y", "z", "z"]
    assert sorted(base for base, _ in chosen) == sorted([f"base {i}" for i in range(3)] * 2)
    assert chosen_pairs({"a": pairs["a"][:2]}, 6)["a"] == pairs["a"][:2]


# ---------------------------------------------------------------------- tasks, run by this module in workers


def square(folder, number):
    (folder / f"{number}.txt").write_text(str(number))
    return {"square": number**2, "process": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}


def refuse(folder, number):
    raise sc.InputError(f"got {number}, expected another")


def die(folder, number):
    os.kill(os.getpid(), 9)


def warn(folder, number):
    import warnings

    warnings.warn("few rows", sc.SampleSizeWarning, stacklevel=1)
    return number


def tasks(function, numbers, rests_on=None):
    return [Task(f"{function}/{n}", f"test_ladder:{function}", {"number": n}, rests_on) for n in numbers]


def run(some, folder, jobs):
    with Workers(jobs) as workers:
        return run_tasks(some, folder, workers, "t", False)


@pytest.fixture
def here(monkeypatch):
    """Workers find this module."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))


def test_tasks_run_once_and_answer_in_any_number_of_workers(here, tmp_path):
    found = run(tasks("square", range(5)), tmp_path, 2)
    assert [found[f"square/{n}"]["answer"]["square"] for n in range(5)] == [0, 1, 4, 9, 16]
    assert os.getpid() not in {one["answer"]["process"] for one in found.values()}
    assert {one["answer"]["threads"] for one in found.values()} == {"1"}
    assert run(tasks("square", range(5)), tmp_path, 1) == found  # with the processes of before
    more = run(tasks("square", range(5), rests_on="other"), tmp_path, 1)
    assert more["square/0"]["answer"]["process"] != found["square/0"]["answer"]["process"]


def test_a_task_that_fails_is_named_and_others_keep_their_answers(here, tmp_path):
    run(tasks("square", [1]), tmp_path, 1)
    with pytest.raises(sc.InputError, match="refuse/3: got 3, expected another"):
        run([*tasks("square", [1]), *tasks("refuse", [3])], tmp_path, 1)
    with pytest.raises(sc.ProcessError, match=r"a worker process ended while it ran one of die/1.*goes on"):
        run(tasks("die", [1]), tmp_path, 1)
    assert sorted(path.name for path in (tmp_path / "receipts").iterdir()) == ["square__1.json"]


def test_notes_are_kept_with_the_answer(here, tmp_path):
    assert run(tasks("warn", [1]), tmp_path, 1)["warn/1"]["notes"] == ["few rows"]


def test_keys_follow_everything_that_decides_an_answer():
    base = Task("a", "m:f", {"x": 1}, ["k"])
    assert base.key == Task("renamed", "m:f", {"x": 1}, ["k"]).key
    assert len({base.key, Task("a", "m:g", {"x": 1}, ["k"]).key, Task("a", "m:f", {"x": 2}, ["k"]).key}) == 3
    assert base.key != Task("a", "m:f", {"x": 1}, ["l"]).key
    assert stable_hash({"a": 1, "b": 2}) == stable_hash({"b": 2, "a": 1})
