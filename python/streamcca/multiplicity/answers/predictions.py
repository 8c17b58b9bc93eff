"""What several models answer to the rows of one test set: logits, votes, probabilities; in memory or in files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamcca._backend import FloatArray
from streamcca.errors import DTypeError, InputError
from streamcca.multiplicity.answers.logit_files import checked_logits, checked_name, open_set, save_logits, saved_sets
from streamcca.views import check_option, unknown_name

__all__ = ["Predictions", "checked_labels", "needs_models", "save_logits", "saved_sets", "vote_counts"]

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Kind = Literal["probability", "logit"]
Rule = Literal["probability", "logit", "geometric"]

# Probabilities of a block of rows, all models and classes; what is computed from them takes a few times as much.
_BLOCK_BYTES = 16 << 20


class Predictions:
    """Logits of M models for the N rows of one test set with C classes.

    Made by `Predictions.of_logits` from arrays, or by `Predictions.load` from one file for each model (`save_logits`).
    Nothing here changes after it was made.

    Attributes
    ----------
    name : str
        Of the test set.
    names : tuple of str
        Of the M models.
    n, classes : int
        Rows N and classes C.
    labels : array (N,) of int64, or None
    temperatures : array (M,) of float64
        What logits are divided by before they become probabilities; 1 unless `calibrated`.
    votes : array (M, N) of int32
        Class of the largest logit, of ties the lowest class. Temperatures leave votes alone.

    Notes
    -----
    **What a file costs in digits.** Files hold float16 of each row less its maximum. With u = 2^-11, a stored
    difference d <= 0 (divided by the temperature) is off by u |d| at most, so a row's probabilities p are off by at
    most u (1 + u) sum_c p_c |d_c| <= u (1 + u) W((C - 1) / e) in total variation, which bounds the error of each of
    them (W is Lambert's function; worst is a row whose C - 1 other classes are equally unlikely): 5.4e-4 for 10
    classes, 1.3e-3 for 100, 2.2e-3 for 1000. Differences below 2^-14 are off by up to 2^-24 instead, those above 65504
    count as such. Votes are kept exactly, see `save_logits`.
    """

    def __init__(
        self,
        name: str,
        sources: Mapping[str, Any],
        votes: NDArray[np.int32],
        classes: int,
        labels: IntArray | None,
        temperatures: FloatArray,
    ) -> None:
        self.name = name
        self.names = tuple(sources)
        self.votes = votes
        self.classes = classes
        self.labels = labels
        self.temperatures = temperatures
        votes.setflags(write=False)
        temperatures.setflags(write=False)
        if labels is not None:
            labels.setflags(write=False)
        self._sources = dict(sources)  # each gives rows as source[first:last]: an array, or a slice of a file

    # ------------------------------------------------------------------ how they are made

    @classmethod
    def of_logits(
        cls, logits: Mapping[str, ArrayLike], labels: ArrayLike | None = None, name: str = "test"
    ) -> Predictions:
        """Take the logits of some models for the same rows.

        Parameters
        ----------
        logits : mapping of str to array_like (N, C)
            Logits (or log-probabilities) of each model. float16, float32 and float64 arrays are kept as they are, not
            copied: do not write into them.
        labels : array_like (N,) of int, optional
            True classes, 0 to C - 1. Without them there is no accuracy.
        name : str
            Of the test set.

        Returns
        -------
        Predictions

        Raises
        ------
        InputError
            If shapes or row counts differ, a label is out of range, or a logit is NaN or infinite (`NonFiniteError`).
        DTypeError
            If logits or labels are not numbers of these kinds.

        Examples
        --------
        >>> from streamcca.multiplicity.answers.predictions import Predictions
        >>> p = Predictions.of_logits({"a": [[2, 0, 1], [0, 1, 0]], "b": [[1, 3, 0], [0, 1, 0.5]]}, labels=[0, 1])
        >>> p.votes.tolist(), p.accuracies.tolist()
        ([[0, 1], [1, 1]], [1.0, 0.5])
        """
        if not isinstance(logits, Mapping) or not logits:
            raise InputError(f"logits: got {type(logits).__name__}, expected a mapping from one or more models' names")
        arrays = {checked_name(model): checked_logits(model, array) for model, array in logits.items()}
        shape = _common_shape({model: array.shape for model, array in arrays.items()}, name)
        votes = np.stack([np.argmax(array, axis=1).astype(np.int32) for array in arrays.values()])
        return cls(name, arrays, votes, shape[1], _labels_or_none(labels, shape), np.ones(len(arrays)))

    @classmethod
    def load(
        cls, paths: Mapping[str, str | os.PathLike[str]], set_name: str, labels: ArrayLike | None = None
    ) -> Predictions:
        """Open one file for each model, written by `save_logits`.

        The files are read once, in blocks of rows, to verify checksums and take votes; from then on rows are read when
        they are asked for, from the files that were opened (replacing a file does not change these predictions).

        Parameters
        ----------
        paths : mapping of str to path
            File of each model.
        set_name : str
            Which of the files' test sets.
        labels : array_like (N,) of int, optional

        Returns
        -------
        Predictions

        Raises
        ------
        MissingFileError, StateFileError
            If a file is not there, damaged or foreign.
        InputError
            If a file lacks the test set, or shapes or the fingerprints of the rows differ from model to model.
        """
        if not isinstance(paths, Mapping) or not paths:
            raise InputError(f"paths: got {type(paths).__name__}, expected a mapping from one or more models' names")
        sources, votes, shapes, marks = {}, [], {}, {}
        for model, path in paths.items():
            slices, vote, mark = open_set(path, set_name)
            sources[checked_name(model)] = slices
            votes.append(vote)
            shapes[model] = tuple(slices.get_shape())
            marks[model] = mark
        shape = _common_shape(shapes, set_name)
        told = {model: mark for model, mark in marks.items() if mark is not None}
        first = next(iter(told), None)
        for model, mark in told.items():
            if first is not None and mark != told[first]:
                raise InputError(
                    f"{set_name}: {model!r} answered other rows than {first!r} (fingerprints {mark!r} and "
                    f"{told[first]!r}); expected the same test set in the same order, compute its logits again"
                )
        return cls(set_name, sources, np.stack(votes), shape[1], _labels_or_none(labels, shape), np.ones(len(sources)))

    def select(self, names: Sequence[str]) -> Predictions:
        """Keep some models, in this order."""
        places = [self.index(name) for name in names]
        if not places or len(set(places)) < len(places):
            raise InputError(f"names: got {list(names)!r}, expected one or more models, each once")
        sources = {self.names[i]: self._sources[self.names[i]] for i in places}
        return Predictions(self.name, sources, self.votes[places], self.classes, self.labels, self.temperatures[places])

    def calibrated(self, temperatures: Mapping[str, float] | ArrayLike) -> Predictions:
        """Divide every model's logits by a temperature of its own; replaces the temperatures that were there.

        Parameters
        ----------
        temperatures : mapping of str to float, or array_like (M,)
            Positive; see `streamcca.multiplicity.answers.calibration.temperature_scaling`.
        """
        if isinstance(temperatures, Mapping):
            for name in self.names:
                if name not in temperatures:
                    raise InputError(f"temperatures: there is none for model {name!r}; give one for each model")
            temperatures = [temperatures[name] for name in self.names]
        values = np.array(temperatures, dtype=np.float64)
        if values.shape != (len(self.names),) or not np.all(np.isfinite(values) & (values > 0)):
            raise InputError(
                f"temperatures: got {temperatures!r}, expected {len(self.names)} finite numbers above 0, one for each "
                "model"
            )
        return Predictions(self.name, self._sources, self.votes, self.classes, self.labels, values)

    # ------------------------------------------------------------------ what they say

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.votes.shape[1])

    @property
    def known_labels(self) -> IntArray:
        """Labels, or an `InputError` where there are none."""
        if self.labels is None:
            raise InputError(f"{self.name}: has no labels, which accuracy needs; give labels= where it is made")
        return self.labels

    @property
    def correct(self) -> BoolArray:
        """Whether each model is right on each row (M, N)."""
        right: BoolArray = self.votes == self.known_labels
        return right

    @property
    def accuracies(self) -> FloatArray:
        """Share of the rows that each model gets right (M,)."""
        shares: FloatArray = np.count_nonzero(self.correct, axis=1) / self.n
        return shares

    def index(self, model: str) -> int:
        """Place of a model among `names`."""
        if model not in self.names:
            raise InputError(f"{self.name}: " + unknown_name("model", model, self.names))
        return self.names.index(model)

    def logits(self, model: str) -> FloatArray:
        """Logits (N, C) as they were given, in float64, not divided by a temperature; files lack the row's maximum."""
        self.index(model)
        return np.array(self._sources[model][0 : self.n], dtype=np.float64)

    def probabilities(self, model: str) -> FloatArray:
        """Softmax (N, C) of a model's logits divided by its temperature, in float64."""
        return _softmax(self._scaled(self.index(model), 0, self.n))

    def blocks(self, rows: int | None = None, kind: Kind = "probability") -> Iterator[tuple[slice, FloatArray]]:
        """Go through the rows in blocks, all models at once.

        Parameters
        ----------
        rows : int, optional
            Rows of a block; by default as many as take 16 MiB.
        kind : {'probability', 'logit'}
            Probabilities, or logits divided by the temperature, less the row's maximum.

        Yields
        ------
        slice, array (M, b, C) of float64
        """
        check_option("kind", kind, ("probability", "logit"))
        if rows is None:
            rows = max(1, _BLOCK_BYTES // (8 * len(self.names) * self.classes))
        if isinstance(rows, bool) or not isinstance(rows, int | np.integer) or rows < 1:
            raise InputError(f"rows: got {rows!r}, expected a number of rows, at least 1")
        return self._blocks(int(rows), kind)

    def _blocks(self, rows: int, kind: Kind) -> Iterator[tuple[slice, FloatArray]]:
        for first in range(0, self.n, rows):
            last = min(first + rows, self.n)
            block = np.stack([self._scaled(i, first, last) for i in range(len(self.names))])
            yield slice(first, last), _softmax(block) if kind == "probability" else block

    def _scaled(self, i: int, first: int, last: int) -> FloatArray:
        block: FloatArray = np.array(self._sources[self.names[i]][first:last], dtype=np.float64)
        with np.errstate(over="ignore"):  # a difference of numbers about 1e308: its probability is 0 all the same
            block -= block.max(axis=1, keepdims=True)
            block /= self.temperatures[i]
        return block

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        about = "no labels"
        if self.labels is not None:
            about = f"accuracies {self.accuracies.min():.4f} to {self.accuracies.max():.4f}"
        return f"Predictions({self.name!r}, {len(self)} models, {self.n} rows, {self.classes} classes, {about})"


def checked_labels(labels: ArrayLike, n: int, classes: int) -> IntArray:
    """Return labels as int64 (N,), or refuse them."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"labels: got {array.dtype}, expected integers, 0 to {classes - 1}")
    if array.shape != (n,):
        raise InputError(f"labels: got shape {array.shape}, expected ({n},), one for each row of logits")
    wrong = np.flatnonzero((array < 0) | (array >= classes))
    if len(wrong):
        raise InputError(
            f"labels: got {int(array[wrong[0]])} at row {int(wrong[0])}, expected 0 to {classes - 1}, as the logits "
            f"have {classes} classes"
        )
    copy: IntArray = array.astype(np.int64)
    return copy


def needs_models(predictions: Predictions, least: int, what: str) -> None:
    """Refuse a set of too few models."""
    if len(predictions) < least:
        raise InputError(f"{what}: got {len(predictions)} model, expected at least {least}")


def vote_counts(votes: np.ndarray[Any, Any], classes: int) -> IntArray:
    """Votes (b, C) for each class from the votes (M, b) of all models."""
    rows = votes.shape[1]
    places = votes + np.arange(rows) * classes
    return np.bincount(places.reshape(-1), minlength=rows * classes).reshape(rows, classes)


def block_kind(rule: Rule) -> Kind:
    """Tell which scores of models are added up under a rule."""
    check_option("rule", rule, ("probability", "logit", "geometric"))
    # Geometric means of probabilities are means of logits less a number for each row.
    return "probability" if rule == "probability" else "logit"


# ---------------------------------------------------------------------- inside


def _softmax(scaled: FloatArray) -> FloatArray:
    """Softmax over the last axis, in place, of numbers whose maximum is 0."""
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=-1, keepdims=True)
    return scaled


def _common_shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    first = next(iter(shapes))
    for model, shape in shapes.items():
        if shape != shapes[first]:
            raise InputError(
                f"{name}: the logits of {model!r} have shape {shape}, those of {first!r} {shapes[first]}; expected the "
                "same rows and classes for all models"
            )
    rows, classes = shapes[first]
    return rows, classes


def _labels_or_none(labels: ArrayLike | None, shape: tuple[int, int]) -> IntArray | None:
    return None if labels is None else checked_labels(labels, *shape)
