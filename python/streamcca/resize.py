"""Maps of different size on one grid, so that their positions belong together.

torch is only used through the tensors that arrive; importing this module does not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from streamcca.errors import InputError, LayerError
from streamcca.rows import Grid
from streamcca.views import check_option

if TYPE_CHECKING:
    from torch import Tensor

Resize = Literal["smallest"] | tuple[int, ...] | None
ResizeBy = Literal["fourier", "average", "bilinear"]
_METHODS = ("fourier", "average", "bilinear")


def size_text(size: Iterable[int]) -> str:
    """Write a size as '7 x 7'."""
    return " x ".join(map(str, size))


def resize_maps(maps: Tensor, size: tuple[int, ...], by: ResizeBy) -> Tensor:
    """Make maps smaller.

    Parameters
    ----------
    maps : tensor (n, channels, ...)
        One to three spatial axes; float16 and bfloat16 are resized in float32.
    size : tuple of int
        New size of each spatial axis, at most the old one.
    by : 'fourier', 'average' or 'bilinear'
        'fourier' keeps the lowest frequencies (Raghu et al. 2017, arXiv 1706.05806, section 3):
        the trigonometric polynomial of the frequencies up to size / 2 at the points i * old / new. 'average' is torch's
        adaptive average pooling; 'bilinear' its antialiased interpolation, linear along each axis.

    Returns
    -------
    tensor (n, channels, *size)
        float32, or float64 for float64 maps; the maps themselves if they have that size.

    Examples
    --------
    >>> import torch
    >>> wave = torch.cos(2 * torch.pi * torch.arange(6) / 6)
    >>> bool(torch.allclose(resize_maps(wave[None, None], (3,), "fourier"), wave[None, None, ::2], atol=1e-6))
    True
    """
    if tuple(maps.shape[2:]) == size:
        return maps
    maps = maps if maps.element_size() >= 4 else maps.float()
    return _BY[by](maps, size)


def _fourier(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    import torch

    for axis, new in enumerate(size, start=2):
        old = maps.shape[axis]
        if new == old:
            continue
        # Amplitudes (norm 'forward'), which are the same on every grid; so the mean stays what it is.
        kept = torch.fft.rfft(maps, dim=axis, norm="forward").narrow(axis, 0, new // 2 + 1)
        if new % 2 == 0:
            # On the new grid new / 2 and -new / 2 are one frequency, whose amplitude is the sum of both: twice the
            # real part. Left alone, a complex number would stand where real maps have a real one.
            low, edge = kept.split([new // 2, 1], dim=axis)
            kept = torch.cat([low, (2 * edge.real).to(kept.dtype)], dim=axis)
        maps = torch.fft.irfft(kept, n=new, dim=axis, norm="forward")
    return maps


def _average(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    from torch.nn import functional

    pools: list[Callable[..., Tensor]] = [
        functional.adaptive_avg_pool1d,
        functional.adaptive_avg_pool2d,
        functional.adaptive_avg_pool3d,
    ]
    return pools[len(size) - 1](maps, size)


def _bilinear(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    from torch.nn import functional

    # torch has antialiasing for two axes only. Interpolation is separable, so one axis at a time will do, as the width
    # of maps of height 1; not as the height of maps of width 1, where torch 2.13 repeats the first position.
    for axis, new in enumerate(size, start=2):
        lines = maps.movedim(axis, -1)
        flat = lines.reshape(len(lines), -1, 1, lines.shape[-1])
        flat = functional.interpolate(flat, (1, new), mode="bilinear", antialias=True, align_corners=False)
        maps = flat.reshape(*lines.shape[:-1], new).movedim(-1, axis)
    return maps


_BY: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "fourier": _fourier,
    "average": _average,
    "bilinear": _bilinear,
}


class Resizer:
    """The size that all maps of one comparison get, known at once or after the first forward.

    Attributes
    ----------
    size : tuple of int, or None
        The common size; None as long as the smallest is not known.
    sources : list of callables
        Each returns the sizes of the maps that its model has brought in the first forward; 'smallest' is that of all.
    """

    def __init__(self, resize: Literal["smallest"] | tuple[int, ...], by: ResizeBy) -> None:
        self.asked = (resize, by)
        self.size = None if isinstance(resize, str) else tuple(int(size) for size in resize)
        self.sources: list[Callable[[], list[tuple[int, ...]]]] = []
        self._by: ResizeBy = by

    def settle(self) -> None:
        """Fix the size, if it is not known yet and there are maps: the smallest along each axis.

        Raises
        ------
        LayerError
            Maps have different numbers of spatial axes.
        """
        if self.size is not None:
            return
        sizes = sorted({size for source in self.sources for size in source()})
        if len({len(size) for size in sizes}) > 1:
            raise LayerError(
                f"resize='smallest': the layers have maps of {' and '.join(map(size_text, sizes))}, expected as many "
                "spatial axes in all; watch them apart"
            )
        if sizes:
            self.size = tuple(min(axis) for axis in zip(*sizes, strict=True))

    def apply(self, layer: str, tensor: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Resize an output that consists of positions; return any other, or one that is resized already, as it is.

        Whole numbers stay, too: they are refused with a better sentence as rows.

        Raises
        ------
        LayerError
            The maps have other axes, or are smaller than what they should become.
        """
        if self.size is None or grid.kind != "positions" or grid.resized or not tensor.is_floating_point():
            return tensor, grid
        if len(grid.size) != len(self.size):
            raise LayerError(
                f"resize: layer {layer!r} has maps of {size_text(grid.size)}, expected {len(self.size)} spatial axes "
                f"as in {self.size}; leave the layer out, or watch it apart"
            )
        if any(old < new for old, new in zip(grid.size, self.size, strict=True)):
            raise LayerError(
                f"resize: layer {layer!r} has maps of {size_text(grid.size)}, smaller than {size_text(self.size)}; "
                "maps only become smaller: ask for at most that, or for 'smallest'"
            )
        first = tensor.movedim(-1, 1) if grid.axis == -1 else tensor
        maps = resize_maps(first, self.size, self._by)
        told = f"resized to {size_text(self.size)} by {self._by}"
        return maps.movedim(1, -1) if grid.axis == -1 else maps, replace(grid, size=self.size, resized=told)


def make_resizer(resize: Resize, by: ResizeBy) -> Resizer | None:
    """Return what resizes maps, or None if they keep their sizes.

    Raises
    ------
    InputError
    """
    check_option("resize_by", by, _METHODS)
    if resize is None:
        return None
    sizes = resize if isinstance(resize, tuple | list) else ()
    whole = all(isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 1 for size in sizes)
    if resize != "smallest" and not (1 <= len(sizes) <= 3 and whole):
        raise InputError(
            f"resize: got {resize!r}, expected None, 'smallest', or a size for each spatial axis, such as (7, 7)"
        )
    return Resizer(resize, by)
