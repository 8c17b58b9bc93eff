"""Recording `Dynamics` from Lightning and from the Trainer of Hugging Face, which are imported when first needed."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from streamcca.errors import InputError

if TYPE_CHECKING:
    from streamcca.dynamics import Dynamics


class _Schedule:
    """When to record: at the start, every so many optimizer steps or epochs, and at the end; never twice at a step."""

    def __init__(self, dynamics: Dynamics, every_n_steps: int | None, every_n_epochs: int | None) -> None:
        given = [x for x in (every_n_steps, every_n_epochs) if x is not None]
        if len(given) != 1 or isinstance(given[0], bool) or not isinstance(given[0], int) or given[0] < 1:
            raise InputError(
                f"got every_n_steps={every_n_steps!r} and every_n_epochs={every_n_epochs!r}, expected one of them, a "
                "whole number of at least 1"
            )
        self._dynamics = dynamics
        self._every_n_steps = every_n_steps
        self._every_n_epochs = every_n_epochs
        self._last: int | None = None

    def record(self, step: int) -> None:
        if step != self._last:
            self._dynamics.record(step)
            self._last = step

    def after_step(self, step: int) -> None:
        # With accumulated gradients several batches belong to one step; only its end counts.
        if self._every_n_steps is not None and step and step % self._every_n_steps == 0:
            self.record(step)

    def after_epoch(self, epoch: int, step: int) -> None:
        if self._every_n_epochs is not None and epoch % self._every_n_epochs == 0:
            self.record(step)


def lightning_callback(
    dynamics: Dynamics, *, every_n_steps: int | None = None, every_n_epochs: int | None = None
) -> Any:
    """Make a Lightning callback that records at the start, every so often, and at the end of training.

    Parameters
    ----------
    dynamics : Dynamics
        Of the LightningModule, or of a module inside it.
    every_n_steps, every_n_epochs : int
        One of them; steps are those of the optimizer (``trainer.global_step``).

    Returns
    -------
    lightning.Callback
        For ``Trainer(callbacks=[...])``.

    Raises
    ------
    ImportError
        Neither lightning nor pytorch_lightning is installed.
    """
    schedule = _Schedule(dynamics, every_n_steps, every_n_epochs)
    base: Any = _lightning_base()

    class DynamicsCallback(base):  # type: ignore[misc]
        """Records `Dynamics` while a Lightning trainer fits."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            schedule.record(trainer.global_step)

        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            schedule.after_step(trainer.global_step)

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            schedule.after_epoch(trainer.current_epoch + 1, trainer.global_step)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            schedule.record(trainer.global_step)

    return DynamicsCallback()


def _lightning_base() -> Any:
    for package in ("lightning", "pytorch_lightning"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(package).Callback
    raise ImportError("lightning_callback needs Lightning; install streamcca[lightning]")


def trainer_callback(dynamics: Dynamics, *, every_n_steps: int | None = None, every_n_epochs: int | None = None) -> Any:
    """Make a callback for the Trainer of Hugging Face that records at the start, every so often, and at the end.

    Parameters
    ----------
    dynamics : Dynamics
        Of the model that the trainer trains.
    every_n_steps, every_n_epochs : int
        One of them; steps are those of the optimizer (``state.global_step``).

    Returns
    -------
    transformers.TrainerCallback
        For ``Trainer(callbacks=[...])``.

    Raises
    ------
    ImportError
        transformers is not installed.
    """
    schedule = _Schedule(dynamics, every_n_steps, every_n_epochs)
    try:
        base: Any = importlib.import_module("transformers").TrainerCallback
    except ImportError:
        raise ImportError("trainer_callback needs transformers; install streamcca[huggingface]") from None

    class DynamicsCallback(base):  # type: ignore[misc]
        """Records `Dynamics` while a trainer trains."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            schedule.record(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            schedule.after_step(state.global_step)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            schedule.after_epoch(round(state.epoch), state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            schedule.record(state.global_step)

    return DynamicsCallback()
