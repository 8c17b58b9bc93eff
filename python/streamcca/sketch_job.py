"""The passes of a sketch job: sketch or range finder, power steps, replay; from wherever its checkpoint is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from streamcca import wide
from streamcca._backend import FloatArray
from streamcca.errors import AccuracyError, InputError, StateFileError, StreamCCAWarning
from streamcca.moments import Moments
from streamcca.pairing import REFUSE_ABOVE, Measure, correlate
from streamcca.passes import PairPasses, bits_of, widened
from streamcca.range_finder import RangeFinder, block_rows
from streamcca.results import CCAResult
from streamcca.ritz import PROBES, Ritz, moved_by_others, noise_of, ritz_of, share_choice, truncated
from streamcca.sketch import Sketch
from streamcca.sketch_result import REMEDY, default_directions, finished
from streamcca.sketch_state import Checkpoint, Ranks, RowPrints, TooFewError, View
from streamcca.sources import progress_bar
from streamcca.subspace import Rule
from streamcca.wide import AnyArray


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
        x, y, types = _first_rows_of(passes)
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
                raise StateFileError(
                    f"checkpoint: it belongs to another job ({known}), expected {self.config}; remove the file"
                )
            self.config = known
        self.prints = RowPrints(self.widths)
        self.views = [View(name, width) for name, width in zip("xy", self.widths, strict=True)]
        self.n = 0
        self.first = 0

    def directions(self, side: int) -> int:
        """L of one view."""
        value = (self.rule.x, self.rule.y)[side]
        return self.config["directions"] or default_directions(self.rule, value, self.widths, self.dtype.itemsize)

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
        if self._saved is None:
            starts = [kind(width, self.directions(i), self.dtype) for i, width in enumerate(self.widths)]
        else:
            starts = [kind.from_state_dict(self._part(name)) for name in "xy"]
            self.prints.restore(self._saved["tensors"]["prints"])
            self._saved = None
        description = "range finder" if self.options.range_finder else "sketch"
        with progress_bar(self.progress, self.passes.rows, "row", description) as bar:
            bar.update(self.prints.rows)
            for x, y in self.passes.batches(self.prints.rows):
                for start, rows in zip(starts, (x, y), strict=True):
                    start.update(rows)
                x, y = _values(x), _values(y)
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
        view.trace = start.trace
        view.center = start.mean.astype(self.dtype)
        if isinstance(start, Sketch):
            start.finish()
            values, view.cap = start.certificate()
            self._check_reach(side, view, values)
        view.parts, view.spare = start.take_basis()

    def _check_reach(self, side: int, view: View, values: FloatArray) -> None:
        """Raise TooFewError if even the upper bounds of the leading eigenvalues do not reach the share."""
        count = self.directions(side)
        if self.rule.name != "variance" or count >= view.width or len(values) < count:
            return
        most = values + view.cap
        if most.sum() < self.rule.x * view.trace:
            lacking = (self.rule.x * view.trace - float(most.sum())) / float(most[-1])
            raise TooFewError(
                view.name,
                count,
                float(values.sum()) / view.trace,
                min(view.width, max(2 * count, int(1.2 * (count + lacking)) + 1)),
            )

    def _blocks(self, first: int, description: str) -> Iterator[tuple[int, list[AnyArray]]]:
        """Centered rows of both views, a fixed number at a time, with the number of the row after them."""
        count = block_rows(max(self.widths), self.dtype.itemsize)
        blocks = [np.empty((count, width), dtype=self.dtype) for width in self.widths]
        at, filled = first, 0
        with progress_bar(self.progress, self.prints.rows, "row", description) as bar:
            bar.update(first)
            for batch in self.passes.batches(first):
                x, y = (_values(rows) for rows in batch)
                self.prints.compare(at + filled, x, y)
                done = 0
                while done < len(x):
                    some = min(count - filled, len(x) - done)
                    for view, block, rows in zip(self.views, blocks, (x, y), strict=True):
                        assert view.center is not None  # noqa: S101 - since the first pass
                        np.subtract(
                            rows[done : done + some],
                            view.center,
                            out=block[filled : filled + some],
                            casting="same_kind",
                        )
                    filled, done = filled + some, done + some
                    if filled == count:
                        at, filled = at + count, 0
                        yield at, blocks
                bar.update(len(x))
        self.prints.check_count(at + filled)
        if filled:
            yield at + filled, [block[:filled] for block in blocks]

    def _power_step(self, step: int) -> None:
        first = self.first
        sums: list[AnyArray] = []
        for view in self.views:
            if view.spare is None or len(view.spare) < sum(map(len, view.parts)):
                view.spare = np.zeros((sum(map(len, view.parts)), view.width), dtype=self.dtype)
            elif not first:
                view.spare[:] = 0
            sums.append(view.spare[: sum(map(len, view.parts))])
        for at, blocks in self._blocks(first, f"power step {step}"):
            for view, total, rows in zip(self.views, sums, blocks, strict=True):
                wide.add_outer(total, wide.project(rows, view.parts), rows)
            if self.file.due:
                self._save(
                    step, at, {}, {f"sum.{view.name}": total for view, total in zip(self.views, sums, strict=True)}
                )
        self.first = 0
        unit = wide.unit_roundoff(self.dtype)
        for view, total in zip(self.views, sums, strict=True):
            if self.ranks:
                for row in total:
                    row[:] = self.ranks.sum(row.astype(np.float64))
            if step < self.power:
                before, view.parts = view.parts, wide.orthonormalize([total], unit)
                view.spare, view.cap = before[0], float("inf")
            else:
                # 16 u: what is left of a row beside the others is noise below that.
                new = wide.deflate(total, view.parts, 16 * unit)
                new = wide.orthonormalize([new], 16 * unit)[0] if len(new) else new
                view.parts, view.spare = wide.orthonormalize([*view.parts, new], unit), None

    def _replay(self) -> Moments:
        for view in self.views:
            view.spare = None
            view.probes = _probes(view.parts, view.width, self.dtype)
        sizes = {view.name: sum(map(len, view.parts)) + PROBES for view in self.views}
        moments = Moments(sizes, precision="float64", threads=self.threads)
        if self._saved is not None and "moments" in self._saved["meta"]:
            moments.load_state_dict(self._part("moments"))
        for at, blocks in self._blocks(self.first, "replay"):
            moments.update(
                {
                    view.name: wide.project(rows, [*view.parts, view.probes])  # type: ignore[list-item]
                    for view, rows in zip(self.views, blocks, strict=True)
                }
            )
            if self.file.due:
                self._save(self.power + 1, at, {"moments": moments.state_dict()}, {})
        return self.ranks.moments(moments) if self.ranks else moments

    # ------------------------------------------------------------------ the answer

    def _answer(
        self, moments: Moments, measure: Measure, allow_underdetermined: bool, allow_inaccurate: bool
    ) -> tuple[CCAResult, list[StreamCCAWarning]]:
        unit = wide.unit_roundoff(self.dtype)
        sides, cuts, ranks, noises = [], [], [], []
        for i, view in enumerate(self.views):
            covariance, rounding = moments._covariance(view.name, view.name)
            size = sum(map(len, view.parts))
            inner, _ = wide.gram([*view.parts, view.probes])  # type: ignore[list-item]
            side = ritz_of(covariance, inner, size, view.trace, view.cap)
            rank, lowest, highest = self._choose(i, side, unit)
            noises.append(noise_of(side, rounding, unit, self.n))
            cuts.append(truncated(view.name, side, self.rule, rank, noises[-1], moments, f"{self.dtype} (sketch)"))
            ranks.append((rank, lowest, highest))
            sides.append(side)
        x, y = sides
        cross = moments.covariance("x", "y")
        inside = x.to_ritz[:, : ranks[0][0]].T @ cross[: len(x.values), : len(y.values)] @ y.to_ritz[:, : ranks[1][0]]
        kept = cuts[0].native.projection.T @ inside @ cuts[1].native.projection
        result, notes = correlate(
            cuts[0],
            cuts[1],
            kept,
            kept=True,
            measure=measure,
            allow_underdetermined=allow_underdetermined,
            allow_inaccurate=allow_inaccurate,
        )
        outside, singles = moved_by_others(
            x,
            y,
            cross,
            result.x_weights,
            result.y_weights,
            (noises[0], noises[1]),
            result.correlations,
            result.shares,
        )
        if min(1.0, result.error_bound + outside) > REFUSE_ABOVE and not allow_inaccurate:
            raise AccuracyError(
                f"sketch: directions that the {len(x.values)} and {len(y.values)} of the basis lack may have moved the "
                f"mean by {outside:.1e}, more than {REFUSE_ABOVE:g}; {REMEDY}, or pass allow_inaccurate=True"
            )
        means = [self._mean(view, side, moments) for view, side in zip(self.views, sides, strict=True)]
        return finished(self.rule, self.views, result, notes, sides, ranks, outside, singles, means)

    def _mean(self, view: View, side: Ritz, moments: Moments) -> FloatArray:
        """Mean row: what was subtracted has the rows' type, and what is left of it along the basis was counted."""
        assert view.center is not None  # noqa: S101 - since the first pass
        left = side.to_ritz @ (side.to_ritz.T @ moments.mean(view.name)[: len(side.values)])
        return view.center.astype(np.float64) + wide.expand(view.parts, left[:, None])[:, 0]

    def _choose(self, i: int, side: Ritz, unit: float) -> tuple[int, int, int]:
        value, size, view = (self.rule.x, self.rule.y)[i], len(side.values), self.views[i]
        if self.rule.name == "rank":
            if value > size:
                raise InputError(
                    f"view {view.name!r}: rank {int(value)} is more than the {size} directions that the rows have in "
                    "the sketch; keep fewer, or take more directions="
                )
            return int(value), int(value), int(value)
        chosen, lowest, highest = share_choice(side, value, unit, self.n)
        count, inside = self.directions(i), float(side.values.sum()) / view.trace
        # A cut at the very end has no direction beyond it that would say how clear it is. With as many directions as
        # rows or neurons allow there is nothing to add, and what lacks is rounding.
        unclear = chosen < 0 or highest < 0 or (chosen > 0.9 * size and inside < 1 - 1e-6)
        if unclear and count < min(view.width, self.n - 1) and (self._restarts or chosen < 0):
            raise TooFewError(view.name, count, inside, min(view.width, 2 * count))
        return chosen if chosen > 0 else size, lowest if lowest > 0 else size, highest if highest > 0 else size

    # ------------------------------------------------------------------ the checkpoint

    def _save(self, stage: int, first: int, states: dict[str, Any], tensors: dict[str, AnyArray]) -> None:
        meta: dict[str, Any] = {
            "config": self.config,
            "stage": stage,
            "first": first,
            "n": self.n,
        }
        tensors = {**tensors, "prints": self.prints.array()}
        for name, state in states.items():
            meta[name] = state["meta"]
            tensors |= {f"{name}/{key}": value for key, value in state["tensors"].items()}
        if stage:
            meta["views"] = [
                {"trace": view.trace, "cap": _finite(view.cap), "parts": len(view.parts)} for view in self.views
            ]
            for view in self.views:
                tensors[f"center.{view.name}"] = view.center  # type: ignore[assignment]
                tensors |= {f"part.{view.name}.{i}": part for i, part in enumerate(view.parts)}
        self.file.save(meta, tensors)

    def _part(self, name: str) -> dict[str, Any]:
        assert self._saved is not None  # noqa: S101 - only then
        prefix = f"{name}/"
        tensors = {key[len(prefix) :]: value for key, value in self._saved["tensors"].items() if key.startswith(prefix)}
        return {"meta": self._saved["meta"][name], "tensors": tensors}

    def _restore(self) -> None:
        assert self._saved is not None  # noqa: S101 - only then
        meta, tensors = self._saved["meta"], self._saved["tensors"]
        self.prints.restore(tensors["prints"])
        self.first, self.n = int(meta["first"]), int(meta["n"])
        for view, known in zip(self.views, meta["views"], strict=True):
            view.trace = known["trace"]
            view.cap = float("inf") if known["cap"] is None else known["cap"]
            view.center = tensors[f"center.{view.name}"]
            view.parts = [tensors[f"part.{view.name}.{i}"] for i in range(known["parts"])]
            if f"sum.{view.name}" in tensors:
                view.spare = tensors[f"sum.{view.name}"]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _values(rows: Any) -> AnyArray:
    """Rows as NumPy numbers; bfloat16 as float32."""
    bits, name = bits_of(rows, "sketch")
    return widened(bits, name, np.float32) if name == "bfloat16" else bits


def _first_rows_of(passes: PairPasses) -> tuple[int, int, set[str]]:
    """Widths and types of both views, without reading more than a batch."""
    for x, y in passes.batches():
        found = [bits_of(rows, f"view {name!r}") for rows, name in ((x, "x"), (y, "y"))]
        return found[0][0].shape[1], found[1][0].shape[1], {name for _, name in found}
    raise InputError("the data hold no rows; expected at least 2")


def _probes(parts: list[AnyArray], width: int, dtype: Any) -> AnyArray:
    """Return random signs (PROBES, width), less what the basis holds of them, so that no digits cancel later."""
    result = np.empty((PROBES, width), dtype=dtype)
    for i, tile in enumerate(wide.tiles(width)):
        signs = np.random.default_rng([width, i]).integers(0, 2, result[:, tile].shape)
        result[:, tile] = 2.0 * signs - 1
    inside = wide.project(result, parts)
    first = 0
    for part in parts:
        # subtracts inside[:, part]' combinations
        wide.add_outer(result, -inside[:, first : first + len(part)].T, part)
        first += len(part)
    return result
