"""Results of the sketch route: sizes, weights of neurons and bounds, from what was found in the basis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamcca import wide
from streamcca._backend import FloatArray
from streamcca.errors import AccuracyWarning, StreamCCAWarning
from streamcca.pairing import WARN_ABOVE
from streamcca.results import CCAResult, Truncation
from streamcca.ritz import Ritz
from streamcca.sketch_state import View
from streamcca.subspace import Rule

# Below this the two sketches take 10 directions for each one asked for instead of 4: on a slow spectrum (variances
# i^-0.6) that was a hundred times closer; 8 were six times further off, in a tenth less of the time.
_AMPLE_BYTES = 2 << 30
_FIRST_DIRECTIONS = 256  # where a share decides and nothing is known yet
REMEDY = "take another power step (power=), or more directions="


def default_directions(rule: Rule, value: float, widths: tuple[int, ...], itemsize: int) -> int:
    """Directions of a sketch if the caller names none: 10 for each that is kept, 4 where that is over 2 GiB."""
    if rule.name != "rank":
        return _FIRST_DIRECTIONS
    ample = 10 * int(value)
    return max(ample if 2 * ample * sum(widths) * itemsize <= _AMPLE_BYTES else 4 * int(value), int(value) + 16)


def finished(
    rule: Rule,
    views: list[View],
    result: CCAResult,
    notes: list[StreamCCAWarning],
    sides: list[Ritz],
    ranks: list[tuple[int, int, int]],
    outside: float,
    singles: FloatArray,
    means: list[FloatArray],
    neurons: bool = True,
) -> tuple[CCAResult, list[StreamCCAWarning]]:
    """Put widths, weights of neurons, shares of the trace and the wider bound into a result in Ritz coordinates."""
    if outside > WARN_ABOVE:
        notes.append(
            AccuracyWarning(
                f"sketch: directions outside the basis may have moved the mean by up to {outside:.1e}; {REMEDY}"
            )
        )
    shares, margins = [], []
    for side, (rank, lowest, highest), view, value in zip(sides, ranks, views, (rule.x, rule.y), strict=True):
        reached = np.concatenate([[0.0], np.cumsum(side.values) / side.trace])
        shares.append(float(reached[rank]))
        margins.append(float(min(reached[rank] - value, value - reached[rank - 1])) if rule.name == "variance" else 1.0)
        if highest > lowest:
            notes.append(
                AccuracyWarning(
                    f"view {view.name!r}: the cut is not resolved: every rank from {lowest} to {highest} may satisfy "
                    f"{rule}; name a rank, or {REMEDY}"
                )
            )
    uncertain = sum(highest - lowest for _, lowest, highest in ranks)
    weights = [
        wide.expand(view.parts, side.to_ritz[:, : len(w)] @ w) if neurons else w[:0]
        for view, side, w in zip(views, sides, (result.x_weights, result.y_weights), strict=True)
    ]
    changed = replace(
        result,
        truncation=Truncation(rule, shares[0], shares[1], max(0.0, margins[0]), max(0.0, margins[1]), uncertain == 0),
        error_bound=min(1.0, result.error_bound + outside + uncertain * float(result.shares.max())),
        correlation_error_bounds=np.minimum(1.0, result.correlation_error_bounds + singles),
        width_x=views[0].width,
        width_y=views[1].width,
        x_weights=weights[0],
        y_weights=weights[1],
        x_mean=means[0],
        y_mean=means[1],
        warnings=tuple(str(note) for note in notes),
        strategy="sketch",
    )
    return changed, notes
