"""One pass over two views whose sums are kept in a folder: a job that was killed goes on there."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from streamcca import checkpoint
from streamcca.checkpoint import Checkpoint, check_same_job, packed, part_of
from streamcca.errors import InputError, ReplayError
from streamcca.moments import Moments
from streamcca.passes import PairPasses, bits_of
from streamcca.qr import QRMoments
from streamcca.sources import progress_bar

_Key = dict[str, Any]
# Rows of arrays and files that are looked at again: reading them takes milliseconds.
_MARKS_OF_A_BATCH, _MOST_MARKS = 8, 256


def kept_sums(
    data: tuple[Any, ...], way: str, folder: Path, options: Mapping[str, Any]
) -> tuple[Moments | QRMoments, Checkpoint]:
    """Return the moments of two views, or what stands in for them, and the file to remove when all is done.

    Parameters
    ----------
    data
        Two arrays or ``.npy`` paths, or an iterable of pairs that starts anew each time. Rows that were counted are not
        read again (of an iterable without ``batches(first_row)``: passed over).
    way : 'covariance' or 'qr'
    folder : Path
    options
        'precision', 'nonfinite', 'threads' and 'progress', as in `svcca`.

    Raises
    ------
    StateFileError
        The folder holds what another job has kept: other views, another first row, other options.
    ReplayError
        Rows that were counted have changed since.
    """
    passes = PairPasses(data)
    try:
        if not passes.repeatable:
            raise InputError(
                "folder: the rows are an iterator, which a restart could not read again; pass arrays, .npy paths or an "
                "iterable that starts anew"
            )
        widths, key = _key_of(passes, way, options)
        counting = {} if way == "qr" else {name: options[name] for name in ("precision", "threads")}
        make: Any = QRMoments if way == "qr" else Moments
        sums: Moments | QRMoments = make(widths, nonfinite=options["nonfinite"], **counting)
        path = folder / checkpoint.NAME
        file, rows = Checkpoint(path, checkpoint.SECONDS), CountedRows(passes, path)
        saved = file.load()
        if saved is not None:
            check_same_job(path, saved["meta"].get("key"), key)
            rows.restore(saved["meta"]["rows"])
            sums.load_state_dict(part_of(saved, "sums"))
            saved = None
        with progress_bar(options["progress"], passes.rows, "row", "accumulate") as bar:
            bar.update(rows.count)
            for x, y in rows.rest():
                sums.update(x=x, y=y)
                rows.add(x, y)
                bar.update(len(x))
                if file.due:
                    meta, tensors = packed({"sums": sums.state_dict()})
                    file.save({"key": key, "rows": rows.state(), **meta}, tensors)
    finally:
        passes.close()
    if not sums.rows:
        raise InputError("the data hold no rows; expected at least 2")
    return sums, file


class CountedRows:
    """How many rows were counted, and what they are known again by when another attempt brings them.

    Where a pass can start at any row, some rows are looked at again: of arrays and files several of each batch, of
    other data the last. Where rows have to be passed over all of them are.
    """

    def __init__(self, passes: PairPasses, path: Path) -> None:
        self._passes, self._path = passes, path
        self.count = 0
        self._marks: list[list[int]] = []  # [row, checksum of x, checksum of y]
        self._sums = None if passes.starts_anywhere else [0, 0]  # checksums of all rows, where they are passed over

    def state(self) -> dict[str, Any]:
        """Return plain values."""
        return {"count": self.count, "marks": self._marks, "sums": self._sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`."""
        self.count, self._marks, self._sums = state["count"], list(state["marks"]), state["sums"]

    def add(self, x: Any, y: Any) -> None:
        """Count a batch."""
        step = max(1, len(x) // _MARKS_OF_A_BATCH) if self._passes.sources else max(1, len(x))
        some = range(len(x) - 1, -1, -step)[::-1]  # the last among them
        self._marks += [[self.count + i, *(_checksum(_bits(rows, i, 1)) for rows in (x, y))] for i in some]
        while len(self._marks) > _MOST_MARKS:
            self._marks = self._marks[::-2][::-1]  # with the last
        if self._sums is not None:
            self._sums = _add_rows(self._sums, x, y, len(x))
        self.count += len(x)

    def rest(self) -> Iterator[tuple[Any, Any]]:
        """Batches of the rows that are not counted yet.

        Raises
        ------
        ReplayError
            Those that are were others.
        """
        counted = self.count
        if not counted:
            yield from self._passes.batches()
        elif self._passes.starts_anywhere:
            for row, *known in self._marks if self._passes.sources else ():
                self._compare(row, [source.read(row, 1) for source in self._passes.sources], known)
            batches = self._passes.batches(counted - 1)
            first = next(batches, None)
            if first is None:
                self._refuse(f"row {counted - 1}, which is not there,")
            self._compare(counted - 1, list(first), self._marks[-1][1:])
            self._sums = None
            yield first[0][1:], first[1][1:]
            yield from batches
        else:
            yield from self._after(counted)

    def _after(self, counted: int) -> Iterator[tuple[Any, Any]]:
        """Pass over what is counted, and compare it as a whole."""
        sums, position = [0, 0], 0
        for x, y in self._passes.batches():
            over = min(len(x), max(0, counted - position))
            if over:
                sums = _add_rows(sums, x, y, over)
                if position + over == counted:
                    self._compare(counted - 1, [x[over - 1 :], y[over - 1 :]], self._marks[-1][1:])
                    if self._sums is not None and sums != self._sums:
                        self._refuse(f"one of the first {counted} rows")
            position += len(x)
            if over < len(x):
                yield x[over:], y[over:]
        if position < counted:
            self._refuse(f"row {position}, which is not there,")

    def _compare(self, row: int, views: list[Any], known: list[int]) -> None:
        if [_checksum(_bits(rows, 0, 1)) for rows in views] != known:
            self._refuse(f"row {row}")

    def _refuse(self, what: str) -> NoReturn:
        raise ReplayError(
            f"folder: {what} is not what an earlier attempt has counted; give the rows of that time, or remove "
            f"{self._path}"
        )


def _bits(rows: Any, first: int, count: int) -> np.ndarray[Any, Any]:
    return bits_of(rows[first : first + count], "rows")[0]  # cut first: rows may come from a device


def _add_rows(sums: list[int], x: Any, y: Any, count: int) -> list[int]:
    return [_checksum(_bits(rows, 0, count), known) for rows, known in zip((x, y), sums, strict=True)]


def _checksum(rows: np.ndarray[Any, Any], start: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(rows).view(np.uint8).data, start)


def _key_of(passes: PairPasses, way: str, options: Mapping[str, Any]) -> tuple[dict[str, int], _Key]:
    """Return the widths, and what a restart is known by before it has read more than the first batch."""
    for x, y in passes.batches():
        views = {name: bits_of(rows, f"view {name!r}") for name, rows in (("x", x), ("y", y))}
        key = {
            "strategy": way,
            "rows": passes.rows,
            "views": {name: [bits.shape[1], dtype] for name, (bits, dtype) in views.items()},
            "first row": {name: _checksum(bits[0]) for name, (bits, _) in views.items()},
            "precision": options["precision"],
            "nonfinite": options["nonfinite"],
        }
        return {name: bits.shape[1] for name, (bits, _) in views.items()}, key
    raise InputError("the data hold no rows; expected at least 2")
