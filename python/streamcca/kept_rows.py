"""Rows of a first pass, kept where they fit, so that a second pass of the model is not needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from streamcca.errors import InputError
from streamcca.sweep import BatchRows

KeepRows = bool | Literal["auto"]
# What 'auto' may keep: one row an image of 10,000 images, 2,048 neurons in 3 layers of float32, and some more.
BUDGET = 256 << 20


class KeptRows:
    """Keeps the rows of every batch, as they came, until they exceed what may be kept.

    Parameters
    ----------
    keep : bool or 'auto'
        True keeps all, whatever they take; 'auto' as long as they fit into 256 MiB, which is foretold from the first
        batch where the number of batches is known.
    repeatable : bool
        Whether there can be a second pass.
    batches : int or None
        How many there will be, if known.
    """

    def __init__(self, keep: KeepRows, repeatable: bool, batches: int | None) -> None:
        if keep not in (True, False, "auto"):
            raise InputError(f"keep_rows: got {keep!r}, expected True, False or 'auto'")
        self._limit = BUDGET if keep == "auto" else None
        self._repeatable, self._expected = repeatable, batches
        self._batches: list[BatchRows] = []
        self._bytes = 0
        self.complete = bool(keep)

    def add(self, rows: BatchRows) -> None:
        """Keep one batch, or give up on all."""
        if not self.complete:
            return
        size = sum(x.nbytes for x in rows.values())
        first_says = size * (self._expected or 1) if not self._batches else 0
        if self._limit is not None and max(self._bytes + size, first_says) > self._limit:
            self._give_up(max(self._bytes + size, first_says))
            return
        self._bytes += size
        # No copy: what a tap gives is memory of its own. Where they are, and as they lie there, so that what is
        # computed from them has the bits that a second pass would give.
        self._batches.append(rows)

    def _give_up(self, size: int) -> None:
        if not self._repeatable:
            raise InputError(
                f"loader: it is an iterator, which can be read only once, and its rows take {size / 2**20:.0f} MiB or "
                f"more, above the {BUDGET >> 20} that are kept; give a list of batches or a DataLoader, or "
                "keep_rows=True"
            )
        self.complete = False
        self._batches.clear()

    def drain(self) -> Iterator[BatchRows]:
        """Give the batches back in their order; each is forgotten."""
        self._batches.reverse()
        while self._batches:
            yield self._batches.pop()
