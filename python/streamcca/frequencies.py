"""From maps to the second moments of their Fourier coefficients, one frequency at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcca._backend import FloatArray, Rounding
from streamcca.errors import DeviceError, DTypeError, InputError, MemoryLimitError, NonFiniteError
from streamcca.moments import Moments
from streamcca.resize import size_text
from streamcca.sources import progress_bar

ComplexArray = npt.NDArray[np.complex128]

# Bytes of Fourier coefficients that are formed at once.
_CHUNK_BYTES = 32 << 20
# Roundoffs by which the transform moves a coefficient, at most, in the terms of `_transform_error` (docs/numerics.md).
_ROUNDINGS = 3.0
_UNIT = 2.0**-53


@dataclass(frozen=True)
class Frequency:
    """A frequency of real maps, with the one that holds its complex conjugate.

    Attributes
    ----------
    index, mirror : tuple of int
        f and -f, one number for each axis, as in the output of ``numpy.fft.fftn``.
    """

    index: tuple[int, ...]
    mirror: tuple[int, ...]

    @property
    def real(self) -> bool:
        """Whether it is its own mirror (zero and the Nyquist frequencies), so that its coefficients are real."""
        return self.index == self.mirror

    @property
    def parts(self) -> int:
        """Real numbers in a coefficient."""
        return 1 if self.real else 2


def frequencies_of(size: tuple[int, ...]) -> list[Frequency]:
    """Return the frequencies of real maps of a size, one of each pair of conjugates, zero first."""
    result = []
    for index in np.ndindex(*size):
        mirror = tuple(-f % n for f, n in zip(index, size, strict=True))
        if index[::-1] <= mirror[::-1]:  # the last axis decides, of which `coefficients` gives the first half
            result.append(Frequency(index, mirror))
    return result


def coefficients(maps: FloatArray, size: tuple[int, ...]) -> ComplexArray:
    """Fourier coefficients of real maps, of the frequencies that a smaller grid has, too.

    Parameters
    ----------
    maps : array (n, channels, ...)
    size : tuple of int
        The grid, along no axis larger than that of the maps.

    Returns
    -------
    array (n, channels, ..., size[-1] // 2 + 1)
        Amplitudes: equal to those of ``resize_maps(maps, size, "fourier")``. The rest are their conjugates.
    """
    last = size[-1] // 2 + 1
    # An axis of one position is its own coefficient.
    result: ComplexArray = np.fft.rfft(maps, axis=-1, norm="forward")[..., :last]
    if size[-1] % 2 == 0 and size[-1] < maps.shape[-1]:
        # Nyquist of the new grid: f and -f fall together, and add up to twice the real part.
        result[..., -1] = 2 * result[..., -1].real
    for axis, new in enumerate(size[:-1], start=2):
        old = maps.shape[axis]
        result = np.moveaxis(np.fft.fft(result, axis=axis, norm="forward"), axis, 0)
        if new < old:
            low = (new + 1) // 2
            edge = [result[low : low + 1] + result[old - low : old - low + 1]] if new % 2 == 0 else []
            result = np.concatenate([result[:low], *edge, result[old - (new - 1) // 2 :]])
        result = np.moveaxis(result, 0, axis)
    return result


def float64_maps(maps: Any, name: str) -> tuple[FloatArray, float]:
    """Return maps as float64, and the unit roundoff of the type that they came in.

    Raises
    ------
    DTypeError, DeviceError
    """
    if hasattr(maps, "detach"):
        import torch

        if not maps.dtype.is_floating_point:
            raise DTypeError(f"{name}: got maps of {maps.dtype}, expected float16, bfloat16, float32 or float64")
        if maps.device.type != "cpu":
            raise DeviceError(f"{name}: got maps on {maps.device}, expected maps in CPU memory; move them with .cpu()")
        return maps.detach().double().numpy(), float(torch.finfo(maps.dtype).eps) / 2
    dtype = np.asarray(maps).dtype
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise DTypeError(f"{name}: got maps of {dtype}, expected float16, float32 or float64; convert them first")
    return np.asarray(maps, dtype=np.float64), float(np.finfo(dtype).eps) / 2


def _shape_of(maps: Any, name: str) -> tuple[int, ...]:
    shape = tuple(getattr(maps, "shape", ()))
    if not 3 <= len(shape) <= 5 or 0 in shape[1:]:
        what = f"an array of shape {shape}" if hasattr(maps, "shape") else f"a {type(maps).__name__}"
        raise InputError(
            f"{name}: got {what}, expected maps (n, channels, height, width), or with one or three spatial axes, none "
            "of them empty"
        )
    return shape


class Spectra:
    """Second moments of the Fourier coefficients of two streams of maps, frequency by frequency.

    Attributes
    ----------
    moments : Moments
        For each frequency two views, whose columns are real numbers, or real and imaginary parts in turn; and the mean
        square of each channel, which says how much the transform rounds.
    channels : tuple of (int, int)
    sizes : tuple of two sizes
        The spatial axes of both sides.
    size : tuple of int
        The common grid, the smaller size along each axis.
    unit : float
        Unit roundoff of the maps' type, the finer of both.
    """

    def __init__(self, x: Any, y: Any, nonfinite: Any = "raise", threads: int | None = None) -> None:
        shapes = _shape_of(x, "x"), _shape_of(y, "y")
        self.channels = shapes[0][1], shapes[1][1]
        self.sizes = shapes[0][2:], shapes[1][2:]
        if len(self.sizes[0]) != len(self.sizes[1]):
            raise InputError(
                f"maps of x are {size_text(self.sizes[0])} and those of y {size_text(self.sizes[1])}, expected as many "
                "spatial axes on both sides"
            )
        self.size = tuple(min(a, b) for a, b in zip(*self.sizes, strict=True))
        self.frequencies = frequencies_of(self.size)
        self.unit = 1.0
        views, pairs = {}, []
        for frequency in self.frequencies:
            names = [view_name(side, frequency) for side in "xy"]
            views.update({name: frequency.parts * c for name, c in zip(names, self.channels, strict=True)})
            pairs += [(names[0], names[0]), (names[1], names[1]), (names[0], names[1])]
        for side, c in zip("xy", self.channels, strict=True):
            views[f"{side}, mean square"] = c
        try:
            self.moments = Moments(views, pairs=pairs, precision="float64", nonfinite=nonfinite, threads=threads)
        except MemoryLimitError as error:
            what, _, _ = str(error).partition(";")
            raise MemoryLimitError(f"{what}; resize or pool the maps, or take fewer channels") from None
        self._refuses = nonfinite == "raise"
        numbers = sum(c * int(np.prod(size)) for c, size in zip(self.channels, self.sizes, strict=True))
        self._samples_at_once = max(1, _CHUNK_BYTES // (8 * numbers))

    def update(self, x: Any, y: Any, where: str = "") -> None:
        """Add a batch of maps.

        Raises
        ------
        InputError
            The maps are not those of the first batch in channels and size, or not as many on both sides.
        """
        for side, maps, c, size in zip("xy", (x, y), self.channels, self.sizes, strict=True):
            shape = _shape_of(maps, where + side)
            if shape[1:] != (c, *size):
                raise InputError(f"{where}{side}: got maps of shape {shape[1:]}, expected {(c, *size)} as before")
        if len(x) != len(y):
            raise InputError(
                f"{where}x has {len(x)} maps and y {len(y)}; both sides must see the same samples in order"
            )
        for first in range(0, len(x), self._samples_at_once):
            rows: dict[str, FloatArray] = {}
            for side, maps in (("x", x), ("y", y)):
                rows.update(self._rows(side, maps[first : first + self._samples_at_once]))
                self._check_finite(rows[f"{side}, mean square"], where + side, first)
            self.moments.update(rows)

    def _check_finite(self, power: FloatArray, where: str, first: int) -> None:
        bad = np.argwhere(~np.isfinite(power))
        if self._refuses and len(bad):
            raise NonFiniteError(
                f"{where}: map {first + bad[0, 0]} holds NaN, infinity or a value too large to be squared in channel "
                f"{bad[0, 1]}; leave it out, or pass nonfinite='skip'"
            )

    def _rows(self, side: str, maps: Any) -> Iterator[tuple[str, FloatArray]]:
        values, unit = float64_maps(maps, side)
        self.unit = min(self.unit, unit)
        n, c = values.shape[:2]
        with np.errstate(all="ignore"):  # NaN and infinity are dealt with by the moments
            spectrum = coefficients(values, self.size)
            power = np.square(values.reshape(n * c, -1)).mean(axis=1).reshape(n, c)
        half = spectrum.shape[2:]
        rows = np.ascontiguousarray(spectrum.reshape(n, c, -1).transpose(2, 0, 1))
        for frequency in self.frequencies:
            row = rows[np.ravel_multi_index(frequency.index, half)]
            yield view_name(side, frequency), row.real if frequency.real else row.view(np.float64)
        yield f"{side}, mean square", power


def view_name(side: str, frequency: Frequency) -> str:
    """Name of the view that holds the coefficients of one side at one frequency."""
    return f"{side} at frequency {frequency.index}"


def hermitian(values: FloatArray) -> FloatArray:
    """Second moments of complex numbers as a real matrix, from those of their parts.

    With (re, im) in turn, E z w^H = A + iB has A = E(re re' + im im') and B = E(im re' - re im'). The result is
    [[A, -B], [B, A]]: sums and products of such matrices are those of the complex ones, the transpose is the adjoint,
    and every eigenvalue and singular value appears twice.

    Parameters
    ----------
    values : array (2 c, 2 d)

    Returns
    -------
    array (2 c, 2 d)
    """
    a = values[0::2, 0::2] + values[1::2, 1::2]
    b = values[1::2, 0::2] - values[0::2, 1::2]
    return np.block([[a, -b], [b, a]])


def covariances(spectra: Spectra, frequency: Frequency) -> tuple[list[tuple[FloatArray, Rounding]], FloatArray]:
    """Return the covariances of both sides at one frequency, each with what rounded it, and their cross-covariance.

    Those of complex coefficients have the form of `hermitian`.

    Notes
    -----
    The transform's errors, of deviation s_i and independent from sample to sample, move an entry of the covariance by
    some (a_i s_j + s_i a_j) / sqrt(n) + s_i s_j, where a_i^2 is the variance of channel i. That is at most r_i r_j with
    r_i^2 = (t a_i^2 + s_i^2 / t) / sqrt(n) + s_i^2, for any t that both sides share (Cauchy and Schwarz); the t that
    makes the sum of r_i^2 smallest is |s| / |a|.
    """
    moments = spectra.moments
    names = [view_name(side, frequency) for side in "xy"]
    sides = [moments._covariance(name, name) for name in names]
    cross = moments._covariance(names[0], names[1])[0]
    if not frequency.real:
        sides = [(hermitian(values), _of_parts(rounding)) for values, rounding in sides]
        cross = hermitian(cross)
    variances = [np.abs(np.diag(values)) for values, _ in sides]
    errors = [_transform_error(spectra, frequency, side, a) for side, a in zip("xy", variances, strict=True)]
    shares = [s.sum() / a.sum() for s, a in zip(errors, variances, strict=True) if a.sum() > 0]
    t = max(np.sqrt(max(shares, default=1.0)), _UNIT)
    result = []
    for (values, (relative, _, raw)), a, s in zip(sides, variances, errors, strict=True):
        relative = max(relative, _UNIT)
        added = (t * a + s / t) / np.sqrt(moments.rows) + s
        result.append((values, (relative, spectra.unit, raw + added / relative)))
    return result, cross


def _transform_error(spectra: Spectra, frequency: Frequency, side: str, variances: FloatArray) -> FloatArray:
    """Variance of what the transform may have done to the coefficients of each channel.

    It rounds a coefficient itself, and spreads the rounding of large ones over all others on their way: over those of
    one axis at least.
    """
    size = spectra.sizes["xy".index(side)]
    means = np.square(spectra.moments.mean(view_name(side, frequency))).reshape(-1, frequency.parts).sum(axis=1)
    spread = spectra.moments.mean(f"{side}, mean square") / min((n for n in size if n > 1), default=1)
    relative = _ROUNDINGS * _UNIT * np.log2(float(np.prod(size)))
    error: FloatArray = relative**2 * (np.tile(spread + means, frequency.parts) + variances)
    return error


def _of_parts(rounding: Rounding) -> Rounding:
    """Say what rounded a matrix from `hermitian`: parts add up, and an error appears twice instead of independently."""
    relative, unit, raw = rounding
    return relative * float(np.sqrt(2)), unit, np.tile(raw[0::2] + raw[1::2], 2)


def spectra_of(data: tuple[Any, ...], progress: Any, **options: Any) -> Spectra:
    """Stream two arrays of maps, or an iterable of pairs of them, into `Spectra`.

    Raises
    ------
    InputError
    """
    if len(data) == 2:
        batches: Iterable[Any] = [data]
    elif len(data) == 1 and isinstance(data[0], Iterable) and not hasattr(data[0], "shape"):
        batches = data[0]
    else:
        raise InputError("data: expected two arrays of maps (x, y), or one iterable of (x, y) batches")
    spectra: Spectra | None = None
    with progress_bar(progress, None, "sample", "accumulate") as bar:
        for i, batch in enumerate(batches):
            if isinstance(batch, Mapping | str) or not hasattr(batch, "__len__") or len(batch) != 2:
                raise InputError(f"batch {i}: got {type(batch).__name__}, expected a pair (x, y) of maps")
            x, y = batch
            if spectra is None:
                spectra = Spectra(x, y, **options)
            spectra.update(x, y, f"batch {i}: " if len(data) == 1 else "")
            bar.update(len(x))
    if spectra is None or spectra.moments.rows == 0:
        raise InputError("the data hold no maps; expected pairs (x, y) of at least two")
    return spectra
