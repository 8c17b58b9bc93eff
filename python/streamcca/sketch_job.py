"""The passes of a sketch job: sketch or range finder, power steps, replay; from wherever its checkpoint is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from streamcca import wide
from streamcca.arrays import AnyArray, Library, current_device, library_for, to_host
from streamcca.checkpoint import Checkpoint, check_same_job, packed, part_of
from streamcca.errors import InputError, StateFileError, StreamCCAWarning
from streamcca.moments import Moments
from streamcca.pairing import Measure
from streamcca.passes import PairPasses, bits_of, values_of
from streamcca.range_finder import RangeFinder
from streamcca.results import CCAResult
from streamcca.sketch import Sketch
from streamcca.sketch_result import default_directions
from streamcca.sketch_state import (
    Ranks,
    RowPrints,
    View,
    restore_views,
    views_state,
)
from streamcca.sketch_views import (
    Blocks,
    coordinate_moments,
    coordinates,
    correlate_cuts,
    cut,
    empty_sums,
    end_power_step,
    ready_for_replay,
    take_over,
)
from streamcca.sources import progress_bar
from streamcca.subspace import Rule


@dataclass(frozen=True)
class JobOptions:
    """What decides the numbers of a job."""

    directions: int | None
    power: int
    range_finder: bool
    precision: str


class Job:
    """One attempt, with a fixed number of directions."""

    def __init__(
        self,
        passes: PairPasses,
        rule: Rule,
        options: JobOptions,
        file: Checkpoint,
        ranks: Ranks | None,
        threads: int | None,
        progress: Any,
        restarts: bool,
    ) -> None:
        self.passes, self.rule, self.options, self.file = passes, rule, options, file
        self.ranks, self.threads, self.progress = ranks, threads, progress
        self.power, self._restarts = options.power, restarts
        self._saved = file.load()
        x, y, types, self._library = _first_rows_of(passes)
        self.widths = (x, y)
        wanted = options.precision
        self.dtype = np.dtype(
            np.float64 if wanted == "float64" or (wanted == "auto" and "float64" in types) else np.float32
        )
        self.config = {**asdict(options), "rule": str(rule), "widths": list(self.widths), "dtype": str(self.dtype)}
        if self._saved is not None:
            known = self._saved["meta"].get("config", {})
            # A job that had to take more directions goes on with these.
            same = {**known, "directions": None} == {**self.config, "directions": None}
            if not same or not (restarts or options.directions == known["directions"]):
                mine = self.config | ({"directions": known.get("directions")} if restarts else {})
                check_same_job(file.path, known or None, mine)
                raise StateFileError(f"{file.path}: it belongs to another job ({known}); remove the file")
            self.config = known
        self.prints = RowPrints(self.widths)
        self.views = [View(name, width, self._library) for name, width in zip("xy", self.widths, strict=True)]
        self.n = 0
        self.first = 0

    def directions(self, side: int) -> int:
        """L of one view."""
        return self.config["directions"] or default_directions(
            self.rule, self._value(side), self.widths, self.dtype.itemsize
        )

    # ------------------------------------------------------------------ the passes

    def run(
        self, measure: Measure, allow_underdetermined: bool, allow_inaccurate: bool
    ) -> tuple[CCAResult, list[StreamCCAWarning]]:
        """All passes from wherever the checkpoint is."""
        stage = 0 if self._saved is None else int(self._saved["meta"]["stage"])
        if stage == 0:
            self._start()
            stage = 1
        else:
            self._restore()
        for step in range(stage, self.power + 1):
            self._power_step(step)
        return self._answer(self._replay(), measure, allow_underdetermined, allow_inaccurate)

    def _start(self) -> None:
        kind: Any = RangeFinder if self.options.range_finder else Sketch
        device = current_device(self._library)
        if self._saved is None:
            starts = [kind(width, self.directions(i), self.dtype, device) for i, width in enumerate(self.widths)]
        else:
            starts = [kind.from_state_dict(part_of(self._saved, name), device) for name in "xy"]
            self.prints.restore(self._saved["tensors"]["prints"])
            self._saved = None
        description = "range finder" if self.options.range_finder else "sketch"
        with progress_bar(self.progress, self.passes.rows, "row", description) as bar:
            bar.update(self.prints.rows)
            for x, y in self.passes.batches(self.prints.rows):
                for start, rows in zip(starts, (x, y), strict=True):
                    start.update(rows)
                x, y = self._values(x), self._values(y)
                self.prints.remember(x, y)
                bar.update(len(x))
                if self.file.due:
                    self._save(0, 0, {name: start.state_dict() for name, start in zip("xy", starts, strict=True)}, {})
        self.n = self.prints.rows
        for i, (view, start) in enumerate(zip(self.views, starts, strict=True)):
            self._take_over(i, view, start)
        del starts

    def _take_over(self, side: int, view: View, start: Any) -> None:
        if isinstance(start, RangeFinder):
            start.center(self.ranks.sum if self.ranks else None)
            self.n = start.n
        if self.n < 2:
            raise InputError(f"the data hold {self.n} rows; expected at least 2")
        take_over(view, start, self.dtype, self.rule, self._value(side))

    def _values(self, rows: Any) -> AnyArray:
        return values_of(rows, "sketch", self._library)

    def _value(self, side: int) -> float:
        return (self.rule.x, self.rule.y)[side]

    def _blocks(self, first: int, description: str) -> Iterator[tuple[int, list[AnyArray]]]:
        """Centered rows of both views, a fixed number at a time, with the number of the row after them."""
        blocks = Blocks(self.views, self.dtype, first, self._library)
        with progress_bar(self.progress, self.prints.rows, "row", description) as bar:
            bar.update(first)
            for batch in self.passes.batches(first):
                x, y = (self._values(rows) for rows in batch)
                self.prints.compare(blocks.rows + blocks.pending, x, y)
                for block in blocks.add((x, y)):
                    yield blocks.rows, block
                bar.update(len(x))
        self.prints.check_count(blocks.rows + blocks.pending)
        for block in blocks.rest():
            yield blocks.rows, block

    def _power_step(self, step: int) -> None:
        first = self.first
        sums = [empty_sums(view, self.dtype, fresh=not first) for view in self.views]
        for at, blocks in self._blocks(first, f"power step {step}"):
            for view, total, rows in zip(self.views, sums, blocks, strict=True):
                wide.add_outer(total, wide.project(rows, view.parts), rows)
            if self.file.due:
                self._save(
                    step,
                    at,
                    {},
                    {f"sum.{view.name}": to_host(total) for view, total in zip(self.views, sums, strict=True)},
                )
        self.first = 0
        for view, total in zip(self.views, sums, strict=True):
            if self.ranks:
                for row in total:
                    row[:] = self._library.asarray(self.ranks.sum(to_host(row).astype(np.float64)))
            end_power_step(view, total, last=step == self.power)

    def _replay(self) -> Moments:
        for view in self.views:
            ready_for_replay(view, self.dtype)
        moments = coordinate_moments(self.views, threads=self.threads)
        if self._saved is not None and "moments" in self._saved["meta"]:
            moments.load_state_dict(part_of(self._saved, "moments"))
        for at, blocks in self._blocks(self.first, "replay"):
            moments.update({view.name: coordinates(view, rows) for view, rows in zip(self.views, blocks, strict=True)})
            if self.file.due:
                self._save(self.power + 1, at, {"moments": moments.state_dict()}, {})
        return self.ranks.moments(moments) if self.ranks else moments

    # ------------------------------------------------------------------ the answer

    def _answer(
        self, moments: Moments, measure: Measure, allow_underdetermined: bool, allow_inaccurate: bool
    ) -> tuple[CCAResult, list[StreamCCAWarning]]:
        x, y = (
            cut(
                view,
                moments,
                self.rule,
                self._value(side),
                self.n,
                self.dtype,
                directions=self.directions(side),
                restarts=self._restarts,
            )
            for side, view in enumerate(self.views)
        )
        return correlate_cuts(
            x,
            y,
            moments.covariance("x", "y"),
            self.rule,
            measure=measure,
            allow_underdetermined=allow_underdetermined,
            allow_inaccurate=allow_inaccurate,
        )

    # ------------------------------------------------------------------ the checkpoint

    def _save(self, stage: int, first: int, states: dict[str, Any], tensors: dict[str, AnyArray]) -> None:
        meta: dict[str, Any] = {
            "config": self.config,
            "stage": stage,
            "first": first,
            "n": self.n,
        }
        own_meta, own_tensors = packed(states)
        meta |= own_meta
        tensors = {**tensors, **own_tensors, "prints": self.prints.array()}
        if stage:
            views = views_state(self.views)
            meta["views"] = views["meta"]
            tensors |= views["tensors"]
        self.file.save(meta, tensors)

    def _restore(self) -> None:
        assert self._saved is not None  # noqa: S101 - only then
        meta, tensors = self._saved["meta"], self._saved["tensors"]
        self.prints.restore(tensors["prints"])
        self.first, self.n = int(meta["first"]), int(meta["n"])
        restore_views(self.views, meta["views"], tensors)


def _first_rows_of(passes: PairPasses) -> tuple[int, int, set[str], Library]:
    """Widths and types of both views, without reading more than a batch; and the library that holds such rows."""
    for x, y in passes.batches():
        library = library_for(x)
        found = [bits_of(rows, f"view {name!r}", library) for rows, name in ((x, "x"), (y, "y"))]
        return found[0][0].shape[1], found[1][0].shape[1], {name for _, name in found}, library
    raise InputError("the data hold no rows; expected at least 2")
