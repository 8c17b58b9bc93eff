"""Passes of one or more models over a loader: the rows of their layers, batch by batch, as often as wanted."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcca.errors import InputError, LayerError, ReplayError
from streamcca.rows import Rows, check_equal_counts, check_rows, choose_ways, describe_rows
from streamcca.sources import progress_bar
from streamcca.tap import LayerTap

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Forward = Callable[[Any, Any], Any]
BatchRows = dict[str, "Tensor"]
_ROWS_OF_A_TENSOR = 256
_COLUMNS_LOOKED_AT = 16
# Sums of a few columns that differ by more are no rounding of another order of additions: dropout and other rows are
# far above for any batch below 10^8 rows, float32 noise of a nondeterministic kernel far below.
_SAME = 1e-5
_OTHER_INPUTS = "the loader gave other inputs; turn shuffling and random augmentation off, or fix their seed"


@contextlib.contextmanager
def eval_mode(*models: Module) -> Iterator[None]:
    """Run models in eval mode without gradients; every module gets its own mode back, come what may."""
    import torch

    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        # Not inference_mode: buffers that a model or a loader caches meanwhile could never be trained with.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def inputs_of(batch: Any) -> Any:
    """Return what the default forward gives to a model: a batch without its labels."""
    if isinstance(batch, Mapping):
        return {k: v for k, v in batch.items() if k not in ("label", "labels")}
    return batch[0] if isinstance(batch, list | tuple) else batch


def call(model: Any, batch: Any) -> Any:
    """Run a model on a batch: keyword arguments of a mapping, the first item of a tuple, or a tensor."""
    device = next((p.device for p in model.parameters()), None)
    inputs = inputs_of(batch)
    if isinstance(inputs, Mapping):
        return model(**{k: _move(v, device) for k, v in inputs.items()})
    return model(_move(inputs, device))


def _move(value: Any, device: Any) -> Any:
    import torch

    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    return value.to(device) if device is not None and hasattr(value, "to") else value


def checksum(value: Any, start: int = 0) -> int:
    """CRC-32 of all that a batch holds: arrays with types and shapes, texts, numbers, keys, fields of objects."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            start = checksum(value[key], zlib.crc32(repr(key).encode(), start))
        return zlib.crc32(b"mapping", start)
    if isinstance(value, list | tuple):
        for item in value:
            start = checksum(item, start)
        return zlib.crc32(f"sequence {len(value)}".encode(), start)
    if hasattr(value, "detach"):
        return _checksum_tensor(value.detach(), start)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        start = zlib.crc32(f"{value.dtype}{value.shape}".encode(), start)
        return zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data, start)
    if isinstance(value, np.ndarray):
        return checksum(value.tolist(), start)
    if value is None or isinstance(value, str | bytes | int | float | complex | np.generic):
        return zlib.crc32(f"{type(value).__name__} {value!r}".encode(), start)
    return (
        checksum(vars(value), zlib.crc32(type(value).__name__.encode(), start)) if hasattr(value, "__dict__") else start
    )


def _checksum_tensor(value: Any, start: int) -> int:
    import torch

    if getattr(value, "is_nested", False):
        return checksum(list(value.unbind()), start)
    if value.layout != torch.strided:
        value = value.to_dense()
    start = zlib.crc32(f"{value.dtype}{tuple(value.shape)}".encode(), start)
    flat = value.resolve_conj().resolve_neg().cpu().contiguous().flatten()
    return zlib.crc32(flat.view(dtype=torch.uint8).numpy().data, start) if flat.numel() else start


class _Print:
    """What is remembered of a batch to know it again: its inputs' checksum, and sums of a few columns of each layer."""

    def __init__(self, inputs: int, rows: BatchRows) -> None:
        self.checksum = inputs
        self.layers = {name: self._sums(x) for name, x in rows.items()}

    @staticmethod
    def _sums(rows: Tensor) -> tuple[int, float, float]:
        some = rows[:, :: max(1, rows.shape[1] // _COLUMNS_LOOKED_AT)].double()
        return len(rows), float(some.sum()), float(some.abs().sum())

    def differs(self, other: _Print) -> str:
        """Say what is not the same; empty if all is."""
        if self.checksum != other.checksum:
            return _OTHER_INPUTS
        for name, (count, total, size) in self.layers.items():
            other_count, other_total, _ = other.layers.get(name, (-1, 0.0, 0.0))
            if count != other_count or not abs(total - other_total) <= _SAME * size:
                if total != total and other_total != other_total:
                    continue  # NaN both times
                return (
                    f"layer {name!r} gave other outputs for the same inputs; something in the model is random also in "
                    "eval mode (dropout called as a function), or it changes with every call"
                )
        return ""


class Sweep:
    """Models and the loaders that feed them; every `run` is one pass.

    Parameters
    ----------
    taps : mapping of str to LayerTap
        Hooks on the layers of each model; the key is put in front of their names, '' for a single model.
    loaders : mapping of str to iterable
        The loader of each model; the same object under several keys is read once, and every such model sees each batch.
    """

    def __init__(
        self,
        taps: Mapping[str, LayerTap],
        loaders: Mapping[str, Any],
        *,
        rows: Rows,
        forward: Forward | None,
        progress: Any,
    ) -> None:
        check_rows(rows)
        self.taps = dict(taps)
        self.inputs_checksum = 0
        checked = {id(loader): _checked_loader(loader) for loader in loaders.values()}
        self._loaders = {key: checked[id(loader)] for key, loader in loaders.items()}
        self._rows: Rows = rows
        self._forward = forward
        self._progress = progress
        self._prints: list[_Print] | None = None
        self._replaying = False
        self._ended = False  # a run with prints, from the first batch to the last

    @property
    def rows(self) -> Rows:
        """What a row was asked to be."""
        return self._rows

    @property
    def repeatable(self) -> bool:
        """Whether every loader can be read a second time: it is no iterator that is used up."""
        # Not by calling iter: a DataLoader would draw a seed and start its workers.
        return not any(isinstance(loader, Iterator) for loader in self._loaders.values())

    def remember(self) -> None:
        """Keep fingerprints of the batches from now on, so that a replay is known to bring the same rows."""
        if self._prints is None:
            self._prints = []

    def run(
        self,
        consume: Callable[[BatchRows], None],
        description: str,
        skip: int = 0,
        counted: Callable[[int], None] | None = None,
    ) -> None:
        """Send the rows of every batch to `consume`.

        Parameters
        ----------
        consume : callable
            Takes the rows of all layers.
        description : str
            Of the progress bar.
        skip : int
            So many batches were consumed by an attempt whose prints were restored: their inputs are read and compared,
            and no model runs on them.
        counted : callable, optional
            Called after every batch that was consumed and remembered, with the number of batches so far.

        Raises
        ------
        InputError
            There is no batch, or loaders differ in length.
        LayerError
            Layers do not line up.
        ReplayError
            Another run after one with `remember` brought other inputs or other rows.
        """
        self._replaying = self._ended
        if self._prints is not None and not self._replaying:
            del self._prints[skip:]  # of a run that was broken off
        count = 0
        with self._running(description, self._progress) as bar:
            for batches in self._batches():
                # Before the models run: they may change their inputs in place.
                # The first batch's in any case: it may be the one that asks for prints.
                inputs = None if self._prints is None and count else self._checksum(batches)
                if count < skip:
                    self._check_inputs(count, inputs)
                else:
                    self._run_batch(count, batches, inputs, consume)
                count += 1
                bar.update(1)
                if counted is not None and count > skip:
                    counted(count)
        if self._replaying or count < skip:
            self._check_length(count)
        if not count:
            raise InputError("the loader is empty; expected at least one batch")
        self._ended = self._prints is not None

    @contextlib.contextmanager
    def _running(self, description: str, progress: Any) -> Iterator[Any]:
        """Models in eval mode that are listened to, and a bar."""
        self.inputs_checksum = 0
        with contextlib.ExitStack() as stack:
            stack.enter_context(eval_mode(*(tap.model for tap in self.taps.values())))
            for tap in self.taps.values():
                stack.callback(tap.detach)
                tap.attach()
            yield stack.enter_context(progress_bar(progress, self.length, "batch", description))

    def _run_batch(
        self, index: int, batches: Mapping[str, Any], inputs: int | None, consume: Callable[[BatchRows], None]
    ) -> None:
        self._run_models(batches)
        rows = self._take()
        if self._replaying:
            self._check_batch(index, inputs, rows)
        consume(rows)
        if self._prints is not None and not self._replaying:
            assert inputs is not None  # noqa: S101 - prints are asked for by the first batch at the latest
            self._prints.append(_Print(inputs, rows))

    # ------------------------------------------------------------------ what a killed attempt has left

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered of the batches, as ``{'meta', 'tensors'}``."""
        prints = self._prints or []
        layers = list(prints[0].layers) if prints else []
        sums = [[known.layers[name] for name in layers] for known in prints]
        return {
            "meta": {"layers": layers, "ended": self._ended},
            "tensors": {
                "inputs": np.array([known.checksum for known in prints], dtype=np.int64),
                "sums": np.array(sums, dtype=np.float64).reshape(len(prints), len(layers), 3),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        meta, tensors = state["meta"], state["tensors"]
        self._prints = []
        for inputs, sums in zip(tensors["inputs"], tensors["sums"], strict=True):
            known = _Print(int(inputs), {})
            known.layers = {
                name: (int(x[0]), x[1], x[2]) for name, x in zip(meta["layers"], sums.tolist(), strict=True)
            }
            self._prints.append(known)
        self._ended = bool(meta["ended"])

    def run_first(self) -> BatchRows:
        """Run the models on the first batch alone, which must be the one remembered, and return its rows.

        It shows which layers there are and what a row is, as in a first pass; and that models, masks and all else that
        decides rows are those of the attempt whose prints were restored (ReplayError if not).
        """
        with self._running("first batch", progress=False):
            for batches in self._batches():
                inputs = self._checksum(batches)
                self._run_models(batches)
                rows = self._take()
                self._check_batch(0, inputs, rows)
                return rows
        raise InputError("the loader is empty; expected at least one batch")

    # ------------------------------------------------------------------ what is known since

    def names(self, key: str) -> list[str]:
        """Return the layers of one model that were called, in the order of the model."""
        tap = self.taps[key]
        return [name for name in tap.modules if name in tap.called]

    def report_silent(self) -> None:
        """Raise or warn for layers that brought no rows."""
        for tap in self.taps.values():
            tap.report_silent()

    def describe_rows(self) -> str:
        """Name what a row is."""
        grids = {key + name: tap.grids[name] for key, tap in self.taps.items() for name in tap.ways}
        ways = {key + name: way for key, tap in self.taps.items() for name, way in tap.ways.items()}
        return describe_rows(grids, ways)

    @property
    def length(self) -> int | None:
        """Number of batches, if a loader says."""
        lengths = [len(loader) for loader in self._loaders.values() if isinstance(loader, Sized)]
        return max(lengths, default=None)

    def _batches(self) -> Iterator[dict[str, Any]]:
        distinct = {id(loader): loader for loader in self._loaders.values()}
        try:
            for batches in zip(*distinct.values(), strict=True):
                by_loader = dict(zip(distinct, batches, strict=True))
                yield {key: by_loader[id(loader)] for key, loader in self._loaders.items()}
        except ValueError as error:
            if "zip()" not in str(error):
                raise
            raise InputError(
                f"loaders: they differ in the number of batches ({error}); expected the same rows"
            ) from None

    def _run_models(self, batches: Mapping[str, Any]) -> None:
        done: set[tuple[int, int]] = set()
        for key, tap in self.taps.items():
            batch = batches[key]
            # One model under two keys (its layers with each other) runs once, and both taps listen.
            if (id(tap.model), id(batch)) not in done:
                (self._forward or call)(tap.model, batch)
                done.add((id(tap.model), id(batch)))
            tap.hold()

    def _take(self) -> BatchRows:
        grids = {key + name: grid for key, tap in self.taps.items() for name, grid in tap.peek().items()}
        lengths = {key + name: len(key) for key, tap in self.taps.items() for name in tap.modules}
        ways = choose_ways(grids, self._rows, name_of=lambda name: name[lengths[name] :])
        result: BatchRows = {}
        for key, tap in self.taps.items():
            own = {name: ways[key + name] for name in tap.modules if key + name in ways}
            taken = {key + name: x for name, x in tap.take(own).items()}
            if not taken:
                raise LayerError("no layer of one of the models was called in its forward pass; choose other layers=")
            result.update(taken)
        check_equal_counts(result)
        return result

    def _checksum(self, batches: Mapping[str, Any]) -> int:
        distinct = list({id(batch): batch for batch in batches.values()}.values())
        inputs = checksum(distinct if self._forward else [inputs_of(batch) for batch in distinct])
        self.inputs_checksum = zlib.crc32(inputs.to_bytes(4, "little"), self.inputs_checksum)
        return inputs

    def _check_batch(self, index: int, inputs: int | None, rows: BatchRows) -> None:
        assert self._prints is not None  # noqa: S101 - replaying
        assert inputs is not None  # noqa: S101
        if index >= len(self._prints):
            self._check_length(index + 1)
        difference = self._prints[index].differs(_Print(inputs, rows))
        if difference:
            raise ReplayError(f"replay: batch {index} is not that of the first pass: {difference}")

    def _check_inputs(self, index: int, inputs: int | None) -> None:
        assert self._prints is not None  # noqa: S101 - an attempt has left them
        if inputs != self._prints[index].checksum:
            raise ReplayError(f"replay: batch {index} is not that of the first pass: {_OTHER_INPUTS}")

    def _check_length(self, count: int) -> None:
        expected = len(self._prints or ())
        if count != expected:
            more = " or more" if count > expected else ""
            raise ReplayError(
                f"replay: the loader gave {count}{more} batches, expected {expected} as in the first pass; it must "
                "give the same batches each time"
            )


def _checked_loader(loader: Any) -> Any:
    if isinstance(loader, np.ndarray):
        loader = _move(loader, None)
    if hasattr(loader, "split") and hasattr(loader, "movedim"):
        return loader.split(_ROWS_OF_A_TENSOR)
    if not isinstance(loader, Iterable) or isinstance(loader, Mapping | str):
        raise InputError(f"loader: got {type(loader).__name__}, expected an iterable of batches, or a tensor")
    return loader
