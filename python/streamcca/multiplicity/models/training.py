"""Training of one small model: the same bits each time, also when it is killed and goes on. torch comes in lazily."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamcca.errors import DTypeError, InputError, NonFiniteError
from streamcca.multiplicity.images.splits import noisy_labels, subset_rows
from streamcca.multiplicity.models.loop import Loop, Phase, Seeds
from streamcca.multiplicity.models.methods import Method
from streamcca.multiplicity.models.weights import MODEL_FORMAT, load_model, net_of, stored_training, write_tensors
from streamcca.store import remove_unfinished
from streamcca.sweep import eval_mode
from streamcca.views import checked_threads

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from streamcca.multiplicity.models.nets import Net

__all__ = ["Trained", "fingerprint_of", "load_model", "stored_training", "train", "training_rows", "untrained_model"]

_EVALUATION_ROWS = 512


@dataclass(frozen=True, repr=False)
class Trained:
    """What came of training one model.

    Attributes
    ----------
    path : str
        The file of its weights.
    key : str
        See `Method.key`.
    epochs : int
    train_accuracy, loss : float
        On the rows it was trained on, with the labels it was trained on (noisy ones included), in eval mode, without
        augmentation. For 'contrastive' those of the linear head.
    seconds : float
        What this call took; not part of the file, whose content is the same each time.
    reused : bool
        Whether the file was there already.
    """

    path: str
    key: str
    epochs: int
    train_accuracy: float
    loss: float
    seconds: float
    reused: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)

    def __repr__(self) -> str:
        how = "reused" if self.reused else f"{self.seconds:.1f} s"
        return (
            f"Trained({Path(self.path).name!r}, train accuracy {self.train_accuracy:.3f}, loss {self.loss:.4f}, {how})"
        )


def train(
    method: Method,
    seed: int,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    path: str | os.PathLike[str],
    *,
    classes: int,
    fingerprint: str | None = None,
    study_seed: int = 0,
    threads: int = 1,
    progress: Any = "auto",
    checkpoint_seconds: float = 5.0,
    should_stop: Callable[[], bool] | None = None,
) -> Trained | None:
    """Train a member of a group and write its weights; a model that is there already is not trained again.

    Every random draw has a seed of its own, derived from (seed, source, epoch, step). So a training that was
    stopped or killed goes on from its last checkpoint, ``path`` + ".part", and ends with the same bits as one that
    was not (with the same torch, processor and number of threads). torch's random state, number of threads
    and flags are put back.

    Parameters
    ----------
    method : Method
    seed : int
        Of the member: for the random sources in ``method.varies``.
    images : ndarray (N, channels, height, width) of float32 in [0, 1]
    labels : ndarray (N,) of integers in [0, classes)
    path : path
        File of the weights (safetensors), read by `load_model`; ``.part`` lies beside it meanwhile. Its folder is made.
    classes : int
        Number of classes.
    fingerprint : str, optional
        Of the data, if the caller has one; else it is computed from the arrays (`fingerprint_of`).
    study_seed : int
        For the random sources that do not vary.
    threads : int
        Of torch, while training. Another number may change the last bits, and starts an unfinished training anew.
    progress : 'auto', True or False
        Bar over epochs.
    checkpoint_seconds : float
        Time between checkpoints; 0 writes one after every step.
    should_stop : callable, optional
        Asked before every step; True writes a checkpoint and ends the call.

    Returns
    -------
    Trained or None
        None if it was stopped.

    Raises
    ------
    InputError, DTypeError, NonFiniteError
        Images, labels or options that cannot be used.
    NumericError
        The loss is no longer finite; nothing is left behind.
    StateFileError
        There is a file at `path` that is damaged or not a model of streamcca; it is left alone.

    Examples
    --------
    >>> import tempfile
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 40)
    >>> images = (0.2 * rng.random((40, 1, 8, 8)) + 0.8 * labels[:, None, None, None]).astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = folder + "/model.safetensors"
    ...     result = train(Method("seeds", "mlp", width=4, epochs=20), 0, images, labels, path, classes=2)
    ...     logits = load_model(path)(__import__("torch").from_numpy(images))
    >>> result.train_accuracy, tuple(logits.shape)
    (1.0, (40, 2))
    """
    start = time.monotonic()
    labels = _checked(images, labels, classes)
    if not checkpoint_seconds >= 0:
        raise InputError(f"checkpoint_seconds: got {checkpoint_seconds!r}, expected a number of at least 0")
    path, threads = Path(path), checked_threads(threads) or 1
    key = method.key(fingerprint or fingerprint_of(images, labels), seed, study_seed)
    shape, part = images.shape[1:], Path(f"{path}.part")
    if path.exists():
        there = stored_training(path)
        if there["key"] == key and (tuple(there["shape"]), there["classes"]) == (shape, classes):
            part.unlink(missing_ok=True)
            numbers = (there["epochs"], there["train_accuracy"], there["loss"])
            return Trained(str(path), key, *numbers, seconds=time.monotonic() - start, reused=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, labels = training_rows(method, labels, classes, seed, study_seed)
    training = {"key": key, "shape": list(shape), "classes": classes, "threads": threads}
    with torch_as_needed(threads) as torch:
        training["torch"] = torch.__version__
        x, y = torch.from_numpy(np.ascontiguousarray(images[rows])), torch.from_numpy(labels)
        seeds = Seeds(method, seed, study_seed)
        net = _initialized(seeds, shape, classes)
        phases = _phases(method, seeds, net, x, y)
        loop = Loop(part, training, f"{method.name}, seed {seed}", progress, checkpoint_seconds, should_stop)
        if not loop.run(phases):
            return None
        accuracy, loss = evaluate(net, x, y)
        loop.check(loss, "at the end")
        meta = {**training, "method": method.to_dict(), "seed": seed, "study_seed": study_seed, "rows": len(rows)}
        meta |= {"epochs": method.epochs, "train_accuracy": accuracy, "loss": loss}
        write_tensors(path, MODEL_FORMAT, meta, net.state_dict())
    part.unlink(missing_ok=True)
    for name in (path.name, part.name):
        remove_unfinished(path.parent, name)
    return Trained(str(path), key, method.epochs, accuracy, loss, time.monotonic() - start)


def fingerprint_of(images: NDArray[Any], labels: NDArray[Any]) -> str:
    """Return a hash (32 hexadecimal digits) of images and labels: their types, shapes and bits."""
    digest = hashlib.sha256()
    for array in (images, labels):
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:32]


def training_rows(
    method: Method, labels: NDArray[np.int64], classes: int, seed: int, study_seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which rows a member is trained on, and with which labels.

    Parameters
    ----------
    labels : ndarray (N,)
    seed, study_seed : int
        As in `train`.

    Returns
    -------
    rows, labels : ndarray (m,) of int64
        m = round(subset N), classes in proportion, ascending. Exactly round(label_noise m) labels are of another class,
        drawn evenly from the others.

    Examples
    --------
    >>> rows, noisy = training_rows(Method("half", subset=0.5, label_noise=0.2), np.zeros(20, np.int64), 10, seed=0)
    >>> len(rows), int((noisy != 0).sum())
    (10, 2)
    """
    seeds = Seeds(method, seed, study_seed)
    rows = np.arange(len(labels))
    if method.subset < 1:
        rows = subset_rows(labels, method.subset, seeds("subset"))
    given = labels[rows]
    if method.label_noise:
        given = noisy_labels(given, method.label_noise, classes, seeds("label noise"))
    return rows, given


def untrained_model(method: Method, seed: int, shape: tuple[int, int, int], classes: int, study_seed: int = 0) -> Net:
    """Return a member before its first step, in eval mode; arguments as in `train`, `shape` that of an image."""
    with torch_as_needed(1):
        return _initialized(Seeds(method, seed, study_seed), shape, classes).eval()


def _initialized(seeds: Seeds, shape: tuple[int, ...], classes: int) -> Net:
    import torch

    torch.default_generator.manual_seed(seeds("initialization"))
    return net_of(seeds.method, shape, classes)


def evaluate(net: Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of a net, which gets its mode back."""
    import torch
    from torch.nn.functional import cross_entropy

    with eval_mode(net):
        logits = torch.cat([net(rows) for rows in images.split(_EVALUATION_ROWS)]).double()
    return float((logits.argmax(1) == labels).double().mean()), float(cross_entropy(logits, labels))


@contextlib.contextmanager
def torch_as_needed(threads: int) -> Iterator[Any]:
    """Give torch the state that training needs, whatever the caller's is, and put the caller's back.

    Random state of the CPU, number of threads, deterministic algorithms, default type, default device, gradients,
    autocast and inference mode. Devices other than the CPU are not touched.
    """
    import torch

    before = torch.get_num_threads(), torch.get_rng_state(), torch.get_default_dtype()
    strict, only_warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(True)
        with (
            torch.device("cpu"),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield torch
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=only_warns)
        torch.set_default_dtype(before[2])
        torch.set_rng_state(before[1])
        torch.set_num_threads(before[0])


def _phases(method: Method, seeds: Seeds, net: Net, images: Tensor, labels: Tensor) -> list[Phase]:
    if method.framework == "contrastive":
        from streamcca.multiplicity.models.contrastive import contrastive_phases

        return contrastive_phases(method, seeds, net, images, labels)
    return [supervised_phase(method, seeds, net, images, labels)]


def supervised_phase(method: Method, seeds: Seeds, net: Net, images: Tensor, labels: Tensor) -> Phase:
    """Return the training of all of a net by cross-entropy."""
    import torch
    from torch.nn.functional import cross_entropy

    from streamcca.multiplicity.models.augment import augmented

    def loss(rows: Tensor, epoch: int, step: int) -> Tensor:
        changed = augmented(images[rows], method.augmentation, seeds("augmentation", epoch, step))
        torch.default_generator.manual_seed(seeds("dropout", epoch, step))
        return cross_entropy(net(changed), labels[rows])

    def begin() -> None:
        net.train()

    return Phase(
        net,
        list(net.parameters()),
        len(images),
        method.epochs,
        method.batch_size,
        method.optimizer,
        method.learning_rate,
        method.weight_decay,
        lambda epoch: seeds("order", epoch),
        loss,
        begin,
    )


def _checked(images: Any, labels: Any, classes: int) -> NDArray[np.int64]:
    """Return the labels as int64, or refuse the data."""
    if not isinstance(images, np.ndarray) or images.dtype != np.float32:
        kind = getattr(images, "dtype", type(images).__name__)
        raise DTypeError(f"images: got {kind}, expected a NumPy array of float32 with values in [0, 1]")
    if images.ndim != 4 or len(images) < 2:
        raise InputError(
            f"images: got an array of shape {images.shape}, expected (rows, channels, height, width), at least 2 rows"
        )
    if not np.isfinite(images).all():
        raise NonFiniteError("images: they hold NaN or infinity, expected values in [0, 1]; mend or drop those images")
    if images.min() < 0 or images.max() > 1:
        raise InputError(
            f"images: got values from {images.min():g} to {images.max():g}, expected [0, 1]; divide them by the largest"
        )
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise DTypeError(f"labels: got {labels.dtype}, expected integers from 0 to {classes - 1}")
    if labels.shape != images.shape[:1]:
        raise InputError(f"labels: got shape {labels.shape}, expected ({len(images)},), one for each image")
    if classes < 2 or labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels: got {labels.min()} to {labels.max()}, expected 0 to {classes - 1} ({classes} classes, at least 2)"
        )
    checked: NDArray[np.int64] = labels.astype(np.int64)
    return checked
