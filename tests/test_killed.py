"""Jobs that are killed at random: they go on to the same bits, and leave nothing on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from killed_jobs import JOBS, WANTED, sketch_truth, views

import streamcca as sc


def run(folder, kills, seed):
    """Kill so often; return how often at what, and what the jobs gave."""
    script = Path(__file__).with_name("killed_jobs.py")
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, script, folder, str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["left"] == sorted(f"{job}.whole.npz" for job in JOBS)
    assert found["total"] >= kills
    assert all(found["killed"][stage] >= kills / 5 for stage in WANTED)
    return found


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    """In every pass of views and of layers, and what is between them. Bits are compared where jobs end.

    A hundred times takes minutes: `python tests/killed_jobs.py FOLDER 100 7`.
    """
    run(tmp_path, 5, 7)
    x, y = views()
    with np.load(tmp_path / "spool.whole.npz") as found:
        grams = sc.gram(x, y)
        assert all(found[name].tobytes() == grams.matrix(name).tobytes() for name in "xy")
    with np.load(tmp_path / "sketch.whole.npz") as found:
        rho = sketch_truth(x, y)
        assert (np.abs(found["rho"] - rho) <= found["bounds"]).all()
        assert found["bounds"].max() < 0.5


@pytest.mark.filterwarnings("ignore::streamcca.AccuracyWarning")
def test_what_killed_writers_leave_is_removed(tmp_path):
    """A writer that is killed leaves a file of another name, as large as the state."""
    x, y = (np.ascontiguousarray(view[:, :300]) for view in views())
    for name, strategy in ((".job.state.tmp.1.00", "sketch"), (".spool.json.tmp.1.00", "gram")):
        folder = tmp_path / strategy
        folder.mkdir()
        (folder / name).write_bytes(b"half")
        if strategy == "gram":
            (folder / ".01234567.gram.tmp.1.00").write_bytes(b"half")
        options = {"directions": 40, "allow_inaccurate": True} if strategy == "sketch" else {}
        sc.svcca([(x, y)], rank=4, strategy=strategy, folder=folder, **options)
        assert not folder.exists()
