"""The accumulator of the emulated CUDA kernels, as test_cuda_emulated.py and test_cuda_rows.py look into it."""

from __future__ import annotations

import numpy as np
import pytest

from streamcca import _backend

_cuda = pytest.importorskip("streamcca._cuda", reason="built without CUDA kernels")
emulated = pytest.mark.skipif(not _cuda.EMULATED, reason="built for a GPU; STREAMCCA_EMULATE_CUDA=ON emulates one")

LADDER = ("naive", "tiled", "tensor", "hopper")
U32, U64 = 2.0**-24, 2.0**-53
TILE = 128
# The relative error that sound kernels may report of float32 products: chains of a few dozen sums that are cut off.
# What the diagonal shows raises it, so without this a defect would excuse itself.
MOST = 32 * U32


class Run:
    """A native accumulator of views, and what it makes of rows."""

    def __init__(self, widths, pairs=None, ladder="tensor", block=256, precision="auto", nonfinite="raise"):
        names = [f"v{i}" for i in range(len(widths))]
        self.pairs = pairs or [(i, j) for i in range(len(widths)) for j in range(i, len(widths))]
        self.widths, self.configuration = widths, (names, widths, self.pairs, precision, nonfinite)
        self.native = _cuda.Accumulator(*self.configuration, ladder=ladder, block_rows=block)

    def add(self, *views, weights=None, stream=0):
        self.native.update([x.__dlpack__(max_version=(1, 0)) for x in views], weights, stream)
        return self

    def moments(self):
        """Shifted second moments by pair, as rectangles (of a view with itself the upper triangle)."""
        state = self.native.save()
        result = []
        for (a, b), values in zip(self.pairs, state["moments"], strict=True):
            full = np.zeros((self.widths[a], self.widths[b]))
            full[np.triu_indices(self.widths[a]) if a == b else ...] = values if a == b else values.reshape(full.shape)
            result.append(full)
        return result

    def shifts(self):
        return self.native.save()["shift"]

    def host(self):
        core = _backend.Accumulator(*self.configuration, 0)
        core.restore(self.native.save())
        return core

    def tiles(self):
        return np.from_dlpack(self.native.tiles())


def whole_numbers(rng, n, d, largest):
    return rng.integers(-largest, largest + 1, (n, d)).astype(np.float32)
