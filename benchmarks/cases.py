"""The races of one benchmark, and how one is run: the check first, then the clock."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.bars import Bar, median_ratio, median_seconds, share_of_peak, verdict
from benchmarks.case import Case, optional, tuned, with_cores
from benchmarks.covariance import covariance_cases
from benchmarks.jobs import VARIANCE
from benchmarks.race import Contender, race

# SVCCA of these rows in float32 is good to 1e-7 here; rivals in float32 to 1e-6.
_SVCCA_TOLERANCE, _RIVAL_TOLERANCE = 1e-6, 1e-4


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

    cov, svd = with_cores("numpy cov + eigh", "numpy_cov_eigh"), with_cores("numpy SVD", "numpy_svd", every=3)
    torch = optional("torch", "torch QR + SVD", "torch_qr_svd", every=3)
    ours, bars = "streamcca svcca", []
    if width >= 1024 and kind == "layers":
        bars = [Bar("times", svd[0].label, 45.0, ours), Bar("times", cov[0].label, 3.0, ours)]
        bars += [Bar("times", torch[0].label, 8.0, ours)] if torch else []
    return Case(
        name=f"SVCCA of two {kind}, {rows} x {width} float32, 99 % of the variance",
        make=make,
        check=_check_svcca,
        contenders=[
            Contender(ours, "streamcca_svcca"),
            *cov,
            *with_cores("numpy float32 X.T @ X + eigh", "numpy_product_eigh"),
            *svd,
            *torch,
        ],
        bars=bars,
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

    scipy = with_cores("scipy eigh", "scipy_eigh", peak="float64")
    numpy = with_cores("numpy eigh", "numpy_eigh", peak="float64")
    ours, bars = "streamcca truncate", []
    if (kind, width) == ("decaying", 4096):
        bars = [Bar("times", tuned(scipy), 8.0, ours)]
    if kind == "flat" and width >= 1024:
        bars = [Bar("times", c.label, 1 / 1.15, ours) for c in (numpy[0], scipy[0])]
    return Case(
        name=f"truncation of a {kind} spectrum, {width} wide, 99 % of the variance",
        make=make,
        check=check,
        contenders=[Contender(ours, "streamcca_truncate", peak="float64"), *scipy, *numpy],
        bars=bars,
    )


def cases(which: str, quick: bool) -> list[Case]:
    """Return the races of one benchmark; quick ones are small, to show that they run."""
    if which == "covariance":
        return covariance_cases(quick)
    if which == "truncation":
        widths = [600] if quick else [1024, 2048, 4096]
        return [truncation(kind, width) for width in widths for kind in ("decaying", "flat")]
    size = (2000, 96) if quick else (20000, 1024)
    return [svcca("layers", *size), svcca("noise", *size)]


def run_case(case: Case, folder: Path, rounds: int) -> dict[str, Any]:
    """Make the rows, check the answer, and time it; returns what `report` prints."""
    case.make(folder)
    checked, exact = case.check(folder)
    times = race(case.contenders, folder, rounds, answers=exact is not None)
    ours = times["seconds"][case.contenders[0].label]
    rows = []
    for contender in case.contenders:
        seconds, peaks = times["seconds"][contender.label], times["peak"][contender.label]
        row: dict[str, Any] = {"label": contender.label, "seconds": median_seconds(seconds)}
        row["ratio"] = median_ratio(seconds, ours)
        if case.flops is not None:
            row["gflops"] = case.flops / row["seconds"] / 1e9
            row["share_of_peak"] = share_of_peak(case.flops, seconds, peaks)
        if exact is not None:
            row["error"] = _error(contender.label, times["answer"][contender.label], exact)
        rows.append(row)
    bars = [verdict(bar, times, case.flops) for bar in case.bars]
    peak = median_seconds([p for c in case.contenders for p in times["peak"][c.label]])
    return {"case": case.name, "checked": checked, "peak_gflops": peak, "contenders": rows, "bars": bars, "raw": times}
