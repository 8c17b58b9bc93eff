"""Files of moments: complete or untouched, resumed to the same bits, and refused when anything is wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import streamcca as sc

X = np.random.default_rng(3).standard_normal((700, 20)).astype(np.float32)
Y = np.random.default_rng(4).standard_normal((700, 9)).astype(np.float32)


def moments(rows, **options):
    m = sc.Moments({"x": 20, "layer1.0/y": 9}, **options)
    m.update({"x": X[:rows], "layer1.0/y": Y[:rows]})
    return m


@pytest.mark.parametrize("rows", [0, 1, 100, 255, 256, 300, 700])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(rows, weighted, tmp_path, same_bits):
    weights = np.random.default_rng(0).random(700) if weighted else np.ones(700)
    m = sc.Moments({"x": 20, "y": 9})
    m.update(x=X[:rows], y=Y[:rows], weights=weights[:rows])
    m.save(tmp_path / "state")
    resumed = sc.Moments.load(tmp_path / "state")
    assert resumed.views == m.views
    assert resumed.pairs == m.pairs
    for part in (m, resumed):
        part.update(x=X[rows:], y=Y[rows:], weights=weights[rows:])
    same_bits(m, resumed)
    # What the error bound rests on came along, too.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sc.AccuracyWarning)
        assert sc.svcca(m, "x", "y", rank=3).to_dict() == sc.svcca(resumed, "x", "y", rank=3).to_dict()


def test_views_keep_their_order(tmp_path, same_bits):
    """Views of equal width must not change places, whatever their names."""
    m = sc.Moments({"z": 3, "a": 3})
    m.update(z=X[:, :3], a=X[:, 3:6])
    m.save(tmp_path / "state")
    r = sc.Moments.load(tmp_path / "state")
    assert list(r.views) == ["z", "a"]
    same_bits(m, r)
    other_order = sc.Moments({"a": 3, "z": 3})
    with pytest.raises(sc.InputError, match="the state has views"):
        other_order.load_state_dict(m.state_dict())


def test_everything_about_the_object_is_saved(tmp_path):
    m = sc.Moments({"a": 2, "b": 3}, pairs=[("a", "b")], precision="float64", nonfinite="skip")
    x = np.ones((4, 2))
    x[1] = np.nan
    m.update(a=x, b=np.ones((4, 3)), ids=[5, 6, 7, 8])
    m.save(tmp_path / "state")
    r = sc.Moments.load(tmp_path / "state")
    assert (r.n, r.skipped, r.pairs, r.precision) == (3, 1, [("a", "b")], "float64")
    assert r.ids_checksum == m.ids_checksum
    r.update(a=x, b=np.ones((4, 3)))
    assert r.skipped == 2


@pytest.mark.parametrize("other", ["avx2", "baseline"])
def test_a_file_travels_between_instruction_sets(other, tmp_path, monkeypatch):
    if other not in sc._backend.isa_levels():
        pytest.skip("this CPU does not run that level")
    m = moments(650)
    m.save(tmp_path / "state")
    monkeypatch.setenv("STREAMCCA_ISA", other)
    r = sc.Moments.load(tmp_path / "state")
    r.update({"x": X[650:], "layer1.0/y": Y[650:]})
    np.testing.assert_allclose(r.covariance("x"), moments(700).covariance("x"), rtol=1e-5, atol=1e-6)


def test_state_dict_of_other_moments_is_refused(same_bits):
    m = moments(100)
    before = m.copy()
    for other in (
        sc.Moments({"x": 20}),
        sc.Moments({"x": 20, "layer1.0/y": 9}, pairs="self"),
        sc.Moments({"x": 20, "layer1.0/y": 9}, precision="float64"),
    ):
        with pytest.raises(sc.InputError, match=r"load_state_dict: the state has (views|pairs|precision)"):
            m.load_state_dict(other.state_dict())
    for junk in ({}, {"meta": {}}, {"meta": {"format": "x"}, "tensors": {}}):
        with pytest.raises(sc.StateFileError, match="state:"):
            m.load_state_dict(junk)
    for version in (99, -1, "1"):
        other = m.state_dict()
        other["meta"]["version"] = version
        with pytest.raises(sc.StateFileError, match=f"got format version {version}, expected 1; use the streamcca"):
            m.load_state_dict(other)
    short = m.state_dict()
    short["tensors"]["pending.0"] = short["tensors"]["pending.0"][:-1]
    with pytest.raises(sc.StateFileError, match="'pending' has other sizes"):
        m.load_state_dict(short)
    for key, value in [("rows", "x"), ("weight", None), ("products", "float16"), ("settled", [])]:
        damaged = m.state_dict()
        damaged["meta"]["state"][key] = value
        with pytest.raises(sc.StateFileError, match="the state is damaged"):
            m.load_state_dict(damaged)
    same_bits(m, before)


# ---------------------------------------------------------------- damage


def refused(path, content, kind=sc.StateFileError):
    path.write_bytes(content)
    with pytest.raises(kind) as caught:
        sc.Moments.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_truncation_and_extension_is_refused(tmp_path):
    moments(300).save(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    lengths = sorted({*range(0, 200), *np.random.default_rng(0).integers(0, len(good), 200).tolist(), len(good) - 1})
    for length in lengths:
        assert "damaged, truncated or not" in refused(tmp_path / "bad", good[:length])
    for extra in (b"\0", b"x" * 100):
        refused(tmp_path / "bad", good + extra)


def test_every_flipped_bit_is_refused(tmp_path):
    moments(300).save(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    rng = np.random.default_rng(0)
    places = [*range(8 * 8), *rng.integers(0, 8 * header, 1500), *rng.integers(8 * header, 8 * len(good), 800)]
    for place in map(int, places):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        refused(tmp_path / "bad", bytes(bad))


def test_foreign_files_are_refused(tmp_path):
    save_file({"weight": np.ones(3)}, tmp_path / "foreign")
    assert "another program's), expected one written by Moments.save" in refused(
        tmp_path / "bad", (tmp_path / "foreign").read_bytes()
    )
    np.save(tmp_path / "array.npy", X)
    assert "not written by Moments.save" in refused(tmp_path / "bad", (tmp_path / "array.npy").read_bytes())
    refused(tmp_path / "bad", b"")
    refused(tmp_path / "bad", b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(sc.MissingFileError, match="there is no such file"):
        sc.Moments.load(tmp_path / "nothing")
    with pytest.raises(sc.StateFileError, match="not a file"):
        sc.Moments.load(tmp_path)


def test_swapped_arrays_are_refused(tmp_path):
    """The same bytes under another name."""
    m = sc.Moments({"a": 3, "b": 3})
    m.update(a=X[:, :3], b=X[:, 3:6])
    m.save(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    swapped = (
        good.replace(b'"shift.0":', b'"shift.9":')
        .replace(b'"shift.1":', b'"shift.0":')
        .replace(b'"shift.9":', b'"shift.1":')
    )
    assert swapped != good
    refused(tmp_path / "bad", swapped)


def test_nothing_on_the_load_path_can_run_code():
    source = "".join(path.read_text() for path in Path(sc.__file__).parent.rglob("*.py"))
    for word in ("import pickle", "pickle.load", " eval(", " exec(", "allow_pickle=True", "torch.load", "yaml.load"):
        assert word not in source, word


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(step, code, tmp_path, monkeypatch, same_bits):
    m = moments(300)
    m.save(tmp_path / "state")
    old = (tmp_path / "state").read_bytes()
    m.update({"x": X, "layer1.0/y": Y})
    before = m.copy()

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(sc.StorageError, match=r"state: cannot write \d+ bytes \(.*\); make room") as caught:
        m.save(tmp_path / "state")
    monkeypatch.undo()
    assert caught.value.errno == code
    assert (tmp_path / "state").read_bytes() == old
    assert os.listdir(tmp_path) == ["state"]
    same_bits(m, before)


def test_no_space_left_for_real(tmp_path):
    """A limit on the size of files, which the kernel enforces."""
    code = f"""
        import resource, signal, numpy as np, streamcca as sc
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        m = sc.Moments({{"a": 200}})
        m.update(a=np.random.default_rng(0).standard_normal((600, 200)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            m.save({str(tmp_path / "state")!r})
        except sc.StorageError as error:
            print(error)
        assert m.n == 600
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "cannot write" in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_symbolic_link_stays_a_link_and_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    moments(10).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sc.Moments.load(tmp_path / "target").n == 10
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(sc.StorageError, match="not a file, and not replaced by one"):
            moments(10).save(tmp_path / name)


def test_synced_before_renamed(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _real=real, _name=name: (calls.append(_name), _real(*a))[1])
    moments(10).save(tmp_path / "state")
    assert calls == ["fsync", "replace", "fsync"]
    assert os.listdir(tmp_path) == ["state"]


def test_the_file_honors_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        moments(10).save(tmp_path / "state")
    finally:
        os.umask(old)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o640


def test_killed_while_saving(tmp_path):
    """A process that saves again and again is killed at a random moment: the file is always whole."""
    code = """
        import sys, numpy as np, streamcca as sc
        m = sc.Moments({"a": 150})
        x = np.random.default_rng(0).standard_normal((600, 150))
        while True:
            m.update(a=x)
            m.save(sys.argv[1])
            print(m.n, flush=True)
    """
    path = tmp_path / "state"
    rng = np.random.default_rng(0)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE, text=True
        )
        acknowledged = int(process.stdout.readline())
        try:
            process.wait(timeout=float(rng.random()) * 0.1)
        except subprocess.TimeoutExpired:
            process.kill()
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        assert sc.Moments.load(path).n >= acknowledged
