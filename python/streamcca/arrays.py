"""Arrays in the memory of the CPU, or of a CUDA device: NumPy's, or CuPy's, which has the same words."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamcca.devices import can_follow, checked_device, in_device_memory
from streamcca.errors import DeviceError

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
    if type(array).__module__.split(".", 1)[0] == "cupy":
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
    if device is None:
        return (cupy_here() if can_follow(rows) else None) or np
    if device == "cpu":
        return np
    library = cupy_here()
    if library is None:
        raise DeviceError(
            f"device: got {device!r}, but this needs CuPy, which is not installed or sees no device; install "
            "streamcca[cuda], or leave device= out"
        )
    return library


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
    found = library.from_dlpack(array)  # CuPy's stream waits for that of the array
    here = library.cuda.Device().id
    if found.device.id != here:
        raise DeviceError(
            f"device: got rows on cuda:{found.device.id}, but CuPy works on cuda:{here}; use cupy.cuda.Device("
            f"{found.device.id}).use(), or move the rows"
        )
    if type(array).__module__.split(".", 1)[0] == "torch":
        import torch

        # Else torch could give the memory away while CuPy's stream still reads it.
        array.record_stream(torch.cuda.ExternalStream(library.cuda.get_current_stream().ptr, array.device))
    return found  # type: ignore[no-any-return]
