"""SVCCA of convolutional layers in the frequency domain: one comparison of channels per spatial frequency."""

from __future__ import annotations

import warnings as _warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamcca import _backend
from streamcca._backend import FloatArray, Rounding, TruncatedView
from streamcca.errors import (
    AccuracyError,
    AccuracyWarning,
    InputError,
    NumericError,
    SampleSizeWarning,
    StreamCCAWarning,
    UnderdeterminedError,
)
from streamcca.frequencies import Frequency, Spectra, covariances, spectra_of
from streamcca.pairing import REFUSE_ABOVE, VARIANCE_99, WARN_ABOVE, Progress
from streamcca.resize import size_text
from streamcca.results import plain
from streamcca.significance import complex_null_mean, forced_ones, null_mean
from streamcca.subspace import Rule, parse_rule
from streamcca.views import check_option

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class FourierResult:
    """Similarity of two convolutional layers, frequency by frequency.

    Arrays have the size of the common grid, in the order of ``numpy.fft.fftfreq``: zero first, then positive, then
    negative frequencies. Frequencies f and -f hold the same numbers.

    Attributes
    ----------
    mean : float
        The similarity, in [0, 1]: mean of `per_frequency`, every frequency counting alike.
    per_frequency : array (height, width)
        Mean canonical correlation at each frequency; NaN where one side has no signal above rounding.
    error_bound : float
        How far rounding and open cuts can have moved `mean`: the mean of `error_bounds`.
    error_bounds : array (height, width)
        The same for each frequency (docs/numerics.md).
    null_mean : float
        Mean of `null_means`.
    null_means : array (height, width)
        What unrelated representations of as many samples and as many kept directions score at each frequency.
    ranks_x, ranks_y : array (height, width) of int
        Directions kept; complex ones, but for the frequencies that are their own negative. 0 where `per_frequency` is
        NaN.
    n : int
        Number of samples.
    channels_x, channels_y : int
    size_x, size_y : tuple of int
        Spatial size of the maps of both sides.
    truncation : Rule
        How many directions are kept at each frequency.
    warnings : tuple of str
        What a reader of the number should know.
    """

    mean: float
    per_frequency: FloatArray
    error_bound: float
    error_bounds: FloatArray
    null_mean: float
    null_means: FloatArray
    ranks_x: IntArray
    ranks_y: IntArray
    n: int
    channels_x: int
    channels_y: int
    size_x: tuple[int, ...]
    size_y: tuple[int, ...]
    truncation: Rule
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @property
    def distance(self) -> float:
        """1 - mean."""
        return 1 - self.mean

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; None stands for NaN."""
        result: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                value = np.where(np.isnan(value), None, value)  # type: ignore[call-overload]
            result[item.name] = plain(value)
        return result

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the similarity of each frequency, zero in the middle: a heat map for two axes, a line for one."""
        from streamcca.plots import plot_frequencies

        return plot_frequencies(self, ax=ax)

    def __repr__(self) -> str:
        return (
            f"SVCCA per frequency {self.mean:.6f} +- {self.error_bound:.1e} (chance {self.null_mean:.4f}), "
            f"{self.truncation}: up to {self.ranks_x.max()} of {self.channels_x} and {self.ranks_y.max()} of "
            f"{self.channels_y} channels at {size_text(self.per_frequency.shape)} frequencies, n={self.n}"
        )


@dataclass(frozen=True)
class _Cut:
    """A truncated side at one frequency; `rank` and `uncertain` count complex directions where those are complex."""

    native: TruncatedView
    rank: int
    uncertain: int


@dataclass(frozen=True)
class _Cell:
    """The comparison at one frequency."""

    mean: float
    rounding: float
    bound: float
    null: float
    ranks: tuple[int, int]


class _Notes:
    """One warning of each kind, with the number of frequencies that it concerns."""

    def __init__(self) -> None:
        self._seen: dict[tuple[type[StreamCCAWarning], str], list[str]] = {}

    def add(self, kind: type[StreamCCAWarning], topic: str, text: str) -> None:
        self._seen.setdefault((kind, topic), []).append(text)

    def warnings(self) -> list[StreamCCAWarning]:
        more = " (and {} more frequencies)"
        return [
            kind(texts[0] + (more.format(len(texts) - 1) if len(texts) > 1 else ""))
            for (kind, _), texts in self._seen.items()
        ]


def _cut(values: FloatArray, rounding: Rounding, rule: Rule, value: float, parts: int, rows: int) -> _Cut | None:
    """Truncate one side, keeping twins together; None if no direction stands above rounding.

    In the real form of a complex covariance every eigenvalue appears twice. A share is reached by a rank of 2k - 1 or
    2k where k complex directions reach it, so that rounding up to an even rank is exact.
    """
    if rule.name == "rank":
        value *= parts
    try:
        native = first = _backend.truncate(values, rounding, rule.name, value, 0.0)
    except (InputError, NumericError):
        if rule.name != "rank":
            return None
        found = _cut(values, rounding, Rule("variance", 1, 1), 1, parts, rows)
        if found is None:
            return None
        raise InputError(
            f"rank {int(value) // parts} was asked for, but only {found.rank} directions stand above rounding; ask for "
            "at most that, or for a share"
        ) from None
    if native.rank % parts:
        try:
            native = _backend.truncate(values, rounding, "rank", native.rank + 1, 0.0)
        except InputError:  # the twin is below rounding
            if native.rank == 1:
                return None
            native = _backend.truncate(values, rounding, "rank", native.rank - 1, 0.0)
    rank = native.rank // parts
    highest = min(-(-first.highest_rank // parts), max(rows - 1, rank))
    return _Cut(native, rank, highest - min(-(-first.lowest_rank // parts), rank))


def _compare(
    spectra: Spectra, frequency: Frequency, rule: Rule, allow_underdetermined: bool, notes: _Notes
) -> _Cell | None:
    rows, where = spectra.moments.rows, f"frequency {frequency.index}"
    sides, cross = covariances(spectra, frequency)
    cuts = []
    for side, (values, rounding), value in zip("xy", sides, (rule.x, rule.y), strict=True):
        try:
            cut = _cut(values, rounding, rule, value, frequency.parts, rows)
        except InputError as error:
            raise InputError(f"{where} of {side}: {error}") from None
        if cut is None:
            notes.add(StreamCCAWarning, side, f"{where} of {side} holds no signal above rounding, and is left out")
            return None
        if cut.uncertain:
            why = "directions below rounding are left out" if rule.keeps_all else "the cut is not resolved"
            text = f"{where} of {side}: {why}; within rounding, {cut.uncertain} ranks besides {cut.rank} satisfy {rule}"
            notes.add(AccuracyWarning, side, text)
        cuts.append(cut)
    x, y = cuts
    _check_rows(where, x.rank, y.rank, rows, allow_underdetermined, notes)
    numbers = _backend.compare(x.native, y.native, _backend.canonical(x.native, y.native, cross), "")
    chance = null_mean if frequency.real else complex_null_mean
    return _Cell(
        mean=numbers["mean"],
        rounding=numbers["mean_error_bound"],
        # Each rank that could as well be one higher or lower moves one correlation by at most 1.
        bound=min(1.0, numbers["mean_error_bound"] + (x.uncertain + y.uncertain) / min(x.rank, y.rank)),
        null=chance(x.rank, y.rank, rows),
        ranks=(x.rank, y.rank),
    )


def _check_rows(where: str, kx: int, ky: int, n: int, allow_underdetermined: bool, notes: _Notes) -> None:
    if n - 1 <= max(kx, ky):
        text = (
            f"{where}: n = {n} samples are too few for ({kx}, {ky}) kept directions: with n - 1 <= max(kx, ky) every "
            "correlation is 1 whatever the data"
        )
        if not allow_underdetermined:
            raise UnderdeterminedError(
                f"{text}; add samples, keep fewer directions (rank= or a lower share), or pass "
                "allow_underdetermined=True"
            )
        notes.add(SampleSizeWarning, "all", text)
    elif forced := forced_ones(kx, ky, n):
        text = (
            f"{where}: n = {n} samples for ({kx}, {ky}) kept directions force {forced} of the {min(kx, ky)} "
            "correlations to 1 whatever the data; add samples or keep fewer directions"
        )
        notes.add(SampleSizeWarning, "some", text)


def _check_accuracy(
    cells: dict[Frequency, _Cell], size: tuple[int, ...], rule: Rule, allow: bool, notes: _Notes
) -> None:
    """Refuse or note rounding that has moved the mean, as `svcca` does."""
    rounding = float(np.nanmean(_grid(cells, size, "rounding")))
    # What directions below rounding could add is the data's doing, and only widens the bound.
    amount = rounding if rule.keeps_all else float(np.nanmean(_grid(cells, size, "bound")))
    if amount > REFUSE_ABOVE and not allow:
        raise AccuracyError(
            f"rounding may have moved the mean by {amount:.1e}, more than {REFUSE_ABOVE:g}; truncate more, name a "
            "rank, or pass allow_inaccurate=True"
        )
    if rounding > WARN_ABOVE:
        notes.add(AccuracyWarning, "", f"rounding may have moved the mean by up to {rounding:.1e}; truncate more")


def _grid(cells: dict[Frequency, _Cell], size: tuple[int, ...], name: str) -> FloatArray:
    result = np.full(size, np.nan)
    for frequency, cell in cells.items():
        result[frequency.index] = result[frequency.mirror] = getattr(cell, name)
    return result


def _ranks(cells: dict[Frequency, _Cell], size: tuple[int, ...], side: int) -> IntArray:
    result = np.zeros(size, dtype=np.int64)
    for frequency, cell in cells.items():
        result[frequency.index] = result[frequency.mirror] = cell.ranks[side]
    return result


def svcca_fourier(
    *data: Any,
    variance: float | None = None,
    nuclear: float | None = None,
    rank: int | tuple[int, int] | None = None,
    allow_underdetermined: bool = False,
    allow_inaccurate: bool = False,
    nonfinite: str = "raise",
    threads: int | None = None,
    progress: Progress = "auto",
) -> FourierResult:
    """SVCCA of convolutional maps in the frequency domain, one comparison of channels for each spatial frequency.

    Each map is transformed along its spatial axes; at each frequency the channels are a complex vector, whose
    covariance over the samples is c x c. Both sides are truncated and correlated there, as `svcca` does. For data whose
    statistics do not change under circular shifts, these covariances are all there is: the correlations are then those
    of whole flattened maps.

    Parameters
    ----------
    *data
        ``(x, y)``, two arrays of maps (n, channels, height, width), NumPy or torch, float16 to float64; or
        ``(batches,)``, an iterable of such pairs. One or three spatial axes will do, too. Of maps of different size the
        frequencies of the smaller grid are compared, as after ``resize_by="fourier"`` of `watch`.
    variance, nuclear, rank
        As in `svcca`, at each frequency by itself; by default 99 % of the variance.
    allow_underdetermined, allow_inaccurate
        As in `svcca`.
    nonfinite : 'raise' or 'skip'
        Refuse a batch with maps that hold NaN or infinity, or leave such samples out on both sides.
    threads
        As in `Moments`.
    progress : 'auto' or bool
        Progress bar on stderr; 'auto' shows it on a terminal.

    Returns
    -------
    FourierResult
        ``.mean`` is the similarity, ``.per_frequency`` where it comes from.

    Raises
    ------
    InputError, DTypeError, DeviceError, NonFiniteError
        The maps cannot be used, no frequency has a signal on both sides, or a frequency lacks the rank asked for.
    UnderdeterminedError
        n - 1 <= max(kx, ky) at some frequency: every correlation there would be 1.
    AccuracyError
        Rounding may have moved the mean by more than 0.01.

    Notes
    -----
    Products are formed in float64. The state holds 8 c^2 numbers for every second frequency, if both sides have c
    channels, and 512 samples; narrower maps (``resize=`` of `watch`, pooling) take less.

    References
    ----------
    Raghu, Gilmer, Yosinski & Sohl-Dickstein (2017), arXiv 1706.05806, section 3 and theorem 1.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((200, 3, 4, 4))
    >>> y = np.roll(x[:, ::-1], 1, axis=3)  # channels in another order, maps moved by one position
    >>> r = svcca_fourier(x, y, variance=1.0)
    >>> round(r.mean, 6), r.per_frequency.shape
    (1.0, (4, 4))
    """
    rule = parse_rule(variance, nuclear, rank, VARIANCE_99)
    check_option("nonfinite", nonfinite, ("raise", "skip"))
    spectra = spectra_of(data, progress, nonfinite=nonfinite, threads=threads)
    notes = _Notes()
    cells = {f: _compare(spectra, f, rule, allow_underdetermined, notes) for f in spectra.frequencies}
    found = {f: cell for f, cell in cells.items() if cell is not None}
    if not found:
        raise InputError("no frequency of these maps holds a signal above rounding on both sides; are they constant?")
    size = spectra.size
    _check_accuracy(found, size, rule, allow_inaccurate, notes)
    means, bounds, nulls = (_grid(found, size, name) for name in ("mean", "bound", "null"))
    told = notes.warnings()
    for note in told:
        _warnings.warn(note, stacklevel=2)
    return FourierResult(
        mean=float(np.nanmean(means)),
        per_frequency=means,
        error_bound=float(np.nanmean(bounds)),
        error_bounds=bounds,
        null_mean=float(np.nanmean(nulls)),
        null_means=nulls,
        ranks_x=_ranks(found, size, 0),
        ranks_y=_ranks(found, size, 1),
        n=spectra.moments.rows,
        channels_x=spectra.channels[0],
        channels_y=spectra.channels[1],
        size_x=spectra.sizes[0],
        size_y=spectra.sizes[1],
        truncation=rule,
        warnings=tuple(map(str, told)),
    )
