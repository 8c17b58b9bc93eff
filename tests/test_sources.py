"""Arrays, memory maps, files and iterables give the same numbers; bad files give one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import streamcca as sc

X = np.random.default_rng(0).standard_normal((3000, 40))
Y = np.random.default_rng(1).standard_normal((3000, 25)) + X[:, :25]


@pytest.fixture
def expected():
    return sc.svcca(X, Y)


def same(r, expected):
    assert r.correlations.tobytes() == expected.correlations.tobytes()
    assert r.n == expected.n


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    return tmp_path / "x.npy", tmp_path / "y.npy"


def test_paths_and_strings(files, expected):
    same(sc.svcca(*files), expected)
    same(sc.svcca(str(files[0]), Y), expected)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memory_maps(mode, files, expected, monkeypatch):
    monkeypatch.setattr("streamcca.sources._CHUNK_BYTES", 1 << 17)
    x, y = (np.load(path, mmap_mode=mode) for path in files)
    same(sc.svcca(x, y), expected)
    np.testing.assert_array_equal(x, X)


def test_a_slice_of_a_memory_map(files, monkeypatch):
    monkeypatch.setattr("streamcca.sources._CHUNK_BYTES", 1 << 17)
    x, y = (np.load(path, mmap_mode="r") for path in files)
    same(sc.svcca(x[100:2900:2, 3:30], y[100:2900:2]), sc.svcca(X[100:2900:2, 3:30], Y[100:2900:2]))


def test_a_copy_on_write_map_keeps_its_changes(files, monkeypatch):
    monkeypatch.setattr("streamcca.sources._CHUNK_BYTES", 1 << 17)
    x = np.load(files[0], mmap_mode="c")
    x[:] = X[::-1]
    sc.svcca(x, Y)
    np.testing.assert_array_equal(x, X[::-1])


@pytest.mark.parametrize("step", [1, 100, 999, 3000])
def test_iterables_of_batches(step, expected):
    same(sc.svcca((X[i : i + step], Y[i : i + step]) for i in range(0, 3000, step)), expected)


def test_torch_data_loader():
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    r = sc.svcca(torch.utils.data.DataLoader(data, batch_size=70))
    assert r.mean == pytest.approx(sc.svcca(torch.from_numpy(X), torch.from_numpy(Y)).mean, abs=1e-15)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_every_kind(dtype, order, tmp_path, monkeypatch):
    monkeypatch.setattr("streamcca.sources._CHUNK_BYTES", 1 << 16)
    np.save(tmp_path / "x.npy", np.asarray(X, dtype=dtype, order=order))
    np.save(tmp_path / "y.npy", np.asarray(Y, dtype=dtype, order=order))
    native = np.dtype(dtype).newbyteorder("=")
    same(
        sc.svcca(tmp_path / "x.npy", tmp_path / "y.npy"),
        sc.svcca(X.astype(dtype).astype(native), Y.astype(dtype).astype(native)),
    )


def test_npy_version_2(tmp_path, expected):
    for name, array in (("x", X), ("y", Y)):
        with (tmp_path / name).open("wb") as file:
            np.lib.format.write_array(file, array, version=(2, 0))
    same(sc.svcca(tmp_path / "x", tmp_path / "y"), expected)


# ---------------------------------------------------------------- bad data


def refused(kind, sentence, *data):
    with pytest.raises(kind, match=sentence) as caught:
        sc.svcca(*data)
    assert "\n" not in str(caught.value)


def test_bad_files(files, tmp_path):
    x, _ = files
    bad = tmp_path / "bad.npy"
    content = x.read_bytes()
    refused(sc.MissingFileError, r"view 'y': there is no file .*none\.npy", x, tmp_path / "none.npy")
    for size in (0, 3, 6, 20, 127, 128, 5000, len(content) - 1):
        bad.write_bytes(content[:size])
        refused(sc.StateFileError, r"view 'y': .*bad\.npy is (truncated|not a readable)", x, bad)
    bad.write_bytes(content + b"\0")
    refused(sc.StateFileError, "longer than its header says", x, bad)
    bad.write_bytes(b"\x94NUMPY" + content[6:])
    refused(sc.StateFileError, r"not a readable \.npy file .*numpy\.save", x, bad)
    for array, kind, sentence in [
        (X.astype(int), sc.DTypeError, "holds int64, expected float16, float32 or float64"),
        (X + 1j, sc.DTypeError, "holds complex128"),
        (X[0], sc.InputError, r"holds an array of shape \(40,\), expected rows as \(n, width\)"),
        (X.reshape(300, 10, 40), sc.InputError, r"shape \(300, 10, 40\)"),
        (X[:10], sc.InputError, "view 'y': got 10 rows, expected 3000 as in view 'x'"),
    ]:
        np.save(bad, array)
        refused(kind, sentence, x, bad)
    np.save(bad, np.array([{"run": "code"}], dtype=object), allow_pickle=True)
    refused(sc.StreamCCAError, "bad.npy", x, bad)


def test_a_file_that_shrinks_while_it_is_read(files):
    source = sc.sources.NpyFile(files[0], "x")
    os.truncate(files[0], 1000)
    with pytest.raises(sc.StateFileError, match="became shorter while it was read"):
        source.read(0, 3000)
    source.close()


def test_nan_in_a_file_is_found_by_row(tmp_path):
    x = X.copy()
    x[2345, 6] = np.nan
    np.save(tmp_path / "x.npy", x)
    refused(
        sc.NonFiniteError,
        r"view 'x', row 2345 of the batch .*, column 6: value is nan",
        tmp_path / "x.npy",
        Y,
    )
    assert sc.svcca(tmp_path / "x.npy", Y, nonfinite="skip").n == 2999


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ((X,), "data: expected"),
        ((), "data: expected"),
        ((X, Y, X), "data: expected"),
        (([],), "the iterable of batches is empty"),
        (([(X, Y, X)],), "batch 0: got tuple, expected a pair"),
        (([X],), "batch 0: got ndarray, expected a pair"),
        (([3],), "batch 0: got int, expected a pair"),
        ((X[:0], Y[:0]), "the data hold no rows"),
        ((X[:1], Y[:1]), "n = 1 rows leave nothing"),
        ((X, Y[:5]), "view 'y': got 5 rows, expected 3000"),
        ((X[0], Y), r"view 'x': got an array of shape \(40,\)|view 'y': got 3000 rows"),
        ((X[:, :0], Y), "width of at least 1"),
    ],
)
def test_bad_data(data, sentence):
    refused(sc.InputError, sentence, *data)


def test_bad_objects():
    refused(sc.DTypeError, "view 'x': got list", X.tolist(), Y)
    refused(sc.DTypeError, "view 'y': got dtype int64", X, Y.astype(int))


# ---------------------------------------------------------------- memory


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Peak resident memory of a comparison, by path and by memory map, for 40 and for 400 MB of rows."""
    code = """
        import sys, numpy as np, streamcca as sc
        from streamcca.demo import measured
        x, y, how = sys.argv[1:]
        small = np.random.default_rng(0).standard_normal((600, 256)).astype("f4")
        sc.svcca(small, small[::-1].copy())  # libraries that load late
        load = (lambda p: p) if how == "path" else (lambda p: np.load(p, mmap_mode="r"))
        print(measured(lambda: sc.svcca(load(x), load(y)))[2])
    """
    rng = np.random.default_rng(0)
    peaks = {}
    for rows in (20_000, 200_000):
        for name in "xy":
            out = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", "<f4", (rows, 256))
            for first in range(0, rows, 20_000):
                out[first : first + 20_000] = rng.standard_normal((20_000, 256), dtype=np.float32)
            out.flush()
            del out
        for how in ("path", "map"):
            run = subprocess.run(
                [sys.executable, "-c", textwrap.dedent(code), tmp_path / "x.npy", tmp_path / "y.npy", how],
                capture_output=True,
                text=True,
                check=True,
                timeout=200,
            )
            peaks[how, rows] = int(run.stdout)
    for how in ("path", "map"):
        assert peaks[how, 200_000] < 64 << 20
        assert peaks[how, 200_000] < 1.3 * peaks[how, 20_000] + (8 << 20)


def test_progress_is_shown_on_request(files, capsys):
    sc.svcca(*files, progress=True)
    shown = capsys.readouterr()
    assert "accumulate" in shown.err
    assert shown.out == ""
    sc.svcca(*files, progress=False)
    assert capsys.readouterr().err == ""
