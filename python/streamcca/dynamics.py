"""How the representations of a model move while it trains, on a fixed probe set."""

from __future__ import annotations

import contextlib
import os
import random
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streamcca._backend import FloatArray
from streamcca.cca import Measure, Progress
from streamcca.errors import InputError, StreamCCAWarning
from streamcca.layers import Layers
from streamcca.masks import Mask
from streamcca.moments import Precision
from streamcca.resize import Resize, ResizeBy
from streamcca.results import CCAResult
from streamcca.rows import Rows
from streamcca.scores import SubspaceScores, Warned, subspace_scores, tell
from streamcca.sweep import Forward
from streamcca.tap import CallIndex
from streamcca.views import check_option

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch.nn import Module

To = Literal["final", "first", "previous"]
_SVCCA = {"measure": "svcca", "side": "", "allow_underdetermined": False, "allow_inaccurate": False}


@dataclass(frozen=True, eq=False, repr=False)
class Curves:
    """Similarity of every layer, at every recorded step, to itself at another step.

    Attributes
    ----------
    measure : str
    to : 'final', 'first' or 'previous'
        The state that each step is compared with.
    steps : tuple of int
        Steps, increasing; the state itself is left out.
    layers : tuple of str
        In the order of the model, so that the first is nearest to the input.
    results : tuple of tuple of CCAResult
        One for each layer and step.
    n : int
        Rows of the probe set.
    rows : str
        What a row is.
    """

    measure: str
    to: To
    steps: tuple[int, ...]
    layers: tuple[str, ...]
    results: tuple[tuple[CCAResult, ...], ...] = field(repr=False)
    n: int
    rows: str

    def _matrix(self, attribute: str) -> FloatArray:
        return np.array([[getattr(cell, attribute) for cell in row] for row in self.results], dtype=np.float64)

    @property
    def matrix(self) -> FloatArray:
        """Similarities (layers, steps)."""
        return self._matrix("mean")

    @property
    def null_matrix(self) -> FloatArray:
        """Chance level of each cell."""
        return self._matrix("null_mean")

    @property
    def error_bounds(self) -> FloatArray:
        """Error bound of each cell."""
        return self._matrix("error_bound")

    def reached(self, similarity: float) -> dict[str, int | None]:
        """Return for each layer the first step from which on it stays at least this similar; None if it never does.

        With ``to='final'`` this is when the layer has converged (SVCCA paper, section 4.1): layers near the input come
        first.
        """
        found: dict[str, int | None] = {}
        for layer, row in zip(self.layers, self.matrix, strict=True):
            below = np.flatnonzero(row < similarity)
            first = int(below[-1]) + 1 if len(below) else 0
            found[layer] = self.steps[first] if first < len(self.steps) else None
        return found

    def table(self) -> str:
        """Return the similarities as text, a line for each layer."""
        left = max(map(len, self.layers))
        lines = [" " * left + "".join(f"{step:>9}" for step in self.steps)]
        for layer, row in zip(self.layers, self.matrix, strict=True):
            lines.append(layer.ljust(left) + "".join(f"{value:9.3f}" for value in row))
        lines.append(
            f"{self.measure.upper()} to the {self.to} state, n = {self.n} {self.rows}; chance "
            f"{self.null_matrix.min():.3f} to {self.null_matrix.max():.3f}, largest error bound "
            f"{self.error_bounds.max():.1e}"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "measure": self.measure,
            "to": self.to,
            "steps": list(self.steps),
            "layers": list(self.layers),
            "n": self.n,
            "rows": self.rows,
            "matrix": self.matrix.tolist(),
            "null_matrix": self.null_matrix.tolist(),
            "error_bounds": self.error_bounds.tolist(),
        }

    def plot(self, kind: Literal["curves", "map"] = "curves", ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw a line for each layer over the steps, or a map with the layers from the input upward."""
        from streamcca.plots import plot_curve_map, plot_curves

        check_option("kind", kind, ("curves", "map"))
        return (plot_curves if kind == "curves" else plot_curve_map)(self, ax=ax)

    def __repr__(self) -> str:
        return (
            f"Curves({self.measure} to {self.to}, {len(self.layers)} layers, {len(self.steps)} steps, "
            f"similarity {self.matrix.min():.3f} to {self.matrix.max():.3f})"
        )


class Dynamics:
    """Records truncated subspaces and scores of a model's layers on a fixed probe set while the model trains.

    Call `record` every so often from the training loop, or let `lightning_callback` or `trainer_callback` do it. It
    runs the probe set twice through the model in eval mode without gradients, and leaves weights, buffers, gradients,
    modes and the random number generators of torch, NumPy and Python as they were: training goes on as if it had not
    been called.

    Parameters
    ----------
    model : torch.nn.Module
        The model that is trained.
    probe : iterable
        Batches as in `compare`, the same ones each time; a tensor is cut into batches.
    layers, rows, mask, call_index, resize, resize_by, device
        As in `watch`.
    variance, nuclear, rank, ridge
        As in `svcca`; by default 99 % of the variance.
    forward, progress
        As in `compare`.
    precision, threads
        As in `Moments`.
    folder : path, optional
        Where to keep each state, as a file of `SubspaceScores`; by default in memory, 8 n k bytes for each layer and
        state. States already there are taken up, so that a resumed training goes on with its record.

    Attributes
    ----------
    steps : tuple of int
        What was recorded.

    Raises
    ------
    ReplayError
        The probe set changes from one time to the next.

    References
    ----------
    Raghu, Gilmer, Yosinski & Sohl-Dickstein (2017), arXiv 1706.05806, sections 4.1 (bottom-up convergence) and 4.2
    (freeze training).

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> dynamics = Dynamics(model, torch.randn(400, 8), rank=3, precision="float64")
    >>> for step in range(3):
    ...     _ = dynamics.record(step)
    ...     _ = torch.nn.init.normal_(model[0].weight)
    >>> dynamics.curves("final").matrix.shape
    (3, 2)
    """

    def __init__(
        self,
        model: Module,
        probe: Iterable[Any],
        layers: Layers = None,
        *,
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
        folder: str | os.PathLike[str] | None = None,
        progress: Progress = "auto",
    ) -> None:
        self.model = model
        self._probe = probe
        self._layers: Layers = layers
        self._options: dict[str, Any] = {
            "variance": variance,
            "nuclear": nuclear,
            "rank": rank,
            "ridge": ridge,
            "rows": rows,
            "mask": mask,
            "call_index": call_index,
            "resize": resize,
            "resize_by": resize_by,
            "forward": forward,
            "precision": precision,
            "device": device,
            "threads": threads,
            "progress": progress,
        }
        self._states: dict[int, SubspaceScores | Path] = {}
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self._folder.iterdir()):
                name = re.fullmatch(r"step-(\d+)\.scores", path.name)
                if name:
                    self._states[int(name[1])] = path

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps recorded so far, increasing."""
        return tuple(sorted(self._states))

    def record(self, step: int) -> SubspaceScores:
        """Keep the present state of the model under a number; an earlier record of that number is replaced."""
        if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
            raise InputError(f"step: got {step!r}, expected a whole number of at least 0")
        with _generators_kept():
            scores = subspace_scores(self.model, self._probe, self._layers, name=f"step {step}", **self._options)
        if self._states:
            self._check_fits(self.state(self.steps[-1]), scores)
            if step < self.steps[-1]:
                text = f"step {step} is recorded after step {self.steps[-1]}, which stays the final state"
                warnings.warn(StreamCCAWarning(text), stacklevel=2)
        if self._folder is None:
            self._states[int(step)] = scores
        else:
            path = self._folder / f"step-{step:012d}.scores"
            scores.save(path)
            self._states[int(step)] = path
        return scores

    def _check_fits(self, earlier: SubspaceScores, scores: SubspaceScores) -> None:
        """Refuse to add to a record that was made in another way."""
        earlier.check_same_rows(scores)
        for what, old, new in (
            ("layers", tuple(earlier.layers), tuple(scores.layers)),
            ("rule", earlier.rule, scores.rule),
            ("rows", earlier.rows, scores.rows),
        ):
            if old != new:
                where = f" in {self._folder}" if self._folder else ""
                raise InputError(
                    f"record: the earlier states{where} have {what} {old}, this one {new}; expected the same, choose "
                    "another folder"
                )

    def state(self, step: int) -> SubspaceScores:
        """Return what was recorded at a step."""
        if step not in self._states:
            raise InputError(f"step: got {step!r}, expected one of those recorded: {', '.join(map(str, self.steps))}")
        kept = self._states[step]
        return SubspaceScores.load(kept) if isinstance(kept, Path) else kept

    def curves(
        self,
        to: To = "final",
        *,
        measure: Measure = "svcca",
        side: str = "x",
        allow_underdetermined: bool = False,
        allow_inaccurate: bool = False,
    ) -> Curves:
        """Compare every recorded state of each layer with the last, the first, or the one before.

        Parameters
        ----------
        to : 'final', 'first' or 'previous'
        measure, side, allow_underdetermined, allow_inaccurate
            As in `compare`.

        Returns
        -------
        Curves
        """
        check_option("to", to, ("final", "first", "previous"))
        check_option("measure", measure, ("svcca", "cca", "pwcca"))
        check_option("side", side, ("x", "y"))
        if len(self._states) < 2:
            raise InputError(f"curves: {len(self._states)} states were recorded, expected at least two; call record")
        options = {
            "measure": measure,
            "side": side if measure == "pwcca" else "",
            "allow_underdetermined": allow_underdetermined,
            "allow_inaccurate": allow_inaccurate,
        }
        return self._curves(to, self.steps, options, stacklevel=3)

    def _curves(self, to: To, of_steps: tuple[int, ...], options: dict[str, Any], stacklevel: int) -> Curves:
        notes: Warned = []
        columns = []
        steps = []
        for step, state, other in self._pairs(to, of_steps):
            cells = {}
            for layer in state.layers:
                cells[layer], own = state.pair(layer, other, layer, **options)
                notes += own
            columns.append(cells)
            steps.append(step)
        tell(notes, stacklevel=stacklevel)
        last = self.state(self.steps[-1])
        results = tuple(tuple(cells[layer] for cells in columns) for layer in last.layers)
        return Curves(options["measure"], to, tuple(steps), tuple(last.layers), results, last.n, last.rows)

    def _pairs(self, to: To, steps: tuple[int, ...]) -> Iterator[tuple[int, SubspaceScores, SubspaceScores]]:
        if to == "previous":
            before = self.state(steps[0])
            for step in steps[1:]:
                now = self.state(step)
                yield step, now, before
                before = now
            return
        target = self.state(steps[-1] if to == "final" else steps[0])
        for step in steps[:-1] if to == "final" else steps[1:]:
            yield step, self.state(step), target

    def freeze_hint(self, similarity: float = 0.99, patience: int = 2) -> tuple[str, ...]:
        """Return the layers that have converged and could be frozen, from the input upward (freeze training).

        A layer has converged if in each of the last `patience` records it was at least this similar to the record
        before, and all layers nearer to the input have converged, too. A hint: what is best to freeze depends on the
        task.

        Raises
        ------
        InputError
            Fewer than patience + 1 records.
        """
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise InputError(f"patience: got {patience!r}, expected a whole number of at least 1")
        if len(self._states) <= patience:
            raise InputError(
                f"freeze_hint: {len(self._states)} states were recorded, expected more than patience={patience}"
            )
        curves = self._curves("previous", self.steps[-patience - 1 :], _SVCCA, stacklevel=3)
        still = [bool((row[-patience:] >= similarity).all()) for row in curves.matrix]
        count = still.index(False) if False in still else len(still)
        return curves.layers[:count]

    def __repr__(self) -> str:
        return f"Dynamics({type(self.model).__name__}, {len(self._states)} states)"


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Leave the random number generators as they were: a DataLoader draws a seed each time it is iterated."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that training code uses
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
