"""Bad input to moments: one clear sentence each, and a state that has not moved by a bit."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch

import streamcca as sc
from streamcca import _backend, _memory
from streamcca._backend import BLOCK_ROWS

GOOD = np.random.default_rng(0).standard_normal((300, 4))


@pytest.fixture(params=[20, 300], ids=["first block pending", "after a block"])
def moments(request):
    m = sc.Moments({"a": 4, "b": 4})
    m.update(a=GOOD[: request.param], b=GOOD[: request.param])
    return m


def with_value(row, column, value, dtype=np.float64):
    x = GOOD.astype(dtype)
    x[row, column] = value
    return x


BAD = {
    "unequal rows": (
        {"a": GOOD, "b": GOOD[:7]},
        sc.InputError,
        r"view 'b': got 7 rows, expected 300 as in view 'a'",
    ),
    "wrong width": (
        {"a": GOOD, "b": GOOD[:, :3]},
        sc.InputError,
        r"view 'b': got rows of width 3, expected 4; .*declare",
    ),
    "1-D": (
        {"a": GOOD[0], "b": GOOD},
        sc.InputError,
        r"view 'a': got an array of shape \(4,\), expected .*\(n, width\)",
    ),
    "4-D": (
        {"a": GOOD[None, None], "b": GOOD},
        sc.InputError,
        r"view 'a': got an array of shape \(1, 1, 300, 4\), expected rows as \(n, width\), or \(samples, rows of each,",
    ),
    "integers": ({"a": GOOD.astype(int), "b": GOOD}, sc.DTypeError, r"view 'a': got dtype int64, .*astype"),
    "complex": ({"a": GOOD + 1j, "b": GOOD}, sc.DTypeError, r"view 'a': got dtype complex128, .*x\.real"),
    "bool": ({"a": GOOD > 0, "b": GOOD}, sc.DTypeError, r"view 'a': got dtype bool"),
    "long double": (
        {"a": GOOD.astype(np.longdouble), "b": GOOD},
        sc.DTypeError,
        r"view 'a': got dtype float128|longdouble",
    ),
    "big-endian": ({"a": GOOD.astype(">f8"), "b": GOOD}, sc.DTypeError, r"view 'a': got dtype >f8.*newbyteorder"),
    "torch integers": ({"a": torch.ones(300, 4).int(), "b": GOOD}, sc.DTypeError, r"view 'a': got dtype int32"),
    "torch 4-D": ({"a": torch.ones(2, 3, 5, 4), "b": GOOD}, sc.InputError, r"view 'a': .*shape \(2, 3, 5, 4\)"),
    "rows in samples": ({"a": torch.ones(3, 5, 4), "b": GOOD}, sc.InputError, r"view 'b': got 300 rows, expected 15"),
    "masked": ({"a": np.ma.masked_invalid(GOOD), "b": GOOD}, sc.DTypeError, r"view 'a': got a masked array"),
    "torch sparse": (
        {"a": torch.eye(4).to_sparse(), "b": GOOD},
        sc.DTypeError,
        r"view 'a': this Tensor gives no access to its values",
    ),
    "torch meta": (
        {"a": torch.empty(300, 4, device="meta"), "b": GOOD},
        sc.DTypeError,
        r"view 'a': this Tensor gives no access",
    ),
    "a list": ({"a": GOOD.tolist(), "b": GOOD}, sc.DTypeError, r"view 'a': got list, .*numpy\.asarray"),
    "None": ({"a": None, "b": GOOD}, sc.DTypeError, r"view 'a': got NoneType"),
    "NaN": (
        {"a": with_value(299, 2, np.nan), "b": GOOD},
        sc.NonFiniteError,
        r"view 'a', row 299 of the batch \(after \d+ rows counted before\), column 2: value is nan, .*nonfinite='skip'",
    ),
    "infinity": ({"a": GOOD, "b": with_value(0, 0, -np.inf)}, sc.NonFiniteError, r"view 'b', row 0 .*value is -inf"),
    "float16 infinity": (
        {"a": GOOD, "b": with_value(5, 1, np.inf, np.float16)},
        sc.NonFiniteError,
        r"view 'b', row 5 .*column 1: value is inf",
    ),
    "too large": (
        {"a": with_value(3, 1, 1e200), "b": GOOD},
        sc.InputError,
        r"view 'a', row 3 .*value is 1e\+200.*rescale",
    ),
    "missing view": ({"a": GOOD}, sc.InputError, r"got no rows for view 'b'; every batch must hold all views"),
    "unknown view": ({"a": GOOD, "b": GOOD, "bb": GOOD}, sc.InputError, r"there is no view 'bb'; did you mean 'b'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_changes_nothing(name, moments, same_bits):
    batch, kind, sentence = BAD[name]
    before = moments.copy()
    with pytest.raises(kind, match=sentence) as caught:
        moments.update(batch)
    assert isinstance(caught.value, TypeError if kind is sc.DTypeError else ValueError)
    assert "\n" not in str(caught.value)
    same_bits(moments, before)
    for m in (moments, before):
        m.update(a=GOOD, b=GOOD)
    same_bits(moments, before)


def test_a_bad_value_in_a_later_block_changes_nothing(same_bits):
    """The whole batch is looked at before its first block is formed."""
    x = np.random.default_rng(0).standard_normal((3000, 4)).astype(np.float32)
    m = sc.Moments({"a": 4})
    m.update(a=x)
    before = m.copy()
    x[-1, -1] = np.nan
    with pytest.raises(sc.NonFiniteError, match=r"row 2999 of the batch \(after 3000 rows .*, column 3"):
        m.update(a=x)
    same_bits(m, before)


@pytest.mark.parametrize("rows_before", [0, 100, 256, 300])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_long_batch_that_is_refused_late_changes_nothing(rows_before, weighted, same_bits, isa):
    # Long enough that it is checked piece by piece, each piece being counted before the next is looked at.
    rng = np.random.default_rng(0)
    m, untouched = sc.Moments({"x": 20, "y": 5}), sc.Moments({"x": 20, "y": 5})
    before = {"x": rng.standard_normal((rows_before, 20), "f4"), "y": rng.standard_normal((rows_before, 5), "f4")}
    good = {"x": rng.standard_normal((40 * BLOCK_ROWS, 20), "f4"), "y": rng.standard_normal((40 * BLOCK_ROWS, 5), "f4")}
    bad = {name: x.copy() for name, x in good.items()}
    bad["y"][-1, 2] = np.nan
    weights = np.arange(40 * BLOCK_ROWS) % 3 if weighted else None
    if weighted:
        weights[-1] = 2
    for moments in (m, untouched):
        if rows_before:
            moments.update(before)
    with pytest.raises(
        ValueError, match=rf"view 'y', row {40 * BLOCK_ROWS - 1} of the batch \(after {rows_before} rows"
    ):
        m.update(bad, weights=weights)
    assert m.rows == rows_before
    for moments in (m, untouched):  # what comes next ends in the same bits, too
        moments.update(good, weights=weights)
    same_bits(m, untouched)


def test_skip_in_a_long_batch(same_bits):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40 * BLOCK_ROWS, 20), "f4")
    bad = np.arange(len(x)) % 999 == 0
    dirty = np.where(bad[:, None], np.float32("inf"), x)
    m, clean = sc.Moments({"x": 20}, nonfinite="skip"), sc.Moments({"x": 20})
    m.update(x=dirty)
    clean.update(x=x[~bad])
    assert m.skipped == bad.sum()
    assert m.covariance("x").tobytes() == clean.covariance("x").tobytes()
    assert m.mean("x").tobytes() == clean.mean("x").tobytes()


def test_bfloat16_nan_and_too_large_for_float32_products():
    m = sc.Moments({"a": 3})
    x = torch.ones(5, 3, dtype=torch.bfloat16)
    x[4, 0] = torch.nan
    with pytest.raises(sc.NonFiniteError, match="row 4"):
        m.update(a=x)
    x[4, 0] = 1e25
    with pytest.raises(sc.InputError, match=r"row 4 .*square fits float32; use precision='float64'"):
        m.update(a=x)
    sc.Moments({"a": 3}, precision="float64").update(a=x)


def test_skip_does_not_hide_values_that_are_only_large():
    m = sc.Moments({"a": 3}, nonfinite="skip")
    with pytest.raises(sc.InputError, match="square fits float32"):
        m.update(a=np.full((2, 3), 1e30, dtype=np.float32))


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (np.ones(299), r"weights: got 299 values for 300 rows"),
        (np.ones((300, 1)), r"weights: got float64 of shape \(300, 1\)"),
        (np.ones(300) * 1j, r"weights: got complex128 of shape"),
        (["a"] * 300, r"weights: got <U1 of shape"),
        ([[1], [1, 2]], r"weights: .*inhomogeneous"),
        (np.full(300, 1e13), r"weights, row 0 of the batch: weight is 1e\+13, expected a number from 0 to 1e\+12"),
        (np.r_[np.ones(299), -1], r"weights, row 299 of the batch: weight is -1"),
        (np.r_[np.nan, np.ones(299)], r"weights, row 0 of the batch: weight is nan"),
    ],
)
def test_bad_weights(weights, sentence, moments, same_bits):
    before = moments.copy()
    with pytest.raises(sc.InputError, match=sentence):
        moments.update(a=GOOD, b=GOOD, weights=weights)
    same_bits(moments, before)


def test_float64_rows_after_float32_products_were_fixed(same_bits):
    m = sc.Moments({"a": 4})
    m.update(a=GOOD.astype(np.float32))
    before = m.copy()
    with pytest.raises(sc.DTypeError, match=r"view 'a': got float64 rows.*precision='float64'"):
        m.update(a=GOOD)
    same_bits(m, before)
    for precision in ("float32", "float64"):
        mixed = sc.Moments({"a": 4}, precision=precision)
        mixed.update(a=GOOD.astype(np.float32))
        mixed.update(a=GOOD)
        assert mixed.n == 600


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        (({},), sc.InputError, "expected a mapping from name to width"),
        (({"a": 0},), sc.InputError, "width of at least 1"),
        (({"a": 2.5},), sc.InputError, "width of at least 1"),
        ((["a"],), sc.InputError, "expected a mapping"),
        (({"a": 2}, "some"), sc.InputError, "expected 'all', 'self' or pairs"),
        (({"abc": 2}, [("abc", "abd")]), sc.InputError, "there is no view 'abd'; did you mean 'abc'"),
        (({"a": 2}, "all", "double"), sc.InputError, "precision: got 'double', expected one of 'auto'"),
        (({"a": 2}, "all", "auto", "ignore"), sc.InputError, "nonfinite: got 'ignore'"),
        (({"a": 2}, "all", "auto", "raise", "cuda:99"), sc.DeviceError, r"device: got 'cuda:99'.*no CUDA.*\.cpu\(\)"),
        (({"a": 2}, "all", "auto", "raise", "tpu"), sc.InputError, "expected None or 'cpu'"),
        (({"a": 2}, "all", "auto", "raise", None, 0), sc.InputError, "threads: got 0"),
        (
            ({"a": 2}, "all", "auto", "raise", None, 10**12),
            sc.InputError,
            "threads: got 1000000000000, expected an integer",
        ),
        (({"a": 2}, "all", "auto", "raise", None, "2"), sc.InputError, "threads: got '2'"),
        (({"a": True},), sc.InputError, "width of at least 1"),
        (({"": 2},), sc.InputError, "expected a name"),
        (({"a": 2}, [("a",)]), sc.InputError, r"pairs: got \('a',\), expected two view names"),
        (({"a": 2}, "all", ["float32"]), sc.InputError, "precision: got"),
    ],
)
def test_bad_construction(arguments, kind, sentence):
    with pytest.raises(kind, match=sentence):
        sc.Moments(*arguments)


def test_reading_without_rows():
    m = sc.Moments({"a": 2})
    for read in (lambda: m.mean("a"), lambda: m.covariance("a"), lambda: sc.truncate(m)):
        with pytest.raises(sc.InputError, match="seen no rows yet"):
            read()
    m.update(a=np.ones((1, 2)))
    with pytest.raises(sc.InputError, match=r"n = 1 rows leave nothing to divide by with ddof = 1"):
        m.covariance("a")
    for view in ("c", 3, None):
        with pytest.raises(sc.InputError, match="there is no view"):
            m.mean(view)
    for ddof in ("x", float("nan"), True):
        with pytest.raises(sc.InputError, match="ddof: got"):
            m.covariance("a", ddof=ddof)


class OnCuda:
    """Says of itself what a CUDA tensor says."""

    shape = (3, 2)

    def __dlpack_device__(self):
        return (2, 1)

    def __dlpack__(self, **_):
        raise AssertionError("must not be exported")


def test_rows_on_a_gpu_are_refused_not_copied():
    m = sc.Moments({"a": 2}, device="cpu")
    with pytest.raises(sc.DeviceError, match=r"view 'a': got rows on CUDA device 1, expected CPU memory.*x\.cpu\(\)"):
        m.update(a=OnCuda())


class Capsule:
    """A DLPack producer gone wrong."""

    shape = (3, 2)

    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, **_):
        return self.capsule


def test_bad_capsules_are_refused():
    used = torch.ones(3, 2).__dlpack__()
    torch.from_dlpack(used)  # renames the capsule: its tensor has a new owner
    m = sc.Moments({"a": 2})
    with pytest.raises(sc.DTypeError, match="a capsule named used_dltensor, expected a fresh DLPack capsule"):
        m.update(a=Capsule(used))
    with pytest.raises(sc.DTypeError, match="returned no capsule"):
        m.update(a=Capsule(3))
    m.update(a=Capsule(torch.ones(3, 2).__dlpack__()))
    assert m.n == 3


def test_a_pending_negation_of_torch_is_applied():
    z = torch.complex(torch.ones(4, 2), torch.full((4, 2), 2.0))
    m = sc.Moments({"a": 2})
    m.update(a=z.conj().imag)
    np.testing.assert_array_equal(m.mean("a"), [-2, -2])


def test_rows_that_are_no_mapping():
    m = sc.Moments({"a": 4})
    for batch in (GOOD, [GOOD]):
        with pytest.raises(sc.InputError, match=r"update: got \w+, expected a mapping .*update\(a=rows\)"):
            m.update(batch)


def test_a_shift_fixed_under_other_weights_cannot_overflow():
    m = sc.Moments({"a": 1}, precision="float32")
    m.update(a=np.full((300, 1), 4e17, dtype=np.float32))
    with pytest.raises(sc.InputError, match="square fits float32"):
        m.update(a=np.full((300, 1), 4e14, dtype=np.float32), weights=np.full(300, 1e6))


def test_too_much_memory_is_refused_before_it_is_taken():
    with pytest.raises(sc.MemoryLimitError, match=r"need \d+\.\d GiB, but .* leaves \d+\.\d GiB; .*pairs=") as caught:
        sc.Moments({"a": 2_000_000})
    assert isinstance(caught.value, MemoryError)


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("level", ["sse9", "AVX512", "avx512,avx2"])
def test_an_unknown_instruction_set_is_an_error(level):
    code = "import streamcca as sc; sc.Moments({'a': 2})"
    result = run_python(code, STREAMCCA_ISA=level)
    assert result.returncode == 1
    assert f"STREAMCCA_ISA={level}: no such instruction-set level; expected one of baseline" in result.stderr


def test_a_fork_is_refused():
    result = run_python("""
        import os, numpy as np, streamcca as sc
        x = np.ones((3, 2))
        m = sc.Moments({"a": 2})
        m.update(a=x)
        wide = sc.Moments({"a": 500})
        wide.update(a=np.random.default_rng(0).standard_normal((2000, 500)))
        child = os.fork()
        if child == 0:
            for moments in (m, sc.Moments({"a": 2})):
                try:
                    moments.update(a=x)
                    os._exit(1)
                except sc.ProcessError as error:
                    print(error, flush=True)
            wide.covariance("a"), wide.mean("a"), wide.copy()  # reading needs no threads
            wide.save("/dev/shm/streamcca-fork-test")
            os.unlink("/dev/shm/streamcca-fork-test")
            alone = sc.Moments({"a": 2}, threads=1)
            alone.update(a=x)
            os._exit(0 if alone.n == 3 else 2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        m.update(a=x)
        assert m.n == 6
    """)
    assert result.returncode == 0, result.stderr
    assert "updated in its fork" in result.stdout
    assert "merge them" in result.stdout
    assert "pass threads=1, or start workers with the 'spawn' method" in result.stdout


def test_ctrl_c_is_honored_between_blocks():
    """The interrupted update stops at once, keeps the rows it has counted, and can go on."""
    x = np.random.default_rng(0).standard_normal((200_000, 512)).astype(np.float32)
    m = sc.Moments({"a": 512})
    timer = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            m.update(a=x)
    timer.join()
    done = m.rows % len(x)
    block = BLOCK_ROWS // 2 if _backend.active_isa() == "avx2" else BLOCK_ROWS
    assert m.rows % block == 0 or done == 0
    again = sc.Moments({"a": 512})
    for _ in range(m.rows // len(x)):
        again.update(a=x)
    again.update(a=x[:done])
    assert again.covariance("a").tobytes() == m.covariance("a").tobytes()


def test_a_signal_handler_may_read_but_not_change_the_moments():
    """The handler runs between two blocks of an update, in the same thread."""
    x = np.random.default_rng(0).standard_normal((300_000, 256)).astype(np.float32)
    m = sc.Moments({"a": 256}, precision="float64", threads=2)  # slow enough to be met by the signal
    seen = []

    def handler(*_):
        seen.append((m.rows, m.covariance("a")[0, 0], len(m.state_dict()["tensors"])))
        for change in (
            m.reset,
            lambda: m.update(a=x[:1]),
            lambda: m.merge(m),
            lambda: m.load_state_dict(m.state_dict()),
        ):
            try:
                change()
            except sc.ProcessError as error:
                seen.append(str(error))

    old = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        while not seen:
            m.update(a=x)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert seen[0][0] > 0
    assert sum("a signal handler may read them" in str(item) for item in seen[1:]) >= 3
    assert m.rows % len(x) == 0


def test_ctrl_c_is_honored_with_scattered_weights():
    x = np.random.default_rng(0).standard_normal((400_000, 128)).astype(np.float32)
    w = np.arange(len(x)) % 2.0
    m = sc.Moments({"a": 128})
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            m.update(a=x, weights=w)
    timer.join()
    kept = x[1::2]
    again = sc.Moments({"a": 128})
    for _ in range(m.rows // len(kept)):
        again.update(a=kept)
    again.update(a=kept[: m.rows % len(kept)])
    assert again.covariance("a").tobytes() == m.covariance("a").tobytes()


def test_every_error_is_ours_and_a_builtin():
    assert issubclass(sc.MissingFileError, FileNotFoundError)
    assert issubclass(sc.StorageError, OSError)
    assert sc.StorageError(errno.ENOSPC, "full").errno == errno.ENOSPC
    for name in sc.__all__:
        item = getattr(sc, name)
        if isinstance(item, type) and name.endswith("Error"):
            assert issubclass(item, sc.StreamCCAError), name


def test_memory_limits_of_control_groups(tmp_path):
    """Cached files can be dropped, so they are not used memory; a group without a limit says nothing."""
    for name, text in {"memory.max": "1000", "memory.current": "900"}.items():
        (tmp_path / name).write_text(text)
    assert _memory._left_in_group(tmp_path) == 100
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 500\nactive_file 50\n")
    assert _memory._left_in_group(tmp_path) == 650
    (tmp_path / "memory.max").write_text("max")
    assert _memory._left_in_group(tmp_path) is None
