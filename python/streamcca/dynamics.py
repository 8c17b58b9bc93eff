"""How the representations of a model move while it trains, on a fixed probe set."""

from __future__ import annotations

import contextlib
import os
import random
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca.curves import Curves, To
from streamcca.errors import InputError, StreamCCAWarning
from streamcca.layers import Layers
from streamcca.masks import Mask
from streamcca.moments import Precision
from streamcca.pairing import Measure, Progress
from streamcca.resize import Resize, ResizeBy
from streamcca.rows import Rows
from streamcca.scores import SubspaceScores, Warned, subspace_scores, tell
from streamcca.sweep import Forward
from streamcca.tap import CallIndex
from streamcca.views import check_option

if TYPE_CHECKING:
    from torch.nn import Module

_SVCCA = {"measure": "svcca", "side": "", "allow_underdetermined": False, "allow_inaccurate": False}


class Dynamics:
    """Records truncated subspaces and scores of a model's layers on a fixed probe set while the model trains.

    Call `record` every so often from the training loop, or let `lightning_callback` or `trainer_callback` do it. It
    runs the probe set through the model (twice where its rows do not fit in memory) in eval mode without gradients, and
    leaves weights, buffers, gradients, modes and the random number generators of torch, NumPy and Python as they were:
    training goes on as if it had not been called. A `watch` that is open on the same model meanwhile sees the probe
    set, too.

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
        with _generators_kept(self._probe):
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
def _generators_kept(loader: Any) -> Iterator[None]:
    """Leave the random number generators as they were: a DataLoader draws a seed each time it is iterated."""
    import torch

    own = getattr(loader, "generator", None)
    own_state = own.get_state() if isinstance(own, torch.Generator) else None
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that training code uses
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        if own is not None and own_state is not None:
            own.set_state(own_state)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
