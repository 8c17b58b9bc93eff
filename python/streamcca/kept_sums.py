"""One pass over two views whose sums are kept in a folder: a job that was killed goes on there."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamcca import checkpoint
from streamcca.checkpoint import Checkpoint, check_same_job, packed, part_of
from streamcca.errors import InputError
from streamcca.moments import Moments
from streamcca.passes import PairPasses, bits_of
from streamcca.qr import QRMoments
from streamcca.sources import progress_bar

_Key = dict[str, Any]


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
        file = Checkpoint(folder / checkpoint.NAME, checkpoint.SECONDS)
        read = _restore(sums, file, folder / checkpoint.NAME, key)
        with progress_bar(options["progress"], passes.rows, "row", "accumulate") as bar:
            bar.update(read)
            for x, y in passes.batches(read):
                sums.update(x=x, y=y)
                read += len(x)
                bar.update(len(x))
                if file.due:
                    meta, tensors = packed({"sums": sums.state_dict()})
                    file.save({"key": key, "read": read, **meta}, tensors)
    finally:
        passes.close()
    if not sums.rows:
        raise InputError("the data hold no rows; expected at least 2")
    return sums, file


def _restore(sums: Moments | QRMoments, file: Checkpoint, path: Path, key: _Key) -> int:
    """Take over what an earlier attempt has counted; return how many rows that were."""
    saved = file.load()
    if saved is None:
        return 0
    check_same_job(path, saved["meta"].get("key"), key)
    sums.load_state_dict(part_of(saved, "sums"))
    return int(saved["meta"]["read"])


def _key_of(passes: PairPasses, way: str, options: Mapping[str, Any]) -> tuple[dict[str, int], _Key]:
    """Return the widths, and what a restart is known by; the first row stands for all, as others are not read again."""
    for x, y in passes.batches():
        views = {name: bits_of(rows, f"view {name!r}") for name, rows in (("x", x), ("y", y))}
        key = {
            "strategy": way,
            "rows": passes.rows,
            "views": {name: [bits.shape[1], dtype] for name, (bits, dtype) in views.items()},
            "first row": {name: zlib.crc32(np.ascontiguousarray(bits[0]).data) for name, (bits, _) in views.items()},
            "precision": options["precision"],
            "nonfinite": options["nonfinite"],
        }
        return {name: bits.shape[1] for name, (bits, _) in views.items()}, key
    raise InputError("the data hold no rows; expected at least 2")
