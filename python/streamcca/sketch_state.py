"""What a sketch job keeps between its passes: views, and prints of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from streamcca._backend import FloatArray
from streamcca.arrays import AnyArray, Library, library_of, to_host
from streamcca.errors import ReplayError
from streamcca.moments import Moments

_COLUMNS_LOOKED_AT = 256
_SAME = 1e-5  # as in sweep: noise of a nondeterministic kernel is far below, other rows far above
_CHANGED = "it must give the same rows each time"


class Ranks(Protocol):
    """The processes of a job, each with rows of its own."""

    def sum(self, array: FloatArray) -> FloatArray:
        """Return the sum of an array over all ranks."""

    def moments(self, moments: Moments) -> Moments:
        """Return the moments of the rows of all ranks."""


@dataclass
class View:
    """What is known of one view between the passes."""

    name: str
    width: int
    library: Library = np  # whose arrays these are
    parts: list[AnyArray] = field(default_factory=list)
    spare: AnyArray | None = None
    center: AnyArray | None = None
    trace: float = 0.0
    cap: float = float("inf")  # proved bound of the covariance outside the basis
    probes: AnyArray | None = None


def views_state(views: Iterable[View]) -> dict[str, Any]:
    """Return what is known of views since their sketches ended, as ``{'meta', 'tensors'}``; `spare` is the job's."""
    meta: list[dict[str, Any]] = []
    tensors: dict[str, Any] = {}
    for view in views:
        cap = view.cap if np.isfinite(view.cap) else None
        meta.append({"trace": view.trace, "cap": cap, "parts": len(view.parts)})
        tensors[f"center.{view.name}"] = to_host(view.center)
        tensors |= {f"part.{view.name}.{i}": to_host(part) for i, part in enumerate(view.parts)}
    return {"meta": meta, "tensors": tensors}


def restore_views(views: Iterable[View], meta: Iterable[Mapping[str, Any]], tensors: Mapping[str, AnyArray]) -> None:
    """Inverse of `views_state`; sums of a power step that was not done become the views' spare memory."""
    for view, known in zip(views, meta, strict=True):
        view.trace = known["trace"]
        view.cap = float("inf") if known["cap"] is None else known["cap"]
        view.center = view.library.asarray(tensors[f"center.{view.name}"])
        view.parts = [view.library.asarray(tensors[f"part.{view.name}.{i}"]) for i in range(known["parts"])]
        if f"sum.{view.name}" in tensors:
            view.spare = view.library.asarray(tensors[f"sum.{view.name}"])


class RowPrints:
    """A number for each row, by which a replay is known to bring the same rows in the same order."""

    def __init__(self, widths: tuple[int, int]) -> None:
        self._steps = tuple(max(1, width // _COLUMNS_LOOKED_AT) for width in widths)
        self._known: list[FloatArray] = []
        self.rows = 0

    def _print(self, x: AnyArray, y: AnyArray) -> tuple[FloatArray, FloatArray]:
        prints, sizes = [], []
        for rows, step in zip((x, y), self._steps, strict=True):
            some = rows[:, ::step].astype(np.float64)
            # Columns that change places are other rows.
            some *= library_of(rows).asarray(1.5 + np.cos(np.arange(some.shape[1])))
            prints.append(to_host(some.sum(axis=1)))
            sizes.append(to_host(np.abs(some).sum(axis=1)))
        return np.stack(prints, axis=1), np.stack(sizes, axis=1)

    def remember(self, x: AnyArray, y: AnyArray) -> None:
        """Take the rows of the first pass."""
        self._known.append(self._print(x, y)[0])
        self.rows += len(x)

    def compare(self, first: int, x: AnyArray, y: AnyArray) -> None:
        """Raise ReplayError if these are not the rows from `first` on."""
        known = self.array()[first : first + len(x)]
        if len(known) < len(x):
            raise ReplayError(f"replay: got more than the {self.rows} rows of the first pass; {_CHANGED}")
        seen, sizes = self._print(x, y)
        off = ~(np.abs(seen - known) <= _SAME * sizes)
        if off.any():
            row, side = (int(i) for i in np.argwhere(off)[0])
            raise ReplayError(
                f"replay: row {first + row} of view {'xy'[side]!r} is not that of the first pass; turn "
                f"shuffling, dropout "
                "and random augmentation off, or fix their seed"
            )

    def check_count(self, count: int) -> None:
        """Raise ReplayError if a pass was shorter than the first."""
        if count != self.rows:
            raise ReplayError(f"replay: got {count} rows, expected {self.rows} as in the first pass; {_CHANGED}")

    def array(self) -> FloatArray:
        """All prints, (rows, 2)."""
        if len(self._known) != 1:
            self._known = [np.concatenate(self._known, axis=0) if self._known else np.zeros((0, 2))]
        return self._known[0]

    def restore(self, array: FloatArray) -> None:
        """Inverse of `array`."""
        self._known, self.rows = [array], len(array)


class TooFewError(Exception):
    """The share of the variance is not reached within the directions; holds how many would do."""

    def __init__(self, view: str, directions: int, share: float, would_do: int) -> None:
        super().__init__()
        self.view, self.directions, self.share, self.would_do = view, directions, share, would_do
