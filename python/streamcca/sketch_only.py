"""SVCCA from a joint sketch of two views alone: one pass over the rows, an approximate answer, and its bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from streamcca import _backend, wide
from streamcca._backend import FloatArray
from streamcca.arrays import AnyArray, Library, library_for
from streamcca.errors import InputError, StreamCCAWarning
from streamcca.pairing import Measure, correlate
from streamcca.passes import PairPasses, values_of
from streamcca.range_finder import block_rows
from streamcca.results import CCAResult
from streamcca.ritz import Ritz
from streamcca.sketch import Sketch
from streamcca.sketch_result import default_directions, finished
from streamcca.sketch_state import TooFewError, View
from streamcca.sources import progress_bar
from streamcca.subspace import Rule, Truncated


def joint_answer(
    passes: PairPasses,
    rule: Rule,
    directions: int | None,
    precision: str,
    measure: Measure,
    progress: Any,
    allow_underdetermined: bool,
) -> tuple[CCAResult, list[StreamCCAWarning]]:
    """Do what `sketch_svcca` does with replay=False.

    Rows [X, s Y] are sketched together, s a power of two that makes the traces alike. With C their covariance and B the
    sketch's, 0 <= C - B <= delta holds for the cross-covariance, too, and every number below follows from B.
    """
    sketch: Sketch | None = None
    scale, width = 1.0, 0
    with progress_bar(progress, passes.rows, "row", "joint sketch") as bar:
        for rows, width in _joined(passes, precision):
            if sketch is None:
                scale = _scale(rows, width)
                both = Rule("rank", rule.x + rule.y, 0) if rule.name == "rank" else rule
                least = default_directions(both, both.x, (width, rows.shape[1] - width), rows.dtype.itemsize)
                sketch = Sketch(rows.shape[1], directions or least, rows.dtype)
            rows[:, width:] *= scale
            sketch.update(rows)
            bar.update(len(rows))
    if sketch is None or sketch.n < 2:
        raise InputError(f"the data hold {0 if sketch is None else sketch.n} rows; expected at least 2")
    sketch.finish()
    delta, kept = sketch.delta, sketch._kept[: sketch._filled]
    halves = (kept[:, :width], kept[:, width:])
    views = [View(name, half.shape[1], parts=[half]) for name, half in zip("xy", halves, strict=True)]
    traces = (float(sketch.variances[:width].sum()), float(sketch.variances[width:].sum()))
    found = [_principal(view, trace, sketch.n) for view, trace in zip(views, traces, strict=True)]
    ranks = [
        _rank(view, side, rule, value, delta, sketch)
        for view, (side, _), value in zip(views, found, (rule.x, rule.y), strict=True)
    ]
    result, notes = _correlate(found, ranks, rule, sketch, measure, allow_underdetermined)
    sides = [side for side, _ in found]
    singles = _moved(sides, ranks, result, delta)
    means = [sketch.mean[:width], sketch.mean[width:] / scale]
    answer, notes = finished(rule, views, result, notes, sides, ranks, float(result.shares @ singles), singles, means)
    return replace(answer, y_weights=answer.y_weights * scale), notes


def _joined(passes: PairPasses, precision: str) -> Iterator[tuple[AnyArray, int]]:
    """Rows of both views side by side, a fixed number at a time, and the width of the first."""
    block: AnyArray | None = None
    filled = width = 0
    library: Library = None
    for x, y in passes.batches():
        library = library or library_for(x)
        x, y = values_of(x, "view 'x'", library), values_of(y, "view 'y'", library)
        if block is None:
            double = precision == "float64" or (precision == "auto" and np.float64 in (x.dtype, y.dtype))
            dtype: Any = np.float64 if double else np.float32
            width = x.shape[1]
            block = library.empty((block_rows(width + y.shape[1], dtype().itemsize), width + y.shape[1]), dtype=dtype)
        if x.shape[1] != width or y.shape[1] != block.shape[1] - width:
            raise InputError(
                f"sketch: got rows of {x.shape[1]} and {y.shape[1]} neurons, expected {width} and "
                f"{block.shape[1] - width}"
            )
        done = 0
        while done < len(x):
            some = min(len(block) - filled, len(x) - done)
            block[filled : filled + some, :width] = x[done : done + some]
            block[filled : filled + some, width:] = y[done : done + some]
            filled, done = filled + some, done + some
            if filled == len(block):
                yield block, width
                filled = 0
    if block is not None and filled:
        yield block[:filled], width


def _scale(rows: AnyArray, width: int) -> float:
    spread = [float(part.astype(np.float64).var(axis=0).sum()) for part in (rows[:, :width], rows[:, width:])]
    return float(2.0 ** round(0.5 * np.log2(spread[0] / spread[1]))) if min(spread) > 0 else 1.0


def _principal(view: View, trace: float, n: float) -> tuple[Ritz, FloatArray]:
    """Principal directions of one side of the sketch, and its left singular vectors."""
    inner, _ = wide.gram(view.parts)
    values, left = np.linalg.eigh(inner)
    values, left = values[::-1], left[:, ::-1]
    count = max(1, int(np.count_nonzero(values > 1e-13 * max(values[0], 1e-300))))
    values, left = np.maximum(values[:count], 1e-300), left[:, :count]
    empty = np.zeros((0, count))
    return Ritz(left / np.sqrt(values), values / (n - 1), empty, empty, trace, 0.0), left


def _rank(view: View, side: Ritz, rule: Rule, value: float, delta: float, sketch: Sketch) -> tuple[int, int, int]:
    if rule.name == "rank":
        if value > len(side.values):
            raise InputError(
                f"view {view.name!r}: rank {int(value)} is more than the {len(side.values)} directions of the sketch"
            )
        return int(value), int(value), int(value)
    if side.trace <= 0:
        raise InputError(
            f"view {view.name!r}: every neuron is constant over the rows, so no direction can be kept; leave it out"
        )
    # The truth lies between values and values + delta, mostly nearer to the upper end: shrinks take from all alike.
    least, most = np.cumsum(side.values), np.cumsum(side.values + delta)
    found = [np.flatnonzero(sums >= value * side.trace * (1 - 1e-12)) for sums in (most, (least + most) / 2, least)]
    if not len(found[1]):
        raise TooFewError(view.name, sketch.directions, float(least[-1]) / side.trace, 2 * sketch.directions)
    lowest, chosen = int(found[0][0]) + 1, int(found[1][0]) + 1
    return chosen, lowest, int(found[2][0]) + 1 if len(found[2]) else len(side.values)


def _correlate(
    found: list[tuple[Ritz, FloatArray]],
    ranks: list[tuple[int, int, int]],
    rule: Rule,
    sketch: Sketch,
    measure: Measure,
    allow_underdetermined: bool,
) -> tuple[CCAResult, list[StreamCCAWarning]]:
    roots = [np.sqrt(side.values) for side, _ in found]
    cuts = []
    for name, (side, _), (rank, _, _) in zip("xy", found, ranks, strict=True):
        native = _backend.truncate(np.diag(side.values), (2.0**-53, 0.0, side.values), "rank", rank, 0.0)
        cuts.append(Truncated(name, rule, native, sketch.n, sketch.n, f"{sketch.dtype} (sketch without replay)"))
    cross = roots[0][:, None] * (found[0][1].T @ found[1][1]) * roots[1]
    kept = cuts[0].native.projection.T @ cross @ cuts[1].native.projection
    return correlate(
        cuts[0],
        cuts[1],
        kept,
        kept=True,
        measure=measure,
        allow_underdetermined=allow_underdetermined,
        allow_inaccurate=True,
    )


def _moved(sides: list[Ritz], ranks: list[tuple[int, int, int]], result: CCAResult, delta: float) -> FloatArray:
    """How far each correlation can be from that of the covariance, which is at most delta above the sketch's.

    With D = C - B, 0 <= D <= delta, first order: a'Db - rho / 2 (a'Da + b'Db), at most (1 + rho) / 2 delta (|a|^2 +
    |b|^2); a kept vector turns by at most delta / (lambda_p - lambda_next), and what it turns to holds at most
    lambda_next (1 - rho^2) of the other variate.
    """
    rho = result.correlations
    total = np.zeros_like(rho)
    for side, (rank, _, _), weights in zip(sides, ranks, (result.x_weights, result.y_weights), strict=True):
        beyond = float(side.values[rank]) if rank < len(side.values) else 0.0
        gaps = np.maximum(side.values[:rank] - beyond, 1e-15 * side.values[0])
        turn = delta * np.sqrt(np.square(weights[:rank] / gaps[:, None]).sum(axis=0))
        total += (1 + rho) / 2 * delta * np.square(weights).sum(axis=0)
        total += turn * np.sqrt((beyond + delta) * np.maximum(0, 1 - rho**2)) + (beyond + delta) * turn**2
    return np.minimum(1.0, total)
