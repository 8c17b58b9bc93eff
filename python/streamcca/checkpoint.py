"""The file in which a long job keeps its state, so that a killed one goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamcca import store
from streamcca.arrays import AnyArray
from streamcca.errors import StateFileError

NAME = "job.state"  # of whatever job, so that each finds and refuses another's
SECONDS = 300.0
_LONGEST_SHOWN = 60


def packed(states: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Return the meta and the tensors of several states as those of one."""
    meta: dict[str, Any] = {}
    tensors: dict[str, AnyArray] = {}
    for name, state in states.items():
        meta[name] = state["meta"]
        tensors |= {f"{name}/{key}": value for key, value in state["tensors"].items()}
    return meta, tensors


def part_of(saved: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return one of the states that were `packed`."""
    prefix = f"{name}/"
    tensors = {key[len(prefix) :]: value for key, value in saved["tensors"].items() if key.startswith(prefix)}
    return {"meta": saved["meta"][name], "tensors": tensors}


@contextlib.contextmanager
def job_folder(folder: Any) -> Iterator[Path]:
    """Make the folder of a job; it goes in the end if nothing is left in it."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    try:
        yield place
    finally:
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def job_meta(path: Path) -> dict[str, Any]:
    """Return what a job's file says of itself."""
    meta: dict[str, Any] = store.open_state(path, store.JOB_FORMAT)[0]
    return meta


def check_same_job(path: Any, known: Mapping[str, Any] | None, mine: Mapping[str, Any]) -> None:
    """Refuse the file of a job that says other things of itself than `mine`.

    Raises
    ------
    StateFileError
    """
    if known is None:
        difference = "another kind of job"
    else:
        name = next((name for name in mine if known.get(name) != mine[name]), None)
        if name is None:
            return
        shown = f"{known.get(name)!r}, expected {mine[name]!r}"
        difference = f"{name}: " + (shown if len(shown) <= _LONGEST_SHOWN else "others than those of this one")
    raise StateFileError(f"{path}: it belongs to another job ({difference}); remove the file, or give another folder=")


class Checkpoint:
    """The file that keeps the state of a job."""

    def __init__(self, path: Any, seconds: float) -> None:
        self.path = None if path is None else Path(path)
        self._seconds = seconds
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return what was saved; None if there is nothing. What a writer was killed at goes: it is as large again."""
        if self.path is None:
            return None
        store.remove_unfinished(self.path.parent, self.path.name)
        return store.read_state(self.path, store.JOB_FORMAT) if self.path.exists() else None

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.path is not None and time.monotonic() - self._last >= self._seconds

    def save(self, meta: dict[str, Any], tensors: Mapping[str, AnyArray]) -> None:
        """Replace the file, atomically."""
        assert self.path is not None  # noqa: S101 - due
        store.write_state(self.path, {"meta": meta, "tensors": dict(tensors)}, store.JOB_FORMAT)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the file of a job that is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
