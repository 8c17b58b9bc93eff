"""All layers, broken off at any batch: jobs go on from their folder, to the bits of an undisturbed run."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from test_compare_sketch import LAYERS, batches, inputs, wide_net
from torch import nn

import streamcca as sc

pytestmark = pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning", "ignore::streamcca.SampleSizeWarning")
BATCH = 90
COUNT = 6  # batches of 500 rows
RANK = {"layers": LAYERS, "rank": 6, "strategy": "sketch", "directions": 24, "allow_inaccurate": True}
SHARE = {"layers": LAYERS, "variance": 0.9, "strategy": "sketch", "power": 1}


class BrokenOff:
    """A loader that is broken off before one of its batches, counted over all passes; None: never."""

    def __init__(self, data, at=None):
        self.data, self.left = data, at

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        for batch in self.data:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left = None if self.left is None else self.left - 1
            yield batch


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A checkpoint after every batch, without waiting for disks; blocks that no batch ends at, so that rows wait."""
    monkeypatch.setattr(sys.modules["streamcca.store"].os, "fsync", lambda _: None)
    monkeypatch.setattr(sys.modules["streamcca.checkpoint"], "SECONDS", 0.0)
    monkeypatch.setattr(sys.modules["streamcca.range_finder"], "_BLOCK_BYTES", 64 * 200 * 8)


@pytest.fixture
def two():
    return wide_net(1), wide_net(2)


def bits(result):
    """All numbers of all cells."""
    cells = [result[a, b] for a in result.layers_a for b in result.layers_b]
    numbers = [
        array.tobytes()
        for cell in cells
        for array in (cell.correlations, cell.correlation_error_bounds, np.array([cell.mean, cell.error_bound]))
    ]
    return numbers, [(cell.rank_x, cell.rank_y, cell.n, cell.strategy) for cell in cells], result.rows


def forwards(net):
    """Count the forward passes of a model."""
    seen = []
    net.register_forward_hook(lambda *_: seen.append(1))
    return seen


def broken_off(two, data, at, how):
    with pytest.raises(KeyboardInterrupt):
        sc.compare(*two, BrokenOff(data, at), **how)


@pytest.mark.parametrize(
    "where",
    [range(0, 4 * COUNT, 5), pytest.param(range(1, 4 * COUNT, 2), marks=pytest.mark.slow)],
    ids=["some", "many"],
)
def test_broken_off_at_a_batch(two, tmp_path, where):
    """Sketch, two power steps and replay; the models run on what was not counted, and on the first batch."""
    data, folder = batches(inputs(), BATCH), tmp_path / "job"
    how = RANK | {"power": 2}
    truth = bits(sc.compare(*two, data, **how))
    how["folder"] = folder
    assert bits(sc.compare(*two, data, **how)) == truth
    assert not folder.exists()
    seen = forwards(two[0])
    for at in where:
        broken_off(two, data, at, how)
        assert [path.name for path in folder.iterdir()] == ["job.state"] if at else not folder.exists()
        seen.clear()
        assert bits(sc.compare(*two, data, **how)) == truth, at
        # What was counted before the last save is not run again, in whatever pass.
        assert len(seen) == 4 * COUNT - at + bool(at), at
        assert not folder.exists()


def test_broken_off_again_and_again(two, tmp_path):
    """Each attempt reads the first batch and a pass that was counted before, and gets one batch further at least."""
    data, how = batches(inputs(), BATCH), RANK | {"power": 3}
    truth = bits(sc.compare(*two, data, **how))
    how["folder"] = tmp_path / "job"
    attempts = 0
    while True:
        try:
            found = sc.compare(*two, BrokenOff(data, 2 + COUNT), **how)
            break
        except KeyboardInterrupt:
            attempts += 1
            assert attempts < 4 * COUNT
    assert attempts > 2
    assert bits(found) == truth
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_more_directions_broken_off(monkeypatch, tmp_path):
    """A share that takes more directions, of some layers, so that others wait for them."""
    nets = wide_net(1, 0.3), wide_net(2, 1.5)
    monkeypatch.setattr(sys.modules["streamcca.sketch_result"], "_FIRST_DIRECTIONS", 12)
    data, folder = batches(inputs(), BATCH), tmp_path / "job"
    seen = forwards(nets[0])
    truth = bits(sc.compare(*nets, data, **SHARE))
    passes = len(seen) // COUNT
    assert passes > 4
    for at in range(2, passes * COUNT, 11):
        broken_off(nets, data, at, SHARE | {"folder": folder})
        seen.clear()
        assert bits(sc.compare(*nets, data, **SHARE, folder=folder)) == truth, at
        assert len(seen) == passes * COUNT - at + 1
        assert not folder.exists()


@pytest.mark.slow
def test_what_the_replay_finds_lacking(monkeypatch, two, tmp_path):
    """One layer begins again after a replay, while the others have done all their steps."""
    layers = sys.modules["streamcca.sketch_layers"]
    few, cut, data = sys.modules["streamcca.sketch_state"].TooFewError, layers.cut, batches(inputs(), BATCH)

    def unclear(view, *rest, directions, restarts):
        if view.name == "b:2" and directions < 70:
            raise few(view.name, directions, 0.5, 70)
        return cut(view, *rest, directions=directions, restarts=restarts)

    monkeypatch.setattr(layers, "cut", unclear)
    how = {key: value for key, value in RANK.items() if key != "directions"} | {"power": 1}
    seen = forwards(two[0])
    truth = bits(sc.compare(*two, data, **how))
    assert len(seen) == 6 * COUNT  # sketch, step, replay; those of one layer, but for the replay
    for at in (20, 21, 27, 34):
        broken_off(two, data, at, how | {"folder": tmp_path / "job"})
        seen.clear()
        assert bits(sc.compare(*two, data, **how, folder=tmp_path / "job")) == truth, at
        assert len(seen) == 6 * COUNT - at + 1


def test_taken_by_the_planner(tmp_path):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(60, 1500)) for _ in range(2)]
    how = {"layers": "0", "rank": 3, "directions": 20, "allow_inaccurate": True}
    data = batches(inputs(3000, torch.float32), 500)
    truth = bits(sc.compare(*nets, data, memory=30 << 20, **how))
    how["folder"] = tmp_path / "job"
    broken_off(nets, data, 3, how | {"memory": 30 << 20})
    seen = forwards(nets[0])
    # With more memory another way would be taken; what is there is gone on with.
    assert bits(sc.compare(*nets, data, **how)) == truth
    assert len(seen) == 2 * 6 - 3 + 1
    assert not (tmp_path / "job").exists()


WAYS = {
    "covariance": {"layers": LAYERS, "variance": 0.9, "strategy": "covariance"},
    "replay": {"layers": LAYERS, "variance": 0.9, "strategy": "replay", "ridge": 0.01, "nonfinite": "skip"},
    "qr": {"layers": LAYERS, "rank": 5, "strategy": "qr", "measure": "pwcca"},
}


@pytest.mark.parametrize("way", WAYS)
def test_sums_broken_off_at_a_batch(two, tmp_path, way):
    """Moments, those of two passes, and triangular factors."""
    data, folder, how = batches(inputs(), BATCH), tmp_path / "job", WAYS[way]
    if way == "replay":
        data[1][3, 0] = float("nan")
    truth = bits(sc.compare(*two, data, **how))
    how = how | {"folder": folder}
    seen = forwards(two[0])
    assert bits(sc.compare(*two, data, **how)) == truth
    assert not folder.exists()
    passes = len(seen) // COUNT
    assert passes == (2 if way == "replay" else 1)
    for at in range(0 if way == "replay" else 1, passes * COUNT):
        broken_off(two, data, at, how)
        left = sorted(path.name for path in folder.iterdir()) if at else []
        assert left == ["job.state", "replay.state"][: (at > 0) + (at > COUNT)]
        seen.clear()
        assert bits(sc.compare(*two, data, **how)) == truth, at
        assert len(seen) == passes * COUNT - at + bool(at), at
        assert not folder.exists()


def test_a_replay_of_another_job_is_not_gone_on_with(two, tmp_path):
    """Its first pass was removed by hand, and the inputs have changed since."""
    data, how = batches(inputs(), BATCH), WAYS["covariance"] | {"strategy": "replay"}
    broken_off(two, data, COUNT + 3, how | {"folder": tmp_path})
    (tmp_path / "job.state").unlink()
    changed = [batch + 0.5 for batch in data]
    truth = bits(sc.compare(*two, changed, **how))
    broken_off(two, changed, 2, how | {"folder": tmp_path})
    assert not (tmp_path / "replay.state").exists()
    assert bits(sc.compare(*two, changed, **how, folder=tmp_path)) == truth


def test_the_chosen_way_is_kept_to(two, tmp_path):
    data, how = batches(inputs(), BATCH), WAYS["covariance"]
    broken_off(two, data, 3, how | {"folder": tmp_path})
    for other in ("replay", "sketch", "qr"):
        with pytest.raises(sc.StateFileError, match=f"another job .strategy: 'covariance', expected '{other}'"):
            sc.compare(*two, data, **how | {"strategy": other, "folder": tmp_path})
    for change in ({"ridge": 0.1}, {"nonfinite": "skip"}, {"variance": 0.8}):
        with pytest.raises(sc.StateFileError, match=f"another job .({next(iter(change))}|rule): "):
            sc.compare(*two, data, **how | change, folder=tmp_path)
    found = sc.compare(*two, data, **how | {"strategy": "auto", "folder": tmp_path})
    assert bits(found) == bits(sc.compare(*two, data, **how))
    with pytest.raises(sc.InputError, match="can be read only once"):
        sc.compare(*two, iter(data), **how, folder=tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_models_that_change_their_inputs(tmp_path):
    """A loader that makes its batches anew; the first batch shows that there will be a replay."""

    class Fresh:
        def __init__(self, at=None):
            self.at = at

        def __iter__(self):
            for i, x in enumerate(batches(inputs(), BATCH)):
                if i == self.at:
                    raise KeyboardInterrupt
                yield x.clone()

    nets = [nn.Sequential(nn.ReLU(inplace=True), net) for net in (wide_net(1), wide_net(2))]
    how = {"layers": "1.0", "rank": 4, "loader_b": None}
    for strategy in ("covariance", "replay"):
        truth = bits(sc.compare(*nets, Fresh(), strategy=strategy, **how))
        with pytest.raises(KeyboardInterrupt):
            sc.compare(*nets, Fresh(4), strategy=strategy, folder=tmp_path, **how)
        assert bits(sc.compare(*nets, Fresh(), strategy=strategy, folder=tmp_path, **how)) == truth


def test_rows_by_a_function(two, tmp_path):
    data, how = batches(inputs(), BATCH), {"layers": LAYERS, "rank": 5, "rows": lambda x: x[:, :60]}
    truth = bits(sc.compare(*two, data, **how))
    broken_off(two, data, 3, how | {"folder": tmp_path})
    assert bits(sc.compare(*two, data, **how, folder=tmp_path)) == truth


# ------------------------------------------------------------------ what is refused


def left_at(two, data, at, folder, how=RANK):
    """Leave a job behind."""
    broken_off(two, data, at, how | {"folder": folder})
    return (folder / "job.state").read_bytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rank": 7}, r"another job \(rule: \['rank', 6.0, 6.0\], expected \['rank', 7.0, 7.0\]\); remove the file"),
        ({"directions": 25}, r"another job \(directions: 24, expected 25\)"),
        ({"power": 1}, r"another job \(power: 0, expected 1\)"),
        ({"precision": "float32"}, r"another job \(precision: 'auto', expected 'float32'\)"),
        ({"rows": "pool"}, r"another job \(rows: "),
        ({"layers": LAYERS[:2]}, r"another job \(layers: others than those of this one\)"),
    ],
)
def test_another_job_is_refused(two, tmp_path, change, sentence):
    data = batches(inputs(), BATCH)
    before = left_at(two, data, 4, tmp_path)
    with pytest.raises(sc.StateFileError, match=sentence):
        sc.compare(*two, data, **RANK | change, folder=tmp_path)
    assert (tmp_path / "job.state").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"mask": None}, sc.StateFileError, "another job .choices: "),
        ({"call_index": 0}, sc.StateFileError, "another job .choices: "),
        ({"resize": "smallest"}, sc.StateFileError, "another job .choices: "),
        ({"forward": lambda net, x: net(x.bfloat16().to(x.dtype))}, sc.ReplayError, "other values than when this job"),
        ({"forward": lambda net, x: net.double()(x.double())}, sc.ReplayError, "got torch.float64 rows, expected"),
    ],
)
def test_other_ways_to_rows_are_refused(change, error, sentence, tmp_path, monkeypatch):
    """Sums of a batch do not show what rounds both ways; types and single values do."""
    monkeypatch.setattr(sys.modules["streamcca.sweep"], "_SAME", 1.0)
    nets = wide_net(1).float(), wide_net(2).float()
    data, how = batches(inputs().float(), BATCH), {"layers": LAYERS, "rank": 5, "folder": tmp_path}
    broken_off(nets, data, 3, how)
    with pytest.raises(error, match=sentence):
        sc.compare(*nets, data, **how | change)
    assert (tmp_path / "job.state").exists()


@pytest.mark.parametrize("at", [4, 9])
def test_other_models_and_inputs_are_refused(two, tmp_path, at):
    """In the first pass and in the replay, though no model runs on what was counted."""
    data = batches(inputs(), BATCH)
    left_at(two, data, at, tmp_path)
    how = RANK | {"folder": tmp_path}
    with pytest.raises(sc.StateFileError, match=r"another job \(weights: "):
        sc.compare(two[0], wide_net(3), data, **how)
    changed = [batch.clone() for batch in data]
    changed[2][5, 0] += 1e-9
    with pytest.raises(sc.ReplayError, match="batch 2 is not that of the first pass: the loader gave other inputs"):
        sc.compare(*two, changed, **how)
    with pytest.raises(sc.ReplayError, match="batch 0 is not that of the first pass: layer 'a:0' gave other outputs"):
        sc.compare(*two, data, forward=lambda net, batch: net(batch * 1.001), **how)
    with pytest.raises(sc.ReplayError, match="gave 2 batches, expected [46] as in the first pass"):
        sc.compare(*two, data[:2], **how)
    with pytest.raises(sc.InputError, match="can be read only once"):
        sc.compare(*two, iter(data), **how | {"strategy": "auto"})
    # Nothing of all that has spoiled the file.
    how.pop("folder")
    assert bits(sc.compare(*two, data, **how, folder=tmp_path)) == bits(sc.compare(*two, data, **how))


def test_files_of_other_kinds_and_damaged_ones(two, tmp_path):
    data = batches(inputs(), BATCH)
    content = left_at(two, data, 4, tmp_path)
    x = np.random.default_rng(0).standard_normal((40, 9))
    with pytest.raises(sc.StateFileError, match="belongs to another job"):
        sc.svcca(x, x, rank=2, strategy="sketch", folder=tmp_path)
    (tmp_path / "job.state").write_bytes(content[:-200] + bytes(200))
    with pytest.raises(sc.StateFileError, match="damaged, the checksum of"):
        sc.compare(*two, data, **RANK, folder=tmp_path)
    (tmp_path / "job.state").unlink()
    (tmp_path / ".job.state.tmp.1.00").write_bytes(b"half")
    assert bits(sc.compare(*two, data, **RANK, folder=tmp_path)) == bits(sc.compare(*two, data, **RANK))
    assert not tmp_path.exists()
