"""What moments on a CUDA device cost, beside torch and cuBLAS, and what was promised of it.

Needs torch and a GPU, for two cases CuPy; answers are checked before anything is timed. Where the kernels are emulated,
`--quick` runs all of it on CPU memory, to see that it runs; those times mean nothing.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

import streamcca as sc
from benchmarks.bars import median_ratio, median_seconds
from benchmarks.resnet import resnet50
from streamcca import devices
from streamcca.arrays import cupy_here

Result = dict[str, Any]
Seconds = dict[str, list[float | None]]


def memory() -> str:
    """Where torch makes rows for moments on a device: in CPU memory where that is emulated."""
    return "cpu" if devices._extension().EMULATED else "cuda"


def _wait() -> None:
    if memory() == "cuda":
        torch.cuda.synchronize()


def race(jobs: dict[str, Callable[[], object]], rounds: int) -> Seconds:
    """Time jobs on the device in turn, round after round, from before the first launch until the last one is done."""
    seconds: Seconds = {name: [] for name in jobs}
    for round_ in range(rounds + 1):
        for name, job in jobs.items():
            _wait()
            start = time.perf_counter()
            job()
            _wait()
            if round_:  # the first is not counted
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _bar(bar: str, wanted: float, measured: float, text: str, most: bool = False) -> Result:
    reached = measured <= wanted if most else measured >= wanted
    return {"bar": bar, "wanted": wanted, "measured": measured, "reached": reached, "text": text}


def _result(case: str, seconds: Seconds, bars: list[Result], **more: Any) -> Result:
    device = torch.cuda.get_device_name() if memory() == "cuda" else "emulated"
    return {"case": case, "device": device, "seconds": seconds, "bars": bars, **more}


def _rows(n: int, d: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(memory()).manual_seed(seed)
    parts = [torch.randn(min(16384, n - i), d, generator=generator, device=memory()) for i in range(0, n, 16384)]
    return torch.cat([part.to(dtype) for part in parts])


def _check(moments: sc.Moments, x: torch.Tensor) -> float:
    """Largest error of 64 neurons against float64, in units of their deviations; beyond the bound it is refused."""
    picked = torch.linspace(0, x.shape[1] - 1, 64).long().unique()
    exact = _covariance(x[:, picked.to(x.device)].double()).cpu().numpy()
    found, (relative, _, raw) = moments._covariance("x", "x")
    index = picked.numpy()
    scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
    error = np.abs(found[np.ix_(index, index)] - exact)
    bound = 8 * max(relative, 2.0**-24 if moments.precision == "float32" else 2.0**-52)
    if not (error <= bound * np.sqrt(np.outer(raw[index], raw[index]))).all():
        raise SystemExit(f"wrong answer: {x.dtype}, {tuple(x.shape)}, error {(error / scale).max():.1e}")
    return float((error / scale).max())


def _covariance(x: torch.Tensor) -> torch.Tensor:
    x = x - x.mean(0)
    return x.T @ x / (len(x) - 1)


def _filled(x: torch.Tensor, batch: int) -> sc.Moments:
    moments = sc.Moments({"x": x.shape[1]}, device="cuda")
    for first in range(0, len(x), batch):
        moments.update(x=x[first : first + batch])
    return moments


def product(n: int, d: int, dtype: torch.dtype, rounds: int) -> Result:
    """One large batch, beside torch's product of the whole matrix in the same type (float32: without TF32)."""
    x = _rows(n, d, dtype)
    moments = _filled(x, n)
    error = _check(moments, x)
    moments.reset()  # the memory stays
    torch.backends.cuda.matmul.allow_tf32 = False
    square = torch.ones(min(n, 8192), min(n, 8192), dtype=dtype, device=x.device)
    jobs: dict[str, Callable[[], object]] = {
        "streamcca": lambda: moments.update(x=x),
        "torch mm": lambda: torch.mm(x.T, x),
        "peak": lambda: torch.mm(square, square),
    }
    if dtype == torch.float64:
        jobs |= _dsyrk(x)
    seconds = race(jobs, rounds)
    # Half of the square is formed, and half of it counted.
    part = n * d * (d + 1) / (2 * len(square) ** 3) * median_ratio(seconds["peak"], seconds["streamcca"])
    times = median_ratio(seconds["torch mm"], seconds["streamcca"])
    bars = []
    if dtype == torch.bfloat16:
        bars.append(_bar("useful flops >= 60 % of the measured bfloat16 peak", 0.6, part, f"{part:.0%}"))
        bars.append(_bar("torch mm takes >= 1.2 x streamcca", 1.2, times, f"{times:.2f} x"))
    if dtype == torch.float32:
        exact = _covariance(x[:, :64].double())
        theirs = float(((_covariance(x[:, :64]) - exact).abs().max() / exact.diagonal().min()).cpu())
        bars.append(_bar("torch mm takes >= 2 x streamcca", 2, times, f"{times:.2f} x"))
        bars.append(_bar("error <= torch's", theirs, error, f"{error:.1e} against {theirs:.1e}", most=True))
    if "cuBLAS dsyrk" in jobs:
        ratio = median_ratio(seconds["cuBLAS dsyrk"], seconds["streamcca"])
        bars.append(_bar(">= 85 % of the speed of cuBLAS dsyrk", 0.85, ratio, f"{ratio:.0%}"))
    return _result(f"{n} x {d} {str(dtype)[6:]}", seconds, bars, error=error, of_peak=part)


def _dsyrk(x: torch.Tensor) -> dict[str, Callable[[], object]]:
    library: Any = cupy_here()
    try:
        from cupy import cublas
    except ImportError:  # no CuPy, or what stands in for it
        return {}
    there, out = library.from_dlpack(x), library.zeros((x.shape[1], x.shape[1]))  # rows first, or it copies all rows
    return {"cuBLAS dsyrk": lambda: cublas.syrk("T", there, out=out)}


def staging(n: int, d: int, rounds: int) -> Result:
    """Batches of 256 rows beside one large one, and how much of the time the host was launching."""
    x = _rows(n, d, torch.bfloat16)
    moments = _filled(x, 256)
    error = _check(moments, x)
    launched: list[float] = []

    def small() -> None:
        start = time.perf_counter()
        for first in range(0, n, 256):
            moments.update(x=x[first : first + 256])
        launched.append(time.perf_counter() - start)

    seconds = race({"by 256": small, "at once": lambda: moments.update(x=x)}, rounds)
    share = median_ratio(seconds["at once"], seconds["by 256"])
    # Near 1: the host is what costs, or it waits.
    busy = median_ratio(list(launched[1:]), seconds["by 256"])
    bars = [_bar("batches of 256 rows keep >= 70 % of the speed of one", 0.7, share, f"{share:.0%}")]
    return _result(f"{n} x {d} bfloat16 by 256", seconds, bars, error=error, launching=busy)


def _related(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of decaying directions, half of them shared."""
    latent = _rows(n, 2 * d, torch.float32, seed=1)
    latent[:, d::2] = latent[:, :d:2]
    latent *= (torch.arange(1, d + 1, device=latent.device) ** -1.0).repeat(2)
    mix = torch.linalg.qr(_rows(d, d, torch.float32, seed=2))[0]
    return (latent[:, :d] @ mix).bfloat16(), (latent[:, d:] @ mix.flip(1)).bfloat16()


def _torch_svcca(x: torch.Tensor, y: torch.Tensor) -> float:
    """Compute what google/svcca does: singular vectors of the whole centered matrices, in float32."""
    sides = []
    for rows in (x, y):
        u, s, _ = torch.linalg.svd(rows.float() - rows.float().mean(0), full_matrices=False)
        squares = s.double() ** 2
        kept = int((squares.cumsum(0) < 0.99 * squares.sum()).sum()) + 1
        sides.append(u[:, :kept])
    return float(torch.linalg.svdvals(sides[0].T @ sides[1]).clamp(max=1).mean())


def _most_of_torch(x: torch.Tensor, y: torch.Tensor) -> float:
    """GiB that torch takes beyond the rows. Its own count: nothing else can look while the GIL is held."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _torch_svcca(x, y)
    return float(torch.cuda.max_memory_allocated() - before) / 2**30


def _moments_and_blocks(d: int) -> int:
    """Bytes of the moments of two views of d neurons, all pairs, and of a full block of rows in three planes."""
    tiles, columns = -(-d // 128), 2 * (-(-d // 128) * 128)
    block = columns * (devices._extension().BLOCK_ROWS * (3 * 2 + 16 / 32) + 256 * 8)
    return int((tiles * (tiles + 1) + tiles * tiles) * 128 * 128 * 8 + block)


def svcca(n: int, d: int, rounds: int) -> Result:
    """SVCCA of two bfloat16 layers from their rows, beside torch on full float32 matrices; and memory."""
    x, y = _related(n, d)

    def ours() -> sc.CCAResult:
        moments = sc.Moments({"a": d, "b": d}, device="cuda")
        moments.update(a=x, b=y)
        return sc.svcca(moments, "a", "b", variance=0.99)

    warnings.simplefilter("ignore", sc.AccuracyWarning)  # bounds are compared below
    found, right = ours(), _torch_svcca(x, y)
    if abs(found.mean - right) > found.error_bound + 1e-3:
        raise SystemExit(f"wrong answer: SVCCA {found.mean}, torch {right}")
    free = _free()
    taken = free - min(_free_while(ours)) if free else 0
    seconds = race({"streamcca": ours, "torch svd": lambda: _torch_svcca(x, y)}, min(rounds, 3))
    times = median_ratio(seconds["torch svd"], seconds["streamcca"])
    bars = [_bar("torch on full float32 matrices takes >= 10 x streamcca", 10, times, f"{times:.1f} x")]
    if free:
        most = _moments_and_blocks(d)
        text = f"{taken / 2**30:.2f} GiB against {most / 2**30:.2f} (torch: {_most_of_torch(x, y):.1f})"
        bars.append(_bar("device memory <= moments + blocks", most, taken, text, most=True))
    return _result(f"SVCCA of two {n} x {d} bfloat16 layers, 99 %", seconds, bars, mean=found.mean)


def _free() -> int:
    """Bytes that are free on the device, after the pools have given back what they keep."""
    if memory() == "cpu":
        return 0
    torch.cuda.empty_cache()
    library = cupy_here()
    if library is not None:
        library.get_default_memory_pool().free_all_blocks()
    return int(torch.cuda.mem_get_info()[0])


def _free_while(job: Callable[[], object]) -> Iterator[int]:
    """Look at the free memory from another thread while a job runs."""
    import threading

    done = threading.Event()
    seen = [int(torch.cuda.mem_get_info()[0])]

    def look() -> None:
        while not done.wait(1e-3):
            seen.append(int(torch.cuda.mem_get_info()[0]))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        job()
    finally:
        done.set()
        looker.join()
    yield from seen


def watching(images: int, size: int, rounds: int, **net: Any) -> Result:
    """Watch 16 blocks of a net like ResNet-50 in bfloat16, all pairs of them, beside the plain forward."""
    model = resnet50(**net).to(memory(), torch.bfloat16)
    batch = _rows(images, 3 * size * size, torch.bfloat16).reshape(images, 3, size, size)
    blocks = [name for name, module in model.named_modules() if type(module).__name__ == "Bottleneck"]
    forwards = 32 if size > 32 else 2  # of 256 images: a block of rows of the 15,104 columns, with its products

    def run() -> None:
        for _ in range(forwards):
            model(batch)

    with torch.no_grad():
        before = race({"plain": run}, (rounds + 1) // 2)
        with sc.watch(model, layers=blocks, rows="pool", device="cuda") as w:
            model(batch)
            if len(w.layers) != 16:
                raise SystemExit(f"watched {len(w.layers)} layers, expected 16")
            watched = race({"watched": run}, rounds)
        after = race({"plain": run}, (rounds + 1) // 2)
    seconds = {**watched, "plain": before["plain"] + after["plain"]}
    times = median_seconds(seconds["watched"]) / median_seconds(seconds["plain"])
    bars = [
        _bar("watching 16 blocks, all pairs: <= 1.25 x the plain forward", 1.25, times, f"{times:.2f} x", most=True)
    ]
    return _result(f"ResNet-50-sized, {forwards} batches of {images} x 3 x {size} x {size} bfloat16", seconds, bars)


def run_cuda(quick: bool, rounds: int) -> Iterator[Result]:
    """Run all cases."""
    devices.checked_device("cuda")
    n, widths = (600, (60, 130)) if quick else (262_144, (4096, 8192))
    cases: list[Callable[..., Result]] = [partial(product, n, d, torch.bfloat16) for d in widths]
    cases += [partial(product, n, widths[0], t) for t in (torch.float16, torch.float32, torch.float64)]
    cases += [partial(staging, n, d) for d in ((20, 40) if quick else (512, 1024))]
    cases.append(partial(svcca, *((500, 40) if quick else (100_000, 4096))))
    small = {"stem": 4, "classes": 10}
    for case in cases:
        yield case(rounds=rounds)
    yield watching(2, 32, rounds, **small) if quick else watching(256, 224, min(rounds, 3))


def format_cuda(result: Result) -> str:
    """Lay one case out."""
    lines = [result["case"]]
    lines += [f"  {name:<14} {median_seconds(times) * 1e3:>10.3f} ms" for name, times in result["seconds"].items()]
    lines += [f"  {key} {result[key]:.3g}" for key in ("error", "of_peak", "launching", "mean") if key in result]
    lines += [f"  {'reached' if bar['reached'] else 'MISSED'}: {bar['bar']}: {bar['text']}" for bar in result["bars"]]
    return "\n".join(lines)
