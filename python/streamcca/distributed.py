"""Moments of all rows that the processes of a job have seen, over torch.distributed.

Only sums travel: a few short vectors for a common shift, then the packed second moments, bucket by bucket. So a rank
needs the memory of its own moments and one bucket, however many ranks there are.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from streamcca._backend import BLOCK_ROWS, Accumulator, FloatArray
from streamcca.errors import InputError, ProcessError
from streamcca.moments import Moments
from streamcca.store import FORMAT_VERSION
from streamcca.views import excerpts

BUCKET_BYTES = 64 << 20
_UNIT = 2.0**-53

Result = TypeVar("Result")

# What every rank tells all others: digests of what must be alike, and the counts.
_ALIKE = ("views", "pairs", "precision", "format")
_COUNTS = {"rows": "<i8", "skipped": "<i8", "weight": "<f8", "rounding": "<f8", "row_unit": "<f8"}
_HEADER = np.dtype([*((name, "<u4") for name in _ALIKE), *_COUNTS.items(), ("double", "?")])


def all_reduce(moments: Moments, group: Any = None) -> None:
    """Give every rank of a job the moments of the rows of all ranks.

    Collective: every rank of the group calls it, with moments of the same views, pairs and precision; ranks may have
    seen different numbers of rows, or none. Afterwards all of them hold the same bits. A second call would count all
    rows once for each rank: where more rows are to come, reduce a `Moments.copy`.

    Parameters
    ----------
    moments : Moments
        The rows of this rank; changed in place. Do not update them from another thread meanwhile.
    group : torch.distributed.ProcessGroup, optional
        The processes that take part; by default all of the job.

    Raises
    ------
    InputError
        On every rank: ranks have other views, pairs or precision than rank 0. Or torch.distributed is not
        initialized, or this process is not in the group.
    ProcessError
        Another rank ended, did not answer in time, or failed on its own (for lack of memory, say).

    After an error the moments of this rank are what they were. (If a rank ends during the very last message, some of
    the others can have the result already while this one has the error.)

    Notes
    -----
    Exact algebra, as `Moments.merge`, with one shift for all: in each column the shift of that rank whose shift is
    nearest to the mean of all rows. Sums are float64, in an order that depends on the number of ranks, so the result
    depends on how rows were spread over ranks, within rounding. With ``precision="auto"`` moments form products in
    float64 from here on if those of any rank did. `ids_checksum` is cleared, as the order of all rows has none.

    Runs on the CPU; tested with gloo. For nccl the buckets move to the current CUDA device: run with one rank only.

    Examples
    --------
    In a script that is started by ``torchrun --nproc-per-node 4 script.py``::

        torch.distributed.init_process_group("gloo")
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        m = sc.Moments({"a": 512, "b": 256})
        for first in range(rank * 1000, n, size * 1000):
            m.update(a=xa[first : first + 1000], b=xb[first : first + 1000])
        sc.all_reduce(m)
        print(sc.svcca(m, "a", "b"))
    """
    ranks = _Ranks(group)
    part = ranks.together("take its part out", lambda: _Part(moments))
    headers = ranks.gather(part.header())
    _check_alike(ranks, part.alike, headers)
    if ranks.size == 1:
        return
    total = _total(headers)
    state = part.state
    if total["rows"]:
        with np.errstate(all="ignore"):  # rows that are not finite, let through by request
            _move(part, _common_shift(ranks, part, total["weight"]))
            ranks.reduce([*state["sums"], *state["squares"], *state["moments"]], "SUM")
    else:  # the native state of moments without rows has no arrays
        state = moments._core.save()

    def restored() -> Accumulator:
        core = moments._new_core()
        core.restore({**state, **total})
        return core

    # Only when all of them have the result does any of them take it.
    moments._core = ranks.together("hold the result", restored)
    moments._ids_checksum = {}


class JobRanks:
    """The ranks of a job, for a sketch of rows that are spread over them: its sums are added up, never gathered.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        The processes that take part; by default all of the job.

    Examples
    --------
    In a script that is started by torchrun, on every rank with rows of its own::

        from streamcca.sketch_route import sketch_svcca

        rule = Rule("rank", 20, 20)
        result, notes = sketch_svcca(PairPasses((x, y)), rule, range_finder=True, power=1, ranks=JobRanks())
    """

    def __init__(self, group: Any = None) -> None:
        self._ranks = _Ranks(group)
        self._group = group

    def sum(self, array: FloatArray) -> FloatArray:
        """Return the sum of an array over all ranks."""
        total = np.array(array, dtype=np.float64)
        self._ranks.reduce([total.reshape(-1)], "SUM")
        return total

    def moments(self, moments: Moments) -> Moments:
        """Return the moments of the rows of all ranks."""
        total = moments.copy()
        all_reduce(total, self._group)
        return total


# ---------------------------------------------------------------------- the part of one rank


class _Part:
    """What one rank has: native state without pending rows, and what must be alike on all ranks."""

    def __init__(self, moments: Moments) -> None:
        if not isinstance(moments, Moments):
            raise InputError(f"all_reduce: got {type(moments).__name__}, expected Moments")
        self.alike = {
            "views": str(moments.views),
            "pairs": str(moments.pairs),
            "precision": repr(moments._precision),
            "format": f"{FORMAT_VERSION} with blocks of {BLOCK_ROWS} rows",
        }
        self.pairs = moments._pair_indices()
        self.state = _settled(moments)

    def header(self) -> np.ndarray[Any, Any]:
        header = np.zeros(1, _HEADER)
        for name, text in self.alike.items():
            header[name] = zlib.crc32(text.encode())
        for name in _COUNTS:
            header[name] = self.state[name]
        header["double"] = self.state["started"] and self.state["products"] == "float64"
        return header


def _settled(moments: Moments) -> dict[str, Any]:
    """Return the native state with a shift and without pending rows; without rows it is all zeros."""
    widths, pairs = list(moments.views.values()), moments._pair_indices()
    # Moments of other products take in no rows, only sums: the merge fixes the shift, multiplies the rows that wait
    # and accounts for their rounding, all in the products of the part.
    other = "float32" if moments._core.products == "float64" else "float64"
    core = Accumulator(list(moments.views), widths, pairs, other, moments._nonfinite, moments._threads or 0)
    core.merge(moments._cpu_core())
    state = core.save()
    if not state["rows"]:
        for key in ("shift", "sums", "squares"):
            state[key] = [np.zeros(width) for width in widths]
        sizes = [widths[a] * (widths[a] + 1) // 2 if a == b else widths[a] * widths[b] for a, b in pairs]
        state["moments"] = [np.zeros(size) for size in sizes]
    state["started"], state["products"] = moments._core.started, moments._core.products
    return state


def _move(part: _Part, shift: list[FloatArray]) -> None:
    """Move the sums of a part to another shift, as MomentStore::rebase does."""
    state, weight = part.state, part.state["weight"]
    deltas = [own - common for own, common in zip(state["shift"], shift, strict=True)]
    state["shift"] = shift
    if not weight:
        return
    sums = state["sums"]
    for (a, b), moments in zip(part.pairs, state["moments"], strict=True):
        row_delta, column_delta = deltas[a], deltas[b]
        if not row_delta.any() and not column_delta.any():
            continue
        moved = sums[b] + weight * column_delta
        start = 0
        for row in range(len(row_delta)):
            first = row if a == b else 0  # of a view with itself there is the upper triangle
            values = moments[start : start + len(moved) - first]
            values += row_delta[row] * moved[first:] + sums[a][row] * column_delta[first:]
            start += len(values)
    for own, squares, delta in zip(sums, state["squares"], deltas, strict=True):
        squares += delta * (own + weight * delta) + own * delta
        own += weight * delta


# ---------------------------------------------------------------------- what the ranks agree on


def _check_alike(ranks: _Ranks, own: dict[str, str], headers: np.ndarray[Any, Any]) -> None:
    """Raise the same error on every rank if one has other views, pairs or precision than rank 0."""
    for name in _ALIKE:
        (others,) = np.nonzero(headers[name] != headers[name][0])
        if others.size:
            rank = int(others[0])
            got, expected = excerpts(ranks.text_of(rank, own[name]), ranks.text_of(0, own[name]))
            raise InputError(
                f"all_reduce: rank {rank} has {name} {got}, expected {expected} as on rank 0; construct Moments alike "
                "on every rank"
            )


def _total(headers: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return the counts of all ranks together; summed in the order of the ranks, so alike on each of them."""
    rows, weight = int(headers["rows"].sum()), float(sum(headers["weight"].tolist()))
    # Moving and adding: a handful of float64 roundings of the total for each rank that has rows.
    rounding = 4 * int(np.count_nonzero(headers["rows"])) * (_UNIT * weight) ** 2
    return {
        "products": "float64" if headers["double"].any() else "float32",
        "started": rows > 0,
        "settled": rows > 0,
        "rows": rows,
        "skipped": int(headers["skipped"].sum()),
        "weight": weight,
        "rounding": float(sum(headers["rounding"].tolist())) + rounding,
        "row_unit": float(headers["row_unit"].min()),
    }


def _common_shift(ranks: _Ranks, part: _Part, total_weight: float) -> list[FloatArray]:
    """Choose, for each column, that rank's shift which is nearest to the mean of all rows.

    So second moments about it are at most about twice those about the mean, even if every rank has rows of another
    kind, while a shift keeps what is good about it: few bits, the product type, the very value of a constant column.
    """
    state = part.state
    shift, sums = np.concatenate(state["shift"]), np.concatenate(state["sums"])
    mean = state["weight"] * shift + sums
    ranks.reduce([mean], "SUM")
    mean /= total_weight
    mean[~np.isfinite(mean)] = 0
    distance = np.abs(shift - mean) if state["rows"] else np.full_like(mean, np.inf)
    nearest = distance.copy()
    ranks.reduce([nearest], "MIN")
    common = np.where(distance == nearest, shift, np.inf)
    ranks.reduce([common], "MIN")
    common += 0.0  # of 0 and -0 either is the smaller one
    ends = np.cumsum([len(values) for values in state["shift"]])
    return [values.copy() for values in np.split(common, ends[:-1])]


# ---------------------------------------------------------------------- messages between the ranks


def _buckets(arrays: list[FloatArray], size: int) -> Iterator[list[FloatArray]]:
    """Cut arrays into pieces, and yield lists of pieces that have `size` elements together; the last may have fewer."""
    bucket: list[FloatArray] = []
    room = size
    for array in arrays:
        rest = array
        while rest.size:
            bucket.append(rest[:room])
            room -= bucket[-1].size
            rest = rest[bucket[-1].size :]
            if not room:
                yield bucket
                bucket, room = [], size
    if bucket:
        yield bucket


class _Ranks:
    """The processes of a group: what they say to each other, and what is said when one of them is gone."""

    def __init__(self, group: Any) -> None:
        try:
            import torch
            import torch.distributed as dist
        except ImportError:
            raise ImportError("all_reduce needs torch; install streamcca[torch]") from None
        if not dist.is_available() or not dist.is_initialized():
            raise InputError(
                "all_reduce: torch.distributed is not initialized; call torch.distributed.init_process_group('gloo') "
                "first, in a script started by torchrun"
            )
        self._torch: Any = torch
        self._dist: Any = dist
        self._group = dist.group.WORLD if group is None else group
        if dist.get_rank(group) < 0:
            raise InputError("all_reduce: this process is not in the group; call it on the ranks of the group alone")
        self.size = int(dist.get_world_size(group))
        # nccl knows no memory but a GPU's. Run with one rank only: there was no machine for more.
        self._backend = dist.get_backend(group)
        self._device = torch.device("cuda" if self._backend == "nccl" else "cpu")
        self._bucket = np.empty(max(1, BUCKET_BYTES // 8))  # takes memory only as far as it is used

    def _call(self, collective: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        try:
            collective(*arguments, **options, group=self._group)
        except RuntimeError as error:
            self._hang_up()
            raise ProcessError(
                "all_reduce: another rank ended, or did not answer within the timeout of the process group; the "
                "moments of this rank are unchanged (save them), and the job has to be started again"
            ) from error

    def _hang_up(self) -> None:
        """Close the connections of this rank, which are of no more use.

        Ranks that wait for this one, and not for the one that ended, would else wait until this process ends. Gloo
        closes all connections when one message does not come in time: so wait, briefly, for one that nobody sends.
        """
        from datetime import timedelta

        nothing = self._torch.empty(1, device="cpu")
        if self._device.type == "cpu" and self._backend != "mpi":
            for rank in self._dist.get_process_group_ranks(self._group):
                with contextlib.suppress(RuntimeError, ValueError):
                    self._dist.irecv(nothing, rank, self._group).wait(timedelta(milliseconds=1))

    def gather(self, record: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the small record of every rank, in their order."""
        own = self._torch.from_numpy(record.view(np.uint8)).to(self._device)
        all_of_them = [self._torch.empty_like(own) for _ in range(self.size)]
        self._call(self._dist.all_gather, all_of_them, own)
        return np.concatenate([tensor.cpu().numpy().view(record.dtype) for tensor in all_of_them])

    def text_of(self, rank: int, text: str) -> str:
        """Return the text that one of the ranks has."""
        own = np.frombuffer(text.encode(), np.uint8)
        length = int(self.gather(np.array([len(own)]))[rank])
        padded = np.zeros(length, np.uint8)
        padded[: len(own)] = own[:length]
        texts = self.gather(padded).reshape(self.size, length)
        return bytes(texts[rank]).decode()

    def reduce(self, arrays: list[FloatArray], operation: str) -> None:
        """Replace arrays by their sums, or minima, over all ranks, with messages of bounded size."""
        for pieces in _buckets(arrays, len(self._bucket)):
            own = self._bucket[: sum(piece.size for piece in pieces)]
            np.concatenate(pieces, out=own)
            tensor = self._torch.from_numpy(own).to(self._device)
            self._call(self._dist.all_reduce, tensor, getattr(self._dist.ReduceOp, operation))
            rest = tensor.cpu().numpy()
            for piece in pieces:
                piece[:] = rest[: piece.size]
                rest = rest[piece.size :]

    def together(self, what: str, step: Callable[[], Result]) -> Result:
        """Do what may fail on one rank alone, for lack of memory, say; then it fails on all, and none waits for it."""
        results: list[Result] = []
        failure: Exception | None = None
        try:
            results.append(step())
        except Exception as error:
            failure = error
        failed = self.gather(np.array([failure is not None]))
        if failure is not None:
            raise failure
        if failed.any():
            raise ProcessError(
                f"all_reduce: rank {np.flatnonzero(failed)[0]} could not {what}, see its own error; the moments of "
                "this rank are unchanged"
            )
        return results[0]
