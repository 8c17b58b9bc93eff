"""Start jobs in a folder, kill each at random moments until it is done, a hundred times in all; print what was killed.

`python killed_jobs.py FOLDER KILLS SEED`. Every attempt is a child, forked from a process that has loaded all but
streamcca (which refuses to be forked), and is killed by SIGKILL at a random delay after it has begun.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

for module in ("torch._dynamo", "safetensors.numpy", "scipy.linalg.cython_blas", "scipy.linalg.cython_lapack"):
    importlib.import_module(module)  # what takes its time, so that children need not

ROWS, BATCH = 320, 20
STAGES = ("sketch", "power step", "replay")
# What must be killed often enough, and the job it belongs to.
WANTED = {
    "spool": "spool",
    "sketch": "sketch",
    "replay": "sketch",
    "layers sketch": "layers",
    "layers power step": "layers",
    "layers replay": "layers",
    "pairs pass": "pairs",
    "pairs replay": "pairs",
    "factor": "factor",
}


def views() -> tuple[np.ndarray, np.ndarray]:
    """Two views of 2500 and 1200 neurons with some directions in common."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((ROWS, 24)) / np.arange(1, 25)
    x, y = (latent @ rng.standard_normal((24, d)) + 0.01 * rng.standard_normal((ROWS, d)) for d in (2500, 1200))
    return x.astype(np.float32), y.astype(np.float32)


def prepare() -> None:
    """Cut the work small: a segment, a matrix and a checkpoint after each few rows, so that there is much to kill."""
    from streamcca import range_finder

    sys.modules["streamcca.spool"]._SEGMENT_BYTES = 1
    sys.modules["streamcca.gram"]._SAVE_EVERY = 0.0
    sys.modules["streamcca.checkpoint"].SECONDS = 0.0
    range_finder._BLOCK_BYTES = 1


def sketch_truth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return what the sketch job would find if it lost nothing: plain NumPy, float64."""
    left, right = (
        np.linalg.svd(view.astype(np.float64) - view.astype(np.float64).mean(axis=0), full_matrices=False)[0][:, :6]
        for view in (x, y)
    )
    return np.linalg.svd(left.T @ right, compute_uv=False)


class Slowly:
    """Batches that take their time, as those of a model do."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y

    def __iter__(self):
        return self.batches(0)

    def batches(self, first):
        """Start at a row."""
        for i in range(first, ROWS, BATCH):
            time.sleep(0.002)
            yield self.x[i : i + BATCH], self.y[i : i + BATCH]


def spool_job(folder: Path, data: Slowly) -> dict[str, np.ndarray]:
    """Rows to disk, and their matrices."""
    from streamcca import gram

    grams = gram(data, folder=folder, progress=False)
    return {name: grams.matrix(name) for name in grams.views}


def sketch_job(folder: Path, data: Slowly) -> dict[str, np.ndarray]:
    """A sketch, a power step and a replay."""
    from streamcca.passes import PairPasses
    from streamcca.sketch_route import sketch_svcca
    from streamcca.subspace import Rule

    folder.mkdir(exist_ok=True)
    result, _ = sketch_svcca(
        PairPasses((data,)),
        Rule("rank", 6, 6),
        directions=16,
        power=1,
        allow_inaccurate=True,
        checkpoint=folder / "state",
        checkpoint_seconds=0.0,
        progress=False,
    )
    folder.rmdir()  # fails if anything was left in it
    return {"mean": np.float64(result.mean), "rho": result.correlations, "bounds": result.correlation_error_bounds}


class Inputs:
    """Batches of inputs that take their time; a block of rows has 16 of them, so that some of each batch wait."""

    def __init__(self, data) -> None:
        self.parts = data.split(BATCH)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self):
        for part in self.parts:
            time.sleep(0.002)
            yield part


class Narrow(Slowly):
    """A few neurons of each batch."""

    def batches(self, first):
        """Start at a row."""
        for x, y in super().batches(first):
            yield x[:, :90], y[:, :70]


def streamcca():
    """Only children import it."""
    return importlib.import_module("streamcca")


def nets() -> list:
    """Two of different weights."""
    import torch

    torch.set_num_threads(1)
    both = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        both.append(torch.nn.Sequential(torch.nn.Linear(40, 300), torch.nn.Tanh(), torch.nn.Linear(300, 150)))
    return both


def inputs_of(data: Slowly) -> Inputs:
    """Inputs of the nets."""
    import torch

    return Inputs(torch.from_numpy(data.x[:, :40].copy()))


def layers_job(folder: Path, data: Slowly) -> dict[str, np.ndarray]:
    """Sketches of all layers of two nets, a power step and a replay."""
    how = {"rank": 4, "directions": 12, "power": 1, "allow_inaccurate": True, "progress": False}
    return numbers_of(streamcca().compare(*nets(), inputs_of(data), strategy="sketch", folder=folder, **how))


def numbers_of(result) -> dict[str, np.ndarray]:
    """All numbers of all cells."""
    cells = [cell for row in result.results for cell in row]
    return {
        "matrix": result.matrix,
        "rho": np.concatenate([cell.correlations for cell in cells]),
        "bounds": np.concatenate([cell.correlation_error_bounds for cell in cells]),
    }


def pairs_job(folder: Path, data: Slowly) -> dict[str, np.ndarray]:
    """Moments of all layers of two nets, and a replay that pairs what was kept of them."""
    how = {"variance": 0.9, "progress": False, "allow_inaccurate": True}
    result = streamcca().compare(*nets(), inputs_of(data), strategy="replay", folder=folder, **how)
    return numbers_of(result)


def factor_job(folder: Path, data: Slowly) -> dict[str, np.ndarray]:
    """A triangular factor of two views."""
    result = streamcca().svcca(Narrow(data.x, data.y), rank=4, strategy="qr", folder=folder, progress=False)
    return {"mean": np.float64(result.mean), "rho": result.correlations, "weights": result.x_weights}


JOBS = {"spool": spool_job, "sketch": sketch_job, "layers": layers_job, "pairs": pairs_job, "factor": factor_job}


def start(job: str, folder: Path, data: Slowly, result: Path) -> int:
    """Fork a child that does a job and then writes what came out."""
    here, there = os.pipe()
    child = os.fork()
    if child:
        os.close(there)
        os.read(here, 1)  # it has begun
        os.close(here)
        return child
    code = 1
    try:
        prepare()
        os.close(there)
        found = JOBS[job](folder, data)
        with result.open("wb") as file:
            np.savez(file, **found)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def stage_of(job: str, folder: Path) -> str:
    """Say what an unfinished job was at, by what it has kept."""
    if job == "spool":
        meta = folder / "spool.json"
        return "matrices" if meta.exists() and json.loads(meta.read_text())["complete"] else "spool"
    if job == "factor":
        return job
    if job == "pairs":
        return "pairs replay" if (folder / "replay.state").exists() else "pairs pass"
    state, prefix = (folder / "state", "") if job == "sketch" else (folder / "job.state", "layers ")
    if not state.exists():
        return prefix + "sketch"
    with state.open("rb") as file:  # of safetensors: a header of JSON
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return prefix + STAGES[json.loads(header["__metadata__"]["meta"])["stage"]]


def main(place: Path, kills: int, seed: int) -> None:
    """Kill until there were so many, and at least a fifth of them in each stage of `WANTED`."""
    data, chance = Slowly(*views()), random.Random(seed)
    counts: dict[str, int] = {}
    durations = {}
    for job in JOBS:
        began = time.monotonic()
        child = start(job, place / f"{job}.work", data, place / f"{job}.whole.npz")
        assert os.waitpid(child, 0)[1] == 0, f"{job} failed"
        durations[job] = time.monotonic() - began
    done = dict.fromkeys(JOBS, 0)

    def few() -> list[str]:
        lacking = [stage for stage in WANTED if counts.get(stage, 0) < kills / 5]
        return lacking or (["spool", "sketch"] if sum(counts.values()) < kills else [])

    while few():
        job = WANTED[few()[0]]
        folder, result = place / f"{job}.work", place / f"{job}.npz"
        while True:
            child = start(job, folder, data, result)
            time.sleep(chance.uniform(0, durations[job]))
            os.kill(child, signal.SIGKILL)  # of a child that has ended, nothing happens
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0, f"{job}: an attempt failed"
                break
            if result.exists() and not folder.exists():  # killed between the end of the job and its own
                result.unlink(missing_ok=True)
                continue
            stage = stage_of(job, folder)
            counts[stage] = counts.get(stage, 0) + 1
        with np.load(place / f"{job}.whole.npz") as whole, np.load(result) as found:
            for name in whole.files:
                assert whole[name].tobytes() == found[name].tobytes(), f"{job}: {name} has other bits"
        assert not folder.exists(), f"{job}: left {list(folder.iterdir())}"
        result.unlink()
        done[job] += 1
    left = sorted(path.name for path in place.iterdir())
    print(json.dumps({"killed": counts, "total": sum(counts.values()), "ended": done, "left": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
