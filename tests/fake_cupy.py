"""CuPy's words in CPU memory, for the emulator: its arrays refuse NumPy's, and copies to the CPU that nobody asked for.

Names and habits were compared with CuPy 14.2: 0-d results stay arrays, new memory holds no zeros, `__array__` raises.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import types

import numpy as np

_FUNCTIONS = {np.concatenate, np.zeros_like, np.diag, np.outer, np.cumsum, np.linalg.norm, np.triu, np.where, np.vdot}


def _inside(value):
    if isinstance(value, ndarray):
        return value._values
    if isinstance(value, list | tuple):
        return type(value)(_inside(item) for item in value)
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value


def _outside(value):
    if isinstance(value, tuple):
        return tuple(_outside(item) for item in value)
    return ndarray(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def _method(name):
    def method(self, *args, **kwargs):
        return _outside(getattr(self._values, name)(*_inside(args), **{k: _inside(v) for k, v in kwargs.items()}))

    return method


class _Device(contextlib.nullcontext):
    id = 0
    mem_info = (1 << 33, 1 << 33)


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on the device."""

    __module__ = "cupy"

    def __init__(self, values):
        self._values = values

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        if method != "__call__":
            return NotImplemented
        result = ufunc(*_inside(inputs), out=_inside(out) or None, **kwargs)
        return out[0] if out else _outside(result)

    def __array_function__(self, function, _, args, kwargs):
        if function not in _FUNCTIONS:
            return NotImplemented
        return _outside(function(*_inside(args), **{k: _inside(v) for k, v in kwargs.items()}))

    def __getitem__(self, index):
        return _outside(self._values[_inside(index)])

    def __setitem__(self, index, value):
        self._values[_inside(index)] = _inside(value)

    def __len__(self):
        return len(self._values)

    def __iter__(self):
        return map(_outside, self._values)

    def __float__(self):
        return float(self._values)

    def __int__(self):
        return int(self._values)

    def __bool__(self):
        return bool(self._values)

    def __dlpack__(self, **how):
        return self._values.__dlpack__(**how)

    def __dlpack_device__(self):
        return 2, 0

    def get(self):
        return self._values.copy()

    def copy(self, order="C"):
        return ndarray(self._values.copy(order))

    @property
    def T(self):
        return ndarray(self._values.T)

    device = _Device()
    shape, dtype, ndim, size, itemsize, nbytes = (
        property(functools.partial(lambda name, self: getattr(self._values, name), name))
        for name in ("shape", "dtype", "ndim", "size", "itemsize", "nbytes")
    )
    astype, view, reshape, sum, max, min, any, all, var, mean, trace, fill = map(
        _method, ["astype", "view", "reshape", "sum", "max", "min", "any", "all", "var", "mean", "trace", "fill"]
    )


def asarray(value, dtype=None):
    """As CuPy's: an upload of what is on the CPU."""
    return value if isinstance(value, ndarray) and dtype in (None, value.dtype) else array(value, dtype)


def array(value, dtype=None):
    """A copy on the device."""
    return ndarray(np.array(value._values if isinstance(value, ndarray) else value, dtype=dtype))


def zeros(shape, dtype=float, order="C"):
    return ndarray(np.zeros(shape, dtype, order))


def ones(shape, dtype=float):
    return ndarray(np.ones(shape, dtype))


def empty(shape, dtype=float, order="C"):
    return ndarray(np.full(shape, np.nan, dtype, order))


def from_dlpack(value):
    if isinstance(value, ndarray):
        return value
    shared = np.from_dlpack(value)  # which may not be written to; CuPy's arrays know no such thing
    first, last = np.lib.array_utils.byte_bounds(shared)
    memory = (ctypes.c_byte * (last - first)).from_address(first)
    memory.owner = shared
    return ndarray(np.ndarray(shared.shape, shared.dtype, memory, shared.ctypes.data - first, shared.strides))


_RAISES = []


@contextlib.contextmanager
def _errstate(linalg):
    _RAISES.append(linalg == "raise")
    yield
    _RAISES.pop()


def _cholesky(a):
    """As CuPy's: without `errstate` a failure passes unseen."""
    try:
        return _outside(np.linalg.cholesky(_inside(a)))
    except np.linalg.LinAlgError:
        if _RAISES and _RAISES[-1]:
            raise
        return empty(a.shape)


class CUDARuntimeError(RuntimeError):
    pass


def install(monkeypatch):
    """Make ``import cupy`` give this."""
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=CUDARuntimeError)
    stream = types.SimpleNamespace(ptr=0)
    module = sys.modules[__name__]
    module.linalg = types.SimpleNamespace(
        qr=lambda a, mode: _outside(np.linalg.qr(_inside(a), mode=mode)),
        eigh=lambda a: _outside(tuple(np.linalg.eigh(_inside(a)))),
        cholesky=_cholesky,
    )
    monkeypatch.setitem(sys.modules, "cupyx", types.SimpleNamespace(errstate=_errstate))
    module.cuda = types.SimpleNamespace(
        runtime=runtime,
        Device=lambda: ndarray.device,
        get_current_stream=lambda: stream,
        Stream=types.SimpleNamespace(null=contextlib.nullcontext()),
    )
    module.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: 0)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module
