"""Stacked generalization: a linear probe on the features of several models side by side (arXiv 2110.12899)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcca._backend import FloatArray
from streamcca.errors import AccuracyWarning, InputError
from streamcca.multiplicity.checks import checked_level
from streamcca.multiplicity.features.blocks import Features
from streamcca.multiplicity.features.probe import LinearProbe, fit_probe, scored
from streamcca.multiplicity.features.probe_intervals import Estimate, accuracy_estimate

STACKED = "stacked"

_RESAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class PairedGain:
    """What the stacked probe gains over the probe on one model's features, on the same test rows.

    Attributes
    ----------
    over : str
        The model.
    gain : float
        Accuracy of the stacked probe less that of this one.
    low, high : float
        Interval: of Agresti & Min for one class a row, percentiles of a bootstrap over rows for several labels.
    only_stacked, only_alone : int or None
        Rows that only the stacked probe, or only this one, gets right; None for several labels.
    p_value : float or None
        McNemar's exact test, two-sided, of equal accuracies; None for several labels.
    """

    over: str
    gain: float
    low: float
    high: float
    only_stacked: int | None
    only_alone: int | None
    p_value: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"PairedGain({100 * self.gain:+.2f} % over {self.over}, {100 * self.low:+.2f} .. {100 * self.high:+.2f})"


@dataclass(frozen=True, eq=False, repr=False)
class StackedProbe:
    """Test accuracy of a probe on each model's features and on all of them side by side.

    Attributes
    ----------
    names : tuple of str
        The models.
    accuracy : dict of str to Estimate
        Of each model's probe and of 'stacked': test accuracy (several labels: share of answers right) and its interval.
    gains : tuple of PairedGain
        Of the stacked probe over each model's. The best of several models was seen on the same test rows.
    scores : dict of str to array (N, C)
        Logits on the test rows, such as mean average precision is formed from.
    probes : dict of str to LinearProbe
        The probes.
    multilabel, level, n_train, n_test : bool, float, int, int
        Kind of labels, level of the intervals, rows.
    """

    names: tuple[str, ...]
    accuracy: dict[str, Estimate]
    gains: tuple[PairedGain, ...]
    scores: dict[str, FloatArray]
    probes: dict[str, LinearProbe]
    multilabel: bool
    level: float
    n_train: int
    n_test: int

    @property
    def best(self) -> str:
        """The model whose probe alone is most accurate, the first of equal ones."""
        return max(self.names, key=lambda name: self.accuracy[name].value)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the logits are left out."""
        return {
            "names": list(self.names),
            "accuracy": {name: estimate._asdict() for name, estimate in self.accuracy.items()},
            "gains": [gain.to_dict() for gain in self.gains],
            "best": self.best,
            "probes": {name: probe.to_dict() for name, probe in self.probes.items()},
            "multilabel": self.multilabel,
            "level": self.level,
            "n_train": self.n_train,
            "n_test": self.n_test,
        }

    def table(self) -> str:
        """Return one line a probe, in percent."""
        gains = {gain.over: gain for gain in self.gains}
        width = max(len(name) for name in self.probes)
        lines = [f"{'probe on':<{width}} {'accuracy':>9} {f'{100 * self.level:g} % interval':>16}  gain of stacked"]
        for name, (value, _, low, high) in self.accuracy.items():
            line = f"{name:<{width}} {100 * value:9.2f} {f'{100 * low:.2f} .. {100 * high:.2f}':>16}"
            if name in gains:
                g = gains[name]
                p = "" if g.p_value is None else f", p = {g.p_value:.2g}"
                line += f"  {100 * g.gain:+.2f} ({100 * g.low:+.2f} .. {100 * g.high:+.2f}{p})"
            lines.append(line)
        return "\n".join(lines)

    def __repr__(self) -> str:
        gain = next(gain for gain in self.gains if gain.over == self.best)
        return (
            f"StackedProbe({len(self.names)} models, stacked {100 * self.accuracy[STACKED].value:.2f} %, "
            f"{100 * gain.gain:+.2f} over {self.best})"
        )


def stacked_probe(
    features: Mapping[str, tuple[Any, Any]],
    labels_train: Any,
    labels_test: Any,
    *,
    multilabel: bool = False,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    **probe: Any,
) -> StackedProbe:
    """Probe the features of each model alone, and of all models side by side.

    Parameters
    ----------
    features : mapping of str to (train, test)
        Name of a model, and its features (n, d) of the training rows and (N, d) of the test rows.
    labels_train, labels_test : arrays (n,), (N,) of int; or (n, C), (N, C) of 0 and 1 with `multilabel`
        Labels of the downstream task.
    multilabel : bool
        One independent question for each column of the labels.
    level, resamples, seed
        Of the intervals; bootstrap resamples of rows and their seed, where there are several labels.
    **probe
        Further options of `linear_probe`. The same penalty for all probes favors none; ``l2='validate'`` chooses one
        for each.

    Returns
    -------
    StackedProbe

    Raises
    ------
    InputError
        Fewer than two models; rows or labels do not fit.

    Warns
    -----
    AccuracyWarning
        A probe did not converge.

    Notes
    -----
    The linear layer on concatenated embeddings is of Gontijo-Lopes, Dauphin & Cubuk (arXiv 2110.12899), who report
    11-point mean average precision: form it from `scores`. Intervals and tests are ours: Agresti & Min (2005) add
    half a row to each cell of the table of right and wrong before the usual interval of a paired difference.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((700, 4))
    >>> y = (x.sum(axis=1) > 0).astype(int)
    >>> halves = {"left": (x[:400, :2], x[400:, :2]), "right": (x[:400, 2:], x[400:, 2:])}
    >>> stacked_probe(halves, y[:400], y[400:])
    StackedProbe(2 models, stacked 98.67 %, +24.67 over left)
    """
    if len(features) < 2 or STACKED in features:
        raise InputError(
            f"features: got {', '.join(map(repr, features)) or 'nothing'}, expected at least two models, none of "
            f"them called {STACKED!r}"
        )
    level = checked_level(level)
    pairs = {name: (Features.of(train), Features.of(test)) for name, (train, test) in features.items()}
    train, test = next(iter(pairs.values()))
    for more_train, more_test in list(pairs.values())[1:]:
        train, test = train.beside(more_train), test.beside(more_test)
    pairs[STACKED] = (train, test)
    probes: dict[str, LinearProbe] = {}
    scores: dict[str, FloatArray] = {}
    right: dict[str, FloatArray] = {}
    for name, (train, test) in pairs.items():
        probes[name] = fit_probe(train, labels_train, multilabel=multilabel, **probe)
        scores[name] = probes[name].predict_logits(test)
        right[name] = scored(scores[name], labels_test, multilabel)
    unconverged = [name for name, fitted in probes.items() if not fitted.converged]
    if unconverged:
        warnings.warn(
            f"stacked_probe: the probes of {', '.join(unconverged)} did not converge; give more iterations= or a "
            "larger l2=",
            AccuracyWarning,
            stacklevel=2,
        )
    difference = {name: right[STACKED] - right[name] for name in features}
    if multilabel:
        gains = _bootstrapped(difference, level, resamples, seed)
    else:
        gains = [_counted(name, values, level) for name, values in difference.items()]
    return StackedProbe(
        names=tuple(features),
        accuracy={name: accuracy_estimate(values[None], level) for name, values in right.items()},
        gains=tuple(gains),
        scores=scores,
        probes=probes,
        multilabel=multilabel,
        level=level,
        n_train=train.n,
        n_test=test.n,
    )


def _counted(name: str, difference: FloatArray, level: float) -> PairedGain:
    """Return the gain of one right answer a row, from the rows where just one of two probes is right."""
    import scipy.special

    n = len(difference)
    more, less = int(np.count_nonzero(difference > 0)), int(np.count_nonzero(difference < 0))
    p_value = min(1.0, 2.0 * float(scipy.special.bdtr(min(more, less), more + less, 0.5)))
    padded = (more - less) / (n + 2)
    variance = ((more + less + 1) / (n + 2) - padded**2) / (n + 2)
    half = float(scipy.special.ndtri(0.5 + level / 2)) * math.sqrt(variance)
    low, high = max(-1.0, padded - half), min(1.0, padded + half)
    return PairedGain(name, (more - less) / n, low, high, more, less, p_value)


def _bootstrapped(difference: dict[str, FloatArray], level: float, resamples: int, seed: int) -> list[PairedGain]:
    """Return gains with percentiles over resampled rows, the same rows for every model."""
    if isinstance(resamples, bool) or resamples < 100:
        raise InputError(f"resamples: got {resamples!r}, expected at least 100")
    values = np.stack(list(difference.values()))
    n = values.shape[1]
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, len(values)))
    for first in range(0, resamples, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, resamples - first)
        drawn = generator.multinomial(n, np.full(n, 1 / n), size=count)
        means[first : first + count] = drawn @ values.T / n
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return [
        PairedGain(name, float(values[i].mean()), float(low[i]), float(high[i]), None, None, None)
        for i, name in enumerate(difference)
    ]
