"""SVCCA of views too wide for width x width and too long for n x n: a sketch of each, then replays of the rows."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from streamcca import wide
from streamcca._backend import state_bytes
from streamcca.checkpoint import SECONDS, Checkpoint
from streamcca.errors import InputError, StreamCCAWarning
from streamcca.pairing import Measure
from streamcca.passes import PairPasses
from streamcca.range_finder import block_rows
from streamcca.results import CCAResult
from streamcca.ritz import PROBES
from streamcca.sketch_job import Job, JobOptions
from streamcca.sketch_only import joint_answer
from streamcca.sketch_state import Ranks, TooFewError
from streamcca.sketch_views import say_too_few
from streamcca.subspace import Rule


def sketch_cost(
    widths: tuple[int, ...],
    directions: int | tuple[int, ...],
    n: int | None = None,
    power: int = 0,
    rank: int | None = None,
    itemsize: int = 4,
    pairs: list[tuple[int, int]] | None = None,
) -> tuple[int, int, float]:
    """Return bytes at the peak, passes over the rows, and floating-point operations a row of the sketch route.

    Parameters
    ----------
    widths : tuple of int
        Neurons of each view.
    directions : int or tuple of int
        Kept of each; no more than its neurons.
    n : int, optional
        Rows; for the memory of their prints.
    power : int
        Power steps.
    rank : int, optional
        Directions kept in the end, whose weights (width, rank) are float64; by default three of four.
    itemsize : int
        Bytes of a number: 4 for rows up to float32, 8 for float64 rows.
    pairs : list of (int, int), optional
        Views that are compared, by number; by default all with all.

    Examples
    --------
    >>> sketch_cost((802_816, 802_816), 200)[1]
    2
    """
    each = (directions,) * len(widths) if isinstance(directions, int) else directions
    each = tuple(min(count, width) for count, width in zip(each, widths, strict=True))
    total, most, bases = sum(widths), max(each), 2 if power else 1
    # While rows pass: the directions and as many waiting rows, or sums; in the end the basis and the weights.
    panels = total * (block_rows(max(widths), itemsize) + PROBES) * itemsize
    for width, count in zip(widths, each, strict=True):
        kept = 3 * count // 4 if rank is None else min(rank, count)
        panels += width * max(2 * count * itemsize, count * bases * itemsize + 8 * kept)
    # Vectors in float64 of the mean, sums and squares; one tile of a shrink; Gram matrices and eigenvectors.
    small = 6 * total * 8 + 16 * (n or 0) + 4 * wide.TILE * most * 8 + 64 * (2 * most) ** 2
    # Coordinates of all views in the replay, and what is chosen in them.
    sizes = [min(bases * count, width) + PROBES for count, width in zip(each, widths, strict=True)]
    wanted = list(combinations(range(len(widths)), 2)) if pairs is None else [(a, b) for a, b in pairs if a != b]
    small += state_bytes(sizes, [(i, i) for i in range(len(sizes))] + wanted) + sum(32 * size**2 for size in sizes)
    # For each `directions` rows a shrink: a symmetric Gram matrix of twice as many, and a product of half of them with
    # all; power steps project and add; the last pass projects, and forms the moments of coordinates.
    flops = sum(
        width * (8.0 * count + 4.0 * count * power + 2.0 * (bases * count + PROBES))
        for width, count in zip(widths, each, strict=True)
    )
    flops += sum(float(size) ** 2 for size in sizes) + sum(2.0 * sizes[a] * sizes[b] for a, b in wanted)
    return panels + small, 2 + power, flops


def sketch_svcca(
    passes: PairPasses,
    rule: Rule,
    *,
    measure: Measure = "svcca",
    directions: int | None = None,
    power: int = 0,
    replay: bool = True,
    range_finder: bool = False,
    precision: str = "auto",
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
    checkpoint: Any = None,
    checkpoint_seconds: float = SECONDS,
    ranks: Ranks | None = None,
    threads: int | None = None,
    progress: Any = "auto",
) -> tuple[CCAResult, list[StreamCCAWarning]]:
    """SVCCA of two views by sketches of them, in memory of about 2 directions x (width of x + width of y), and replays.

    The first pass sketches each view (`Sketch`: Frequent Directions); the next takes all rows to the directions of both
    and accumulates exact moments there, in which those that are kept are chosen (Rayleigh-Ritz). A power step is one
    more pass between them: the basis is then that before and the covariance times it, together.

    Parameters
    ----------
    passes : PairPasses
        The rows.
    rule : Rule
        'variance' (its total is the exact trace, streamed) or 'rank'.
    measure : 'svcca' or 'cca'
        Which name the result bears; with a rule they are the same.
    directions : int, optional
        Directions of each view's sketch. By default 8 k for a rank k (4 k where the sketches would be above 2 GiB); for
        a share 256, and as many more as it turns out to need, from the start again.
    power : int
        Power steps, a pass each.
    replay : bool
        False: the answer of a joint sketch of both views alone, after one pass. It is approximate, and says so with a
        bound.
    range_finder : bool
        Start from the covariance times random vectors instead of a sketch; sums only, so that ranks add. Wants power >=
        1.
    precision : 'auto', 'float32' or 'float64'
        Type of directions and projections; 'auto' is float64 for float64 rows, float32 otherwise.
    allow_underdetermined, allow_inaccurate
        As in `svcca`.
    checkpoint : path, optional
        File that keeps the state, written at most every `checkpoint_seconds`. If it is there, the job goes on from it,
        to the same bits; it is removed in the end.
    ranks : Ranks, optional
        Processes that each have rows of their own; needs `range_finder`.
    threads, progress
        As in `svcca`.

    Returns
    -------
    CCAResult, list of StreamCCAWarning
        The error bound counts what directions outside the basis can have moved, too.

    Raises
    ------
    InputError
        The rows cannot be read again; too few directions for the share (says how many would do); the rule keeps all.
    ReplayError
        A later pass brought other rows.
    AccuracyError
        The bound of the mean is above 0.01, unless `allow_inaccurate`; not for replay=False.
    StateFileError
        The checkpoint belongs to another job.

    References
    ----------
    Ghashami, Liberty, Phillips & Woodruff (2016), arXiv 1501.01711; Saad (2011), "Numerical Methods for Large
    Eigenvalue Problems", 2nd ed., sections 4.3 (Rayleigh-Ritz) and 5.2 (subspace iteration); Halko, Martinsson & Tropp
    (2011).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 50))
    >>> result, _ = sketch_svcca(PairPasses((x, x[:, ::-1])), Rule("rank", 4, 4), directions=8)
    >>> round(result.mean, 6)
    1.0
    """
    options = JobOptions(directions, power, range_finder, precision)
    _check_options(passes, rule, measure, options, replay, checkpoint, ranks)
    while True:
        file = Checkpoint(checkpoint, checkpoint_seconds)
        try:
            if replay:
                job = Job(passes, rule, options, file, ranks, threads, progress, restarts=directions is None)
                answer = job.run(measure, allow_underdetermined, allow_inaccurate)
            else:
                answer = joint_answer(
                    passes, rule, options.directions, precision, measure, progress, allow_underdetermined
                )
        except TooFewError as few:
            file.remove()
            if directions is not None or not passes.repeatable:
                raise say_too_few(few, rule) from None
            options = JobOptions(few.would_do, power, range_finder, precision)
            continue
        file.remove()
        return answer


def sketch_refuses(rule: Rule, measure: str, ridge: float = 0.0, nonfinite: str = "raise") -> str:
    """Say what of a question a sketch, which holds the leading directions only, cannot answer; empty if it can."""
    if measure not in ("svcca", "cca"):
        return f"sketch: got measure {measure!r}, expected 'svcca' or 'cca'; others have no sketch route"
    if rule.name not in ("variance", "rank") or rule.keeps_all:
        return (
            f"sketch: got {rule}, expected a share of the variance below 1, or a rank; a sketch holds the leading "
            "directions only"
        )
    if ridge:
        return f"ridge: got {ridge:g} with strategy='sketch', which would add it to some directions only; use 0"
    if nonfinite != "raise":
        return f"nonfinite: got {nonfinite!r}; strategy='sketch' takes 'raise' only: leave rows with NaN out before"
    return ""


def check_sketching(directions: Any, power: Any) -> None:
    """Refuse numbers of directions and of power steps that are none.

    Raises
    ------
    InputError
    """
    for name, value, least in (("directions", directions, 1), ("power", power, 0)):
        if value is None and name == "directions":
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name}: got {value!r}, expected an integer of at least {least}")


def _check_options(
    passes: PairPasses,
    rule: Rule,
    measure: str,
    options: JobOptions,
    replay: bool,
    checkpoint: Any,
    ranks: Ranks | None,
) -> None:
    refusal = sketch_refuses(rule, measure)
    if refusal:
        raise InputError(refusal)
    check_sketching(options.directions, options.power)
    if options.precision not in ("auto", "float32", "float64"):
        raise InputError(f"precision: got {options.precision!r}, expected 'auto', 'float32' or 'float64'")
    if replay and not passes.repeatable:
        raise InputError(
            "sketch: the rows are an iterator, and cannot be read again for the replay; pass arrays, .npy paths or an "
            "iterable that starts anew, or replay=False for an approximate answer"
        )
    if not replay and (options.power or options.range_finder or checkpoint is not None):
        raise InputError(
            "sketch: replay=False reads the rows once and keeps no checkpoint; leave power=, range_finder= and "
            "checkpoint= out"
        )
    if ranks is not None and not options.range_finder:
        raise InputError("sketch: ranks add up sums only; pass range_finder=True")
