"""Features of two models mixed at random, and what a linear probe makes of them (arXiv 2110.12899)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import AccuracyWarning, InputError
from streamcca.multiplicity.checks import checked_level
from streamcca.multiplicity.features.blocks import Features, IntArray
from streamcca.multiplicity.features.probe import PENALTY, fit_probe, scored
from streamcca.multiplicity.features.probe_intervals import Estimate, accuracy_estimate, difference_estimate
from streamcca.sources import progress_bar

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The paper's shares of base features."""


def mix_features(
    base: int, other: int, share: float, dimension: int | None = None, seed: int | Sequence[int] = 0
) -> IntArray:
    """Draw ``share`` of the features from the base model and the rest from the other, at random.

    Parameters
    ----------
    base, other : int
        Width of each model's features.
    share : float
        Share of base features, in [0, 1]; ``share * dimension`` is rounded half up.
    dimension : int, optional
        Features in all, at most `base` (the paper); by default min(base, other), so that every share can be had.
    seed : int or sequence of int
        Draws of one seed are nested: a larger share keeps the base features of a smaller one, and adds to them, so that
        shares are compared on the same draw.

    Returns
    -------
    array (dimension,) of int64
        Increasing column numbers; those of the other model follow those of the base model.

    Raises
    ------
    InputError
        A model has too few features.

    Examples
    --------
    >>> mix_features(4, 4, 0.5, seed=1)
    array([0, 1, 4, 7])
    >>> mix_features(4, 4, 1.0)
    array([0, 1, 2, 3])
    """
    dimension = min(base, other) if dimension is None else dimension
    if not 1 <= dimension <= base:
        raise InputError(f"dimension: got {dimension}, expected 1 to {base}, the number of features of the base model")
    if isinstance(share, bool) or not 0 <= share <= 1:
        raise InputError(f"share: got {share!r}, expected a number from 0 to 1")
    of_base = math.floor(share * dimension + 0.5)
    if dimension - of_base > other:
        raise InputError(
            f"dimension: a share of {share:g} of {dimension} features takes {dimension - of_base} of the other model, "
            f"which has {other}; expected dimension={min(base, other)} or less"
        )
    generator = np.random.default_rng(seed)
    from_base, from_other = generator.permutation(base), generator.permutation(other)
    drawn = np.concatenate([from_base[:of_base], base + from_other[: dimension - of_base]])
    return np.sort(drawn).astype(np.int64)


@dataclass(frozen=True, eq=False, repr=False)
class FeatureMixing:
    """Test accuracy of linear probes on mixed features.

    Attributes
    ----------
    names : (str, str)
        Base model and other model.
    shares : tuple of float
        Shares of base features, increasing.
    accuracies : array (shares, draws)
        Test accuracy of each probe.
    accuracy : tuple of Estimate
        Mean of each share, its standard error, and an interval that holds for other draws and other test rows.
    deviations : tuple of float, or None
        Standard deviation over draws; None of a single draw.
    over_line : tuple of Estimate, or None
        Accuracy less that on the straight line from share 0 to share 1; None where one of these was not asked for.
    over_best : tuple of Estimate, or None
        Accuracy less that of the better end. Which end is better was seen on the same test rows, which flatters it, so
        that this gain is if anything too small.
    dimension, draws, seed, level, n_train, n_test : int, int, int, float, int, int
        Features of a probe, draws of each share, seed, level of the intervals, rows.
    l2 : float or 'validate'
        The penalty that was asked for.
    unconverged : int
        Probes that did not reach their tolerance.
    probes : int
        Probes that were fitted.
    """

    names: tuple[str, str]
    shares: tuple[float, ...]
    accuracies: FloatArray
    accuracy: tuple[Estimate, ...]
    deviations: tuple[float, ...] | None
    over_line: tuple[Estimate, ...] | None
    over_best: tuple[Estimate, ...] | None
    dimension: int
    draws: int
    seed: int
    level: float
    n_train: int
    n_test: int
    l2: float | str
    unconverged: int
    probes: int

    @property
    def best_share(self) -> float:
        """The share with the highest mean accuracy, the smallest of equal ones."""
        return self.shares[max(range(len(self.shares)), key=lambda i: self.accuracy[i].value)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""

        def plain(estimates: tuple[Estimate, ...] | None) -> list[dict[str, float]] | None:
            return None if estimates is None else [estimate._asdict() for estimate in estimates]

        return {
            **self.__dict__,
            "names": list(self.names),
            "shares": list(self.shares),
            "accuracies": self.accuracies.tolist(),
            "accuracy": plain(self.accuracy),
            "deviations": None if self.deviations is None else list(self.deviations),
            "over_line": plain(self.over_line),
            "over_best": plain(self.over_best),
            "best_share": self.best_share,
        }

    def table(self) -> str:
        """Return one line a share, accuracies and gains in percent."""
        base, other = self.names
        lines = [
            f"linear probes on {self.dimension} features of {base} and {other}, {self.draws} draws, "
            f"{self.n_test} test rows",
            f"{f'% {base}':>12} {'accuracy':>9} {f'{100 * self.level:g} % interval':>16} {'over line':>10} "
            f"{'over best end':>14}",
        ]
        for i, share in enumerate(self.shares):
            _, _, low, high = self.accuracy[i]
            gains = [f"{100 * gain[i].value:+.2f}" if gain else "-" for gain in (self.over_line, self.over_best)]
            lines.append(
                f"{100 * share:12g} {100 * self.accuracy[i].value:9.2f} {f'{100 * low:.2f} .. {100 * high:.2f}':>16} "
                f"{gains[0]:>10} {gains[1]:>14}"
            )
        if self.unconverged:
            lines.append(f"{self.unconverged} of {self.probes} probes did not converge")
        return "\n".join(lines)

    def __repr__(self) -> str:
        best = max(self.accuracy, key=lambda estimate: estimate.value)
        return (
            f"FeatureMixing({self.names[0]} and {self.names[1]}, {self.dimension} features, {self.draws} draws, best "
            f"{100 * best.value:.2f} % at share {self.best_share:g})"
        )


def feature_mixing(
    train_a: Any,
    train_b: Any,
    test_a: Any,
    test_b: Any,
    labels_train: Any,
    labels_test: Any,
    *,
    shares: Sequence[float] = SHARES,
    dimension: int | None = None,
    draws: int = 5,
    seed: int = 0,
    level: float = 0.95,
    names: tuple[str, str] = ("base", "other"),
    progress: bool | str = "auto",
    **probe: Any,
) -> FeatureMixing:
    """Probe random mixtures of the features of two models.

    Parameters
    ----------
    train_a, train_b, test_a, test_b : arrays (n, p), (n, q), (N, p), (N, q)
        Features of the base model (a) and the other (b) for the same training rows, and for the same test rows.
    labels_train, labels_test : arrays (n,), (N,) of int
        Classes.
    shares : sequence of float
        Shares of base features. Gains need 0 and 1 among them.
    dimension : int, optional
        Features of each probe, at most p; min(p, q) by default.
    draws : int
        Random draws of each share; the same permutation of features serves all shares of a draw.
    seed, level
        Of the draws; of the intervals.
    names : (str, str)
        What the two models are called.
    progress : bool or 'auto'
        Show a bar on stderr.
    **probe
        Further options of `linear_probe`: ``l2=``, ``standardize=``, ``multilabel=``, ...

    Returns
    -------
    FeatureMixing

    Raises
    ------
    InputError
        Rows do not match, a share or dimension cannot be had.

    Warns
    -----
    AccuracyWarning
        Some probes did not converge.

    Notes
    -----
    Gontijo-Lopes, Dauphin & Cubuk (arXiv 2110.12899) mix 0, 25, 50, 75 and 100 % of randomly chosen features, at most
    as many as the base model has, and train a linear classifier by L-BFGS. Standardization, the penalty, repeated
    nested draws and everything about intervals and gains are ours.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((600, 4))
    >>> y = (x.sum(axis=1) > 0).astype(int)
    >>> mixed = feature_mixing(x[:400, :2], x[:400, 2:], x[400:, :2], x[400:, 2:], y[:400], y[400:], shares=[0, 0.5, 1])
    >>> [round(estimate.value, 2) for estimate in mixed.accuracy]
    [0.71, 0.77, 0.76]
    """
    train = Features.of(train_a).beside(Features.of(train_b))
    test = Features.of(test_a).beside(Features.of(test_b))
    widths = Features.of(train_a).width, Features.of(train_b).width
    if widths != (Features.of(test_a).width, Features.of(test_b).width):
        raise InputError(
            f"test features: got widths {Features.of(test_a).width} and {Features.of(test_b).width}, expected "
            f"{widths[0]} and {widths[1]} as in training"
        )
    shares = tuple(sorted({float(share) for share in shares}))
    if not shares or isinstance(draws, bool) or draws < 1:
        raise InputError(f"shares, draws: got {len(shares)} shares and {draws!r} draws, expected at least one of each")
    level = checked_level(level)
    dimension = min(widths) if dimension is None else dimension
    chosen = [[mix_features(*widths, share, dimension, [seed, draw]) for draw in range(draws)] for share in shares]
    scores, unconverged, probes = _all_scores(train, test, labels_train, labels_test, chosen, progress, probe)
    line, best = _gains(scores, shares, level)
    accuracies = scores.mean(axis=2)
    return FeatureMixing(
        names=names,
        shares=shares,
        accuracies=accuracies,
        accuracy=tuple(accuracy_estimate(of_share, level) for of_share in scores),
        deviations=tuple(float(s) for s in accuracies.std(axis=1, ddof=1)) if draws > 1 else None,
        over_line=line,
        over_best=best,
        dimension=int(dimension),
        draws=int(draws),
        seed=int(seed),
        level=level,
        n_train=train.n,
        n_test=test.n,
        l2=probe.get("l2", PENALTY),
        unconverged=unconverged,
        probes=probes,
    )


def _all_scores(
    train: Features,
    test: Features,
    labels_train: Any,
    labels_test: Any,
    chosen: list[list[IntArray]],
    progress: bool | str,
    options: dict[str, Any],
) -> tuple[FloatArray, int, int]:
    """Return the score of every test row (shares, draws, rows), and of how many probes some did not converge."""
    scores = np.empty((len(chosen), len(chosen[0]), test.n))
    known: dict[bytes, FloatArray] = {}  # a share of all features is the same in every draw
    unconverged = 0
    with progress_bar(progress, len(chosen) * len(chosen[0]), "probe", "mix features") as bar:
        for i, of_share in enumerate(chosen):
            for j, columns in enumerate(of_share):
                key = columns.tobytes()
                if key not in known:
                    probe = fit_probe(train.select(columns), labels_train, **options)
                    unconverged += not probe.converged
                    known[key] = scored(probe.predict_logits(test.select(columns)), labels_test, probe.multilabel)
                scores[i, j] = known[key]
                bar.update(1)
    if unconverged:
        warnings.warn(
            f"feature_mixing: {unconverged} of {len(known)} probes did not converge; give more iterations= or a larger "
            "l2=",
            AccuracyWarning,
            stacklevel=3,
        )
    return scores, unconverged, len(known)


def _gains(
    scores: FloatArray, shares: Sequence[float], level: float
) -> tuple[tuple[Estimate, ...] | None, tuple[Estimate, ...] | None]:
    """Return what each share gains over the straight line between the ends, and over the better end."""
    if shares[0] != 0.0 or shares[-1] != 1.0:
        return None, None
    # Of the ends themselves it is zero by definition.
    first, last, nothing = scores[0], scores[-1], Estimate(0.0, 0.0, 0.0, 0.0)
    better = len(shares) - 1 if last.mean() >= first.mean() else 0
    line, best = [], []
    for i, (share, of_share) in enumerate(zip(shares, scores, strict=True)):
        straight = share * last + (1 - share) * first
        line.append(nothing if share in (0.0, 1.0) else difference_estimate(of_share - straight, level))
        best.append(nothing if i == better else difference_estimate(of_share - scores[better], level))
    return tuple(line), tuple(best)
