"""From what was counted of two views to any measure by name; what one measure found in a view serves the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from streamcca._backend import Canonical
from streamcca.errors import InputError, StreamCCAError, StreamCCAWarning
from streamcca.gram import Gram
from streamcca.moments import Moments
from streamcca.pairing import VARIANCE_99
from streamcca.qr import QRMoments
from streamcca.results import CCAResult
from streamcca.row_sums import RowSums
from streamcca.similarity import formed, grams
from streamcca.similarity.canonical import MEAN, MEAN_SQUARE, PILLAI, YANAI, OfCorrelations, correlate_views
from streamcca.similarity.covariances import FULL, Formed, PairCovariance, ViewCovariance, pair_covariance
from streamcca.similarity.debiased import debiased_cka
from streamcca.similarity.declare import MEASURES
from streamcca.similarity.result import SimilarityResult
from streamcca.subspace import Rule
from streamcca.views import unknown_name

State = Moments | Gram | QRMoments

# Measures of the correlations, and what each keeps of the views where no rule is given.
CANONICAL: dict[str, tuple[OfCorrelations, Rule]] = {
    "svcca": (MEAN, VARIANCE_99),
    "svcca_r2": (MEAN_SQUARE, VARIANCE_99),
    "cca": (MEAN, FULL),
    "mean_squared_cca": (MEAN_SQUARE, FULL),
    "yanai": (YANAI, FULL),
    "pillai": (PILLAI, FULL),
}
_WEIGHTED = {"pwcca_x": ("x",), "pwcca_y": ("y",), "pwcca": ("x", "y")}
_FORMED: dict[str, Callable[[PairCovariance, dict[str, Any]], Formed]] = {
    "cka": lambda pair, _: formed.cka(pair),
    "adjusted_rv": lambda pair, _: formed.adjusted_rv(pair),
    "procrustes": lambda pair, _: formed.procrustes(pair),
    "regression_x": lambda pair, _: formed.linear_regression(pair, "x"),
    "regression_y": lambda pair, _: formed.linear_regression(pair, "y"),
    "shape": lambda pair, options: formed.shape(pair, options.get("alpha", 0.5)),
}


@dataclass(frozen=True)
class _Function:
    """A decreasing, or no, function of another measure."""

    of: str
    value: Callable[[float], float]
    slope: Callable[[float], float]


def _angle(value: float) -> float:
    return math.acos(min(1.0, max(-1.0, value)))


def _slope_of_angle(value: float) -> float:
    # At 1 it has none; there the number does not move either.
    return -1 / math.sqrt(max(1 - value * value, 1e-12))


_FUNCTIONS = {
    "rv": _Function("cka", lambda v: v, lambda _: 1.0),
    "bures": _Function("procrustes", lambda v: v, lambda _: 1.0),
    "cka_angle": _Function("cka", _angle, _slope_of_angle),
    "procrustes_distance": _Function("procrustes", lambda v: 2 * (1 - v), lambda _: -2.0),
    "procrustes_angle": _Function("procrustes", _angle, _slope_of_angle),
    "shape_angle": _Function("shape", _angle, _slope_of_angle),
}


def check_measure(name: Any) -> str:
    """Return the name of a measure; refuses what is none."""
    if not isinstance(name, str) or name not in MEASURES:
        raise InputError(unknown_name("measure", str(name), list(MEASURES)))
    return name


def check_taken(names: Iterable[str], rule: Rule | None, ridge: float = 0.0) -> None:
    """Refuse a rule or a ridge that none of the measures takes."""
    names = list(names)
    if (rule or ridge) and not any(name in CANONICAL or name in _WEIGHTED for name in names):
        raise InputError(
            f"{rule or f'ridge={ridge:g}'}: {' and '.join(names)} keep all, being no functions of canonical "
            "correlations; leave it out"
        )


def source_of(state: State) -> str:
    """Return the word of the declarations for what was counted."""
    return "gram" if isinstance(state, Gram) else "qr" if isinstance(state, QRMoments) else "moments"


@dataclass
class Former:
    """Measures of pairs of views of one state.

    `rule` replaces the rules of all measures of correlations; `pairing` are the options of `correlate`, `options` those
    of single measures (alpha, bandwidth, correlation).
    """

    state: State
    rule: Rule | None = None
    pairing: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    sums: RowSums | None = None
    _views: dict[str, ViewCovariance] = field(default_factory=dict)

    def pair(self, a: str, b: str) -> Pair:
        """Return two views, of which every measure can be formed."""
        return Pair(self, a, b)

    def view(self, name: str) -> ViewCovariance:
        """Return one view of moments, which keeps what is found in it."""
        if name not in self._views:
            assert isinstance(self.state, Moments)  # noqa: S101 - the callers ask for moments only
            self._views[name] = ViewCovariance(self.state, name)
        return self._views[name]


class Pair:
    """Two views, with what measures share: correlations by each rule, numbers formed from covariances."""

    def __init__(self, former: Former, a: str, b: str) -> None:
        self._former, self.a, self.b = former, a, b
        self.notes: list[StreamCCAWarning] = []
        self._canonical: dict[Rule, Canonical] = {}
        self._correlated: dict[tuple[Rule, str], CCAResult] = {}
        self._numbers: dict[str, SimilarityResult] = {}
        self._covariance: PairCovariance | None = None

    @property
    def covariance(self) -> PairCovariance:
        """The covariances of both views of moments."""
        if self._covariance is None:
            state = self._former.state
            assert isinstance(state, Moments)  # noqa: S101 - asked for by measures of moments only
            self._covariance = pair_covariance(state, self._former.view(self.a), self._former.view(self.b))
        return self._covariance

    def correlate(self, rule: Rule, side: str = "") -> CCAResult:
        """CCA by one rule, weighted by the neurons of one side if it is named."""
        if (rule, side) not in self._correlated:
            former = self._former
            options = {"measure": "pwcca" if side else "cca" if rule.name == "full" else "svcca", "side": side}
            x: ViewCovariance | str = self.a
            y: ViewCovariance | str = self.b
            if isinstance(former.state, Moments):
                x, y = former.view(self.a), former.view(self.b)
            result, notes = correlate_views(former.state, x, y, rule, former.pairing | options, self._canonical)
            self.notes += [note for note in notes if str(note) not in map(str, self.notes)]
            self._correlated[rule, side] = result
        return self._correlated[rule, side]

    def slopes(self, name: str) -> Formed:
        """Return a measure of moments with its slopes with regard to their covariances."""
        if name in _FUNCTIONS:
            function = _FUNCTIONS[name]
            base = self.slopes(function.of)
            by = function.slope(base.value)
            return replace(
                base,
                value=function.value(base.value),
                null=lambda: function.value(base.null()),
                x=by * base.x,
                y=by * base.y,
                cross=by * base.cross,
                further=abs(by) * base.further,
            )
        if name in CANONICAL:
            measure, default = CANONICAL[name]
            return measure.slopes(self.covariance, self.correlate(self._former.rule or default))
        if name in _FORMED:
            return _FORMED[name](self.covariance, self._former.options)
        raise InputError(f"{name}: its slopes are not known; intervals of it need exact=True")

    def form(self, name: str) -> SimilarityResult:
        """Form one measure.

        Raises
        ------
        InputError
            It cannot be formed from what was counted.
        """
        if name not in self._numbers:
            self._check_source(name)
            self._numbers[name] = self._form(name)
        return self._numbers[name]

    def can_form(self, name: str) -> bool:
        """Whether what was counted holds what a measure needs."""
        in_sums = name == "debiased_cka" and self._former.sums is not None
        return source_of(self._former.state) in MEASURES[name].sources or in_sums

    def _check_source(self, name: str) -> None:
        if self.can_form(name):
            return
        source, declared = source_of(self._former.state), MEASURES[name].sources
        if name == "debiased_cka" and source == "moments":
            raise InputError(
                "debiased_cka: got moments, which do not hold the sums that it needs; give the rows themselves: "
                "arrays, paths or batches"
            )
        raise InputError(
            f"{name}: it cannot be formed from {type(self._former.state).__name__}, expected "
            f"{' or '.join(declared)}; see MEASURES[{name!r}].sources"
        )

    def _form(self, name: str) -> SimilarityResult:
        if name in _FUNCTIONS:
            return self._function(name, _FUNCTIONS[name])
        if name in CANONICAL:
            measure, default = CANONICAL[name]
            r = self.correlate(self._former.rule or default)
            return self._result(name, measure.value(r), measure.error_bound(r), lambda: measure.null(r), r)
        if name in _WEIGHTED:
            sides = [self.correlate(self._former.rule or FULL, side) for side in _WEIGHTED[name]]
            value, bound, null = (
                sum(getattr(r, number) for r in sides) / len(sides) for number in ("mean", "error_bound", "null_mean")
            )
            return self._result(name, value, bound, lambda: null, sides[0] if len(sides) == 1 else None)
        state = self._former.state
        if isinstance(state, Gram):
            number = grams.form(name, state, self.a, self.b, self._former.options)
            return self._result(name, number.value, number.error_bound, number.null)
        if name == "debiased_cka":
            assert isinstance(state, Moments) and self._former.sums is not None  # noqa: S101, PT018 - `_check_source`
            value, bound = debiased_cka(state, self.a, self.b, self._former.sums)
            return self._result(name, value, bound, lambda: 0.0)
        slopes = _FORMED[name](self.covariance, self._former.options)
        return self._result(name, slopes.value, slopes.error_bound(self.covariance), slopes.null)

    def _function(self, name: str, function: _Function) -> SimilarityResult:
        base = self.form(function.of)
        value = function.value(base.mean)
        ends = [function.value(base.mean + step) for step in (-base.error_bound, base.error_bound)]
        bound = max(abs(end - value) for end in ends) + 4 * 2.0**-53
        return replace(
            base,
            measure=name,
            kind=MEASURES[name].kind,
            mean=value,
            error_bound=bound,
            null=lambda: function.value(base.null_mean),
        )

    def _result(
        self, name: str, value: float, bound: float, null: Callable[[], float], detail: CCAResult | None = None
    ) -> SimilarityResult:
        state = self._former.state
        strategy = {"moments": "covariance"}.get(source_of(state), source_of(state))
        return SimilarityResult(
            measure=name,
            mean=float(value),
            error_bound=float(bound),
            null=null,
            n=state.n,
            width_x=state.views[self.a],
            width_y=state.views[self.b],
            precision="float64" if isinstance(state, QRMoments) else state.precision,
            strategy=strategy,
            kind=MEASURES[name].kind,
            detail=detail,
        )


def form_each(pair: Pair, names: Iterable[str]) -> tuple[dict[str, SimilarityResult], dict[str, str]]:
    """Form several measures; what refuses the data is returned with its reason, by name."""
    numbers: dict[str, SimilarityResult] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            numbers[name] = pair.form(name)
        except StreamCCAError as error:  # noqa: PERF203 - one refusal must not cost the others
            refused[name] = str(error)
    return numbers, refused
