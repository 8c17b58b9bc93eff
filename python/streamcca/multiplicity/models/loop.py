"""The loop over training steps, which goes on where it was killed. torch comes in lazily."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca.errors import NumericError, StateFileError, StreamCCAWarning
from streamcca.multiplicity.models.methods import Method, Optimizer, Source, derived_seed
from streamcca.multiplicity.models.weights import PART_FORMAT, read_tensors, write_tensors
from streamcca.sources import progress_bar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

_WARM_UP = 20  # the first of so many parts of all steps
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Seeds:
    """Seeds of one training: a source follows the member or the study, as the method says."""

    method: Method
    seed: int
    study_seed: int

    def __call__(self, source: Source, *when: int | str) -> int:
        """Return the seed of a source, for an epoch and a step of a phase."""
        return derived_seed(source, *self.method.source_seed(source, self.seed, self.study_seed), *when)


@dataclass(frozen=True)
class Phase:
    """A part of a training.

    Attributes
    ----------
    module : torch.nn.Module
        All weights and buffers that have to be kept.
    trained : list of torch.nn.Parameter
        Those that the optimizer changes.
    rows, epochs, batch_size : int
    optimizer, learning_rate, weight_decay
        As in `Method`.
    order_seed : callable epoch -> int
    loss : callable (rows of a batch, epoch, step) -> Tensor
        Draws nothing but from seeds of its own.
    begin : callable
        Called when the weights are there, before the first step or the first one after a kill.
    """

    module: Module
    trained: list[Parameter]
    rows: int
    epochs: int
    batch_size: int
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float
    order_seed: Callable[[int], int]
    loss: Callable[[Tensor, int, int], Tensor]
    begin: Callable[[], None]


class Loop:
    """Phases one after the other, with checkpoints in one file.

    Parameters
    ----------
    part : Path
        The file of the checkpoint; one of another training, or a damaged one, counts for nothing.
    training : dict
        What a checkpoint must have come from.
    about : str
        The model, for the progress bar and errors.
    """

    def __init__(
        self,
        part: Path,
        training: dict[str, Any],
        about: str,
        progress: Any,
        checkpoint_seconds: float,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._part = part
        self._training = training
        self._about = about
        self._progress = progress
        self._pause = checkpoint_seconds
        self._should_stop = should_stop or (lambda: False)
        self._saved = self._read()
        self._written = time.monotonic()

    def run(self, phases: list[Phase]) -> bool:
        """Run what of the phases has not been run yet; False if it was stopped."""
        first = self._saved[0]["phase"] if self._saved else 0
        with progress_bar(self._progress, sum(phase.epochs for phase in phases), "epoch", self._about) as bar:
            for number, phase in enumerate(phases):
                if number < first:
                    bar.update(phase.epochs)
                elif not self._run_phase(number, phase, bar):
                    return False
        return True

    def _run_phase(self, number: int, phase: Phase, bar: Any) -> bool:
        import torch

        optimizer = make_optimizer(phase)
        step = self._restore(number, phase, optimizer)
        phase.begin()
        batches = -(-phase.rows // phase.batch_size)
        total = batches * phase.epochs
        bar.update(step // batches)
        while step < total:
            epoch, at = divmod(step, batches)
            order = np.random.Generator(np.random.PCG64(phase.order_seed(epoch))).permutation(phase.rows)
            for batch in np.array_split(order, batches)[at:]:
                if self._should_stop():
                    self._write(number, step, phase, optimizer)
                    return False
                for group in optimizer.param_groups:
                    group["lr"] = phase.learning_rate * schedule(step, total)
                optimizer.zero_grad()
                loss = phase.loss(torch.from_numpy(batch), epoch, step)
                self.check(float(loss.detach()), f"in step {step - epoch * batches} of epoch {epoch}")
                loss.backward()
                optimizer.step()
                step += 1
                if time.monotonic() - self._written >= self._pause:
                    self._write(number, step, phase, optimizer)
            bar.update(1)
        return True

    def check(self, loss: float, when: str) -> None:
        """Refuse a loss that is not finite, and leave no checkpoint.

        Raises
        ------
        NumericError
        """
        if not math.isfinite(loss):
            self._part.unlink(missing_ok=True)
            raise NumericError(f"{self._about}: the loss became {loss} {when}; lower its learning_rate")

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        if not self._part.exists():
            return None
        try:
            meta, tensors = read_tensors(self._part, PART_FORMAT)
        except StateFileError as error:
            warnings.warn(StreamCCAWarning(f"{self._about}: trained anew, since {error}"), stacklevel=4)
            return None
        return (meta, tensors) if meta["training"] == self._training else None

    def _restore(self, number: int, phase: Phase, optimizer: Any) -> int:
        """Put the weights and the optimizer's state back; returns the next step."""
        if self._saved is None or self._saved[0]["phase"] != number:
            return 0
        meta, tensors = self._saved
        self._saved = None
        phase.module.load_state_dict(_inside(tensors, "model"))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _inside(tensors, "optimizer").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        step: int = meta["step"]
        return step

    def _write(self, number: int, step: int, phase: Phase, optimizer: Any) -> None:
        tensors = {f"model.{name}": value for name, value in phase.module.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if value is not None}
        meta = {"training": self._training, "phase": number, "step": step}
        write_tensors(self._part, PART_FORMAT, meta, tensors)
        self._written = time.monotonic()


def _inside(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): x for name, x in tensors.items() if name.startswith(f"{part}.")}


def schedule(step: int, total: int) -> float:
    """Return the share of the peak learning rate: a linear rise over the first twentieth, then a cosine to zero.

    >>> [round(schedule(step, 40), 3) for step in (0, 1, 2, 21, 39)]
    [0.5, 1.0, 1.0, 0.5, 0.002]
    """
    rise = max(1, total // _WARM_UP)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def make_optimizer(phase: Phase) -> Any:
    """Return torch's optimizer of a phase."""
    import torch

    rate, decay = phase.learning_rate, phase.weight_decay
    if phase.optimizer == "sgd":
        return torch.optim.SGD(phase.trained, rate, _MOMENTUM, weight_decay=decay, nesterov=True)
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[phase.optimizer](
        phase.trained, rate, weight_decay=decay
    )
