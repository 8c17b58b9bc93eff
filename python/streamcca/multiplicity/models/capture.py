"""One forward pass over images: logits, and rows of layers. torch comes in lazily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamcca.errors import InputError, LayerError, NonFiniteError
from streamcca.layers import select_layers
from streamcca.rows import Rows, find_tensor
from streamcca.sweep import Sweep, call, eval_mode
from streamcca.tap import LayerTap

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class Captured:
    """What a model answered; ``logits, features = captured`` also works.

    Attributes
    ----------
    logits : ndarray (N, C) of float32
    features : ndarray (N, f) of float32, or None
        Rows of the layer that was named `features`.
    layers : dict of str to ndarray (N, d) of float32
        Rows of the other layers.
    rows : str
        What a row is, as `streamcca.watch` names it.
    """

    logits: Floats
    features: Floats | None
    layers: dict[str, Floats] = field(default_factory=dict)
    rows: str = "samples"

    def __iter__(self) -> Iterator[Any]:
        """Logits, then features."""
        return iter((self.logits, self.features))

    def __repr__(self) -> str:
        count, classes = self.logits.shape
        width = "none" if self.features is None else self.features.shape[1]
        return f"Captured({count} rows, {classes} logits, features {width}, {len(self.layers)} layers)"


class Batches:
    """Images cut into batches of tensors, as often as wanted; memory maps are read batch by batch.

    Parameters
    ----------
    images : ndarray (N, channels, height, width)
    batch_size : int
    """

    def __init__(self, images: NDArray[Any], batch_size: int) -> None:
        if not hasattr(images, "ndim") or images.ndim < 2 or not len(images):
            shape = getattr(images, "shape", type(images).__name__)
            raise InputError(f"images: got {shape}, expected an array (rows, channels, height, width), not empty")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size: got {batch_size!r}, expected a whole number of at least 1")
        self._images = images
        self._size = batch_size

    def __len__(self) -> int:
        return -(-len(self._images) // self._size)

    def __iter__(self) -> Iterator[Tensor]:
        import torch

        for first in range(0, len(self._images), self._size):
            # A copy: torch cannot look at read-only memory, and a model may change its input.
            yield torch.from_numpy(np.array(self._images[first : first + self._size], dtype=np.float32))


class _Table:
    """Rows that come batch by batch, in one array of a length that is known."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._done = 0
        self.array: Floats = np.empty((0, 0), np.float32)

    def add(self, rows: Tensor) -> None:
        values = rows.detach().float().cpu().numpy()
        if not self._done:
            self.array = np.empty((self._count, values.shape[1]), np.float32)
        self.array[self._done : self._done + len(values)] = values
        self._done += len(values)


def capture(
    model: Module,
    images: NDArray[Any],
    batch_size: int = 256,
    layers: Sequence[str] = (),
    features: str | None = "features",
    *,
    classes: int | None = None,
    rows: Rows = "pool",
    progress: Any = False,
) -> Captured:
    """Return what a model answers to images, and what its layers hold, from one forward pass.

    Parameters
    ----------
    model : torch.nn.Module
        Gives logits (N, C), or an object with ``.logits``. Runs in eval mode without gradients, and gets its mode back.
    images : ndarray (N, channels, height, width)
        Or a memory map.
    batch_size : int
    layers : sequence of str
        Names or globs of layers whose rows are wanted as well, all in memory: N times their widths in float32.
    features : str or None
        The layer that gives the features; None for none.
    classes : int, optional
        Expected number of logits.
    rows : rule or mapping
        As in `streamcca.watch`, one row for each image: 'pool' averages maps and tokens, 'cls' takes the first token.
    progress : 'auto', True or False

    Returns
    -------
    Captured

    Raises
    ------
    LayerError
        A layer does not exist, did not run, or gave another number of rows than there are images.
    InputError
        The model gives no logits (N, C), or others than `classes`.
    NonFiniteError
        Logits are NaN or infinite.

    Examples
    --------
    >>> from streamcca.multiplicity.models.nets import make_net
    >>> net = make_net("mlp", shape=(1, 8, 8), classes=3, width=2)
    >>> logits, features = capture(net, np.zeros((5, 1, 8, 8), np.float32))
    >>> logits.shape, features.shape
    ((5, 3), (5, 8))
    """
    batches, count = Batches(images, batch_size), len(images)
    logits, tables = _Table(count), dict[str, _Table]()
    size = 0

    def forward(module: Any, batch: Any) -> None:
        nonlocal size
        size = len(batch)
        logits.add(_logits(call(module, batch), size, classes))

    def keep(found: dict[str, Tensor]) -> None:
        for name, values in found.items():
            if len(values) != size:
                raise LayerError(
                    f"layer {name!r}: got {len(values)} rows for {size} images, expected one for each; use rows='pool'"
                )
            tables.setdefault(name, _Table(count)).add(values)

    wanted = list(dict.fromkeys([*layers, *([features] if features else [])]))
    told, tap = "samples", LayerTap(model, wanted, "cpu") if wanted else None
    if tap is not None:
        sweep = Sweep({"": tap}, {"": batches}, rows=rows, forward=forward, progress=progress)
        sweep.run(keep, "forward")
        sweep.report_silent()
        told = sweep.describe_rows()
    else:
        with eval_mode(model):
            for batch in batches:
                forward(model, batch)
    if not np.isfinite(logits.array).all():
        row = int(np.argmin(np.isfinite(logits.array).all(axis=1)))
        raise NonFiniteError(f"model: its logits of image {row} hold NaN or infinity; check its weights and its inputs")
    arrays = {name: table.array for name, table in tables.items()}
    own = arrays[_found(tap, features, arrays)[0]] if features else None
    return Captured(logits.array, own, {name: arrays[name] for name in _found(tap, layers, arrays)}, told)


def _found(tap: LayerTap | None, selectors: Any, arrays: Mapping[str, Any]) -> list[str]:
    """Names, as the tap has them, of the layers that were chosen: a module of two names has the first."""
    if not selectors or tap is None:
        return []
    chosen = list(select_layers(tap.model, selectors).values())
    names = [name for name in arrays if any(tap.modules[name] is module for module in chosen)]
    if not names:
        raise LayerError(f"layer {selectors!r} did not run exactly once in a forward pass; choose another one")
    return names


def _logits(output: Any, count: int, classes: int | None) -> Tensor:
    logits = getattr(output, "logits", None)
    tensor = find_tensor(output) if logits is None else logits
    if tensor is None or tensor.ndim != 2 or len(tensor) != count or tensor.shape[1] < 2:
        got = type(output).__name__ if tensor is None else f"a tensor of shape {tuple(tensor.shape)}"
        raise InputError(f"model: got {got}, expected logits ({count}, classes); wrap it so that its output is logits")
    if classes is not None and tensor.shape[1] != classes:
        raise InputError(
            f"model: got {tensor.shape[1]} logits, expected {classes}, one for each class of the data; give it a head "
            "for these classes"
        )
    found: Tensor = tensor
    return found
