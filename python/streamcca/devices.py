"""Moments on a CUDA device, with the methods of the CPU's accumulator; see docs/cuda.md."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any, NoReturn

import numpy as np

from streamcca._backend import Accumulator, FloatArray, Rounding
from streamcca.errors import DeviceError, DTypeError, InputError

_CUDA = 2  # device type of DLPack
_LEGACY_STREAM = 1  # CUDA's default stream, as DLPack and the driver number it


# Rows that wait on a device in each of many objects, up to 8.5 bytes a value. A single one takes up to four times as
# many, for speed (csrc/cuda/layout.h, block_rows).
SMALL_BLOCK_ROWS = 4096

_REMEDY = "use device='cpu' and move rows there with .cpu()"


def _extension(device: str = "cuda") -> Any:
    """Return the extension, or say why there is none."""
    try:
        from streamcca import _cuda
    except ImportError:
        raise DeviceError(
            f"device: got {device!r}, but this installation of streamcca has no CUDA kernels; install it where nvcc is "
            f"found, or {_REMEDY}"
        ) from None
    return _cuda


def checked_device(device: str | None) -> str | None:
    """Return a device that moments can live on: None (as the first batch), 'cpu', 'cuda' or 'cuda:1'.

    Raises
    ------
    DeviceError
        It is a CUDA device, and there are no kernels, no driver, or no such device.
    InputError
        It is none of these.
    """
    if device in (None, "cpu"):
        return device
    found = re.fullmatch(r"cuda(?::(\d+))?", str(device))
    if not found:
        raise InputError(f"device: got {device!r}, expected None or 'cpu', 'cuda' or 'cuda:1'")
    count, why = _extension(str(device)).device_count()
    if count <= int(found.group(1) or 0):
        here = f"of devices there are {count}, counted from 0" if count else why
        raise DeviceError(f"device: got {device!r}, but no CUDA kernels can run there ({here}); {_REMEDY}")
    return str(device)


def to_device(array: np.ndarray[Any, Any], device: str | None) -> Any:
    """Return an array as it is, or, for moments on a CUDA device, as one of torch there, or of CuPy."""
    if device in (None, "cpu") or _extension().EMULATED:
        return array
    try:
        import torch
    except ImportError:
        import cupy

        with cupy.cuda.Device(int(str(device).partition(":")[2] or cupy.cuda.Device().id)):
            return cupy.asarray(array)
    return torch.from_numpy(array).to(device)


def library_name(array: Any) -> str:
    """Return the package that an array is of: 'torch', 'cupy', 'numpy'."""
    return type(array).__module__.split(".", 1)[0]


def in_device_memory(array: Any) -> bool:
    """Whether an array is in the memory of a CUDA device."""
    try:
        return bool(array.__dlpack_device__()[0] == _CUDA)
    except Exception:  # no array, or one without memory: the CPU says what it refuses that for
        return False


def on_device_of(array: Any) -> contextlib.AbstractContextManager[Any]:
    """Make torch's current device that of a tensor, which it exports only there."""
    if library_name(array) != "torch" or not array.is_cuda:
        return contextlib.nullcontext()
    import torch

    if torch.cuda.current_device() == array.device.index:
        return contextlib.nullcontext()
    return torch.cuda.device(array.device)


def can_follow(array: Any) -> bool:
    """Whether an array is in the memory of a CUDA device, and there are kernels for it."""
    try:
        return in_device_memory(array) and bool(checked_device("cuda"))
    except DeviceError:  # no kernels: the CPU says what it refuses that for
        return False


def _refuse(array: Any, view: str, error: Exception) -> NoReturn:
    reason = str(error).split("\n", 1)[0]
    raise DTypeError(
        f"view {view!r}: this {type(array).__name__} gives no access to its values ({reason}); pass a dense array on "
        "the device"
    ) from None


class _Queue:
    """The stream on which the library of an array works at present: its number, and the object if it is torch's."""

    def __init__(self, array: Any) -> None:
        library = library_name(array)
        self.number, self.stream = 0, None
        if library == "torch" and array.is_cuda:
            import torch

            self.stream = torch.cuda.current_stream(array.device)
            self.number = int(self.stream.cuda_stream)
        elif library == "cupy":
            import cupy

            self.number = int(cupy.cuda.get_current_stream().ptr)


def _export_torch(tensor: Any, queue: _Queue, emulated: bool) -> Any:
    """Return the capsule of a tensor whose memory a stream will read."""
    import torch

    reader, waits = queue.stream, False
    if not emulated:
        if reader is None or reader.device != tensor.device:
            reader = torch.cuda.current_stream(tensor.device)
            waits = reader.cuda_stream != queue.number
            if waits and queue.number:
                reader = torch.cuda.ExternalStream(queue.number, tensor.device)
            elif waits:
                reader = torch.cuda.default_stream(tensor.device)
        # Else its memory could be given away while that stream still reads it.
        tensor.record_stream(reader)
    if not waits and type(tensor) in (torch.Tensor, torch.nn.Parameter):
        # What `__dlpack__` does in the end; its questions take longer than a launch (3 us here, to 0.3).
        return torch.utils.dlpack.to_dlpack(tensor)  # type: ignore[attr-defined]
    options = {} if emulated else {"stream": (queue.number or _LEGACY_STREAM) if waits else -1}
    with on_device_of(tensor):
        return _export(tensor, options)


def _export(array: Any, options: dict[str, Any]) -> Any:
    try:
        return array.__dlpack__(max_version=(1, 0), **options)
    except TypeError:  # a producer older than DLPack 1.0
        return array.__dlpack__(**options)


def _capsule(array: Any, view: str, queue: _Queue, emulated: bool) -> Any:
    if not hasattr(array, "__dlpack__"):
        raise DTypeError(
            f"view {view!r}: got {type(array).__name__}, expected an array on the device with __dlpack__ (torch, CuPy)"
        )
    if not emulated and not getattr(array, "is_cuda", False) and not in_device_memory(array):
        raise DeviceError(
            f"view {view!r}: got rows in CPU memory, expected a CUDA device, where these moments live; move them "
            "with .cuda(), or use device='cpu'"
        )
    try:
        # Torch exports no tensor that takes part in autograd, and one with a pending negation without it.
        if getattr(array, "requires_grad", False):
            array = array.detach()
        if getattr(array, "is_neg", bool)():
            array = array.resolve_neg()
        if library_name(array) == "torch":
            return _export_torch(array, queue, emulated)
        # The producer makes this stream wait for its own, where they differ.
        return _export(array, {} if emulated else {"stream": queue.number or _LEGACY_STREAM})
    except Exception as error:  # sparse and quantized tensors, say
        _refuse(array, view, error)


class CudaAccumulator:
    """The native accumulator on a device, and on the CPU what is read of it.

    Parameters
    ----------
    names, widths, pairs, precision, nonfinite
        As of the CPU's.
    device : str
        'cuda' (that of the first batch) or 'cuda:1'.
    threads : int
        Of the CPU, for what is computed there from the state.
    block_rows : int
        Rows that wait until they are multiplied together, a multiple of 64; 0: a default for their number of columns.
    """

    def __init__(
        self,
        names: list[str],
        widths: list[int],
        pairs: list[tuple[int, int]],
        precision: str,
        nonfinite: str,
        device: str = "cuda",
        threads: int = 0,
        block_rows: int = 0,
    ) -> None:
        self._configuration = (names, widths, pairs, precision, nonfinite)
        self._names, self._device, self._threads, self._block_rows = names, device, threads, block_rows
        self._module = _extension()
        index = int(device.partition(":")[2] or -1)
        ladder = os.environ.get("STREAMCCA_CUDA_LADDER", "best")
        block_rows = int(os.environ.get("STREAMCCA_CUDA_BLOCK_ROWS", block_rows))
        self._native = self._module.Accumulator(
            names, widths, pairs, precision, nonfinite, device=index, ladder=ladder, block_rows=block_rows
        )
        self._read: Accumulator | None = None  # the state as the CPU has it, until the next change
        self._marked: dict[str, Any] | None = None

    # ------------------------------------------------------------------ rows in

    def update(self, batch: list[Any], weights: FloatArray | None = None) -> None:
        """Launch the work for one batch; nothing is waited for."""
        queue = _Queue(batch[0])
        capsules = self._capsules(batch, queue)
        self._read = None
        self._native.update(capsules, weights, queue.number)

    def check(self, batch: list[Any]) -> None:
        """Refuse what cannot be rows; values are looked at when they are counted."""
        self._capsules(batch, _Queue(batch[0]))

    def _capsules(self, batch: list[Any], queue: _Queue) -> list[Any]:
        emulated = bool(self._module.EMULATED)
        return [_capsule(array, name, queue, emulated) for name, array in zip(self._names, batch, strict=True)]

    def merge(self, other: Accumulator | CudaAccumulator) -> None:
        """Add the rows of moments on any device: through the CPU, and back."""
        host = self._host_copy()
        host.merge(other._host() if isinstance(other, CudaAccumulator) else other)
        self._take(host)

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the state of an accumulator on any device."""
        host = self._new_host()
        host.restore(state)
        self._take(host)

    def reset(self) -> None:
        """Forget all rows."""
        self._read = None
        self._native.reset()

    def finish(self) -> None:
        """Take pending rows into the state, also fewer than the shift is chosen from."""
        host = self._host_copy()
        host.finish()
        self._take(host)

    def copy(self) -> CudaAccumulator:
        """Return an independent copy on the same device."""
        twin = self._empty_twin()
        twin._native.restore(self._native.save())
        return twin

    def _empty_twin(self) -> CudaAccumulator:
        device = self._device if self._native.device < 0 else f"cuda:{self._native.device}"
        return CudaAccumulator(*self._configuration, device, self._threads, self._block_rows)

    def mark(self) -> None:
        """Remember the present state, on the CPU: waits, and copies all of it."""
        self._marked = self._native.save()

    def return_to_mark(self) -> None:
        """Bring the state of `mark` back: that without rows, if there was none."""
        self._read = None
        if self._marked is None:
            self._native.reset()
        else:
            self._native.restore(self._marked)

    def copy_of_mark(self) -> CudaAccumulator:
        """Return the marked state as an accumulator of its own."""
        twin = self._empty_twin()
        if self._marked is not None:
            twin._native.restore(self._marked)
        return twin

    # ------------------------------------------------------------------ numbers out

    def mean(self, view: int) -> FloatArray:
        """Mean row of a view."""
        if not self.settled:
            return self._host().mean(view)
        mean: FloatArray = self._native.mean(view)
        return mean

    def covariance(self, pair: int, ddof: float) -> tuple[FloatArray, Rounding]:
        """Covariance of a pair and what rounding did to it."""
        return self._host().covariance(pair, ddof)

    def save(self) -> dict[str, Any]:
        """Everything, as the CPU's accumulator gives it; rows that were pending are in the moments."""
        state: dict[str, Any] = self._native.save()
        return state

    def covariance_on_device(self, pair: int, ddof: float, stream: int = 0) -> Any:
        """Covariance of a pair in new memory of the device, for ``cupy.from_dlpack`` or ``torch.from_dlpack``."""
        return self._native.covariance(pair, ddof, stream)

    def uncertainty(self, pair: int, ddof: float) -> Rounding:
        """Return what rounding did to the covariance of a view with itself; of settled moments."""
        rounding: Rounding = self._native.uncertainty(pair, ddof)
        return rounding

    def tiles_on_device(self) -> tuple[Any, list[tuple[int, int]]]:
        """Tiles of the state themselves, not a copy, and which groups of 128 columns each multiplies."""
        return self._native.tiles(), self._native.tasks()

    @property
    def rows(self) -> int:
        """Rows counted; waits for the device."""
        return int(self._native.rows)

    @property
    def weight(self) -> float:
        """Sum of their weights; waits for the device."""
        return float(self._native.weight)

    @property
    def skipped(self) -> int:
        """Rows left out; waits for the device."""
        return int(self._native.skipped)

    @property
    def started(self) -> bool:
        """Whether the type of the products is fixed."""
        return bool(self._native.started)

    @property
    def settled(self) -> bool:
        """Whether there are enough rows for the shift, so that sums are on the device; waits for it."""
        return bool(self._native.settled)

    @property
    def products(self) -> str:
        """Type in which products are formed."""
        return str(self._native.products)

    # ------------------------------------------------------------------ between device and CPU

    def _new_host(self) -> Accumulator:
        return Accumulator(*self._configuration, self._threads)

    def _host(self) -> Accumulator:
        self._native.rows  # noqa: B018 - waits, and raises what the device refused meanwhile
        if self._read is None:
            self._read = self._new_host()
            self._read.restore(self._native.save())
        return self._read

    def _host_copy(self) -> Accumulator:
        return self._host().copy()

    def _take(self, host: Accumulator) -> None:
        """Bring the state of a CPU accumulator to the device, without pending rows that a shift was chosen for."""
        state = host.save()
        if state["settled"] and len(state["roots"]):
            host.finish()
            state = host.save()
        self._read = None
        self._native.restore(state)
