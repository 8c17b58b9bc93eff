"""Any measures of every layer of one model with every layer of another, from one pass, with intervals if asked for."""

from __future__ import annotations

import sys
from typing import Any

from streamcca.comparison import LayerComparison
from streamcca.errors import InputError
from streamcca.layer_pairs import cross_pairs
from streamcca.moments import Moments
from streamcca.pairing import CORRELATIONS, Progress
from streamcca.plan import plan_among
from streamcca.similarity.form import check_measure
from streamcca.similarity.groups import GroupMoments
from streamcca.similarity.matrix import SimilarityMatrix, similarity_matrix
from streamcca.sources import progress_wanted
from streamcca.sweep import BatchRows, Sweep
from streamcca.watch import check_same_layers


def asked_for(measure: Any, intervals: bool, side: str) -> list[str] | None:
    """Return the measures to form, or None for one of those that `compare` has ways of its own for.

    'pwcca' is that of one side here, as it is alone.
    """
    if isinstance(measure, str) and measure in CORRELATIONS and not intervals:
        return None
    names = [measure] if isinstance(measure, str) else list(measure)
    if not names:
        raise InputError("measure: got none, expected at least one name")
    return [check_measure(f"pwcca_{side}" if name == "pwcca" else name) for name in names]


def check_options(
    names: list[str], side_by_side: bool, strategy: str, ridge: float, memory: int | None, intervals: bool
) -> None:
    """Refuse what only canonical correlations of one measure can do."""
    what = " and ".join(names)
    if not side_by_side:
        raise InputError(f"measure: {what} can be formed of two models side by side; scores know svcca, cca and pwcca")
    if strategy not in ("auto", "covariance"):
        raise InputError(f"strategy: got {strategy!r} for {what}, expected 'covariance'")
    if ridge:
        raise InputError(f"ridge: got {ridge:g} for {what}, expected 0")
    if intervals and memory is not None:
        raise InputError(
            "memory: the parts of the rows are checked against what is free; leave it out with intervals=True"
        )


def compare_measures(
    sweep: Sweep,
    names: list[str],
    options: dict[str, Any],
    *,
    memory: int | None,
    forming: dict[str, Any],
    parts: int | None,
    progress: Progress,
) -> dict[str, LayerComparison]:
    """Run both models over the loader once, and form each measure of all pairs of layers.

    `forming` are the options of `similarity_matrix`; `parts` how many parts of the rows intervals rest on, if any.
    """
    counted: Moments | GroupMoments | None = None
    widths: dict[str, int] = {}

    def add(batch: BatchRows) -> None:
        nonlocal counted
        if counted is None:
            widths.update({name: int(x.shape[1]) for name, x in batch.items()})
            counted = _start(widths, sweep, len(next(iter(batch.values()))), options, memory, parts, progress)
        check_same_layers(batch, widths)
        counted.update(batch if parts is None else {name: x.cpu() for name, x in batch.items()})

    sweep.run(add, "compare")
    sweep.report_silent()
    assert counted is not None  # noqa: S101 - a sweep without batches raises
    sides = {key: [key + name for name in sweep.names(key)] for key in ("a:", "b:")}
    matrices = similarity_matrix(
        counted, names, sides["a:"], sides["b:"], intervals=parts is not None, progress=progress, **forming
    )
    return {name: _comparison(matrix, sweep.describe_rows()) for name, matrix in matrices.items()}


def _start(
    widths: dict[str, int],
    sweep: Sweep,
    count: int,
    options: dict[str, Any],
    memory: int | None,
    parts: int | None,
    progress: Progress,
) -> Moments | GroupMoments:
    pairs = [(name, name) for name in widths] + cross_pairs(widths)
    if parts is not None:
        own = {key: value for key, value in options.items() if key != "device"}
        if options["device"] not in (None, "cpu"):
            raise InputError(f"device: got {options['device']!r}, but intervals count on the CPU; leave it out")
        return GroupMoments(widths, pairs, parts=parts, **own)
    rows = None if sweep.length is None else sweep.length * count
    bill = plan_among(
        ("covariance",), widths, rows, pairs=pairs, memory=memory, replay=False, strategy="covariance", kept=1.0
    )
    if progress_wanted(progress):
        print(bill, file=sys.stderr)
    return Moments(widths, pairs, **options)


def _comparison(matrix: SimilarityMatrix, rows: str) -> LayerComparison:
    layers_a, layers_b = (tuple(name[2:] for name in names) for names in (matrix.names_a, matrix.names_b))
    return LayerComparison(matrix.measure, layers_a, layers_b, matrix.cells, matrix.n, rows, "covariance")
