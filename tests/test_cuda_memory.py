"""How much device memory waiting rows take, and that what they hold survives when it grows, shrinks or is not there."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from emulated_cuda import TILE, Run, _cuda, emulated, whole_numbers
from hypothesis import given, settings
from hypothesis import strategies as st

import streamcca as sc

pytestmark = [emulated, pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning")]
BLOCK = 1024
FEW = BLOCK // 8
FIRST, SPLIT, HALVES, ALL = (0,), (0, 1, 2), (3,), (0, 1, 2, 3)  # planes of layout.h
PLANES = {"bfloat16": FIRST, "float16": SPLIT, "float32": SPLIT, "float64": FIRST}  # of the first block


def rows_of(rng, n, widths, dtype="float32", largest=8):
    return [torch.from_numpy(whole_numbers(rng, n, d, largest)).to(getattr(torch, dtype)) for d in widths]


@pytest.mark.parametrize("dtype", PLANES)
def test_room_grows_with_the_rows_and_takes_the_planes_they_need(dtype, rng):
    run = Run([20, 30], block=BLOCK)
    run.add(*rows_of(rng, 100, run.widths, dtype))
    assert run.native.room == (0, ())  # the first rows wait elsewhere
    run.add(*rows_of(rng, 160, run.widths, dtype))
    assert run.native.room[0] == BLOCK  # more than an eighth of a block already
    run.add(*rows_of(rng, 10, run.widths, dtype))
    assert run.native.room == (BLOCK, PLANES[dtype])


def test_few_rows_take_an_eighth_of_a_block(rng):
    run = Run([20], block=4096).add(*rows_of(rng, 300, [20]))
    assert run.native.room == (512, SPLIT)
    run.add(*rows_of(rng, 212, [20]))
    assert run.native.room == (512, SPLIT)
    run.add(*rows_of(rng, 1, [20]))
    assert run.native.room == (4096, SPLIT)


def test_planes_are_given_back_when_no_row_needs_them(rng):
    run = Run([20, 30], block=BLOCK)
    for dtype, planes in [
        ("bfloat16", SPLIT),  # of the very first rows nobody knows whether they are shifted
        ("bfloat16", FIRST),
        ("float32", SPLIT),
        ("float16", ALL),  # a block on the way is full, and 176 of these rows wait in the next one
        ("float16", HALVES),
        ("float16", HALVES),
        ("bfloat16", ALL),  # 48 more, then these
        ("float16", SPLIT),
        ("bfloat16", SPLIT),
        ("bfloat16", SPLIT),
        ("bfloat16", SPLIT),  # the last rows of that block
        ("bfloat16", FIRST),
    ]:
        run.add(*rows_of(rng, 300, run.widths, dtype))
        assert run.native.room == (BLOCK, planes), dtype


def test_shifted_rows_keep_their_planes(rng):
    far = [x + 100 for x in rows_of(rng, 300, [20], "bfloat16")]
    run = Run([20], block=BLOCK).add(*far).add(*far)
    assert run.native.room == (BLOCK, SPLIT)


@st.composite
def streams(draw):
    dtypes = draw(st.lists(st.sampled_from(["bfloat16", "float16", "float32"]), min_size=1, max_size=3))
    step = st.tuples(
        st.sampled_from([1, 63, 64, 130, 256, 700, 1500]), st.sampled_from(dtypes), st.sampled_from(["go on", "read"])
    )
    return draw(st.lists(step, min_size=1, max_size=6))


@pytest.mark.parametrize("late", [False, True])
@given(steps=streams(), ladder=st.sampled_from(["tiled", "tensor", "hopper"]), shift=st.sampled_from([0, 40]))
@settings(max_examples=12, deadline=None)
def test_no_row_is_lost_when_room_changes(late, steps, ladder, shift):
    """Sums of small integers are exact, however rows of several types, and reads that give room back, follow."""
    with pytest.MonkeyPatch.context() as patch:
        if late:
            patch.setenv("STREAMCCA_EMULATED_LATE", "1")
        follow(steps, ladder, shift)


def follow(steps, ladder, shift):
    rng = np.random.default_rng(len(steps))
    run, seen = Run([20, 30], ladder=ladder, block=BLOCK), []
    for n, dtype, then in steps:
        rows = [x + shift for x in rows_of(rng, n, run.widths, dtype)]
        run.add(*rows)
        seen.append([x.double().numpy() for x in rows])
        if then == "read" and run.native.settled:
            run.native.covariance(0, 1.0, 0)
            waiting = -(-(run.native.rows % BLOCK) // 64) * 64
            assert run.native.room[0] == (waiting if 4 * waiting <= BLOCK else BLOCK)
    if not run.native.settled:
        return
    views = [np.concatenate(x) - c for x, c in zip(zip(*seen, strict=True), run.shifts(), strict=True)]
    state = run.native.save()
    for (a, b), found in zip(run.pairs, run.moments(), strict=True):
        right = views[a].T @ views[b]
        np.testing.assert_array_equal(found, np.triu(right) if a == b else right)
    for view, sums, squares in zip(views, state["sums"], state["squares"], strict=True):
        np.testing.assert_array_equal(sums, view.sum(axis=0))
        np.testing.assert_array_equal(squares, (view**2).sum(axis=0))


@pytest.mark.parametrize("dtype", PLANES)
def test_reading_does_not_change_a_bit(dtype, rng):
    """Not even where the rows that wait are copied to less room, and back."""
    batches = [
        [torch.randn(n, d, generator=torch.Generator().manual_seed(n)).to(getattr(torch, dtype)) + 3 for d in (40, 30)]
        for n in (545, 40, 480)
    ]
    plain, read = Run([40, 30], block=512), Run([40, 30], block=512)
    for batch in batches:
        plain.add(*batch)
        read.add(*batch)
        read.native.covariance(0, 1.0, 0)
    assert read.native.room[0] < 512 == plain.native.room[0]
    for mine, theirs in zip(read.moments(), plain.moments(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_refused_batch_leaves_rows_that_wait_as_they_were(rng):
    """The room that it took stays, and holds what was there."""
    run = Run([20], block=BLOCK)
    x, y = rows_of(rng, 300, [20])[0], rows_of(rng, 900, [20])[0]
    bad = y.clone()
    bad[5, 3] = torch.nan
    run.add(x).native.covariance(0, 1.0, 0)
    run.add(bad)
    with pytest.raises(ValueError, match="row 5 of a batch"):
        run.native.rows  # noqa: B018
    run.add(y)
    rows = np.concatenate([x, y]).astype(float)
    np.testing.assert_array_equal(run.moments()[0], np.triu((rows - run.shifts()[0]).T @ (rows - run.shifts()[0])))


@pytest.mark.parametrize("ladder", ["tiled", "tensor", "hopper"])
@pytest.mark.parametrize(
    "dtypes",
    [("float16",) * 3, ("bfloat16",) * 3, ("float16", "bfloat16", "float16"), ("float16", "float16", "bfloat16")],
    ids="-".join,
)
def test_bits_do_not_depend_on_what_the_host_has_heard(dtypes, ladder, rng, monkeypatch):
    """Rows that turned out to need no shift are kept in one plane once the host knows; products are the same.

    Two blocks with more digits than bfloat16 numbers have, then rows with fewer: what was left in memory is no row.
    """
    batches = []
    for n, dtype, digits in zip((1024, 210, 290), dtypes, ("float32", "bfloat16", "bfloat16"), strict=True):
        rows = [torch.from_numpy(rng.standard_normal((n, d))) for d in (40, 30)]
        batches.append([x.to(getattr(torch, digits)).to(getattr(torch, dtype)) for x in rows])
    early, late = (Run([40, 30], ladder=ladder, block=512) for _ in range(2))
    for batch in batches:
        early.add(*batch)
    monkeypatch.setenv("STREAMCCA_EMULATED_LATE", "1")
    for batch in batches:
        late.add(*batch)
    assert len(late.native.room[1]) >= 3
    assert len(set(dtypes)) > 1 or len(early.native.room[1]) == 1
    for mine, theirs in zip(early.moments(), late.moments(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for key in ("sums", "squares"):
        np.testing.assert_array_equal(early.native.save()[key][0], late.native.save()[key][0])


@pytest.mark.parametrize("after", [("float32",), ("bfloat16", "bfloat16"), ("float16", "float32", "bfloat16")])
def test_rows_that_wait_outlive_batches_after_a_refused_one(after, rng, monkeypatch):
    """The host takes them to be counted, so that it fills block after block, until it hears of the refusal."""
    run = Run([20], block=BLOCK)
    good = [rows_of(rng, n, [20], dtype)[0] for n, dtype in ((300, "float32"), (500, "float16"))]
    good[1][:60] *= 37  # more digits than bfloat16 numbers have
    run.add(good[0]).add(good[1])
    monkeypatch.setenv("STREAMCCA_EMULATED_LATE", "1")
    bad = rows_of(rng, 700, [20])[0]
    bad[650, 3] = torch.inf
    run.add(bad)
    for dtype in after:
        run.add(rows_of(rng, 900, [20], dtype)[0])
    with pytest.raises(ValueError, match=rf"row 650 of a batch.*{len(after)} after it were not counted"):
        run.native.rows  # noqa: B018
    rows = np.concatenate([x.double() for x in good]) - run.shifts()[0]
    np.testing.assert_array_equal(run.moments()[0], np.triu(rows.T @ rows))


def test_first_rows_from_a_file_keep_their_digits(rng):
    """Of what type they were is not written there; means of zero leave columns without a shift, as bfloat16 ones."""
    first, more = torch.from_numpy(rng.standard_normal((2, 100, 20))).float()
    plain, resumed = Run([20]).add(torch.cat([first, -first])), Run([20])
    resumed.native.restore(plain.native.save())
    for run in (plain, resumed):
        run.add(torch.cat([more[:28], -more[:28]]).bfloat16())
        assert not run.shifts()[0].any()
    np.testing.assert_array_equal(resumed.moments()[0], plain.moments()[0])


@pytest.mark.parametrize("step", ["first", "more rows", "more planes", "read"])
def test_where_memory_is_lacking_nothing_is_lost(step, rng, monkeypatch):
    run = Run([20], block=BLOCK)
    x, y = rows_of(rng, 300, [20], "bfloat16")[0], rows_of(rng, 900, [20])[0]
    if step != "first":
        run.add(x)
    if step in ("more rows", "read"):
        run.native.covariance(0, 1.0, 0)
    if step == "more planes":
        run.add(x[:100])
        assert run.native.room == (BLOCK, FIRST)
    held = _cuda.memory_use(0)[0]
    monkeypatch.setenv("STREAMCCA_EMULATED_MEMORY", str(held + 1000))
    with pytest.raises(RuntimeError, match=r"MiB on cuda:0, expected at most|allocation of \d+ bytes failed"):
        if step == "read":
            run.native.covariance(0, 1.0, 0)
        else:
            run.add(y)
    assert run.native.started == (step != "first")
    assert step == "first" or _cuda.memory_use(0)[0] == held
    monkeypatch.delenv("STREAMCCA_EMULATED_MEMORY")
    run.add(y)
    parts = {"first": [y], "more planes": [x, x[:100], y]}.get(step, [x, y])
    rows = np.concatenate([part.float() for part in parts]).astype(float) - run.shifts()[0]
    np.testing.assert_array_equal(run.moments()[0], np.triu(rows.T @ rows))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_streams_wait_for_each_other(seed, late, monkeypatch):
    """Whatever is called on whatever stream, and wherever memory ends: the emulator ends the process if it does not."""
    rng = np.random.default_rng(seed)
    monkeypatch.setenv("STREAMCCA_EMULATED_ORDER", f"{seed} {late}")
    if late:
        monkeypatch.setenv("STREAMCCA_EMULATED_LATE", "1")
    run, seen, failures = Run([9], block=512, nonfinite="skip" if seed % 3 == 0 else "raise"), [], 0
    reads = [lambda: run.native.covariance(0, 1.0, 48), lambda: run.native.mean(0), run.native.save]
    reads += [lambda: run.native.uncertainty(0, 1.0), run.native.reset, lambda: run.native.rows]
    for _ in range(25):
        x = rows_of(rng, int(rng.choice([30, 300, 700])), [9], str(rng.choice(["float32", "bfloat16"])))[0]
        weights = np.ones(len(x)) if rng.random() < 0.3 else None
        if rng.random() < 0.5:  # some of the allocations that follow have no room
            monkeypatch.setenv("STREAMCCA_EMULATED_MEMORY", str(_cuda.memory_use(0)[0] + int(10 ** rng.uniform(1, 5))))
        read = reads[rng.integers(len(reads))] if rng.random() < 0.4 else None
        try:
            if read is None:
                run.add(x, weights=weights, stream=int(rng.choice([0, 16, 32])))
                seen.append(x.double().numpy())
            elif run.native.settled or read == run.native.save:
                read()
                seen = [] if read == run.native.reset else seen
        except RuntimeError:
            failures += 1
        monkeypatch.delenv("STREAMCCA_EMULATED_MEMORY", raising=False)
    assert failures
    assert run.native.rows == sum(map(len, seen))
    if run.native.settled:
        rows = np.concatenate(seen) - run.shifts()[0]
        np.testing.assert_array_equal(run.moments()[0], np.triu(rows.T @ rows))


@pytest.mark.parametrize("read", ["covariance", "uncertainty", "save", "restore"])
def test_later_rows_wait_for_what_a_failed_read_has_begun(read, rng, monkeypatch):
    """Wherever memory ends in it; the next batch comes on another stream."""
    monkeypatch.setenv("STREAMCCA_EMULATED_ORDER", read)
    run, seen, failures = Run([9], block=1024), rows_of(rng, 300, [9]), 0
    run.add(seen[0], stream=16)
    calls = {
        "covariance": lambda: run.native.covariance(0, 1.0, 16),
        "uncertainty": lambda: run.native.uncertainty(0, 1.0),
    }
    calls |= {"save": run.native.save, "restore": lambda: run.native.restore(run.native.save())}
    tile = TILE * TILE * 8  # what a covariance asks for first; then for a few numbers a column
    limits = [*np.geomspace(100, 2 * tile, 12).astype(int), *range(tile, tile + 4500, 300)]
    for more in [None] if read == "restore" else limits:
        if more:
            monkeypatch.setenv("STREAMCCA_EMULATED_MEMORY", str(_cuda.memory_use(0)[0] + more))
        try:
            calls[read]()
        except RuntimeError:
            failures += 1
        monkeypatch.delenv("STREAMCCA_EMULATED_MEMORY", raising=False)
        seen += rows_of(rng, 40, [9])
        run.add(seen[-1], stream=32)
    assert failures > 5 or read == "restore"
    rows = np.concatenate(seen) - run.shifts()[0]
    np.testing.assert_array_equal(run.moments()[0], np.triu(rows.T @ rows))


def test_a_state_that_does_not_fit_leaves_the_one_before(rng, monkeypatch):
    rows = rows_of(rng, 700, [9])[0]
    run, other = Run([9], block=512).add(rows), Run([9], block=512).add(rows.double() + 1)
    before = run.moments()[0]
    held = _cuda.memory_use(0)[0]
    for more in np.geomspace(1e4, 1e8, 20).astype(int):
        monkeypatch.setenv("STREAMCCA_EMULATED_MEMORY", str(held + more))
        try:
            run.native.restore(other.native.save())
        except RuntimeError:
            monkeypatch.delenv("STREAMCCA_EMULATED_MEMORY")
            assert run.native.products == "float32"
            np.testing.assert_array_equal(run.moments()[0], before)
            continue
        break
    assert run.native.products == "float64"
    np.testing.assert_array_equal(run.moments()[0], other.moments()[0])


@pytest.mark.parametrize("read", ["mean", "uncertainty", "covariance"])
def test_too_few_rows_for_a_shift_are_refused(read, rng):
    run = Run([9]).add(*rows_of(rng, 100, [9]))
    more = {"mean": (0,), "uncertainty": (0, 1.0), "covariance": (0, 1.0, 0)}[read]
    with pytest.raises(ValueError, match="100 rows so far, expected at least 256"):
        getattr(run.native, read)(*more)


def test_moments_that_go_give_all_memory_back(rng):
    held = _cuda.memory_use(0)[0]
    run = Run([20, 30], block=BLOCK).add(*rows_of(rng, 2000, [20, 30]))
    run.native.covariance(0, 1.0, 0)
    run.add(*rows_of(rng, 2000, [20, 30]))
    assert _cuda.memory_use(0)[0] > held
    del run
    assert _cuda.memory_use(0)[0] == held


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_decomposition_needs_less_than_rows_that_come(device, library, rng, monkeypatch):
    """What is promised: at most the memory of moments and a block of rows, of which few wait in the end."""
    block, width = 4096, 516
    monkeypatch.setenv("STREAMCCA_CUDA_BLOCK_ROWS", str(block))
    scale = np.arange(1, width + 1.0) ** -1 * np.linalg.qr(rng.standard_normal((width, width)))[0]
    rows = torch.from_numpy(rng.standard_normal((block + 200, width)) @ scale).bfloat16()
    start = _cuda.memory_use(0)[0]
    m = sc.Moments({"a": width}, device=device)
    _cuda.forget_most_used(0)
    m.update(a=rows)
    most = _cuda.memory_use(0)[1]
    columns = -(-width // 128) * 128
    assert most - start > columns * block * (3 * 2 + 0.5)
    _cuda.forget_most_used(0)
    tracemalloc.start()
    found = sc.truncate(m, "a", variance=0.9)
    cupy = tracemalloc.get_traced_memory()[1]  # NumPy's arrays, which stand for CuPy's
    tracemalloc.stop()
    assert 0 < found.rank < 60
    assert 2 * width**2 * 8 < cupy < 6 * width**2 * 8
    now, during = _cuda.memory_use(0)
    assert during <= most
    assert now + cupy < most
    assert m._core._native.room == (256, FIRST)
