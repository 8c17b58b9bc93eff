"""The Gram route: the same numbers from n x n matrices, from rows of any width, on disk or not, killed or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import streamcca as sc
from streamcca import gram as gram_function
from streamcca import plan as plan_function
from streamcca.gram_cca import correlate_scores, truncate_gram
from streamcca.subspace import Rule

gram_module = sys.modules[gram_function.__module__]
spool = sys.modules["streamcca.spool"]
pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning", "ignore::streamcca.SampleSizeWarning")


def pair(rows=300, widths=(1500, 1100), directions=60, power=1.0, shared=20, seed=0, dtype=np.float64, offset=1.0):
    """Two wide views of `directions` with spectrum i^-power, some of them shared, and a little noise."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((rows, directions))
    other = np.concatenate([latent[:, :shared], rng.standard_normal((rows, directions - shared))], axis=1)
    scale = np.arange(1, directions + 1.0) ** -power
    views = []
    for z, width in zip((latent, other), widths, strict=True):
        basis = np.linalg.qr(rng.standard_normal((width, directions)))[0]
        noise = 1e-3 * rng.standard_normal((rows, width)) / np.sqrt(width)
        views.append(((z * scale) @ basis.T + noise + offset * rng.standard_normal(width)).astype(dtype))
    return views


def dense(x, y, kx, ky):
    """Singular values of Ux'Uy in plain float64, on all of the data."""
    ux, uy = (
        np.linalg.svd(v.astype(np.float64) - v.astype(np.float64).mean(0), full_matrices=False)[0] for v in (x, y)
    )
    return np.linalg.svd(ux[:, :kx].T @ uy[:, :ky], compute_uv=False)


def batches(x, y, size):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def bits(grams):
    return [matrix.tobytes() for matrix in (grams.matrix("x"), grams.matrix("y"))]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("power", [0.6, 1.0, 1.5])
def test_the_dense_answer_within_the_bound(dtype, power):
    x, y = pair(power=power, dtype=dtype)
    r = sc.svcca(x, y, rank=(20, 25), strategy="gram")
    truth = dense(x, y, 20, 25)
    assert abs(r.mean - truth.mean()) <= r.error_bound
    assert (np.abs(r.correlations - truth) <= r.correlation_error_bounds).all()
    assert abs(r.mean - truth.mean()) <= (1e-12 if dtype is np.float64 else 1e-6)
    assert r.error_bound <= (1e-8 if dtype is np.float64 else 1e-3)
    assert (r.strategy, r.width_x, r.width_y, r.rank_x, r.rank_y, r.n) == ("gram", 1500, 1100, 20, 25, 300)


def test_the_share_is_that_of_the_neurons():
    x, y = pair()
    by_gram = sc.svcca(x, y, variance=0.95, strategy="gram")
    by_covariance = sc.svcca(x, y, variance=0.95, strategy="covariance")
    assert (by_gram.rank_x, by_gram.rank_y) == (by_covariance.rank_x, by_covariance.rank_y)
    assert by_gram.mean == pytest.approx(by_covariance.mean, abs=1e-12)
    assert by_gram.truncation.share_x == pytest.approx(by_covariance.truncation.share_x, abs=1e-12)
    assert by_gram.truncation.margin_y == pytest.approx(by_covariance.truncation.margin_y, abs=1e-12)
    assert by_gram.null_mean == by_covariance.null_mean
    assert by_gram.condition_x == pytest.approx(by_covariance.condition_x, rel=1e-9)
    nuclear = [sc.svcca(x, y, nuclear=0.8, strategy=s) for s in ("gram", "covariance")]
    assert nuclear[0].rank_x == nuclear[1].rank_x
    assert nuclear[0].mean == pytest.approx(nuclear[1].mean, abs=1e-12)


def test_untruncated_cca_of_few_neurons():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((400, 30)) @ np.diag(np.geomspace(1, 30, 30))
    y = x[:, :10] + rng.standard_normal((400, 10))
    by_gram, by_covariance = (sc.cca(x, y, strategy=s) for s in ("gram", "covariance"))
    np.testing.assert_allclose(by_gram.correlations, by_covariance.correlations, atol=1e-12)
    assert (by_gram.rank_x, by_gram.rank_y) == (30, 10)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.sampled_from(["rotate", "scale", "permute"]))
def test_invariances(seed, size, change):
    """Rows of another order, rotated or scaled neurons: the same similarity; any cut into batches: the same bits."""
    rng = np.random.default_rng(seed)
    x, y = pair(rows=40, widths=(50, 30), directions=10, seed=seed, shared=4)
    base = sc.svcca(x, y, rank=5, strategy="gram").mean
    if change == "rotate":
        x = x @ np.linalg.qr(rng.standard_normal((50, 50)))[0]
    elif change == "scale":
        x = 3.7 * x
    else:
        order = rng.permutation(40)
        x, y = x[order], y[order]
    assert sc.svcca(x, y, rank=5, strategy="gram").mean == pytest.approx(base, abs=1e-9)
    assert bits(sc.gram(x, y)) == bits(sc.gram(batches(x, y, size)))


@pytest.mark.parametrize("size", [1, 7, 16, 300])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rows_from_disk_give_the_bits_of_rows_in_memory(size, dtype, monkeypatch):
    monkeypatch.setattr(spool, "_SEGMENT_BYTES", 1)  # segments of 16 rows
    x, y = (torch.from_numpy(v).to(getattr(torch, dtype)) for v in pair())
    in_memory = sc.gram(x, y)
    assert bits(sc.gram(batches(x, y, size))) == bits(in_memory)
    centered = x.double() - x.double().mean(0)
    truth = (centered @ centered.T / 299).numpy()
    exact = dtype == "float64"
    assert in_memory.precision == ("float64" if exact else "float32")
    assert np.abs(in_memory.matrix("x") - truth).max() <= (1e-13 if exact else 1e-5) * truth.max()


@pytest.mark.parametrize("order", ["C", "F"])
def test_files_are_read_where_they_lie(tmp_path, order):
    x, y = pair(dtype=np.float32)
    for name, view in (("x", x), ("y", y)):
        np.save(tmp_path / f"{name}.npy", np.asarray(view, order=order))
    assert bits(sc.gram(tmp_path / "x.npy", tmp_path / "y.npy")) == bits(sc.gram(x, y))


@pytest.mark.parametrize("width", [1, 1023, 1024, 1025])
@pytest.mark.parametrize("rows", [2, 3, 31])
def test_awkward_sizes(width, rows):
    rng = np.random.default_rng(width + rows)
    x, y = rng.standard_normal((rows, width)), rng.standard_normal((rows, 5))
    centered = x - x.mean(0)
    truth = centered @ centered.T / (rows - 1)
    for grams in (sc.gram(x, y), sc.gram(batches(x, y, 2)), sc.gram(x[:, ::-1][:, ::-1], y)):
        np.testing.assert_allclose(grams.matrix("x"), truth, atol=1e-13 * max(1.0, np.abs(truth).max()))


def test_a_large_offset_costs_no_digits():
    x, y = pair(offset=1e6)
    r = sc.svcca(x, y, rank=10, strategy="gram")
    # The rows themselves are only known to 1e6 units of roundoff: the reference has the same.
    assert abs(r.mean - dense(x, y, 10, 10).mean()) <= 1e-10


class Interrupted(Exception):
    pass


def until(rows, stop):
    for i, batch in enumerate(rows):
        if i == stop:
            raise Interrupted
        yield batch


@pytest.mark.parametrize("stop", [0, 1, 5, 9])
def test_a_spool_that_was_stopped_goes_on(tmp_path, stop, monkeypatch):
    monkeypatch.setattr(spool, "_SEGMENT_BYTES", 1)
    x, y = pair()
    parts = batches(x, y, 30)
    with pytest.raises(Interrupted):
        sc.gram(until(parts, stop), folder=tmp_path / "s")
    kept = spool.Spool(tmp_path / "s").rows
    assert kept == stop * 30 // 16 * 16
    seen = []

    class Rows:
        def batches(self, first):
            seen.append(first)
            return iter([(x[first:], y[first:])])

        def __iter__(self):
            return iter(parts)

    assert bits(sc.gram(Rows(), folder=tmp_path / "s")) == bits(sc.gram(x, y))
    assert seen[-1] == kept
    assert not (tmp_path / "s").exists()


def test_a_matrix_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(gram_module, "_SAVE_EVERY", 0.0)
    x, y = pair(widths=(4000, 3000))
    whole = sc.gram(x, y)
    reads = []
    read = spool.SourceTiles.read

    def failing(self, tile):
        reads.append((self.width, tile))
        # The first two reads of a view are its fingerprint.
        if self.width == 3000 and tile == 1:
            raise Interrupted
        return read(self, tile)

    monkeypatch.setattr(spool.SourceTiles, "read", failing)
    with pytest.raises(Interrupted):
        sc.gram(x, y, folder=tmp_path)
    assert len(list(tmp_path.glob("*.gram"))) == 2  # all of x, the first tile of y
    monkeypatch.setattr(spool.SourceTiles, "read", lambda self, t: (reads.append((self.width, t)), read(self, t))[1])
    reads.clear()
    assert bits(sc.gram(x, y, folder=tmp_path, keep=True)) == bits(whole)
    # Of x only the fingerprint is read; of y everything from the second tile on.
    assert sorted(reads) == sorted([(4000, 0), (4000, 3), (3000, 0), (3000, 2), (3000, 1), (3000, 2)])
    # Other data do not take these for theirs.
    assert bits(sc.gram(x + 1.5 * y[:, :1], y, folder=tmp_path)) == bits(sc.gram(x + 1.5 * y[:, :1], y))


_KILLED = """
import os, signal, sys
import numpy as np
import streamcca as sc
spool, gram = sys.modules["streamcca.spool"], sys.modules["streamcca.gram"]
spool._SEGMENT_BYTES, gram._SAVE_EVERY = 1, 0.0
x, y = np.load("x.npy"), np.load("y.npy")
where, count = sys.argv[1], int(sys.argv[2])
def after(function):
    def counting(*args, **options):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return counting
if where == "write":
    spool.os.fsync = after(os.fsync)
elif where == "read":
    spool.SpoolTiles.read = after(spool.SpoolTiles.read)
parts = [(x[i : i + 30], y[i : i + 30]) for i in range(0, len(x), 30)]
grams = sc.gram(parts, folder="s")
np.savez("result.npz", x=grams.matrix("x"), y=grams.matrix("y"))
"""


@pytest.mark.parametrize(("where", "count"), [("write", 1), ("write", 20), ("write", 41), ("read", 1), ("read", 5)])
def test_killed_at_any_moment(tmp_path, where, count):
    x, y = pair(widths=(4000, 2000))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)

    def run(*arguments):
        return subprocess.run([sys.executable, "-c", _KILLED, *arguments], cwd=tmp_path, check=False, timeout=120)

    assert run(where, str(count)).returncode == -signal.SIGKILL
    assert not (tmp_path / "result.npz").exists()
    assert run("nowhere", "0").returncode == 0
    grams = sc.gram(x, y)
    with np.load(tmp_path / "result.npz") as result:
        assert all(result[name].tobytes() == grams.matrix(name).tobytes() for name in "xy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.npz", "x.npy", "y.npy"]


def test_files_go_unless_they_are_kept(tmp_path, monkeypatch):
    x, y = pair()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    sc.gram(batches(x, y, 50))
    assert list(tmp_path.glob("streamcca-*")) == []
    folder = tmp_path / "kept"
    first = sc.gram(batches(x, y, 50), folder=folder, keep=True)
    assert {p.name for p in folder.iterdir() if p.suffix != ".gram"} == {"spool.json", "0.tiles", "1.tiles"}
    assert len(list(folder.glob("*.gram"))) == 2
    assert (folder / "0.tiles").stat().st_size == x.nbytes
    assert bits(sc.gram(batches(x, y, 20), folder=folder)) == bits(first)
    assert not folder.exists()


def test_damage_is_seen(tmp_path):
    x, y = pair()
    sc.gram(batches(x, y, 50), folder=tmp_path, keep=True)
    for path in tmp_path.glob("*.gram"):
        path.unlink()
    tiles = tmp_path / "0.tiles"
    content = bytearray(tiles.read_bytes())
    content[1000] ^= 1
    tiles.write_bytes(content)
    with pytest.raises(sc.StateFileError, match="damaged"):
        sc.gram(batches(x, y, 50), folder=tmp_path)
    tiles.write_bytes(content[:-1])
    with pytest.raises(sc.StateFileError, match="shorter"):
        sc.gram(batches(x, y, 50), folder=tmp_path)
    (tmp_path / "spool.json").write_text("{")
    with pytest.raises(sc.StateFileError, match="damaged"):
        sc.gram(batches(x, y, 50), folder=tmp_path)


def test_other_rows_than_those_on_disk_are_refused(tmp_path):
    x, y = pair()
    sc.gram(batches(x, y, 50), folder=tmp_path, keep=True)
    with pytest.raises(sc.InputError, match="holds other rows of view 'y'"):
        sc.gram(batches(x, y + 1, 50), folder=tmp_path)
    with pytest.raises(sc.InputError, match="holds other rows of view 'x'"):
        sc.gram(batches(x.astype(np.float32), y, 50), folder=tmp_path)


def test_a_full_disk_is_known_before_the_first_row(tmp_path, monkeypatch):
    x, y = pair()
    usage = namedtuple("usage", "total used free")(10, 9, 1 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)

    class Rows:
        rows = len(x)

        def __iter__(self):
            return iter(batches(x, y, 50))

    with pytest.raises(sc.StorageError, match="are free; make room"):
        sc.gram(Rows(), folder=tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"ridge": 0.1}, sc.InputError, "no neurons to add it to"),
        ({"nonfinite": "skip"}, sc.InputError, "takes 'raise' only"),
        ({"strategy": "grams"}, sc.InputError, "strategy: got 'grams'"),
        ({"rank": 299}, sc.UnderdeterminedError, "too few"),
        ({"rank": 3000}, sc.InputError, "rank 3000 was asked for"),
    ],
)
def test_refusals(change, error, sentence):
    x, y = pair()
    with pytest.raises(error, match=sentence):
        sc.svcca(x, y, **({"strategy": "gram"} | change))


def test_rows_that_cannot_be_used():
    x, y = pair()
    bad = x.copy()
    bad[17, 1200] = np.nan
    with pytest.raises(sc.NonFiniteError, match="view 'x': row 17 "):
        sc.gram(bad, y)
    with pytest.raises(sc.InputError, match="every view must see the same rows"):
        sc.gram(x, y[:-1])
    with pytest.raises(sc.InputError, match="hold 1 row; expected at least 2"):
        sc.gram(x[:1], y[:1])
    with pytest.raises(sc.InputError, match="hold no rows"):
        sc.gram(iter([]))
    with pytest.raises(sc.InputError, match="every batch must be alike"):
        sc.gram([(x, y), (x[:, 1:], y)])
    with pytest.raises(sc.DTypeError, match="expected float16"):
        sc.gram(x.astype(int), y)
    with pytest.raises(sc.InputError, match="keep: got True without a folder"):
        sc.gram(x, y, keep=True)
    with pytest.raises(sc.InputError, match="pwcca"):
        sc.pwcca(x, y, rank=5, strategy="gram")
    with pytest.raises(sc.InputError, match="no direction can be kept"):
        sc.svcca(np.ones((50, 3)), y[:50], strategy="gram", rank=1)


def test_gram_matrices_serve_more_than_one_question():
    x, y = pair()
    grams = sc.gram(x, y)
    assert repr(grams) == "Gram(n=300, views={'x': 1500, 'y': 1100}, precision='float64')"
    one, other = sc.svcca(grams, "x", "y", rank=10), sc.svcca(grams, "y", "x", rank=12)
    assert one.mean == sc.svcca(x, y, rank=10, strategy="gram").mean
    assert other.rank_x == 12
    assert sc.svcca(grams, rank=10).mean == one.mean
    with pytest.raises(sc.InputError, match="no view 'z'"):
        sc.svcca(grams, "x", "z")
    with pytest.raises(sc.InputError, match="name two"):
        sc.svcca(grams, "x")
    with pytest.raises(sc.InputError, match="which are of strategy 'gram'"):
        sc.svcca(grams, strategy="covariance")


def test_taken_where_covariances_do_not_fit(monkeypatch):
    x, y = pair(widths=(3000, 2000))
    plan_module = sys.modules[plan_function.__module__]
    monkeypatch.setattr(plan_module, "available_memory", lambda: (64 << 20, "free memory (MemAvailable)"))
    r = sc.svcca(x, y, rank=10)
    assert r.strategy == "gram"
    monkeypatch.setattr(plan_module, "available_memory", lambda: (1 << 20, "free memory (MemAvailable)"))
    with pytest.raises(sc.MemoryLimitError, match=r"covariance needs .* and gram needs .* leaves 1\.0 MiB"):
        sc.svcca(x, y, rank=10)
    monkeypatch.undo()
    assert sc.svcca(x, y, rank=10).strategy == "covariance"


def test_bounds_are_neither_too_small_nor_silly():
    ratios = []
    for seed in range(60):
        x, y = pair(rows=120, widths=(300, 400), directions=40, seed=seed, power=0.5 + seed % 3 / 2, dtype=np.float32)
        rule = Rule("rank", 8 + seed % 5, 8 + seed % 7)
        grams = sc.gram(x, y)
        spaces = [truncate_gram(grams.view(v), v, rule, k) for v, k in (("x", rule.x), ("y", rule.y))]
        r, _ = correlate_scores(*spaces, allow_inaccurate=True)
        truth = dense(x, y, int(rule.x), int(rule.y))
        errors = np.abs(r.correlations - truth)
        assert (errors <= r.correlation_error_bounds).all()
        assert abs(r.mean - truth.mean()) <= r.error_bound
        ratios.append(r.error_bound / abs(r.mean - truth.mean()))
    assert 10 < np.median(ratios) < 1000


def test_memory_stays_small(tmp_path):
    """A view of 80 MB is read from a file with tiles of 100 rows x 1024 columns in memory, no more."""
    rng = np.random.default_rng(0)
    for name in "xy":
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((100, 200_000), dtype=np.float32))
    code = (
        "import streamcca as sc, sys\n"
        "from streamcca._memory import peak_resident, reset_peak\n"
        "before = reset_peak()\n"
        "sc.gram('x.npy', 'y.npy')\n"
        "print(peak_resident() - before)\n"
    )
    grown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert int(grown.stdout) < 20 << 20
    assert sorted(os.listdir(tmp_path)) == ["x.npy", "y.npy"]
