"""Files of logits: one for each model, two bytes for each logit, votes kept exactly."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamcca import store
from streamcca.errors import DTypeError, InputError, NonFiniteError, StateFileError
from streamcca.views import unknown_name

_BLOCK_BYTES = 16 << 20
_FLOAT16_LEAST = -65504.0  # of finite numbers
_FLOAT16_TINY = -(2.0**-24)  # nearest to zero from below


def save_logits(
    path: str | os.PathLike[str],
    logits: Mapping[str, ArrayLike],
    *,
    fingerprints: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write one model's logits for some test sets to a file, atomically; safetensors, checksummed, 2 bytes each.

    Parameters
    ----------
    path : path
    logits : mapping of str to array_like (N, C)
        Logits for each test set.
    fingerprints : mapping of str to str, optional
        Something that tells the rows of each test set and their order; `Predictions.load` refuses to mix two.
    about : mapping, optional
        Plain JSON values kept in the file, such as the model's name and training method.

    Notes
    -----
    A row's maximum is subtracted (in float64, where different numbers have a difference) and the rest rounded to
    float16; what would round to 0 without being the maximum becomes -2^-24, and what is below -65504 becomes that. So
    exactly the maxima are 0, and the vote, the first of them, is that of `np.argmax` on the logits that were given.
    `Predictions` says what rounding does to probabilities.

    Raises
    ------
    InputError, NonFiniteError, DTypeError
        As `Predictions.of_logits` does.
    StorageError
        If the file cannot be written.
    """
    if not isinstance(logits, Mapping) or not logits:
        raise InputError(f"logits: got {type(logits).__name__}, expected a mapping from one or more test sets' names")
    marks = dict(fingerprints or {})
    for name in marks:
        if name not in logits:
            raise InputError("fingerprints: " + unknown_name("test set", name, logits))
    tensors = {checked_name(name): _shifted(checked_logits(name, array)) for name, array in logits.items()}
    meta = {
        "format": store.LOGITS_FORMAT,
        "version": store.LOGITS_FORMAT_VERSION,
        "made_by": store.made_by(),
        "fingerprints": marks,
        "about": dict(about or {}),
    }
    store.write_state(path, {"meta": meta, "tensors": tensors}, store.LOGITS_FORMAT)


def saved_sets(path: str | os.PathLike[str]) -> dict[str, tuple[int, int]]:
    """Names and shapes (N, C) of the test sets in a file of logits; only its header is read and verified."""
    _, file, checksums = _open_file(path)
    with file:
        return {name: (shape[0], shape[1]) for name in checksums for shape in [file.get_slice(name).get_shape()]}


def checked_logits(name: str, array: ArrayLike) -> NDArray[Any]:
    """Return logits as an array (N, C) of a floating type, or refuse them."""
    logits = np.asarray(array)
    if logits.dtype.kind in "iu":
        logits = logits.astype(np.float64)
    if logits.dtype not in (np.float16, np.float32, np.float64):
        raise DTypeError(f"logits of {name!r}: got {logits.dtype}, expected float16, float32 or float64")
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        raise InputError(
            f"logits of {name!r}: got shape {logits.shape}, expected (rows, classes) with at least 1 row and 2 classes"
        )
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise NonFiniteError(
            f"logits of {name!r}: row {int(np.argmin(finite))} holds NaN or infinity; expected finite numbers, find "
            "out what the model did with this row"
        )
    return logits


def _shifted(logits: NDArray[Any]) -> NDArray[np.float16]:
    stored = np.empty(logits.shape, dtype=np.float16)
    step = max(1, _BLOCK_BYTES // (8 * logits.shape[1]))
    for first in range(0, len(logits), step):
        block = logits[first : first + step].astype(np.float64)
        with np.errstate(over="ignore"):  # as above; clipped below
            block -= block.max(axis=1, keepdims=True)
        low = block.clip(_FLOAT16_LEAST, 0)
        rounded = low.astype(np.float16)
        rounded[(rounded == 0) & (block < 0)] = _FLOAT16_TINY
        stored[first : first + step] = rounded
    return stored


def _open_file(path: str | os.PathLike[str]) -> tuple[Any, Any, dict[str, str]]:
    meta, file, checksums = store.open_state(path, store.LOGITS_FORMAT)
    if meta.get("version") != store.LOGITS_FORMAT_VERSION:
        raise StateFileError(
            f"{path}: got format version {meta.get('version')}, expected {store.LOGITS_FORMAT_VERSION}; use the "
            "streamcca that wrote it, or a newer one"
        )
    return meta, file, checksums


def open_set(path: str | os.PathLike[str], name: str) -> tuple[Any, NDArray[np.int32], str | None]:
    """Open one test set of a file: its rows (not read), their votes, the fingerprint; its checksum is verified."""
    meta, file, checksums = _open_file(path)
    if name not in checksums:
        raise InputError(f"{path}: " + unknown_name("test set", name, checksums))
    rows = file.get_slice(name)
    n, classes = rows.get_shape()
    votes = np.empty(n, dtype=np.int32)
    running = store.checksum_start(np.dtype(np.float16), (n, classes))
    step = max(1, _BLOCK_BYTES // (2 * classes))
    for first in range(0, n, step):
        block = rows[first : min(first + step, n)]  # slices of files end where arrays do, not beyond
        running = store.checksum(block, running)
        votes[first : first + step] = np.argmax(block, axis=1)
    store.verify_checksum(path, name, f"{running:08x}", checksums[name])
    return rows, votes, meta["fingerprints"].get(name)


def checked_name(name: object) -> str:
    """Return a name, or refuse it."""
    if not isinstance(name, str) or not name:
        raise InputError(f"name: got {name!r}, expected a non-empty string")
    return name
