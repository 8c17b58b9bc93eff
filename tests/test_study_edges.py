"""Small, odd but legitimate studies; what would be wrong numbers, stale receipts or late refusals."""

from __future__ import annotations

import copy
import io
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import streamcca as sc
import streamcca.multiplicity as mm
from streamcca.multiplicity.models.sources import Factory, StoredAnswers, StudyModel
from streamcca.multiplicity.study import knowledge, pictures, tasks
from streamcca.multiplicity.study.analysis import fitted_temperature
from streamcca.multiplicity.study.findings import _fewer_needed, _gain_with_inconsistency
from streamcca.multiplicity.study.members import identity_of, models_of, training_set_name
from streamcca.multiplicity.study.run import _Run
from streamcca.multiplicity.study.rungs import ladder_pairs
from streamcca.multiplicity.study.tasks import Task, run_tasks
from streamcca.multiplicity.study.work import data_of, training_data
from streamcca.multiplicity.study.workers import Workers

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.StreamCCAWarning")
TABLE = {
    "study": {"members": 2},
    "data": {"source": "digits", "test_share": 0.4, "limit": 120},
    "shifts": {"kinds": ["noise"], "strengths": [4]},
    "features": {"base": "seed", "pairs": 1, "draws": 1, "accuracy_band": 1.0, "step": 4, "target": 0.3},
    "statistics": {"draws": 100, "permutations": 100},
    "training": {"architecture": "mlp", "width": 4, "depth": 1, "epochs": 1},
    "group": [{"name": "seed"}, {"name": "dropout", "dropout": 0.2}],
}


def settings(folder, **changes):
    """Settings in which some keys of some sections are others; `group` is replaced."""
    table = copy.deepcopy(TABLE)
    for section, values in changes.items():
        if section == "group":
            table[section] = values
        else:
            table.setdefault(section, {}).update(values)
    return mm.StudyConfig.from_table(table, folder)


class Known(dict):
    """Answers of tasks, of five models in two groups."""

    level = 0.95
    names = ("base 0", "base 1", "base 2", "x 0", "x 1")
    groups = {"base": [0, 1, 2], "x": [3, 4]}  # noqa: RUF012
    config = SimpleNamespace(
        features=SimpleNamespace(shares=(1.0, 0.0, 0.5), order="pivoted"), downstream={"even": (0, 2)}
    )


PAIRS = {"reinit": [("base 0", "base 1")], "hyper-parameter": [("base 0", "x 0"), ("base 1", "x 1")]}
PLACE = {name: i for i, name in enumerate(Known.names)}


# ---------------------------------------------------------------------- numbers


def test_mixed_shares_may_stand_in_any_order():
    values = {0.0: 0.6, 0.5: 0.9, 1.0: 0.7}
    found = {
        "accuracy": [{"value": value} for value in values.values()],
        "shares": list(values),
        "over_line": [{"value": 0.0}, {"value": 0.25}, {"value": 0.0}],
        "dimension": 4,
    }
    answers = Known({f"mixed/{a} + {b}": found for some in PAIRS.values() for a, b in some})
    rows = knowledge._mixing(answers, PAIRS, PLACE)["rungs"]["reinit"]
    assert {row["share"]: row["value"] for row in rows} == values


def test_the_gain_of_stacked_probes_is_of_the_precisions_beside_it():
    found = {
        "gains": [{"over": "base 0", "gain": 0.01, "low": 0, "high": 0.02}, {"over": "base 1", "gain": 0.03}],
        "accuracy": {"base 0": {"value": 0.9}, "base 1": {"value": 0.8}},
        "mean_average_precision": {"base 0": 0.5, "base 1": 0.6, knowledge.STACKED: 0.75},
    }
    answers = Known({"stacked/base 0 + base 1": found})
    (row,) = knowledge._stacked(answers, PAIRS, PLACE)["rows"]
    assert row["gain"] == pytest.approx(row["both_value"] - max(row["base_value"], row["other_value"]))
    assert row["answers_gain"] == {"value": 0.01, "low": 0, "high": 0.02}


def needed(reinit, other):
    slope = {"value": -40.0, "low": -50.0, "high": -30.0, "reason": ""}
    means = {"reinit": {"value": 50.0}, "architecture": {"value": 10.0}}
    return {
        "along": {"rungs": list(means), "means": means, "slope": slope},
        "censored": reinit.count(None) + other.count(None),
        "rungs": {"reinit": {"needed": reinit}, "architecture": {"needed": other}},
    }


def test_pairs_that_never_reach_the_target_do_not_pass_for_pairs_that_need_few_features():
    """Such a pair counts as all that was tried: too few, which flatters the claim on the upper rungs."""
    assert _fewer_needed(needed([50, 50], [10, 10]))["verdict"] == "found"
    flattered = _fewer_needed(needed([50, 50], [None, 10]))
    assert flattered["verdict"] == "undecided"
    assert "1 pairs never reach it" in flattered["evidence"]
    assert _fewer_needed(needed([None, 50], [10, 10]))["verdict"] == "found"  # in spite of it


def test_correlation_of_gain_and_inconsistency_has_the_freedom_of_its_groups():
    """A jackknife within the groups: few base models behind many pairs leave few degrees of freedom."""
    rng = np.random.default_rng(0)
    groups = {"base": [0, 1, 2], "x": [3, 4, 5], "y": [6, 7, 8, 9]}
    names = [f"m{i}" for i in range(10)]
    ends = [(i, j) for i in groups["base"] for j in range(3, 10)]
    base = 0.5 * rng.normal(size=3)
    x = rng.normal(size=len(ends))
    y = x + np.array([base[i] for i, _ in ends]) + rng.normal(size=len(ends))
    pairs = [
        {"base": names[i], "other": names[j], "error_inconsistency": a, "improvement_mean": b}
        for (i, j), a, b in zip(ends, x, y, strict=True)
    ]
    answers = SimpleNamespace(names=names, groups=groups, level=0.95)
    found = _gain_with_inconsistency({"ladder": {"rungs": [{"pairs": pairs}]}}, answers)

    def fisher(without):
        keep = [without not in pair for pair in ends]
        return np.arctanh(np.corrcoef(x[keep], y[keep])[0, 1])

    parts = []
    for group in groups.values():
        each = np.array([fisher(model) for model in group])
        parts.append(((len(group) - 1) / len(group) * ((each - each.mean()) ** 2).sum(), len(group) - 1))
    error = sum(part for part, _ in parts)
    half = stats.t.ppf(0.975, error**2 / sum(part**2 / free for part, free in parts)) * error**0.5
    low, high = np.tanh([fisher(None) - half, fisher(None) + half])
    assert f"({low:+.2f} to {high:+.2f}, leaving models out) over 21 pairs of 10 models" in found["evidence"]
    assert found["verdict"] == ("found" if low > 0 else "undecided")


def test_a_model_that_is_always_right_keeps_its_temperature():
    logits = np.eye(3)[[0, 1, 2, 0]]
    found = fitted_temperature(logits, np.array([0, 1, 2, 0]))
    assert (found["at_bound"], found["temperature"]) == ("lower", 1.0)
    assert found["nll_after"] == found["nll_before"]
    assert found["ece_after"] == found["ece_before"]
    wrong = fitted_temperature(logits, np.array([0, 1, 2, 1]))
    assert wrong["at_bound"] is None
    assert wrong["temperature"] != 1


def test_class_names_are_no_formulas():
    row = {"image": np.zeros((1, 4, 4)).tolist(), "label": "a $_$", "answers": "$_$ (2)", "pm": 0.1}
    pictures.contested_images({"contested": [row]}).savefig(io.BytesIO(), format="svg")


# ---------------------------------------------------------------------- what is done again


def leave(folder, word, die):
    (folder / "file.txt").write_text(word)
    if die:
        os.kill(os.getpid(), 9)
    return word


@pytest.mark.slow
def test_files_of_a_task_that_was_killed_do_not_pass_for_those_of_the_settings_before(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))

    def run(word, die=False):
        task = Task("leave", "test_study_edges:leave", {"word": word, "die": die}, None, (tmp_path / "file.txt",))
        with Workers(1) as workers:
            run_tasks([task], tmp_path, workers, "t", False)

    run("old")
    with pytest.raises(sc.ProcessError):
        run("new", die=True)
    assert (tmp_path / "file.txt").read_text() == "new"
    run("old")
    assert (tmp_path / "file.txt").read_text() == "old"


def test_another_version_of_the_package_measures_anew(monkeypatch):
    before = Task("a", "m:f", {}).key
    monkeypatch.setattr(tasks, "VERSION", "another")
    assert Task("a", "m:f", {}).key != before


def later(config, accuracy=0.9):
    """The last tasks of a study whose models are all as good, by name."""
    run = _Run(config, models_of(config, 10), "fingerprint", None, False)
    run._rests_on = []
    names = [model.name for model in run.models]
    return {task.name: task for task in run._later_tasks(dict.fromkeys(names, 1.0), dict.fromkeys(names, accuracy))}


def test_curves_follow_the_measure_and_the_rows_that_both_sides_have(tmp_path):
    tables = {name: {"representation": {"measure": name}} for name in ("svcca", "pwcca")}
    one, other = (later(settings(tmp_path, **table))["foretelling"] for table in tables.values())
    assert one.key != other.key
    table = copy.deepcopy(TABLE)
    table["data"] = {"source": "digits", "test_share": 0.1}
    table["representation"] = {"probe": "train"}
    config = mm.StudyConfig.from_table(table, tmp_path)
    assert len(data_of(config).test) < 200 < 800 < len(data_of(config).train)
    assert later(config)["foretelling"].arguments["rows"] == [50, 100]
    assert later(settings(tmp_path, representation={"ridge": 0.1}))["foretelling"].arguments["rows"] == []


def test_models_without_features_are_not_probed(tmp_path):
    config = settings(tmp_path)
    assert not [name for name in later(config) if name.startswith(("mixed", "curve"))]
    for name in ("seed-0", "seed-1", "dropout-0"):
        for half in ("train", "test"):
            path = tmp_path / "captured" / name / f"features-{half}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert [name for name in later(config) if name.startswith("mixed")] == [
        "mixed/seed 0 + seed 1",
        "mixed/seed 0 + dropout 0",
    ]


def test_stored_features_count_among_the_files_of_a_model(tmp_path):
    source = StoredAnswers(str(tmp_path / "logits.safetensors"), {})
    stored = StudyModel("a 0", "a", {"architecture": "a"}, "digits", ("l",), source)
    (tmp_path / "logits.safetensors").write_bytes(b"x")
    before = identity_of(stored)
    (tmp_path / "features-train.npy").write_bytes(b"1")
    with_features = identity_of(stored)
    (tmp_path / "features-train.npy").write_bytes(b"2")
    assert before != with_features != identity_of(stored)


def test_the_function_that_makes_a_model_counts_among_its_files(tmp_path):
    source = Factory("nets:make", None, {}, str(tmp_path))
    made = StudyModel("a 0", "a", {"architecture": "a"}, "digits", ("l",), source)
    (tmp_path / "nets.py").write_text("def make(): ...")
    before = identity_of(made)
    (tmp_path / "nets.py").write_text("def make(): pass")
    assert identity_of(made) != before


def test_what_is_told_of_models_from_elsewhere_decides_their_rung(tmp_path):
    """Two groups of one architecture are not on the rung of architectures."""
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
        for file in ("logits", "scores"):
            (tmp_path / name / f"{file}.safetensors").touch()
    told = {
        "a": {"architecture": "net"},
        "b": {"architecture": "net", "dropout": 0.1},
        "c": {"architecture": "net", "framework": "contrastive"},
        "d": None,
    }
    groups = [
        {"name": name, "stored": [str(tmp_path / name)], "layers": ["l"]} | ({"training": one} if one else {})
        for name, one in told.items()
    ]
    config = settings(tmp_path, group=groups, features={"base": "a"})
    models = models_of(config, 10)
    found = ladder_pairs(config, models, dict.fromkeys((model.name for model in models), 0.9)).pairs
    rungs = {other: rung for rung, pairs in found.items() for _, other in pairs}
    assert rungs == {"b 0": "hyper-parameter", "d 0": "architecture", "c 0": "framework"}
    assert mm.StudyConfig.from_dict(config.to_dict()) == config
    with pytest.raises(sc.InputError, match=r"\(seed\).training: .*stand in the group itself"):
        settings(tmp_path, group=[{"name": "seed", "training": {"dropout": 0.1}}])


# ---------------------------------------------------------------------- refused before anything is trained


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            "shifts",
            {"kinds": ["noise", "noise"]},
            r"\[shifts\].kinds: got \['noise', 'noise'\], expected each kind once",
        ),
        ("shifts", {"strengths": [1, 1]}, "expected each strength once"),
        ("representation", {"variance": 1.5}, r"\[representation\].variance: got 1.5, expected a share"),
        ("representation", {"rank": 0}, r"rank: got 0, expected at least 1"),
        ("representation", {"ridge": -1.0}, "ridge: got -1.0"),
        ("features", {"shares": [0.5, 1.5]}, "shares: got .*expected shares from 0 to 1"),
        ("features", {"shares": []}, "shares: got"),
        ("features", {"draws": 0}, r"\[features\].draws: got 0"),
        ("features", {"order": "pivot"}, "order: got 'pivot', expected one of variance, "),
        ("features", {"step": 0}, "step: got 0"),
        ("features", {"target": 76.0}, "target: got 76.0, expected an accuracy above 0, at most 1"),
        ("features", {"ensemble_size": 0}, "ensemble_size: got 0"),
        ("statistics", {"seed": -1}, r"\[statistics\].seed: got -1"),
        ("group", [{"name": "seed", "data": "mnist"}], r"\(seed\).data: got 'mnist', expected a table"),
        ("group", [{"name": "seed", "data": {"sift": "noise:1"}}], r"\(seed\).data: .*'sift'.*'shift'"),
        ("group", [{"name": "seed", "data": {"size": "8"}}], r"\(seed\).data.size: got '8'"),
        (
            "group",
            [{"name": "seed", "data": {"seed": 1}}],
            "group 'seed': data.seed: got 1, .*train on its test images",
        ),
        (
            "group",
            [{"name": "seed", "data": {"source": "digits", "test_share": 0.1}}],
            "group 'seed': data.test_share: got 0.1, .*train on its test images",
        ),
    ],
)
def test_settings_are_refused_as_they_are_read(section, values, message, tmp_path):
    with pytest.raises(sc.InputError, match=message):
        settings(tmp_path, **{section: values})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": [{"name": "a b"}, {"name": "a-b"}]}, "would share the files a-b-0"),
        ({"group": [{"name": "seed", "members": 1}]}, "models: got 1, expected at least 2"),
        (
            {"downstream": {"big": [12]}},
            r"\[downstream\].big: got \[12\], expected some, not all, of the classes 0 to 9",
        ),
        ({"downstream": {"all": list(range(10))}}, r"\[downstream\].all: got"),
        ({"downstream": {"none": []}}, r"\[downstream\].none: got"),
    ],
)
def test_models_and_tasks_that_cannot_be_are_refused_before_training(changes, message, tmp_path):
    table = copy.deepcopy(TABLE) | changes
    table["features"].pop("base")
    with pytest.raises(sc.InputError, match=message):
        mm.run_study(mm.StudyConfig.from_table(table, tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()


def test_fewer_or_other_images_are_another_data_set(tmp_path):
    """The ladder tells by the name; training rows are never those of the study's test set."""
    rng = np.random.default_rng(0)
    own = {"x": rng.random((60, 8, 8)), "y": np.arange(60) % 10}
    np.savez(
        tmp_path / "own.npz", x_train=own["x"][:40], y_train=own["y"][:40], x_test=own["x"][40:], y_test=own["y"][40:]
    )
    groups = [
        {"name": "seed", "data": {"limit": 120}},
        {"name": "few", "data": {"limit": 50}},
        {"name": "shifted", "data": {"shift": "noise:2", "limit": 50}},
        {"name": "own", "data": {"source": str(tmp_path / "own.npz")}},
    ]
    config = settings(tmp_path, group=groups)
    names = [training_set_name(config, group) for group in config.groups]
    assert names[:3] == ["digits", "digits, limit 50", "digits, limit 50, noise:2"]
    assert [len(training_data(config, group)) for group in config.groups] == [120, 50, 50, 40]


# ---------------------------------------------------------------------- whole studies


@pytest.mark.slow
def test_one_group_without_shifts_and_pairs(tmp_path):
    """Nothing out of distribution, nothing on the ladder, a ridge: the report leaves pictures out."""
    config = settings(
        tmp_path,
        shifts={"kinds": []},
        features={"accuracy_band": 0.0},
        representation={"ridge": 0.1},
        group=[{"name": "seed", "members": 3}],
    )
    study = mm.run_study(config, progress=False)
    results = study.results
    assert results["association"].keys() == {"iid"}
    assert results["predictors"]["curves"]["rows"] == {"rm": [], "pm": [], "both": []}
    page = study.report.read_text()
    assert page.count("<img ") >= 9
    assert 'alt="specialization"' not in page
    assert "NaN" not in (study.folder / "results.json").read_text()


@pytest.mark.slow
def test_groups_of_one_model_some_of_them_stored_without_features(tmp_path):
    groups = [{"name": name, "members": 1} for name in ("seed", "other")]
    first = mm.run_study(settings(tmp_path / "a", group=groups, downstream={"even": [0, 2]}), progress=False)
    assert first.results["groups"][0]["rm"]["mean"]["value"] is None
    assert first.results["mixing"]["rungs"]
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("logits", "scores"):
        shutil.copy(first.folder / "captured" / "other-0" / f"{name}.safetensors", bare)
    stored = {"name": "other", "stored": [str(bare)], "layers": ["stage1", "features"]}
    second = mm.run_study(settings(tmp_path / "b", group=[groups[0], stored]), progress=False)
    assert second.results["mixing"]["rungs"] == {}
    pair = [results["pairs"][0] for results in (first.results, second.results)]
    assert pair[0]["error_inconsistency"] == pair[1]["error_inconsistency"]
    assert pair[0]["distance"] == pytest.approx(pair[1]["distance"], abs=1e-12)
    np.save(bare / "features-train.npy", np.zeros((5, 4)))
    with pytest.raises(sc.InputError, match="got features of 5 images, expected 120"):
        mm.run_study(settings(tmp_path / "b", group=[groups[0], stored]), progress=False)
