"""Every measure of two views by name, or many of them at once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from streamcca.errors import InputError, StreamCCAWarning
from streamcca.pairing import FULL, Progress
from streamcca.plan import Strategy, Way
from streamcca.routes import choose, collect
from streamcca.row_sums import RowSums
from streamcca.similarity.debiased import watched
from streamcca.similarity.declare import MEASURES
from streamcca.similarity.form import CANONICAL, Former, State, check_measure, check_taken, form_each
from streamcca.similarity.result import SimilarityResult
from streamcca.subspace import Rule, checked_ridge, parse_rule
from streamcca.views import check_option

_WAYS: dict[str, Way] = {"moments": "covariance", "gram": "gram", "qr": "qr"}


@dataclass(frozen=True, eq=False, repr=False)
class Similarities(Mapping[str, SimilarityResult]):
    """Several measures of the same two views: a mapping from their names to results.

    Attributes
    ----------
    results : dict of str to SimilarityResult
    refused : dict of str to str
        Measures that these data do not allow, and why.
    """

    results: dict[str, SimilarityResult] = field(repr=False)
    refused: dict[str, str] = field(repr=False)

    def __getitem__(self, name: str) -> SimilarityResult:
        if name in self.refused:
            raise InputError(f"{name}: it was refused: {self.refused[name]}")
        return self.results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def table(self) -> str:
        """Return a line for each measure: the number, its error bound and its chance level."""
        width = max([7, *map(len, self.results)])
        lines = [f"{'measure':<{width}}  {'number':>10}  {'rounding':>8}  {'chance':>7}"]
        for name, r in self.results.items():
            kind = "" if r.kind == "similarity" else "  (distance)"
            lines.append(f"{name:<{width}}  {r.mean:>10.6f}  {r.error_bound:>8.0e}  {r.null_mean:>7.4f}{kind}")
        return "\n".join([*lines, *(f"{name}: refused: {why}" for name, why in self.refused.items())])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {"results": {name: r.to_dict() for name, r in self.results.items()}, "refused": dict(self.refused)}

    def __repr__(self) -> str:
        return f"Similarities({', '.join(f'{name}={r.mean:.4f}' for name, r in self.results.items())})"


def _former(
    names: list[str],
    data: tuple[Any, ...],
    rule: Rule | None,
    *,
    accumulate: dict[str, Any],
    pairing: dict[str, Any],
    options: dict[str, Any],
    strategy: Strategy,
    folder: Any,
    every: bool = True,
) -> tuple[Former, str, str]:
    """Count the data on a route from which all the measures can be formed, or, unless `every`, some of them."""
    wanted = all if every else any
    ways = tuple(way for source, way in _WAYS.items() if wanted(_formable(name, source) for name in names))
    if not ways:
        raise InputError(f"{' and '.join(names)}: no one route forms them all; ask for them apart")
    nonfinite = accumulate["nonfinite"]
    refusals = {} if nonfinite == "raise" else {"gram": _NONFINITE.format(nonfinite)}
    kept = [rule or CANONICAL[name][1] for name in names if name in CANONICAL]
    data, way = choose(
        data, ways, strategy, rule=kept[0] if kept else None, progress=accumulate["progress"], refusals=refusals
    )
    sums = None
    if "debiased_cka" in names and way == "covariance" and not isinstance(data[0], State):
        if nonfinite != "raise" and every:
            raise InputError(
                f"nonfinite: got {nonfinite!r}, expected 'raise' for debiased_cka; leave such rows out before"
            )
        if nonfinite == "raise":
            sums = RowSums()
            data = watched(data, sums)
    state, a, b = collect(data, way, folder, accumulate)
    return Former(state, rule, pairing, options, sums), a, b


_NONFINITE = "nonfinite: got {!r}; strategy='gram' takes 'raise' only: leave rows with NaN out before"


def _formable(name: str, source: str) -> bool:
    declared = MEASURES[name].sources
    return source in declared or (source == "moments" and "rows" in declared)


def tell(notes: list[StreamCCAWarning], stacklevel: int) -> None:
    """Warn the caller of the caller's function, `stacklevel` frames up."""
    for note in notes:
        warnings.warn(note, stacklevel=stacklevel + 1)


def rule_of(variance: Any, nuclear: Any, rank: Any) -> Rule | None:
    """Return the rule that was asked for, or None."""
    given = any(value is not None for value in (variance, nuclear, rank))
    return parse_rule(variance, nuclear, rank, FULL) if given else None


def options_of_measures(alpha: Any, bandwidth: Any, correlation: Any) -> dict[str, Any]:
    """Return the options of single measures, checked."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise InputError(f"alpha: got {alpha!r}, expected a number from 0 (canonical correlations) to 1 (Procrustes)")
    if isinstance(bandwidth, bool) or not isinstance(bandwidth, int | float) or not 0 < bandwidth < float("inf"):
        raise InputError(f"bandwidth: got {bandwidth!r}, expected a number above 0, of median distances")
    check_option("correlation", correlation, ("spearman", "pearson"))
    return {"alpha": float(alpha), "bandwidth": float(bandwidth), "correlation": correlation}


def similarity(
    measure: str,
    *data: Any,
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | tuple[int, int] | None = None,
    ridge: float = 0.0,
    alpha: float = 0.5,
    bandwidth: float = 0.5,
    correlation: Literal["spearman", "pearson"] = "spearman",
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
    precision: str = "auto",
    nonfinite: str = "raise",
    threads: int | None = None,
    progress: Progress = "auto",
    strategy: Strategy = "auto",
    folder: str | os.PathLike[str] | None = None,
) -> SimilarityResult:
    """Form one measure by name.

    Parameters
    ----------
    measure : str
        A key of `MEASURES`, whose value says what the measure is and where it comes from.
    *data
        As in `svcca`: moments (or a `Gram`, or `QRMoments`) and two view names, two arrays or ``.npy`` paths, or an
        iterable of pairs.
    variance, nuclear, rank, ridge, allow_underdetermined, allow_inaccurate
        As in `svcca`, for measures of canonical correlations; without a rule each keeps what its declaration says.
    alpha : float
        For 'shape' and 'shape_angle': from 0, canonical correlations, to 1, Procrustes.
    bandwidth : float
        For 'rbf_cka': width of the kernel in median distances of two samples.
    correlation : 'spearman' or 'pearson'
        For 'rsa'.
    precision, nonfinite, threads, progress, strategy, folder
        As in `svcca`.

    Returns
    -------
    SimilarityResult

    Raises
    ------
    InputError
        There is no such measure; the data cannot be used, or do not hold what the measure needs.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((500, 20))
    >>> round(similarity("yanai", x, x @ rng.standard_normal((20, 20))).mean, 6)
    1.0
    """
    name = check_measure(measure)
    rule = rule_of(variance, nuclear, rank)
    check_taken([name], rule, checked_ridge(ridge))
    former, a, b = _former(
        [name],
        data,
        rule,
        accumulate={"precision": precision, "nonfinite": nonfinite, "threads": threads, "progress": progress},
        pairing={
            "ridge": checked_ridge(ridge),
            "allow_underdetermined": allow_underdetermined,
            "allow_inaccurate": allow_inaccurate,
        },
        options=options_of_measures(alpha, bandwidth, correlation),
        strategy=strategy,
        folder=folder,
    )
    pair = former.pair(a, b)
    result = pair.form(name)
    tell(pair.notes, 2)
    return result


def similarities(
    *data: Any,
    measures: Iterable[str] | None = None,
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | tuple[int, int] | None = None,
    alpha: float = 0.5,
    bandwidth: float = 0.5,
    correlation: Literal["spearman", "pearson"] = "spearman",
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
    precision: str = "auto",
    nonfinite: str = "raise",
    threads: int | None = None,
    progress: Progress = "auto",
    strategy: Strategy = "auto",
    folder: str | os.PathLike[str] | None = None,
) -> Similarities:
    """Form many measures of the same two views, from one pass over the rows.

    Parameters
    ----------
    measures : iterable of str, optional
        Keys of `MEASURES`; by default all that can be formed from these data. Moments form all but three; with
        ``strategy="gram"`` those are among them.
    *data, variance, nuclear, rank, alpha, bandwidth, correlation, allow_underdetermined, allow_inaccurate, precision, \
nonfinite, threads, progress, strategy, folder
        As in `similarity`.

    Returns
    -------
    Similarities
        A mapping from names to results; ``.refused`` says which measures these data do not allow, and why.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((500, 5))
    >>> s = similarities(x, x + rng.standard_normal((500, 5)), measures=["cka", "procrustes"])
    >>> print(s.table())
    measure         number  rounding   chance
    cka           0.501733     7e-15   0.0099
    procrustes    0.704630     7e-15   0.0804
    """
    measures = [measures] if isinstance(measures, str) else measures
    names = None if measures is None else [check_measure(name) for name in measures]
    rule = rule_of(variance, nuclear, rank)
    check_taken(list(MEASURES) if names is None else names, rule)
    former, a, b = _former(
        list(MEASURES) if names is None else names,
        data,
        rule,
        accumulate={"precision": precision, "nonfinite": nonfinite, "threads": threads, "progress": progress},
        pairing={
            "ridge": 0.0,
            "allow_underdetermined": allow_underdetermined,
            "allow_inaccurate": allow_inaccurate,
        },
        options=options_of_measures(alpha, bandwidth, correlation),
        strategy=strategy,
        folder=folder,
        every=names is not None,
    )
    pair = former.pair(a, b)
    if names is None:
        names = [name for name in MEASURES if pair.can_form(name)]
    numbers, refused = form_each(pair, names)
    tell(pair.notes, 2)
    return Similarities(numbers, refused)


def plain_measure(
    name: str, data: tuple[Any, ...], accumulate: dict[str, Any], strategy: Strategy, folder: Any
) -> SimilarityResult:
    """Form a measure that needs no rule, and has no options of its own."""
    former, a, b = _former(
        [name], data, None, accumulate=accumulate, pairing={}, options={}, strategy=strategy, folder=folder
    )
    return former.pair(a, b).form(name)
