"""streamcca merge: files of an array job into one."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import streamcca as sc
from streamcca.cli import main

X = np.random.default_rng(0).standard_normal((900, 6))
PARTS = {"a.st": X[:400], "b.st": X[400:410], "empty.st": X[:0], "c.st": X[410:]}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in PARTS.items():
        m = sc.Moments({"x": 6})
        m.update(x=rows)
        m.save(name)
    return tmp_path


def run(capsys, *arguments):
    try:
        code = main(["merge", *map(str, arguments)])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    return code, out, err


def saved(name, views, **options):
    m = sc.Moments(views, **options)
    m.update({view: X[:, :width] for view, width in views.items()})
    m.save(name)


def test_files_become_one_in_the_order_given(files, capsys, same_bits):
    for order in (list(PARTS), list(PARTS)[::-1]):
        code, out, err = run(capsys, "out.st", *order, "--force")
        assert (code, err) == (0, "")
        assert out.startswith("out.st: Moments(n=900, ")
        expected = sc.Moments({"x": 6})
        for name in order:
            expected.merge(sc.Moments.load(name))
        same_bits(sc.Moments.load("out.st"), expected)
    np.testing.assert_allclose(expected.covariance("x"), np.cov(X, rowvar=False), rtol=1e-13, atol=1e-14)


def test_json_says_what_is_in_it(files, capsys, monkeypatch):
    real, seen = sc.Moments.load, []
    monkeypatch.setattr(sc.Moments, "load", lambda path, threads=None: seen.append(threads) or real(path, threads))
    code, out, err = run(capsys, "out.st", *PARTS, "--json", "--threads", "1")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "out": "out.st",
        "files": 4,
        "n": 900,
        "rows": 900,
        "skipped": 0,
        "views": {"x": 6},
        "precision": "float64",
    }
    assert seen == [1] * 4


def test_the_settings_are_those_of_the_first_file(files, capsys):
    saved("skip.st", {"x": 6}, nonfinite="skip", precision="float32")
    saved("raise.st", {"x": 6}, nonfinite="raise", precision="float64")
    for first, other, policy, precision in (
        ("skip.st", "raise.st", "skip", "float32"),
        ("raise.st", "skip.st", "raise", "float64"),
    ):
        assert run(capsys, "out.st", first, other, "--force")[0] == 0
        m = sc.Moments.load("out.st")
        assert (m._nonfinite, m.precision, m.n) == (policy, precision, 1800)


def test_an_existing_file_is_kept_unless_forced(files, capsys):
    sc.Moments.load("a.st").save("out.st")
    old = (files / "out.st").read_bytes()
    code, out, err = run(capsys, "out.st", "b.st", "c.st")
    assert (code, out) == (3, "")
    assert err == "streamcca: merge: out.st exists; choose another name, or pass --force to replace it\n"
    assert (files / "out.st").read_bytes() == old
    assert run(capsys, "out.st", "b.st", "c.st", "--force")[0] == 0
    assert sc.Moments.load("out.st").n == 500


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["out.st", "a.st", "none.st"], "none.st: there is no such file"),
        (["out.st", "a.st", "junk.st"], "junk.st: damaged, truncated or not written by Moments.save"),
        (["out.st", "a.st", "wide.st"], "wide.st: has views {'x': 5}, expected {'x': 6} as in a.st; merge files"),
        (["out.st", "xy.st", "yx.st"], "yx.st: has views {'y': 5, 'x': 6}, expected {'x': 6, 'y': 5} as in xy.st"),
        (["out.st", "xy.st", "self.st"], "self.st: has pairs [('x', 'x'), ('y', 'y')], expected [('x', 'x'), ("),
        (["out.st", "a.st", "b.st", "./a.st"], "./a.st is given twice; its rows would count twice"),
        (["a.st", "b.st", "a.st", "--force"], "a.st is both the file to write and one to read"),
        (["missing/out.st", "a.st", "b.st"], "there is no folder"),
        (["folder", "a.st", "b.st", "--force"], "folder: not a file, and not replaced by one"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_input_exits_with_3_and_writes_nothing(arguments, sentence, files, capsys):
    (files / "junk.st").write_bytes(b"no moments")
    (files / "folder").mkdir()
    saved("wide.st", {"x": 5})
    saved("xy.st", {"x": 6, "y": 5})
    saved("yx.st", {"y": 5, "x": 6})
    saved("self.st", {"x": 6, "y": 5}, pairs="self")
    before = {name: (files / name).read_bytes() for name in os.listdir(files) if name != "folder"}
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (3, "")
    assert err.startswith("streamcca: ")
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert {name: (files / name).read_bytes() for name in os.listdir(files) if name != "folder"} == before


def test_a_failed_write_leaves_the_old_file(files, capsys, monkeypatch):
    sc.Moments.load("a.st").save("out.st")
    old = (files / "out.st").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    code, _, err = run(capsys, "out.st", "b.st", "c.st", "--force")
    assert code == 3
    assert "out.st: cannot write" in err
    assert (files / "out.st").read_bytes() == old
    assert sorted(os.listdir(files)) == sorted([*PARTS, "out.st"])


@pytest.mark.parametrize("arguments", [[], ["out.st"], ["out.st", "a.st", "--threads", "0"]], ids=" ".join)
def test_wrong_usage_exits_with_2(arguments, files, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "usage" in err


def test_progress(files, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert "merge" in run(capsys, "out.st", *PARTS)[2]
    assert run(capsys, "out.st", *PARTS, "--quiet", "--force")[2] == ""
