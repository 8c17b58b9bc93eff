"""How many features of two models a linear probe needs, in order of diversity (arXiv 2110.12899)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import AccuracyWarning, InputError
from streamcca.moments import Moments
from streamcca.multiplicity.checks import checked_level
from streamcca.multiplicity.features.blocks import Features, IntArray, checked_columns
from streamcca.multiplicity.features.diverse import ORDERS, diversity_order
from streamcca.multiplicity.features.probe import fit_probe, scored
from streamcca.multiplicity.features.probe_intervals import Estimate, accuracy_estimate
from streamcca.sources import progress_bar
from streamcca.views import check_option

_RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 64


@dataclass(frozen=True, eq=False, repr=False)
class FeatureCurve:
    """Test accuracy of linear probes on the first features of an order.

    Attributes
    ----------
    order : str
        A key of `ORDERS`, 'random', or 'given'.
    sizes : tuple of int
        Numbers of features.
    accuracy : tuple of Estimate
        Test accuracy for each size, its standard error over test rows, and its interval.
    from_first : tuple of int
        How many of these features are of the first model.
    target_accuracy : float or None
        The accuracy that is asked for.
    needed : int or None
        The smallest of the sizes that reaches it; None if none does. Accuracy need not rise with size: later sizes
        may lie below the target again. A target near the plateau is reached early by luck, so that this number leans
        low.
    needed_low, needed_high : int or None
        Percentiles of the number over resampled test rows; None stands for "never".
    random_accuracy : tuple of Estimate, or None
        The same sizes of randomly ordered features: mean over draws, with the interval over draws and test rows.
    random_needed : tuple of int or None
        What each random order needed.
    features, widths, n_train, n_test, level, seed : int, (int, ...), int, int, float, int
        Features in all and of each model, rows, level of the intervals, seed of random orders and resampling.
    unconverged, probes : int, int
        Probes that did not reach their tolerance, of how many.
    """

    order: str
    sizes: tuple[int, ...]
    accuracy: tuple[Estimate, ...]
    from_first: tuple[int, ...]
    target_accuracy: float | None
    needed: int | None
    needed_low: int | None
    needed_high: int | None
    random_accuracy: tuple[Estimate, ...] | None
    random_needed: tuple[int | None, ...]
    features: int
    widths: tuple[int, ...]
    n_train: int
    n_test: int
    level: float
    seed: int
    unconverged: int
    probes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in self.__dict__.items()}
        for name in ("accuracy", "random_accuracy"):
            estimates: tuple[Estimate, ...] | None = getattr(self, name)
            plain[name] = None if estimates is None else [estimate._asdict() for estimate in estimates]
        return {**plain, "meaning": ORDERS.get(self.order, self.order)}

    def table(self) -> str:
        """Return one line a size, accuracies in percent."""
        lines = [
            f"linear probes on the first features of {self.features}; order: {ORDERS.get(self.order, self.order)}",
            f"{'features':>9} {'of first':>9} {'accuracy':>9} {f'{100 * self.level:g} % interval':>16} "
            f"{'random order':>13}",
        ]
        for i, size in enumerate(self.sizes):
            value, _, low, high = self.accuracy[i]
            chance = f"{100 * self.random_accuracy[i].value:.2f}" if self.random_accuracy else "-"
            lines.append(
                f"{size:9} {self.from_first[i]:9} {100 * value:9.2f} {f'{100 * low:.2f} .. {100 * high:.2f}':>16} "
                f"{chance:>13}"
            )
        if self.target_accuracy is not None:
            lines.append(f"{_or_never(self.needed)} features needed for {100 * self.target_accuracy:g} %")
        if self.unconverged:
            lines.append(f"{self.unconverged} of {self.probes} probes did not converge")
        return "\n".join(lines)

    def __repr__(self) -> str:
        need = (
            ""
            if self.target_accuracy is None
            else f", {_or_never(self.needed)} needed for {100 * self.target_accuracy:g} %"
        )
        return f"FeatureCurve(order={self.order!r}, {len(self.sizes)} sizes up to {self.sizes[-1]}{need})"


def _or_never(needed: int | None) -> str:
    return "more than all" if needed is None else str(needed)


def features_needed(
    train: Sequence[Any],
    test: Sequence[Any],
    labels_train: Any,
    labels_test: Any,
    order: str | Sequence[int] | IntArray = "pivoted",
    *,
    step: int | None = None,
    most: int | None = None,
    target_accuracy: float | None = None,
    draws: int = 0,
    seed: int = 0,
    level: float = 0.95,
    progress: bool | str = "auto",
    **probe: Any,
) -> FeatureCurve:
    """Probe the first features of two models side by side, and say how many reach an accuracy.

    Parameters
    ----------
    train, test : (array, array)
        Features (n, p) and (n, q) of two models for the same training rows, and (N, p) and (N, q) for the same test
        rows.
    labels_train, labels_test : arrays (n,), (N,) of int
        Classes.
    order : str or array of int
        A key of `ORDERS`, by the covariance of the training rows; 'random'; or column numbers, for any number of
        models.
    step : int, optional
        Features are added so many at a time (256 in the paper); a sixteenth of them by default. The last size is
        `most`.
    most : int, optional
        Features of the last probe; all by default.
    target_accuracy : float, optional
        In (0, 1]: how many features reach it is asked.
    draws : int
        Random orders to compare with.
    seed, level
        Of random orders and resampled rows; of the intervals.
    progress : bool or 'auto'
        Show a bar on stderr.
    **probe
        Further options of `linear_probe`.

    Returns
    -------
    FeatureCurve

    Raises
    ------
    InputError
        Rows or widths do not match, or an option makes no sense.

    Warns
    -----
    AccuracyWarning
        Some probes did not converge.

    Notes
    -----
    Gontijo-Lopes, Dauphin & Cubuk (arXiv 2110.12899) rank the dimensions of two concatenated embeddings by covariance
    and train linear classifiers on the first 256 j of them; models trained differently need fewer for the same
    accuracy. Their order is not fully specified: see `diversity_order`. Random orders and intervals are ours.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((600, 3))
    >>> y = (x @ [2, 1, 1] > 0).astype(int)
    >>> pair = x[:, :2], x[:, [0, 2]]
    >>> train, test = [part[:400] for part in pair], [part[400:] for part in pair]
    >>> curve = features_needed(train, test, y[:400], y[400:], step=1, target_accuracy=0.95)
    >>> curve
    FeatureCurve(order='pivoted', 4 sizes up to 4, 3 needed for 95 %)
    """
    parts, tests = [Features.of(part) for part in train], [Features.of(part) for part in test]
    widths = tuple(part.width for part in parts)
    if not parts or widths != tuple(part.width for part in tests):
        raise InputError(
            f"test features: got widths {tuple(part.width for part in tests)}, expected {widths} as in training, one "
            "array for each model"
        )
    rows, test_rows = _side_by_side(parts), _side_by_side(tests)
    name, columns = _ordered(rows, widths, order, seed)
    sizes = _sizes(len(columns), step, most)
    if target_accuracy is not None and not 0 < target_accuracy <= 1:
        raise InputError(f"target_accuracy: got {target_accuracy!r}, expected a share above 0, at most 1")
    if isinstance(draws, bool) or draws < 0:
        raise InputError(f"draws: got {draws!r}, expected a count of at least 0")
    level = checked_level(level)
    orders = [columns, *(_random(rows.width, [seed, 1 + draw]) for draw in range(draws))]
    scores = np.empty((1 + draws, len(sizes), test_rows.n))
    unconverged = 0
    with progress_bar(progress, len(orders) * len(sizes), "probe", f"{name} features") as bar:
        for i, one in enumerate(orders):
            for j, size in enumerate(sizes):
                fitted = fit_probe(rows.select(one[:size]), labels_train, **probe)
                unconverged += not fitted.converged
                logits = fitted.predict_logits(test_rows.select(one[:size]))
                scores[i, j] = scored(logits, labels_test, fitted.multilabel)
                bar.update(1)
    if unconverged:
        warnings.warn(
            f"features_needed: {unconverged} of {scores[..., 0].size} probes did not converge; give more iterations= "
            "or a larger l2=",
            AccuracyWarning,
            stacklevel=2,
        )
    low, high = _needed_interval(scores[0], sizes, target_accuracy, level, seed)
    return FeatureCurve(
        order=name,
        sizes=sizes,
        accuracy=tuple(accuracy_estimate(of_size[None], level) for of_size in scores[0]),
        from_first=tuple(int(np.count_nonzero(columns[:size] < widths[0])) for size in sizes),
        target_accuracy=target_accuracy,
        needed=_first_at(scores[0].mean(axis=1), sizes, target_accuracy),
        needed_low=low,
        needed_high=high,
        random_accuracy=tuple(accuracy_estimate(scores[1:, j], level) for j in range(len(sizes))) if draws else None,
        random_needed=tuple(_first_at(of_draw.mean(axis=1), sizes, target_accuracy) for of_draw in scores[1:]),
        features=rows.width,
        widths=widths,
        n_train=rows.n,
        n_test=test_rows.n,
        level=level,
        seed=int(seed),
        unconverged=unconverged,
        probes=len(orders) * len(sizes),
    )


def _side_by_side(parts: list[Features]) -> Features:
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.beside(part)
    return joined


def _random(width: int, seed: list[int]) -> IntArray:
    return np.random.default_rng(seed).permutation(width).astype(np.int64)


def _ordered(
    rows: Features, widths: tuple[int, ...], order: str | Sequence[int] | IntArray, seed: int
) -> tuple[str, IntArray]:
    """Return the name of an order and the columns in this order."""
    if not isinstance(order, str):
        return "given", checked_columns(order, rows.width)
    check_option("order", order, (*ORDERS, "random"))
    if order == "random":
        return order, _random(rows.width, [seed, 0])
    if len(widths) != 2:
        raise InputError(f"train: got the features of {len(widths)} models, expected two for order={order!r}")
    moments = Moments({"a": widths[0], "b": widths[1]}, precision="float64")
    for _, block in rows.blocks():
        moments.update(a=block[:, : widths[0]], b=block[:, widths[0] :])
    return order, diversity_order(moments, order=order)  # type: ignore[arg-type]


def _sizes(width: int, step: int | None, most: int | None) -> tuple[int, ...]:
    most = width if most is None else most
    if isinstance(most, bool) or not 1 <= most <= width:
        raise InputError(f"most: got {most!r}, expected 1 to {width}, the number of features that the order holds")
    step = max(1, -(-width // 16)) if step is None else step
    if isinstance(step, bool) or step < 1:
        raise InputError(f"step: got {step!r}, expected a number of features of at least 1")
    return (*range(step, most, step), most)


def _first_at(accuracies: FloatArray, sizes: tuple[int, ...], target: float | None) -> int | None:
    reached = np.flatnonzero(accuracies >= (np.inf if target is None else target))
    return sizes[int(reached[0])] if len(reached) else None


def _needed_interval(
    scores: FloatArray, sizes: tuple[int, ...], target: float | None, level: float, seed: int
) -> tuple[int | None, int | None]:
    """Return percentiles, over resampled test rows, of the smallest size that reaches the target."""
    if target is None:
        return None, None
    n = scores.shape[1]
    generator = np.random.default_rng([seed, 0x6E])
    found = np.empty(_RESAMPLES)
    for first in range(0, _RESAMPLES, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, _RESAMPLES - first)
        reached = generator.multinomial(n, np.full(n, 1 / n), size=count) @ scores.T / n >= target
        found[first : first + count] = np.where(reached.any(axis=1), np.take(sizes, reached.argmax(axis=1)), np.inf)
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2], method="inverted_cdf")
    return (None if np.isinf(low) else int(low), None if np.isinf(high) else int(high))
