"""The races: their rows, their contenders, the check that comes first, and the ratios they were promised to reach."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.jobs import VARIANCE
from benchmarks.race import Contender
from streamcca import _backend

# What the wheel's OpenBLAS can be told to take the CPU for, and the level of ours that says whether it can.
_CORES = {"SkylakeX": "avx512", "Haswell": "avx2"}
# SVCCA of these rows in float32 is good to 1e-7 here; rivals in float32 to 1e-6.
_SVCCA_TOLERANCE, _RIVAL_TOLERANCE = 1e-6, 1e-4


@dataclass(frozen=True)
class Case:
    """One race.

    `check` returns what it found and, for SVCCA, the exact mean and ranks; `flops` are those of the useful work,
    if it is of one kind; `bars` maps a contender to the factor it was promised to be slower by.
    """

    name: str
    make: Callable[[Path], None]
    check: Callable[[Path], tuple[str, tuple[float, int, int] | None]]
    contenders: list[Contender]
    peak: str = "float32"
    flops: float | None = None
    bars: dict[str, float] = field(default_factory=dict)


def _tuned_cores() -> list[str]:
    """Return the other choices that this CPU can run; what OpenBLAS chose by itself is the default already."""
    from threadpoolctl import threadpool_info

    chosen = {info.get("architecture") for info in threadpool_info()}
    return [core for core, level in _CORES.items() if level in _backend.isa_levels() and core not in chosen]


def _tuned(label: str, job: str, every: int = 1) -> list[Contender]:
    return [Contender(f"{label}, default BLAS", job, every=every)] + [
        Contender(f"{label}, {core}", job, (("OPENBLAS_CORETYPE", core),), every) for core in _tuned_cores()
    ]


def _torch(label: str, job: str, every: int = 1) -> list[Contender]:
    return [Contender(label, job, every=every)] if find_spec("torch") else []


def _check_covariance(folder: Path) -> tuple[str, None]:
    from benchmarks.jobs import streamcca_covariance

    x = data.load(folder, "x")
    ours, exact = streamcca_covariance(folder)(), np.cov(x.astype(np.float64), rowvar=False)
    scale = np.sqrt(np.diag(exact))
    error = float((np.abs(ours - exact) / scale / scale[:, None]).max())
    # A lost row of 16384 would show as 6e-5.
    tolerance = 64 * float(np.finfo(x.dtype).eps)
    if not error <= tolerance:
        raise SystemExit(
            f"covariance is wrong by {error:.1e} of its diagonal, {tolerance:.1e} allowed; nothing was timed"
        )
    return f"largest error {error:.1e} of the diagonal", None


def covariance(rows: int, width: int, dtype: str) -> Case:
    """Covariance of one view in memory."""
    numpy = _tuned("numpy X.T @ X", "numpy_product")
    return Case(
        name=f"covariance, {rows} x {width} {dtype}",
        make=lambda folder: data.store(folder, x=data.noise(rows, width, dtype)),
        check=_check_covariance,
        contenders=[
            Contender("streamcca covariance", "streamcca_covariance"),
            Contender("streamcca, moments only", "streamcca_moments"),
            *numpy,
            Contender("numpy.cov, default BLAS", "numpy_cov"),
            *_torch("torch.mm(X.T, X)", "torch_product"),
        ],
        peak=dtype,
        flops=float(rows) * width * (width + 1),
        bars={numpy[0].label: 1.5} if (width, dtype) == (2048, "float32") else {},
    )


def _check_svcca(folder: Path) -> tuple[str, tuple[float, int, int]]:
    from streamcca import AccuracyWarning, svcca
    from streamcca.demo import svcca_in_memory

    x, y = data.load(folder, "x"), data.load(folder, "y")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        ours = svcca(x, y, variance=VARIANCE)
    mean, kx, ky = svcca_in_memory(x.astype(np.float64), y.astype(np.float64), VARIANCE)
    error = abs(ours.mean - mean)
    if (ours.rank_x, ours.rank_y) != (kx, ky) or not error <= min(ours.error_bound, _SVCCA_TOLERANCE):
        raise SystemExit(f"SVCCA is wrong: {ours}, expected {mean} with ranks {kx} and {ky}; nothing was timed")
    found = f"mean {ours.mean:.6f}, ranks {kx} and {ky}, error {error:.1e}, bound {ours.error_bound:.1e}"
    return found, (mean, kx, ky)


def _error(label: str, answer: tuple[float, int, int], exact: tuple[float, int, int]) -> float:
    """Error of a contender's mean; one that answers another question is not worth timing."""
    error = abs(answer[0] - exact[0])
    if tuple(answer[1:]) != exact[1:] or not error <= _RIVAL_TOLERANCE:
        raise SystemExit(f"{label} answers {answer}, expected {exact}")
    return error


def svcca(kind: str, rows: int, width: int) -> Case:
    """SVCCA of two float32 layers in memory, from rows to result."""

    def make(folder: Path) -> None:
        if kind == "layers":
            x, y = data.layers(rows, width, "float32")
        else:
            x, y = (data.noise(rows, width, "float32", seed) for seed in (1, 2))
        data.store(folder, x=x, y=y)

    cov, svd = _tuned("numpy cov + eigh", "numpy_cov_eigh"), _tuned("numpy SVD", "numpy_svd", every=3)
    return Case(
        name=f"SVCCA of two {kind}, {rows} x {width} float32, 99 % of the variance",
        make=make,
        check=_check_svcca,
        contenders=[
            Contender("streamcca svcca", "streamcca_svcca"),
            *cov,
            *_tuned("numpy float32 X.T @ X + eigh", "numpy_product_eigh"),
            *svd,
            *_torch("torch QR + SVD", "torch_qr_svd", every=3),
        ],
        bars={svd[0].label: 20.0, cov[0].label: 2.0} if width >= 1024 else {},
    )


def truncation(kind: str, width: int) -> Case:
    """Cut one covariance at 99 % of its variance."""

    def make(folder: Path) -> None:
        matrix, vectors = data.covariance_with(data.spectrum(kind, width))
        data.store(folder, covariance=matrix, vectors=vectors)

    def check(folder: Path) -> tuple[str, None]:
        from benchmarks.jobs import streamcca_truncate

        values, ours = data.spectrum(kind, width), streamcca_truncate(folder)()
        k = int(np.argmax(np.cumsum(values) >= VARIANCE * values.sum())) + 1
        exact = data.load(folder, "vectors")[:, :k]
        relative = float((np.abs(ours.eigenvalues - values[:k]) / values[:k]).max()) if ours.rank == k else np.inf
        turned = float(np.linalg.norm(ours.vectors - exact @ (exact.T @ ours.vectors), 2)) if ours.rank == k else np.inf
        if not (relative <= 1e-12 and turned <= 1e-8):
            raise SystemExit(f"truncation is wrong: rank {ours.rank} of {k}, eigenvalues {relative}, subspace {turned}")
        return f"rank {k}, eigenvalues to {relative:.0e}, subspace to {turned:.0e}", None

    scipy, numpy = _tuned("scipy eigh", "scipy_eigh"), _tuned("numpy eigh", "numpy_eigh")
    bars = {scipy[0].label: 8.0} if (kind, width) == ("decaying", 4096) else {}
    if kind == "flat" and width >= 1024:
        bars = {numpy[0].label: 1 / 1.15, scipy[0].label: 1 / 1.15}
    return Case(
        name=f"truncation of a {kind} spectrum, {width} wide, 99 % of the variance",
        make=make,
        check=check,
        contenders=[Contender("streamcca truncate", "streamcca_truncate"), *scipy, *numpy],
        peak="float64",
        bars=bars,
    )


def cases(which: str, quick: bool) -> list[Case]:
    """Return the races of one benchmark; quick ones are small, to show that they run."""
    if which == "covariance":
        if quick:
            return [covariance(4096, 192, "float32"), covariance(2048, 192, "float64")]
        shapes = [(65536, 256), (32768, 512), (16384, 1024), (16384, 2048), (8192, 4096)]
        return [covariance(*shape, "float32") for shape in shapes] + [
            covariance(16384, 1024, "float64"),
            covariance(8192, 2048, "float64"),
        ]
    if which == "truncation":
        widths = [600] if quick else [1024, 2048, 4096]
        return [truncation(kind, width) for width in widths for kind in ("decaying", "flat")]
    size = (2000, 96) if quick else (20000, 1024)
    return [svcca("layers", *size), svcca("noise", *size)]


def run_case(case: Case, folder: Path, rounds: int) -> dict[str, Any]:
    """Make the rows, check the answer, and time it; returns what `report` prints."""
    from benchmarks.race import median_ratio, median_seconds, race

    case.make(folder)
    checked, exact = case.check(folder)
    times = race(case.contenders, folder, rounds, case.peak, answers=exact is not None)
    ours = times["seconds"][case.contenders[0].label]
    peak = float(np.median(times["peak"]))
    rows = []
    for contender in case.contenders:
        seconds = times["seconds"][contender.label]
        row: dict[str, Any] = {"label": contender.label, "seconds": median_seconds(seconds)}
        row["ratio"] = median_ratio(seconds, ours)
        if case.flops is not None:
            row["gflops"] = case.flops / row["seconds"] / 1e9
            shares = [case.flops / t / 1e9 / p for t, p in zip(seconds, times["peak"], strict=True) if t is not None]
            row["share_of_peak"] = float(np.median(shares))
        if exact is not None:
            row["error"] = _error(contender.label, times["answer"][contender.label], exact)
        if contender.label in case.bars:
            row["bar"] = case.bars[contender.label]
        rows.append(row)
    return {"case": case.name, "checked": checked, "peak_gflops": peak, "contenders": rows, "raw": times}
