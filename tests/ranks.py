"""What each rank of tests/test_distributed.py runs: one scenario after the other, their results into a pickle.

python ranks.py FOLDER RANK
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np

import streamcca as sc
from streamcca import distributed
from streamcca.passes import PairPasses
from streamcca.sketch_route import sketch_svcca
from streamcca.subspace import Rule

SIZE = 4
VIEWS = {"x": 20, "y": 9}
# Rank 0 has whole blocks and rows that wait, rank 1 nothing, rank 3 less than a block.
CUTS = [0, 1100, 1100, 2900, 3000]
SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


def data(dtype="float32", offset=0.0):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((CUTS[-1], VIEWS["x"])) @ rng.standard_normal((VIEWS["x"], VIEWS["x"])) + offset
    y = x[:, : VIEWS["y"]] + rng.standard_normal((CUTS[-1], VIEWS["y"]))
    return {"x": x.astype(dtype), "y": y.astype(dtype)}


def share(rows, rank):
    return {name: array[CUTS[rank] : CUTS[rank + 1]] for name, array in rows.items()}


def accumulated(rows, **options):
    moments = sc.Moments({name: array.shape[1] for name, array in rows.items()}, threads=1, **options)
    if len(rows["x"]):
        moments.update(rows)
    return moments


def reduced(moments, group=None):
    sc.all_reduce(moments, group)
    return moments.state_dict()


def refused(moments, group=None):
    """What all_reduce raises, how long that took, and whether the moments are what they were."""
    before, start = moments.state_dict(), time.monotonic()
    try:
        sc.all_reduce(moments, group)
    except Exception as error:
        return {
            "error": type(error).__name__,
            "sentence": str(error),
            "cause": str(error.__cause__ or ""),
            "seconds": time.monotonic() - start,
            "unchanged": same_state(before, moments.state_dict()),
        }
    return {"error": None}


def same_state(a, b):
    return a["meta"] == b["meta"] and {k: v.tobytes() for k, v in a["tensors"].items()} == {
        k: v.tobytes() for k, v in b["tensors"].items()
    }


@contextlib.contextmanager
def bucket_of(numbers):
    before, distributed.BUCKET_BYTES = distributed.BUCKET_BYTES, 8 * numbers
    yield
    distributed.BUCKET_BYTES = before


# ---------------------------------------------------------------------- sums


@scenario
def float32(rank):
    return reduced(accumulated(share(data(), rank)))


@scenario
def float64(rank):
    return reduced(accumulated(share(data("float64"), rank)))


@scenario
def offset(rank):
    return reduced(accumulated(share(data(offset=1e6), rank)))


@scenario
def float64_in_buckets_of_7(rank):
    with bucket_of(7):
        return reduced(accumulated(share(data("float64"), rank)))


@scenario
def two_ranks(rank):
    """Both ranks with several sizes of buckets: two numbers have only one sum."""
    group = distributed_group([0, 1])
    if rank > 1:
        return refused(accumulated(share(data(), rank)), group)
    rows = {name: array[700 * rank : 700 * (rank + 1)] for name, array in data().items()}
    states = []
    for numbers in (1, 100, 209, 210, 211, 1 << 20):  # the triangle of x has 210
        with bucket_of(numbers):
            states.append(reduced(accumulated(rows), group))
    return states


@scenario
def few_rows(rank):
    """No rank has a shift yet; integers, so that products are exact."""
    rows = np.random.default_rng(0).integers(-99, 99, (2 + 3 + 4 + 5, 6)).astype(np.float64)
    first = sum(range(2, 2 + rank))
    return reduced(accumulated({"x": rows[first : first + 2 + rank]}))


@scenario
def nothing_at_all(rank):
    moments = accumulated({"x": np.empty((0, 3))}, nonfinite="skip")
    moments.update(x=np.full((rank, 3), np.nan))
    return reduced(moments)


@scenario
def weighted(rank):
    rows = share(data("float64"), rank)
    weights = np.random.default_rng(rank).random(len(rows["x"])) * (rank + 1)
    moments = sc.Moments(VIEWS, nonfinite="skip", threads=1)
    rows["y"][::50] = np.nan
    moments.update(rows, weights=weights, ids=np.arange(len(weights)))
    state = reduced(moments)
    return {"state": state, "rows": rows, "weights": weights, "skipped": moments.skipped, "ids": moments.ids_checksum}


@scenario
def only_some_pairs(rank):
    return reduced(accumulated(share(data("float64"), rank), pairs=[("y", "x"), ("x", "x")]))


@scenario
def far_means(rank):
    """Every rank has rows of another kind, and that with the most rows lies at the end."""
    rows = np.random.default_rng(rank).standard_normal((1000 + 200 * (rank == 3), 5)) + 1000 * rank
    moments = accumulated({"x": rows.astype(np.float32)})
    shift = moments.state_dict()["tensors"]["shift.0"]
    return {"state": reduced(moments), "rows": rows.astype(np.float32), "shift": shift}


@scenario
def one_rank_has_rows(rank):
    """Its first rows, which give the shift, are nothing like the others; zero would be nearer to the mean."""
    rows = np.random.default_rng(0).standard_normal((2500 if rank == 3 else 0, 5)).astype(np.float32)
    rows[:256] += 2
    moments = accumulated({"x": rows})
    return {"own": moments.state_dict(), "state": reduced(moments)}


@scenario
def constant_column(rank):
    rows = np.random.default_rng(rank).standard_normal((300 * rank + 5, 3)).astype(np.float32)
    rows[:, 1] = 1e6 / 3
    return reduced(accumulated({"x": rows}))


@scenario
def not_finite(rank):
    rows = np.random.default_rng(rank).standard_normal((400, 3))
    rows[0, 0] = np.inf if rank == 1 else 0
    rows[3, 1] = np.nan if rank == 2 else 0
    return reduced(accumulated({"x": rows}, nonfinite="propagate"))


@scenario
def other_products(rank):
    rows = share(data("float64" if rank == 2 else "float32"), rank)
    state = reduced(moments := accumulated(rows))
    moments.update(data("float64"))  # no rank refuses now what another takes
    return {"state": state, "precision": moments.precision}


@scenario
def going_on(rank):
    moments = accumulated(share(data("float64"), rank))
    sc.all_reduce(moments)
    moments.update(data("float64"))
    return moments.state_dict()


# ---------------------------------------------------------------------- refusals


SKETCHED = Rule("rank", 5, 5)


def sketched_rows():
    rng = np.random.default_rng(11)
    latent = rng.standard_normal((800, 30)) / np.arange(1, 31)
    return [latent @ rng.standard_normal((30, width)) + rng.standard_normal(width) for width in (90, 70)]


def sketched(x, y, **options):
    quiet = {"precision": "float64", "progress": False, "allow_inaccurate": True}
    return sketch_svcca(PairPasses((x, y)), SKETCHED, range_finder=True, power=1, **quiet, **options)[0]


@scenario
def range_finder(rank):
    own = slice(*[(0, 100, 350, 500, 800)[rank + i] for i in (0, 1)])
    return sketched(*(view[own] for view in sketched_rows()), ranks=distributed.JobRanks()).correlations


@scenario
def unlike(rank):
    other = [
        sc.Moments({"x": 20, "y": 9 + (rank == 2)}),
        sc.Moments({"y": 9, "x": 20} if rank == 2 else VIEWS),
        sc.Moments(VIEWS, pairs="self" if rank else "all"),
        sc.Moments(VIEWS, precision="float64" if rank == 3 else "auto"),
        sc.Moments({f"layer{i}": 3 + (rank == 1 and i == 77) for i in range(99)}, pairs="self"),
    ]
    return [refused(moments) for moments in other]


@scenario
def one_rank_fails(rank):
    """Before anything is sent, and when everything is summed."""

    def no_memory():
        raise MemoryError("no room")

    moments = accumulated(share(data(), rank))
    if rank == 1:
        moments._new_core = no_memory
    late = refused(moments)
    early = refused(moments) if rank != 1 else refused_other_object()
    moments.__dict__.pop("_new_core", None)
    return {"late": late, "early": early, "then": reduced(moments)}


def refused_other_object():
    with contextlib.suppress(sc.InputError):
        sc.all_reduce("moments")


# ---------------------------------------------------------------------- deaths


def rank_that_never_comes(rank):
    if rank == 3:
        os._exit(3)
    return refused(accumulated(share(data(), rank)))


def rank_that_dies_in_the_middle(rank):
    """In one bucket of many; the others are alive afterwards, and do not answer."""
    from torch import distributed as dist

    moments = accumulated(share(data(), rank))
    real, calls = dist.all_reduce, []

    def dying(*arguments, **options):
        calls.append(0)
        if rank == 2 and len(calls) == 9:
            os._exit(2)
        real(*arguments, **options)

    dist.all_reduce = dying
    with bucket_of(50):
        result = refused(moments)
    dist.all_reduce = real
    return result


# ---------------------------------------------------------------------- processes


def distributed_group(ranks):
    from torch import distributed as dist

    return dist.new_group(ranks)


def start_group(folder, name, rank, size):
    from torch import distributed as dist

    store = dist.FileStore(str(folder / name), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))


def main(folder, rank):
    from torch import distributed as dist

    results = {}
    start_group(folder, "store", rank, SIZE)
    for name, function in SCENARIOS.items():
        results[name] = function(rank)
        (folder / f"rank{rank}").write_bytes(pickle.dumps(results))
    for name, function, size in (
        ("store", rank_that_never_comes, 4),
        ("store2", rank_that_dies_in_the_middle, 3),
    ):
        if not dist.is_initialized():
            start_group(folder, name, rank, size)
        results[function.__name__] = function(rank)
        (folder / f"rank{rank}").write_bytes(pickle.dumps(results))
        (folder / f"{name}.seen.{rank}").touch()
        # Nobody ends before all survivors have their error: a closed connection would help the others.
        until = time.monotonic() + 70
        while len(list(folder.glob(f"{name}.seen.*"))) < size - 1 and time.monotonic() < until:
            time.sleep(0.01)
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
