"""Races of the pass over the rows: every kind of rows, against everybody who forms X'X."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import data, jobs
from benchmarks.bars import Bar
from benchmarks.case import Case, optional, tuned, with_cores
from benchmarks.race import Contender
from streamcca import _backend

_OURS, _MOMENTS, _TORCH = "streamcca covariance", "streamcca, moments only", "torch.mm(X.T, X)"
_VECTORS, _FLOAT32 = "streamcca, vector kernels", "streamcca, float32 multiply-adds"
_SYRK = {"float32": "ssyrk", "float64": "dsyrk"}
# Share of the peak that was promised, by width.
_SHARES = {256: 0.65, 512: 0.75, 1024: 0.85, 2048: 0.85, 4096: 0.85}


def _refuse(error: float, tolerance: float) -> None:
    if not error <= tolerance:
        raise SystemExit(
            f"covariance is wrong by {error:.1e} of its diagonal, {tolerance:.1e} allowed; nothing was timed"
        )


def _error(ours: Any, x: Any, y: Any) -> float:
    """Largest error of a covariance, in units of the two neurons' deviations."""
    x, y = (v.astype(np.float64) - v.mean(axis=0, dtype=np.float64) for v in (x, y))
    exact = x.T @ y / (len(x) - 1)
    return float((np.abs(ours - exact) / x.std(axis=0)[:, None] / y.std(axis=0)).max())


def _checked(job: str, unit: float, rows: Callable[[Path], list[Any]]) -> Callable[[Path], tuple[str, None]]:
    """Compare what a job of ours gives with NumPy in float64; a lost row of 16384 would show as 6e-5."""

    def check(folder: Path) -> tuple[str, None]:
        answer, views = getattr(jobs, job)(folder)(), rows(folder)
        covariance = answer if isinstance(answer, np.ndarray) else answer.covariance(*answer.pairs[0])
        error = _error(covariance, views[0], views[-1])
        _refuse(error, 64 * unit)
        return f"largest error {error:.1e} of the diagonal", None

    return check


def _views(*names: str) -> Callable[[Path], list[Any]]:
    return lambda folder: [data.load(folder, name) for name in names]


def _noise(rows: int, width: int, dtype: str, *names: str) -> Callable[[Path], None]:
    return lambda folder: data.store(
        folder, **{name: data.noise(rows, width, dtype, seed) for seed, name in enumerate(names)}
    )


def _flops(rows: int, width: int) -> float:
    return float(rows) * width * (width + 1)


def _at_avx512(label: str, job: str, *levels: str) -> list[Contender]:
    """Our kernels as they run on a CPU with plain AVX-512, if this one is at one of the levels above it."""
    if _backend.active_isa() not in levels:
        return []
    return [Contender(label, job, (("STREAMCCA_ISA", "avx512"),))]


def plain(rows: int, width: int, dtype: str) -> Case:
    """Covariance of one view in memory, against all rivals."""
    unit = float(np.finfo(dtype).eps)
    numpy = with_cores("numpy X.T @ X", "numpy_product", peak=dtype)
    torch = optional("torch", _TORCH, "torch_product", peak=dtype)
    bars: list[Bar] = []
    if dtype == "float32" and width in _SHARES:
        bars = [Bar("peak", _MOMENTS, _SHARES[width])]
    if dtype == "float32" and width >= 1024:
        bars += [Bar("times", numpy[0].label, 2.0, _OURS), Bar("times", tuned(numpy), 1.15, _OURS)]
        bars += [Bar("times", _TORCH, 4.0, _OURS)] if torch else []
    if dtype == "float64" and width >= 1024:
        bars = [Bar("peak", _MOMENTS, 0.85), Bar("times", tuned(numpy), 1.2, _OURS)]
    return Case(
        name=f"covariance, {rows} x {width} {dtype}",
        make=_noise(rows, width, dtype, "x"),
        check=_checked("streamcca_covariance", unit, _views("x")),
        contenders=[
            Contender(_OURS, "streamcca_covariance", peak=dtype),
            Contender(_MOMENTS, "streamcca_moments", peak=dtype),
            *(_at_avx512(_VECTORS, "streamcca_moments", "amx") if dtype == "float32" else []),
            *numpy,
            Contender(f"scipy {_SYRK[dtype]}", "scipy_syrk", peak=dtype),
            Contender("numpy.cov, default BLAS", "numpy_cov", peak=dtype),
            *torch,
            *optional("sklearnex", "sklearnex covariance", "sklearnex_covariance", peak=dtype),
            *(
                optional("numkong", "numkong dots_symmetric", "numkong_symmetric", 3, dtype)
                if dtype == "float32"
                else []
            ),
            *(optional("sklearn", "sklearn IncrementalPCA", "sklearn_incremental_pca", 9) if width == 1024 else []),
        ],
        bars=bars,
        flops=_flops(rows, width),
    )


def float64_products(rows: int, width: int) -> Case:
    """Float32 rows, float64 products."""
    ours = "streamcca, float64 products"
    return Case(
        name=f"float64 products of {rows} x {width} float32",
        make=_noise(rows, width, "float32", "x"),
        check=_checked("streamcca_float64_products", 1e-15, _views("x")),
        contenders=[
            Contender(ours, "streamcca_float64_products", peak="float64"),
            Contender("numpy.cov, default BLAS", "numpy_cov", peak="float64"),
        ],
        bars=[Bar("peak", ours, 0.80)] if width >= 1024 else [],
        flops=_flops(rows, width),
    )


def bfloat16(rows: int, width: int) -> Case:
    """Rows in bfloat16."""
    ours, rival = "streamcca, bfloat16 rows", "torch.mm of bfloat16"

    def narrow(folder: Path) -> list[Any]:
        import torch

        return [torch.from_numpy(data.load(folder, "x")).bfloat16().double().numpy()]

    return Case(
        name=f"bfloat16, {rows} x {width}",
        make=_noise(rows, width, "float32", "x"),
        check=_checked("streamcca_bfloat16", float(np.finfo(np.float32).eps), narrow),
        contenders=[
            Contender(ours, "streamcca_bfloat16"),
            *_at_avx512(_FLOAT32, "streamcca_bfloat16", "amx", "avx512_bf16"),
            Contender(rival, "torch_product_bfloat16"),
        ],
        bars=[Bar("times", rival, 1.7, ours)] if width >= 1024 else [],
        flops=_flops(rows, width),
    )


def avx2(rows: int, width: int) -> Case:
    """Hold the AVX2 kernels against the peak of AVX2."""
    ours = "streamcca, AVX2 kernels"
    level = ("STREAMCCA_ISA", "avx2")
    check = _checked("streamcca_covariance", float(np.finfo(np.float32).eps), _views("x"))

    def check_level(folder: Path) -> tuple[str, None]:
        with mock.patch.dict(os.environ, [level]):
            return check(folder)

    return Case(
        name=f"AVX2 forced, {rows} x {width} float32",
        make=_noise(rows, width, "float32", "x"),
        check=check_level,
        contenders=[Contender(ours, "streamcca_moments", (level,))],
        bars=[Bar("peak", ours, 0.85)] if width >= 1024 else [],
        flops=_flops(rows, width),
    )


def small_batches(rows: int, width: int) -> Case:
    """Batches of 32 rows against one large batch."""
    one, many = "streamcca, one batch", "streamcca, batches of 32"
    return Case(
        name=f"batches of 32 rows, {rows} x {width} float32",
        make=_noise(rows, width, "float32", "x"),
        check=_checked("streamcca_batches_of_32", float(np.finfo(np.float32).eps), _views("x")),
        contenders=[Contender(many, "streamcca_batches_of_32"), Contender(one, "streamcca_moments")],
        bars=[Bar("times", one, 0.90, many)] if width >= 1024 else [],
        flops=_flops(rows, width),
    )


def one_update() -> Case:
    """Time one small update."""
    label = "streamcca update(x=32 x 64)"
    return Case(
        name="one update of 32 x 64 float32",
        make=_noise(32, 64, "float32", "x"),
        check=_checked("streamcca_moments", float(np.finfo(np.float32).eps), _views("x")),
        contenders=[Contender(label, "streamcca_one_update")],
        bars=[Bar("seconds", label, 15e-6)],
    )


def channels_first(images: int) -> Case:
    """Convolutional maps, positions as rows, against the same rows stored row by row."""
    first, last = "streamcca, channels first", "streamcca, rows stored row by row"

    def rows(folder: Path) -> list[Any]:
        return [np.moveaxis(data.load(folder, "images"), 1, -1).reshape(-1, 64)]

    return Case(
        name=f"{images} maps of 64 x 56 x 56 float32, one at a time",
        make=lambda folder: data.store(
            folder, images=data.noise(images * 64, 56 * 56, "float32").reshape(images, 64, 56, 56)
        ),
        check=_checked("streamcca_channels_first", float(np.finfo(np.float32).eps), rows),
        contenders=[Contender(first, "streamcca_channels_first"), Contender(last, "streamcca_channels_last")],
        bars=[Bar("times", last, 0.80, first)],
        flops=_flops(images * 56 * 56, 64),
    )


def cross(rows: int, width: int) -> Case:
    """Two views, only their pair wanted."""
    ours = "streamcca, cross pair only"
    return Case(
        name=f"cross pair only, 2 x ({rows} x {width}) float32",
        make=_noise(rows, width, "float32", "x", "y"),
        check=_checked("streamcca_cross", float(np.finfo(np.float32).eps), _views("x", "y")),
        contenders=[Contender(ours, "streamcca_cross")],
        bars=[Bar("peak", ours, 0.80)] if width >= 1024 else [],
        flops=2.0 * rows * width * width,
    )


def threads(rows: int, width: int) -> Case:
    """One thread against two."""
    one, two = "streamcca, one thread", "streamcca, all threads"
    return Case(
        name=f"threads, {rows} x {width} float32",
        make=_noise(rows, width, "float32", "x"),
        check=_checked("streamcca_one_thread", float(np.finfo(np.float32).eps), _views("x")),
        contenders=[Contender(two, "streamcca_moments"), Contender(one, "streamcca_one_thread", threads=1)],
        bars=[Bar("times", one, 1.85, two)] if width >= 1024 and _backend.openmp_threads() == 2 else [],
        flops=_flops(rows, width),
    )


def covariance_cases(quick: bool) -> list[Case]:
    """All races of the pass over the rows; quick ones are small, to show that they run."""
    torch = [bfloat16] if optional("torch", "", "") else []
    wide = [avx2] if "avx2" in _backend.isa_levels() else []
    if quick:
        small = [make(2048, 192) for make in (float64_products, *torch, *wide, small_batches, cross, threads)]
        return [plain(4096, 192, "float32"), plain(2048, 192, "float64"), *small, one_update(), channels_first(2)]
    shapes = [(65536, 256), (32768, 512), (16384, 1024), (16384, 2048), (8192, 4096)]
    return [
        *(plain(*shape, "float32") for shape in shapes),
        plain(16384, 1024, "float64"),
        plain(8192, 2048, "float64"),
        float64_products(16384, 1024),
        *(make(rows, width) for make in torch for rows, width in shapes[2:4]),
        *(make(rows, width) for make in wide for rows, width in shapes[2:4]),
        small_batches(16384, 2048),
        one_update(),
        channels_first(32),
        cross(16384, 1024),
        threads(16384, 1024),
        threads(16384, 2048),
    ]
