"""The benchmarks run, check before they time, and say what they measured."""

from __future__ import annotations

import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks")


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "only"), [("covariance", "of "), ("truncation", "flat"), ("svcca", ""), ("files", ""), ("accuracy", "")]
)
def test_quick_run(which, only, tmp_path):
    """Some cases of each: every contender starts a process, and CI has other things to do."""
    chosen = ["--only", only] if only else []
    done = run(which, "--quick", "--rounds", 1, "--json", tmp_path / "out.json", "--folder", tmp_path, *chosen)
    assert done.returncode == 0, done.stderr
    assert "correct: " in done.stdout or "largest error" in done.stdout
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["command"].startswith(f"python -m benchmarks {which} --quick --rounds 1")
    assert document["machine"]["isa"] in done.stdout
    for result in document["results"]:
        for row in result.get("contenders", ()):
            assert row["seconds"] > 0
            assert row["label"] in done.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]


@pytest.mark.slow
def test_quick_run_of_wide_layers(tmp_path):
    done = run("wide", "--quick", "--json", tmp_path / "out.json", "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    wide, long = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [route["strategy"] for route in wide["routes"]] == ["sketch", "gram"]
    # The routes differ in nearly everything, and agree; the sums are those of float64.
    assert all(bar["reached"] for bar in wide["bars"])
    assert long["largest_error"] < 1e-6
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]


@pytest.mark.slow
def test_quick_run_of_measures(tmp_path):
    done = run("measures", "--quick", "--json", tmp_path / "out.json", "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    grid, intervals = json.loads((tmp_path / "out.json").read_text())["results"]
    assert grid["seconds"]["all"] > 0
    assert grid["means"]["rv"] == grid["means"]["cka"]
    assert len(intervals["bars"]) == 6
    assert "of each measure by itself" in done.stdout


def test_a_wrong_answer_is_not_timed(benchmarks, tmp_path, monkeypatch):
    from benchmarks import covariance, jobs

    x = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    check = covariance._checked("streamcca_covariance", 1.2e-7, covariance._views("x"))
    assert "largest error" in check(tmp_path)[0]
    monkeypatch.setattr(jobs, "streamcca_covariance", lambda _: lambda: np.cov(x[:-1], rowvar=False))
    with pytest.raises(SystemExit, match="wrong by .*nothing was timed"):
        check(tmp_path)


def test_bars(benchmarks):
    from benchmarks.bars import Bar, verdict

    race = {
        "seconds": {"ours": [1.0, 2.0, 3.0], "rival": [2.0, None, 9.0]},
        "peak": {"ours": [4e-9, 4e-9, 1e-9]},
    }
    times, peak, seconds = Bar("times", "rival", 2.6, "ours"), Bar("peak", "ours", 0.5), Bar("seconds", "ours", 2.0)
    assert verdict(times, race, None) | {"text": ""} == {
        "bar": "rival takes >= 2.6 x ours",
        "wanted": 2.6,
        "measured": 2.5,
        "reached": False,
        "text": "",
    }
    found = verdict(peak, race, 4.0)  # 1, 1/2 and 4/3 of the peak
    assert (found["measured"], found["reached"], found["text"]) == (1.0, True, "100%")
    assert verdict(seconds, race, None)["reached"]
    assert not verdict(Bar("seconds", "ours", 1.9), race, None)["reached"]


def test_exact_covariance(benchmarks):
    from benchmarks.accuracy import exact_covariance

    x = np.random.default_rng(0).integers(-8, 9, size=(50, 2)) / 4 + 1000
    assert float(exact_covariance(x[:, 0], x[:, 1])) == pytest.approx(np.cov(x, rowvar=False)[0, 1], rel=1e-12)
    assert exact_covariance([1.0, 2.0, 4.0], [1.0, 2.0, 4.0]) * 3 == 7


def test_contenders_agree(benchmarks, tmp_path):
    from benchmarks import data, jobs

    x, y = data.layers(1500, 40, "float32")
    data.store(tmp_path, x=x, y=y)
    answers = {name: jobs.JOBS[name](tmp_path)() for name in ("numpy_svd", "numpy_cov_eigh", "torch_qr_svd")}
    ours = jobs.JOBS["streamcca_svcca"](tmp_path)()
    for name, (mean, *ranks) in answers.items():
        assert mean == pytest.approx(ours.mean, abs=1e-5), name
        assert ranks == [ours.rank_x, ours.rank_y], name


def test_medians_leave_out_the_rounds_that_were_skipped(benchmarks):
    from benchmarks import bars

    assert bars.median_seconds([3.0, None, 1.0, None, 2.0]) == 2.0
    assert bars.median_ratio([8.0, None, 9.0], [2.0, 1.0, 3.0]) == 3.5


def test_a_worker_that_dies_is_named(benchmarks, tmp_path):
    from benchmarks import race

    with pytest.raises(RuntimeError, match="lost: its process ended early"):
        race.Worker(race.Contender("lost", "no_such_job"), tmp_path)


@pytest.mark.parametrize(
    ("file", "table"),
    [
        ("README.md", "markdown"),
        ("docs/performance.md", "bars_markdown"),
        ("docs/numerics.md", "accuracy_markdown"),
        ("docs/measures.md", "identification_markdown"),
        ("docs/which-route.md", "wide_markdown"),
        ("docs/cuda.md", "cuda_markdown"),
    ],
)
def test_documents_show_the_committed_results(file, table, benchmarks):
    from benchmarks import report

    lines = (ROOT / file).read_text().splitlines()
    for line in getattr(report, table)(report.committed()):
        assert line in lines


def test_the_picture_of_the_committed_results(benchmarks, tmp_path):
    from benchmarks import report

    report.draw(report.committed(), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_committed_results_are_of_the_full_size():
    found = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks/results").glob("*.json")}
    known = {"covariance", "truncation", "svcca", "files", "accuracy", "hooks", "identification", "wide", "cuda"}
    assert found.keys() == known
    for name, document in found.items():
        assert re.fullmatch(rf"python -m benchmarks {name}( --rounds [3-9])?", document["command"])
        assert document["results"], name
        for result in document["results"]:
            assert all(math.isfinite(row["ratio"]) for row in result.get("contenders", ()))
