"""The command: data on stdout, the rest on stderr, exit codes 0, 1, 2, 3."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import streamcca as sc
from streamcca.cli import main

X = np.random.default_rng(0).standard_normal((500, 12))
Y = np.random.default_rng(1).standard_normal((500, 9)) + X[:, :9]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.save("y.npy", Y)
    np.save("short.npy", Y[:100])
    return tmp_path


def run(capsys, *arguments):
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ([], lambda: sc.svcca(X, Y)),
        (["--variance", "0.9"], lambda: sc.svcca(X, Y, variance=0.9)),
        (["--nuclear", "0.9"], lambda: sc.svcca(X, Y, nuclear=0.9)),
        (["--rank", "5"], lambda: sc.svcca(X, Y, rank=5)),
        (["--rank", "5,4"], lambda: sc.svcca(X, Y, rank=(5, 4))),
        (["--measure", "cca", "--ridge", "0.1"], lambda: sc.cca(X, Y, ridge=0.1)),
        (["--measure", "pwcca", "--side", "y"], lambda: sc.pwcca(X, Y, side="y")),
        (["--precision", "float64", "--threads", "1"], lambda: sc.svcca(X, Y, precision="float64")),
    ],
    ids=lambda o: " ".join(o) if isinstance(o, list) else "",
)
def test_compare(options, call, files, capsys):
    code, out, err = run(capsys, "compare", "x.npy", "y.npy", "--json", *options)
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(call().to_dict()))
    code, out, err = run(capsys, "compare", "x.npy", "y.npy", *options)
    assert (code, out, err) == (0, repr(call()) + "\n", "")


@pytest.mark.parametrize(
    ("options", "call"),
    [
        (["--measure", "cka"], lambda: sc.cka(X, Y)),
        (["--measure", "rsa"], lambda: sc.similarity("rsa", X, Y)),
        (["--measure", "yanai", "--rank", "5"], lambda: sc.similarity("yanai", X, Y, rank=5)),
        (["--interval"], lambda: sc.interval("svcca", X, Y)),
        (["--measure", "cka", "--interval", "--groups", "5"], lambda: sc.interval("cka", X, Y, groups=5)),
    ],
    ids=lambda o: " ".join(o) if isinstance(o, list) else "",
)
def test_measures_by_name(options, call, files, capsys):
    code, out, err = run(capsys, "compare", "x.npy", "y.npy", "--json", *options)
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(call().to_dict()))
    assert run(capsys, "compare", "x.npy", "y.npy", *options) == (0, repr(call()) + "\n", "")


def test_all_measures(files, capsys):
    code, out, err = run(capsys, "compare", "x.npy", "y.npy", "--measure", "all")
    assert (code, out, err) == (0, sc.similarities(X, Y).table() + "\n", "")
    code, out, err = run(capsys, "compare", "x.npy", "y.npy", "--measure", "pwcca", "--interval")
    assert (code, out) == (3, "")
    assert "exact=True" in err


def test_compare_draws(files, capsys):
    code, out, err = run(capsys, "compare", "x.npy", "y.npy", "--plot", "out.png")
    assert code == 0
    assert (files / "out.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = run(capsys, "compare", "x.npy", "y.npy", "--plot", "missing/out.png")
    assert code == 3
    assert out == ""  # found out before the rows were read
    assert "missing" in err
    code, _, err = run(capsys, "compare", "x.npy", "y.npy", "--plot", "out.xyz")
    assert code == 2
    assert "png" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare", "x.npy", "none.npy"], "there is no file none.npy"),
        (["compare", "x.npy", "short.npy"], "got 100 rows, expected 500"),
        (["compare", "x.npy", "bad.npy"], "not a readable .npy file"),
        (["compare", "x.npy", "."], "is not a file"),
        (["compare", "x.npy", "nan.npy"], "value is nan"),
        (["compare", "x.npy", "y.npy", "--rank", "100"], "rank 100 was asked for"),
        (["compare", "short.npy", "wide.npy", "--variance", "1"], "rows are too few"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_input_exits_with_3(arguments, sentence, files, capsys):
    (files / "bad.npy").write_bytes(b"not numpy")
    bad = X.copy()
    bad[7, 7] = np.nan
    np.save("nan.npy", bad)
    np.save("wide.npy", np.random.default_rng(2).standard_normal((100, 300)))
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (3, "")
    assert sentence in err
    assert err.startswith("streamcca: ")
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["compare"],
        ["compare", "x.npy"],
        ["compare", "x.npy", "y.npy", "--variance", "a lot"],
        ["compare", "x.npy", "y.npy", "--variance", "9"],
        ["compare", "x.npy", "y.npy", "--nuclear", "0"],
        ["compare", "x.npy", "y.npy", "--rank", "0"],
        ["compare", "x.npy", "y.npy", "--rank", "1,2,3"],
        ["compare", "x.npy", "y.npy", "--rank", "1,x"],
        ["compare", "x.npy", "y.npy", "--side", "y"],
        ["compare", "x.npy", "y.npy", "--threads", "0"],
        ["compare", "x.npy", "y.npy", "--ridge", "-1"],
        ["compare", "x.npy", "y.npy", "--rank", "3", "--variance", "0.9"],
        ["compare", "x.npy", "y.npy", "--measure", "ckaa"],
        ["compare", "x.npy", "y.npy", "--measure", "cka", "--side", "y"],
        ["compare", "x.npy", "y.npy", "--measure", "cka", "--plot", "out.png"],
        ["compare", "x.npy", "y.npy", "--measure", "all", "--interval"],
        ["compare", "x.npy", "y.npy", "--groups", "5"],
        ["compare", "x.npy", "y.npy", "--interval", "--strategy", "gram"],
        ["doctor", "--what"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments, files, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "usage" in err


def test_warnings_go_to_stderr(files, capsys):
    np.save("x32.npy", X.astype(np.float32))
    code, out, err = run(capsys, "compare", "x32.npy", "y.npy", "--rank", "3", "--precision", "float32", "--json")
    assert code == 0
    json.loads(out)
    assert err.startswith("streamcca: warning: ")


def test_version_and_help(capsys):
    assert run(capsys, "--version")[:2] == (0, sc.__version__ + "\n")
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("compare", "demo", "doctor"):
        assert command in out


def test_doctor(capsys):
    code, out, err = run(capsys, "doctor")
    assert (code, err) == (0, "")
    for word in ("python", "numpy", "kernels", "threads", "blas", "cuda", "self-check   passed"):
        assert word in out
    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    assert report["self_check"]["passed"]
    assert report["self_check"]["exact moments"] > 3
    assert report["isa"]["active"] in report["isa"]["runnable"]


def test_the_self_check_notices_a_wrong_kernel(capsys, monkeypatch):
    real = sc.Moments.covariance
    monkeypatch.setattr(sc.Moments, "covariance", lambda self, *a, **k: real(self, *a, **k) * (1 + 1e-6))
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "FAILED" in out


def bytes_read(process, name):
    """How far a process has read a file of this name; 0 if it has none open."""
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(descriptor).endswith(name):
                return int(Path(f"/proc/{process.pid}/fdinfo/{descriptor.name}").read_text().split()[1])
    return 0


def test_as_a_module_and_interrupted(tmp_path):
    """Ctrl-C during a long comparison: one line, exit code 130."""
    for name in "xy":
        np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", "<f4", (1_000_000, 512)).flush()  # sparse
    process = subprocess.Popen(
        [sys.executable, "-m", "streamcca", "compare", tmp_path / "x.npy", tmp_path / "y.npy"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    # Not as soon as it is open, when modules are still imported: Python can lose a Ctrl-C there; where it falls into
    # evaluated source (a namedtuple), it ends by SIGINT in spite of the exit code; a shell calls that 130 as well.
    while bytes_read(process, "y.npy") < 2**20:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (err, out, process.returncode) == ("streamcca: interrupted\n", "", 130)


def test_out_of_memory_is_bad_input_not_a_failed_check(files, capsys, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(sc, "svcca", refuse)
    code, out, err = run(capsys, "compare", "x.npy", "y.npy")
    assert (code, out, err) == (3, "", "streamcca: std::bad_alloc\n")


def test_a_rank_before_the_files(files, capsys):
    code, out, _ = run(capsys, "compare", "--rank", "3", "x.npy", "y.npy", "--json")
    assert code == 0
    assert json.loads(out)["rank_x"] == 3


def test_study_prints_an_example_that_is_a_study(tmp_path, capsys):
    assert main(["study", "--example"]) == 0
    text = capsys.readouterr().out
    assert text == (Path(__file__).parent.parent / "examples" / "digits.toml").read_text()
    (tmp_path / "own.toml").write_text(text)
    from streamcca.multiplicity import StudyConfig

    assert len(StudyConfig.load(tmp_path / "own.toml").groups) >= 8


@pytest.mark.parametrize("arguments", [["study"], ["study", "a.toml", "--example"]])
def test_study_takes_settings_or_shows_some(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "give CONFIG.toml, or --example" in capsys.readouterr().err


def test_a_study_that_cannot_be_is_refused_in_one_line(tmp_path, capsys):
    assert main(["study", str(tmp_path / "nothing.toml"), "--quiet"]) == 3
    (tmp_path / "bad.toml").write_text("[study]\nmembers = 2\n")
    assert main(["study", str(tmp_path / "bad.toml"), "--quiet"]) == 3
    err = capsys.readouterr().err
    assert "there is no such file" in err
    assert "there is no [[group]]" in err
    assert len(err.strip().splitlines()) == 2
