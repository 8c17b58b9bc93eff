"""A whole study, small: what it reports is what its files say; it goes on where it was, to the same numbers."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import streamcca as sc
import streamcca.multiplicity as mm
from streamcca.multiplicity.answers.logit_files import save_logits

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.StreamCCAWarning")
SETTINGS = """
[study]
members = 3
[data]
source = "digits"
test_share = 0.4
[shifts]
kinds = ["noise"]
strengths = [1, 4]
[features]
base = "seed"
pairs = 1
draws = 2
accuracy_band = 1.0
step = 8
[statistics]
draws = 200
permutations = 200
[downstream]
even = [0, 2, 4, 6, 8]
loop = [0, 6, 8, 9]
[training]
architecture = "mlp"
width = 8
depth = 2
epochs = 3
[[group]]
name = "seed"
[[group]]
name = "dropout"
dropout = 0.2
[[group]]
name = "convnet"
architecture = "convnet"
epochs = 2
[[group]]
name = "other data"
data = { shift = "rotation:2" }
"""


def write(folder: Path, text: str = SETTINGS) -> Path:
    path = folder / "small.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return mm.run_study(write(folder), folder=folder / "out", jobs=2, progress=False)


def receipts(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "receipts").iterdir()}


def test_the_report_needs_nothing_from_elsewhere(study):
    page = study.report.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert page.count("<img ") == page.count('src="data:image/svg+xml;base64,') == 15 + len(study.results["groups"])
    assert all(alt.strip() for alt in re.findall(r'<img alt="([^"]*)"', page))
    for group in study.results["groups"]:
        assert group["name"] in page


def test_results_are_plain_and_finite(study):
    text = (study.folder / "results.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text) == json.loads(json.dumps(study.to_dict()))
    assert str(study.folder) not in text  # the same study elsewhere has the same results
    assert "12 models in 4 groups" in study.table()
    assert repr(study).startswith("Study(12 models")


def test_representational_multiplicity_is_that_of_the_scores(study):
    scores = [sc.SubspaceScores.load(study.folder / "captured" / f"seed-{i}" / "scores.safetensors") for i in range(3)]
    layers = list(scores[0].layers)
    distances = [
        1 - a.pair(layer, b, layer, measure="svcca")[0].mean
        for layer in layers
        for a, b in ((scores[0], scores[1]), (scores[0], scores[2]), (scores[1], scores[2]))
    ]
    found = next(group for group in study.results["groups"] if group["name"] == "seed")["rm"]
    assert found["mean"]["value"] == pytest.approx(np.mean(distances), abs=1e-12)
    per_layer = [one["value"] for one in found["per_layer"]]
    np.testing.assert_allclose(per_layer, np.reshape(distances, (len(layers), 3)).mean(axis=1), atol=1e-12)


def test_predictive_multiplicity_is_that_of_the_models(study):
    """Asked again here, from the weights: the answers, their variance, accuracy and ensembles."""
    import torch

    from streamcca.multiplicity.models.training import load_model

    data = mm.load_data("digits", test_share=0.4)
    images = torch.from_numpy(data.test.images)
    probabilities = []
    for i in range(3):
        net = load_model(study.folder / "models" / f"convnet-{i}.safetensors")
        with torch.no_grad():
            probabilities.append(torch.softmax(net(images).double(), dim=1).numpy())
    p = np.array(probabilities)
    found = next(group for group in study.results["groups"] if group["name"] == "convnet")
    assert found["pm"]["by_set"]["iid"]["value"] == pytest.approx(p.var(axis=0, ddof=1).sum(axis=1).mean(), abs=1e-4)
    assert found["accuracy"]["iid"] == pytest.approx((p.argmax(axis=2) == data.test.labels).mean(), abs=1e-12)


def test_the_ladder_follows_the_training_methods(study):
    ladder = study.results["ladder"]
    rungs = {rung["rung"]: rung for rung in ladder["rungs"]}
    assert list(rungs) == ["reinit", "hyper-parameter", "architecture", "data set"]
    assert [len(rungs[name]["pairs"]) for name in rungs] == [3, 9, 9, 9]
    for rung in ladder["rungs"]:
        for name in ("error_inconsistency", "improvement_mean", "distance"):
            mean = np.mean([pair[name] for pair in rung["pairs"]])
            assert rung[name]["value"] == pytest.approx(mean, abs=1e-12)
    place = np.arange(4) - 1.5
    means = np.array([rung["error_inconsistency"]["value"] for rung in ladder["rungs"]])
    slope = ladder["trends"]["error_inconsistency"]["slope"]
    assert slope["value"] == pytest.approx(means @ place / (place @ place), abs=1e-12)
    assert slope["low"] < slope["value"] < slope["high"]
    assert all("other data" in pair["other"] for pair in rungs["data set"]["pairs"])


def test_findings_say_verdict_and_numbers(study):
    found = study.results["findings"]
    assert {one["verdict"] for one in found} <= {"found", "not found", "undecided"}
    assert all(one["claim"] and one["evidence"] and one["source"] for one in found)
    assert len(found) >= 12
    for one in found:
        assert ("rung" in one["evidence"]) or re.search(r"\d", one["evidence"]), one


def test_tables_hold_the_results(study):
    with (study.folder / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 66
    with (study.folder / "groups.csv").open(newline="") as file:
        groups = {row["group"]: row for row in csv.DictReader(file)}
    for group in study.results["groups"]:
        assert float(groups[group["name"]]["RM"]) == group["rm"]["mean"]["value"]
        assert float(groups[group["name"]]["PM noise-4"]) == group["pm"]["by_set"]["noise-4"]["value"]
    with (study.folder / "models.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [model["name"] for model in study.results["models"]]


def test_nothing_is_done_again(study, tmp_path):
    before, page = receipts(study.folder), study.report.stat().st_mtime_ns
    start = time.monotonic()
    again = mm.run_study(write(tmp_path), folder=study.folder, progress=False)
    assert time.monotonic() - start < 5
    assert again.results == study.results
    assert receipts(study.folder) == before
    assert study.report.stat().st_mtime_ns == page


@pytest.mark.slow
def test_only_what_changed_is_done_again(study, tmp_path):
    """Other statistics: no model is trained or asked. A damaged receipt, or a file that is gone: that alone."""
    out = tmp_path / "out"
    shutil.copytree(study.folder, out)
    before = receipts(out)
    (out / "receipts" / "train__seed 1.json").write_text('{"key"')
    (out / "captured" / "dropout-2" / "logits.safetensors").unlink()
    again = mm.run_study(write(tmp_path), folder=out, progress=False)
    changed = {name for name, when in receipts(out).items() if before[name] != when}
    assert changed == {"train__seed 1.json", "answers of__dropout 2.json"}
    assert again.results == study.results
    before = receipts(out)
    mm.run_study(
        write(tmp_path, SETTINGS.replace("permutations = 200", "permutations = 300")), folder=out, progress=False
    )
    changed = {name for name, when in receipts(out).items() if before[name] != when}
    assert "insides.json" in changed
    assert not [name for name in changed if name.startswith(("train", "answers of", "shift"))]


@pytest.mark.slow
def test_stored_answers_are_a_group(study, tmp_path):
    """The answers of one study, given to another as they lie; their rows must be those of its test sets."""
    out = tmp_path / "out"
    shutil.copytree(study.folder, out)
    stored = [str(study.folder / "captured" / f"convnet-{i}") for i in (0, 1)]
    group = f'\n[[group]]\nname = "given"\nlayers = ["stage1", "stage2", "features"]\nstored = {json.dumps(stored)}\n'
    found = mm.run_study(write(tmp_path, SETTINGS + group), folder=out, progress=False).results
    given = next(one for one in found["groups"] if one["name"] == "given")
    own = np.array(
        [pair["distance"] for pair in study.results["pairs"] if {pair["a"], pair["b"]} == {"convnet 0", "convnet 1"}]
    )
    assert given["rm"]["mean"]["value"] == pytest.approx(own[0], abs=1e-12)
    twin = next(p["distance"] for p in found["pairs"] if {p["a"], p["b"]} == {"given 0", "convnet 0"})
    assert twin == pytest.approx(0, abs=1e-6)
    save_logits(tmp_path / "logits.safetensors", {"iid": np.zeros((5, 10))})
    other = tmp_path / "other"
    other.mkdir()
    for name in ("logits", "scores"):
        source = tmp_path / "logits.safetensors" if name == "logits" else Path(stored[0]) / "scores.safetensors"
        (other / f"{name}.safetensors").write_bytes(source.read_bytes())
    wrong = SETTINGS + group.replace(json.dumps(stored), json.dumps([str(other)]))
    with pytest.raises(sc.InputError, match=r"given 0: .*got \(5, 10\) for test set 'iid'"):
        mm.run_study(write(tmp_path, wrong), folder=out, progress=False)


def test_a_second_study_in_the_folder_is_refused(study, tmp_path):
    import fcntl

    with (study.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(sc.ProcessError, match="another one runs"):
            mm.run_study(write(tmp_path), folder=study.folder, progress=False)


COMMAND = "from streamcca.cli import main; import sys; sys.exit(main(sys.argv[1:]))"


def start(config: Path, folder: Path, jobs: int = 2) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-c",
        COMMAND,
        "study",
        str(config),
        "--folder",
        str(folder),
        "--jobs",
        str(jobs),
        "--quiet",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


@pytest.mark.slow
def test_killed_five_times_it_ends_with_the_same_numbers(study, tmp_path):
    """Killed by SIGKILL at random, in training and after it; also with another number of workers."""
    config, folder = write(tmp_path), tmp_path / "out"
    rng = np.random.default_rng(3)
    killed = 0
    while killed < 5:
        job = start(config, folder, jobs=1 + killed % 2)
        try:
            job.wait(timeout=float(rng.uniform(2.0, 4.5)))
        except subprocess.TimeoutExpired:
            os.kill(job.pid, signal.SIGKILL)
            job.wait()
            killed += 1
        else:
            break
        finally:
            job.communicate()
    job = start(config, folder)
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err.decode()
    assert b"12 models in 4 groups" in out
    assert killed >= 2
    assert (folder / "results.json").read_bytes() == (study.folder / "results.json").read_bytes()
    assert not list(folder.rglob("*.part"))
    assert not list(folder.rglob("*.tmp.*"))


@pytest.mark.slow
def test_ctrl_c_leaves_no_worker(tmp_path):
    job = start(write(tmp_path, SETTINGS.replace("epochs = 3", "epochs = 4000")), tmp_path / "out")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").rglob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(job.pid, signal.SIGINT)
    _, err = job.communicate(timeout=30)
    assert job.returncode == 130
    assert err.decode().strip().endswith("streamcca: interrupted")
    with pytest.raises(ProcessLookupError):
        for _ in range(200):  # until init has buried the last of them
            os.killpg(job.pid, 0)
            time.sleep(0.1)
    assert list((tmp_path / "out").rglob("*.part"))  # where it will go on


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("members = 3", "members = 1", r"\[study\].members: got 1, expected at least 2"),
        ("draws = 2\n", "drawz = 2\n", r"\[features\]: .*'drawz'.*'draws'"),
        ("pairs = 1", 'pairs = "two"', r"\[features\].pairs: got 'two', expected a whole number"),
        ("strengths = [1, 4]", "strengths = [1, 6]", "strengths: got .*expected numbers from 1 to 5"),
        ('base = "seed"', 'base = "sed"', r"\[features\].base: got 'sed'"),
        ("dropout = 0.2", "dropout = 1.2", "method 'dropout': dropout: got 1.2"),
        ("dropout = 0.2", "dropuot = 0.2", "method 'dropout': .*'dropuot'"),
        ('name = "dropout"', 'name = "seed"', "two groups are called 'seed'"),
        ('name = "dropout"', 'name = "a/b"', "name 'a/b': expected letters"),
        ("[statistics]", "[statistic]", r"got section \[statistic\]"),
        ("[statistics]", "[statistics", "it is not TOML"),
        ('kinds = ["noise"]', 'kinds = ["nose"]', "'nose'"),
        ("dropout = 0.2", "depth = 3", "layers: got .*expected as many in every group"),
        ("dropout = 0.2", 'factory = "a:b"', "factory goes with checkpoints"),
        ("dropout = 0.2", 'stored = ["nowhere"]\nlayers = ["a"]', "there is no such file"),
        ("rotation:2", "rotation", "data.shift: got 'rotation', expected 'KIND:STRENGTH'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_trained(before, after, message, tmp_path):
    assert before in SETTINGS
    with pytest.raises((sc.InputError, sc.MissingFileError), match=message):
        mm.run_study(write(tmp_path, SETTINGS.replace(before, after, 1)), folder=tmp_path / "out", progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_example_is_a_study_of_the_size_that_is_promised():
    config = mm.StudyConfig.load(Path(__file__).parent.parent / "examples" / "digits.toml")
    assert len(config.groups) >= 8
    assert sum(group.members for group in config.groups) >= 40
    assert len(config.shifts.kinds) >= 2
    assert len(config.shifts.strengths) == 5
    assert mm.StudyConfig.from_dict(config.to_dict()) == config
