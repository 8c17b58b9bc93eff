"""Files of moments: safetensors, checksummed, written atomically, loaded without running anything."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamcca._backend import VERSION, active_isa
from streamcca.errors import MissingFileError, StateFileError, StorageError

FORMAT = "streamcca.moments"
SCORES_FORMAT = "streamcca.scores"
QR_FORMAT = "streamcca.qr"
FORMAT_VERSION = 1
QR_FORMAT_VERSION = 1
SKETCH_FORMAT = "streamcca.sketch"
JOB_FORMAT = "streamcca.job"
LOGITS_FORMAT = "streamcca.logits"
LOGITS_FORMAT_VERSION = 1
MODEL_FORMAT = "streamcca.model"
TRAINING_FORMAT = "streamcca.training"
_WRITERS = {
    FORMAT: "Moments.save",
    SCORES_FORMAT: "SubspaceScores.save",
    QR_FORMAT: "QRMoments.save",
    SKETCH_FORMAT: "Sketch.save",
    JOB_FORMAT: "a job with a folder=",
    LOGITS_FORMAT: "save_logits",
    MODEL_FORMAT: "multiplicity.models.training.train",
    TRAINING_FORMAT: "multiplicity.models.training.train",
}
_CORE_LISTS = ("shift", "sums", "squares", "pending", "moments")


# ---------------------------------------------------------------------- state <-> flat tensors


def made_by() -> dict[str, str]:
    """Return what wrote a file."""
    return {"streamcca": VERSION, "isa": active_isa()}


def pack_state(core: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Flatten the native state and the configuration into ``{'meta', 'tensors'}``."""
    core = dict(core)
    tensors: dict[str, np.ndarray[Any, Any]] = {"roots": core.pop("roots")}
    for key in _CORE_LISTS:
        for i, array in enumerate(core.pop(key)):
            tensors[f"{key}.{i}"] = array
    return {
        "meta": {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "made_by": made_by(),
            "config": config,
            "state": core,
        },
        "tensors": tensors,
    }


def unpack_state(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inverse of `pack_state`: native state and configuration."""
    try:
        meta, tensors = state["meta"], state["tensors"]
        if meta["format"] != FORMAT:
            raise StateFileError(f"state: got format {meta['format']!r}, expected {FORMAT!r}")
        if meta["version"] != FORMAT_VERSION:
            raise StateFileError(
                f"state: got format version {meta['version']}, expected {FORMAT_VERSION}; use the streamcca that wrote "
                "it, or a newer one"
            )
        core = dict(meta["state"])
        core["roots"] = tensors["roots"]
        for key in _CORE_LISTS:
            count = sum(name.startswith(f"{key}.") for name in tensors)
            core[key] = [tensors[f"{key}.{i}"] for i in range(count)]
        return core, dict(meta["config"])
    except (KeyError, TypeError) as error:
        raise StateFileError(
            f"state: not a state of streamcca moments ({error!r} is missing or of another kind)"
        ) from None


# ---------------------------------------------------------------------- files


def _digest(meta: str, checksums: str) -> str:
    import hashlib  # loads OpenSSL

    return hashlib.sha256(f"{meta}\n{checksums}".encode()).hexdigest()


def checksum(rows: np.ndarray[Any, Any], before: int) -> int:
    """Continue a checksum by the next rows of an array; it begins with `checksum_start`."""
    return zlib.crc32(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data, before)


def checksum_start(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Checksum of an array of which no row was read yet."""
    return zlib.crc32(f"{dtype.str}{shape}".encode())


def _checksum(array: np.ndarray[Any, Any]) -> str:
    return f"{checksum(array, checksum_start(array.dtype, array.shape)):08x}"


def write_state(path: str | os.PathLike[str], state: Mapping[str, Any], kind: str = FORMAT) -> None:
    """Write ``{'meta', 'tensors'}`` as a file of one kind; see `Moments.save`."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(array) for name, array in state["tensors"].items()}
    meta = json.dumps(state["meta"], sort_keys=True)
    checksums = json.dumps({name: _checksum(array) for name, array in tensors.items()}, sort_keys=True)
    header = {"format": kind, "meta": meta, "checksums": checksums, "digest": _digest(meta, checksums)}
    write_atomically(Path(path), save(tensors, metadata=header))


def read_state(path: str | os.PathLike[str], kind: str = FORMAT) -> dict[str, Any]:
    """Read and verify a file written by `write_state`; see `Moments.load`."""
    meta, file, checksums = open_state(path, kind)
    with file, _safetensors(path, kind):
        tensors = {name: file.get_tensor(name) for name in checksums}
    for name, array in tensors.items():
        verify_checksum(path, name, _checksum(array), checksums[name])
    return {"meta": meta, "tensors": tensors}


def open_state(path: str | os.PathLike[str], kind: str = FORMAT) -> tuple[Any, Any, dict[str, str]]:
    """Open a file written by `write_state`: what it says of itself, the open file, the checksums of its arrays.

    The header is verified; the arrays, of which rows can be read by ``file.get_slice(name)[first:last]``, are not.
    """
    from safetensors import safe_open

    path, writer = Path(path), _WRITERS[kind]
    if path.exists() and not path.is_file():
        raise StateFileError(f"{path}: not a file; expected one written by {writer}")
    if not path.exists():
        raise MissingFileError(errno.ENOENT, f"{path}: there is no such file, expected one written by {writer}")
    with _safetensors(path, kind):
        file: Any = safe_open(path, framework="numpy")
        header = file.metadata() or {}
        if header.get("format") != kind:
            found = header.get("format", "another program's")
            raise StateFileError(f"{path}: a safetensors file ({found}), expected one written by {writer}")
        _verify_header(path, header)
        checksums: dict[str, str] = json.loads(header["checksums"])
        if set(file.keys()) != set(checksums):
            raise StateFileError(f"{path}: damaged, its list of arrays does not match; restore it from a copy")
    return json.loads(header["meta"]), file, checksums


@contextlib.contextmanager
def _safetensors(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turn what safetensors says of a file into an error of ours."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise StateFileError(
            f"{path}: damaged, truncated or not written by {_WRITERS[kind]} ({error}); restore it from a copy"
        ) from None


def verify_checksum(path: str | os.PathLike[str], name: str, found: str, expected: str) -> None:
    """Refuse an array that is not the one that was written."""
    if found != expected:
        raise StateFileError(f"{path}: damaged, the checksum of {name!r} does not match; restore it from a copy")


def _verify_header(path: Path, header: Mapping[str, str]) -> None:
    missing = {"meta", "checksums", "digest"} - header.keys()
    if missing or _digest(header["meta"], header["checksums"]) != header["digest"]:
        raise StateFileError(f"{path}: damaged, the checksum of its header does not match; restore it from a copy")


def remove_unfinished(folder: Path, name: str) -> None:
    """Remove what killed writers of files of this name (or glob) have left beside them."""
    for path in folder.glob(f".{name}.tmp.*"):
        path.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either all of it or what it held before.

    Temporary name in the same folder, fsync, rename, fsync of the folder. A symbolic link stays a link, and its
    target is written; what is neither a file nor absent (a folder, a device) is refused.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise StorageError(errno.EEXIST, f"{path}: not a file, and not replaced by one; choose another name")
    temporary = path.with_name(f".{path.name}.tmp.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            error.errno,
            f"{path}: cannot write {len(content)} bytes ({error.strerror}); make room or choose another folder, "
            "what is in memory and the file that was there are untouched",
        ) from error
    finally:
        # After the rename there is nothing left to remove; before it, also Ctrl-C leaves nothing behind.
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
