"""Subspaces and scores of a model's layers on a fixed probe set, to be compared later without model or data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca import store
from streamcca._backend import FloatArray, TruncatedView
from streamcca.errors import InputError, LayerError, ReplayError, StateFileError, StreamCCAWarning
from streamcca.kept_rows import KeepRows, KeptRows
from streamcca.layers import Layers
from streamcca.masks import Mask
from streamcca.moments import Moments, Precision
from streamcca.pairing import VARIANCE_99, Progress, correlate
from streamcca.projection import Projector
from streamcca.resize import Resize, ResizeBy, make_resizer
from streamcca.results import CCAResult
from streamcca.rows import Rows
from streamcca.subspace import Rule, Truncated, checked_ridge, parse_rule, truncate_view
from streamcca.sweep import BatchRows, Forward, Sweep
from streamcca.tap import CallIndex, LayerTap
from streamcca.views import unknown_name
from streamcca.watch import check_same_layers

if TYPE_CHECKING:
    from torch.nn import Module

FORMAT_VERSION = 1
Warned = list[tuple[str, StreamCCAWarning]]


@dataclass(frozen=True, eq=False)
class LayerScores:
    """One layer's truncated view and the scores of all rows in it.

    Attributes
    ----------
    truncated : Truncated
        The kept directions and what is known of their rounding.
    mean : array (d,)
        Mean row.
    scores : array (n, k)
        Left singular vectors of the centered rows, one column for each kept direction: rows projected on the direction,
        divided by its singular value.
    """

    truncated: Truncated
    mean: FloatArray
    scores: FloatArray = field(repr=False)

    def cross_covariance(self, other: LayerScores) -> FloatArray:
        """Covariance (kx, ky) of the rows' projections on both layers' kept directions, in working coordinates."""
        return self.projections.T @ other.projections / (self.truncated.n - 1)

    @property
    def projections(self) -> FloatArray:
        """Centered rows (n, k) in working coordinates of the kept directions: scores times lengths."""
        return self.scores * _working_lengths(self.truncated)


def _working_lengths(x: Truncated) -> FloatArray:
    """Singular values of the centered rows in the coordinates that `native.projection` leads to."""
    values: FloatArray = np.asarray(x.native.save()["eigenvalues"])
    return np.sqrt(values * (x.n - 1))


@dataclass(frozen=True, eq=False, repr=False)
class SubspaceScores:
    """The layers of one model on a fixed probe set, each cut to its leading directions, with the scores of every row.

    Any two of them over the same rows can be compared, without the models and without the data: M models cost M
    passes (twice that where rows do not fit in memory), not M squared.

    Attributes
    ----------
    name : str
        What the model is called in tables and plots.
    layers : dict of str to LayerScores
        By name, in the order of the model.
    n : int
        Number of rows.
    rows : str
        What a row is.
    rule : Rule
        What decided the ranks.
    ridge : float
        The caller's ridge.
    probe : int
        CRC-32 of all inputs, in order: scores of different probe sets, or of another order, are not compared.
    """

    name: str
    layers: dict[str, LayerScores]
    n: int
    rows: str
    rule: Rule
    ridge: float
    probe: int

    def __getitem__(self, layer: str) -> LayerScores:
        if layer not in self.layers:
            raise LayerError(unknown_name("layer", layer, self.layers))
        return self.layers[layer]

    @property
    def ranks(self) -> dict[str, int]:
        """Directions kept of each layer."""
        return {name: layer.truncated.native.rank for name, layer in self.layers.items()}

    @property
    def nbytes(self) -> int:
        """Bytes that the scores take."""
        return sum(layer.scores.nbytes for layer in self.layers.values())

    def check_same_rows(self, other: SubspaceScores, allow_other_probe: bool = False) -> None:
        """Refuse scores whose rows do not belong together.

        Raises
        ------
        ReplayError
        """
        if self.n != other.n:
            raise ReplayError(
                f"scores {self.name!r} and {other.name!r} have {self.n} and {other.n} rows, expected the same rows in "
                "the same order; use one probe set and one rule for rows"
            )
        if self.probe != other.probe and not allow_other_probe:
            raise ReplayError(
                f"scores {self.name!r} and {other.name!r} rest on other inputs (checksums {self.probe:08x} and "
                f"{other.probe:08x}); use the same batches in the same order, or, if the inputs differ on purpose "
                "and their rows belong together, pass allow_other_probe=True"
            )
        if self.ridge != other.ridge:
            raise InputError(
                f"scores {self.name!r} and {other.name!r} were made with ridges {self.ridge:g} and {other.ridge:g}, "
                "expected the same; make them anew"
            )

    def pair(self, layer: str, other: SubspaceScores, other_layer: str, **options: Any) -> tuple[CCAResult, Warned]:
        """Compare one layer with one of another model; returns the result and its warnings.

        `options` are those of `correlate`.
        """
        x, y = self[layer], other[other_layer]
        result, notes = correlate(
            x.truncated, y.truncated, x.cross_covariance(y), kept=True, ridge=self.ridge, **options
        )
        return result, [(f"layers {self.name}:{layer} and {other.name}:{other_layer}", note) for note in notes]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a file, atomically; safetensors with a checksum for every array.

        Raises
        ------
        StorageError
            The file cannot be written; an earlier one is untouched.
        """
        tensors: dict[str, Any] = {}
        layers = []
        for i, (name, layer) in enumerate(self.layers.items()):
            native = layer.truncated.native.save()
            arrays = {key: value for key, value in native.items() if isinstance(value, np.ndarray)}
            arrays |= {"mean": layer.mean, "scores": layer.scores}
            tensors.update({f"{key}.{i}": value for key, value in arrays.items()})
            numbers = {key: value for key, value in native.items() if key not in arrays}
            about = {"n": layer.truncated.n, "rows": layer.truncated.rows, "precision": layer.truncated.precision}
            layers.append({"name": name, "native": numbers, "arrays": sorted(arrays), **about})
        rule = [self.rule.name, self.rule.x, self.rule.y]
        own = {
            "name": self.name,
            "n": self.n,
            "rows": self.rows,
            "rule": rule,
            "ridge": self.ridge,
            "probe": self.probe,
        }
        meta = {"format": store.SCORES_FORMAT, "version": FORMAT_VERSION, "layers": layers, **own}
        store.write_state(path, {"meta": meta, "tensors": tensors}, store.SCORES_FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SubspaceScores:
        """Read a file written by `save`.

        Raises
        ------
        MissingFileError, StateFileError
            There is no such file; it is damaged, foreign, or of a newer version.
        """
        state = store.read_state(path, store.SCORES_FORMAT)
        version = state["meta"].get("version")
        if version != FORMAT_VERSION:
            raise StateFileError(
                f"{path}: got version {version}, expected {FORMAT_VERSION}; use the streamcca that wrote it"
            )
        try:
            return cls._unpacked(state["meta"], state["tensors"])
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise StateFileError(f"{path}: damaged, its parts do not fit together ({error!r})") from None

    @classmethod
    def _unpacked(cls, meta: Mapping[str, Any], tensors: Mapping[str, Any]) -> SubspaceScores:
        rule = Rule(*meta["rule"])
        layers = {}
        for i, about in enumerate(meta["layers"]):
            arrays = {key: tensors[f"{key}.{i}"] for key in about["arrays"]}
            mean, scores = arrays.pop("mean"), arrays.pop("scores")
            native = TruncatedView.restore({**about["native"], **arrays})
            if mean.shape != (native.width,) or scores.shape != (meta["n"], native.rank) or about["rows"] != meta["n"]:
                raise ValueError(f"layer {about['name']}: mean {mean.shape}, scores {scores.shape}, n {meta['n']}")
            truncated = Truncated(about["name"], rule, native, about["n"], about["rows"], about["precision"], mean=mean)
            layers[about["name"]] = LayerScores(truncated, mean, scores)
        return cls(meta["name"], layers, meta["n"], meta["rows"], rule, meta["ridge"], meta["probe"])

    def __repr__(self) -> str:
        ranks = ", ".join(f"{name} [{rank}]" for name, rank in list(self.ranks.items())[:4])
        more = f" and {len(self.layers) - 4} more" if len(self.layers) > 4 else ""
        return f"SubspaceScores({self.name!r}, n={self.n} {self.rows}, {self.rule}: {ranks}{more})"


def subspace_scores(
    model: Module,
    loader: Iterable[Any],
    layers: Layers = None,
    *,
    name: str = "model",
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | None = None,
    ridge: float = 0.0,
    rows: Rows = "auto",
    mask: Mask = "auto",
    call_index: CallIndex = None,
    resize: Resize = None,
    resize_by: ResizeBy = "fourier",
    forward: Forward | None = None,
    precision: Precision = "auto",
    device: str | None = None,
    threads: int | None = None,
    keep_rows: KeepRows = "auto",
    progress: Progress = "auto",
) -> SubspaceScores:
    """Cut every layer of a model to its leading directions on a probe set, and keep the scores of its rows.

    The rows are needed twice: to form each layer's covariance, and to be projected on what was kept of it. Where they
    fit in memory they are kept meanwhile, and one pass over the loader does; else there is a second, which is checked
    to bring the same inputs and the same rows. The numbers are the same to the bit.

    Parameters
    ----------
    model : torch.nn.Module
        Runs in eval mode without gradients, and gets its mode back.
    loader : iterable
        Batches as in `compare`, the same ones each time; a tensor is cut into batches.
    layers, rows, mask, call_index, resize, resize_by, device
        As in `watch`.
    name : str
        What the model is called in tables and plots.
    variance, nuclear, rank, ridge
        As in `svcca`; by default 99 % of the variance.
    forward, progress
        As in `compare`.
    precision, threads
        As in `Moments`.
    keep_rows : bool or 'auto'
        Whether to keep the rows of all layers instead of running the model a second time. 'auto' does if they take up
        to 256 MiB. With kept rows the loader may be an iterator, and nobody notices if the model is random also in eval
        mode: False makes sure of that.

    Returns
    -------
    SubspaceScores
        8 n k bytes for each layer.

    Raises
    ------
    ReplayError
        A second pass brought other inputs or other rows: shuffling, random augmentation, or dropout that is on.
    LayerError, InputError
        As in `compare`.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU())
    >>> scores = subspace_scores(model, torch.randn(300, 8), rank=3)
    >>> scores["0"].scores.shape
    (300, 3)
    """
    if isinstance(rank, tuple):
        raise InputError(f"rank: got {rank!r}, expected one integer, since scores are of one model")
    rule = parse_rule(variance, nuclear, rank, VARIANCE_99)
    ridge = checked_ridge(ridge)
    tap = LayerTap(model, layers, device, mask, call_index, make_resizer(resize, resize_by))
    sweep = Sweep({"": tap}, {"": loader}, rows=rows, forward=forward, progress=progress)
    kept = KeptRows(keep_rows, sweep.repeatable, sweep.length)
    if not kept.complete:
        check_repeatable(sweep)
    sweep.remember()
    options = {"precision": precision, "threads": threads, "pairs": "self", "device": device}
    moments = first_pass(sweep, options, f"{name}: moments", kept.add)
    sweep.report_silent()
    truncated = {view: truncate_view(moments, view, rule, rule.x, ridge) for view in moments.views}
    means = {view: moments.mean(view) for view in truncated}
    project = Projector(truncated, means)
    lengths = {view: _working_lengths(x) for view, x in truncated.items()}
    scores = {view: np.empty((moments.rows, x.native.rank)) for view, x in truncated.items()}
    done = 0

    def keep(batch_rows: BatchRows) -> None:
        nonlocal done
        count = 0
        for view, x in project(batch_rows).items():
            count = len(x)
            scores[view][done : done + count] = x.cpu().numpy() / lengths[view]
        done += count

    if kept.complete:
        for rows_again in kept.drain():
            keep(rows_again)
    else:
        sweep.run(keep, f"{name}: scores")
    found = {view: LayerScores(truncated[view], means[view], scores[view]) for view in sweep.names("")}
    return SubspaceScores(name, found, moments.rows, sweep.describe_rows(), rule, ridge, sweep.inputs_checksum)


def check_repeatable(sweep: Sweep) -> None:
    """Refuse loaders that can be read only once.

    Raises
    ------
    InputError
    """
    if not sweep.repeatable:
        raise InputError(
            "loader: it is an iterator, which can be read only once, and a second pass is needed; give a list of "
            "batches or a DataLoader"
        )


def first_pass(
    sweep: Sweep, options: Mapping[str, Any], description: str, also: Callable[[BatchRows], None]
) -> Moments:
    """Form moments of all layers, and hand the rows on; `options` are those of `Moments`."""
    moments: Moments | None = None

    def add(batch_rows: BatchRows) -> None:
        nonlocal moments
        if moments is None:
            moments = Moments({name: int(x.shape[1]) for name, x in batch_rows.items()}, **options)
        check_same_layers(batch_rows, moments.views)
        moments.update(batch_rows)
        also(batch_rows)

    sweep.run(add, description)
    assert moments is not None  # noqa: S101 - run refuses an empty loader
    return moments


def tell(notes: Sequence[tuple[str, StreamCCAWarning]], stacklevel: int) -> None:
    """Warn once for each kind; every result keeps its own notes in .warnings."""
    import warnings

    seen = Counter(type(note) for _, note in notes)
    for kind, count in seen.items():
        where, example = next((w, n) for w, n in notes if type(n) is kind)
        more = f" (and {count - 1} more such notes, see .warnings)" if count > 1 else ""
        warnings.warn(kind(f"{where}: {example}{more}"), stacklevel=stacklevel + 1)
