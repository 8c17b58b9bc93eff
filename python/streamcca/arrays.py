"""Arrays in the memory of the CPU, or of a CUDA device: NumPy's, or CuPy's, which has the same words."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamcca.devices import can_follow, checked_device, in_device_memory, library_name, on_device_of
from streamcca.errors import DeviceError, MemoryLimitError

AnyArray = np.ndarray[Any, Any]
Library = Any  # the module numpy or cupy


def cupy_here() -> Library | None:
    """Return CuPy, where it is installed and sees a device."""
    try:
        import cupy
    except ImportError:
        return None
    try:
        return cupy if cupy.cuda.runtime.getDeviceCount() else None
    except cupy.cuda.runtime.CUDARuntimeError:  # no driver
        return None


def library_of(array: Any) -> Library:
    """Return the library that an array is of."""
    if library_name(array) == "cupy":
        return cupy_here()
    return np


def library_for(rows: Any, device: str | None = None) -> Library:
    """Return the library whose arrays hold what is made of rows: on a CUDA device where they are, or where it is asked.

    Without CuPy rows of a device are copied to the CPU, unless the device is asked for.

    Raises
    ------
    DeviceError
        A device is asked for, and there is no CuPy, or no kernels.
    """
    checked_device(device)
    library = cupy_here()
    if device is None:
        # Rows of another device than CuPy's current one are copied, as without CuPy.
        near = library is not None and can_follow(rows) and rows.__dlpack_device__()[1] == library.cuda.Device().id
        return library if near else np
    if device == "cpu":
        return np
    if library is None:
        raise DeviceError(
            f"device: got {device!r}, but this needs CuPy, which is not installed or sees no device; install "
            "streamcca[cuda], or leave device= out"
        )
    if device not in ("cuda", current_device(library)):
        raise DeviceError(
            f"device: got {device!r}, but CuPy works on {current_device(library)!r}; use cupy.cuda.Device("
            f"{device.partition(':')[2]}).use() before, or 'cuda'"
        )
    return library


def current_device(library: Library) -> str:
    """Return the name of the device on which a library works."""
    return "cpu" if library is np else f"cuda:{library.cuda.Device().id}"


def check_device_memory(need: int, library: Library, what: str, remedy: str) -> None:
    """Refuse what does not fit into what is free on the device.

    Raises
    ------
    MemoryLimitError
    """
    free = library.cuda.Device().mem_info[0] + library.get_default_memory_pool().free_bytes()
    if need > free:
        raise MemoryLimitError(
            f"{what} needs {need / 2**20:.1f} MiB on {current_device(library)}, of which {free / 2**20:.1f} MiB are "
            f"free; {remedy}, or use device='cpu'"
        )


def to_host(array: Any) -> AnyArray:
    """Return an array in the memory of the CPU: itself, or a copy of one on a device."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.get())


def device_name(array: Any) -> str:
    """Return 'cpu', or 'cuda:0' and so on."""
    return "cpu" if isinstance(array, np.ndarray) else f"cuda:{array.device.id}"


def brought(array: Any, library: Library) -> AnyArray:
    """Return any array as one of a library, without a copy where it is in that library's memory.

    Raises
    ------
    DeviceError
        It is on another device than the one CuPy works on.
    """
    if library is np:
        array = array.cpu() if hasattr(array, "cpu") else array
        return np.asarray(array if library_of(array) is np else array.get())
    if not in_device_memory(array):
        return library.asarray(brought(array, np))  # type: ignore[no-any-return]
    with on_device_of(array):
        found = library.from_dlpack(array)  # CuPy's stream waits for that of the array
    here = library.cuda.Device().id
    if found.device.id != here:
        raise DeviceError(
            f"device: got rows on cuda:{found.device.id}, but CuPy works on cuda:{here}; use cupy.cuda.Device("
            f"{found.device.id}).use(), or move the rows"
        )
    if library_name(array) == "torch":
        import torch

        # Else torch could give the memory away while CuPy's stream still reads it.
        pointer, default = library.cuda.get_current_stream().ptr, torch.cuda.default_stream(array.device)
        array.record_stream(torch.cuda.ExternalStream(pointer, array.device) if pointer > 1 else default)
    return found  # type: ignore[no-any-return]
