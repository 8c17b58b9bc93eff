"""What one race consists of, and the rivals that several races share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.bars import Bar
from benchmarks.race import Contender
from streamcca import _backend

# What the wheel's OpenBLAS can be told to take the CPU for, and the level of ours that says whether it can.
_CORES = {"SkylakeX": "avx512", "Haswell": "avx2"}


@dataclass(frozen=True)
class Case:
    """One race.

    `check` returns what it found and, for SVCCA, the exact mean and ranks; `flops` are those of the useful work,
    if it is of one kind; `bars` is what was promised. The first contender is the one that the others are compared with.
    """

    name: str
    make: Callable[[Path], None]
    check: Callable[[Path], tuple[str, tuple[float, int, int] | None]]
    contenders: list[Contender]
    bars: list[Bar] = field(default_factory=list)
    flops: float | None = None


def default_core() -> str:
    """Return what NumPy's OpenBLAS takes this CPU for."""
    from threadpoolctl import threadpool_info

    return next((info["architecture"] for info in threadpool_info() if "architecture" in info), "")


def with_cores(label: str, job: str, every: int = 1, peak: str = "float32") -> list[Contender]:
    """Return a BLAS job with what OpenBLAS chooses by itself, and with the other choices that this CPU can run."""
    others = [core for core, level in _CORES.items() if level in _backend.isa_levels() and core != default_core()]
    return [Contender(f"{label}, default BLAS", job, every=every, peak=peak)] + [
        Contender(f"{label}, {core}", job, (("OPENBLAS_CORETYPE", core),), every, peak) for core in others
    ]


def tuned(contenders: list[Contender]) -> str:
    """Label of the one whose BLAS is set to the best kernels this CPU can run: one of the others, or the default."""
    best = next(core for core, level in _CORES.items() if level in _backend.isa_levels())
    return next((c.label for c in contenders if c.label.endswith(best)), contenders[0].label)


def optional(package: str, label: str, job: str, every: int = 1, peak: str = "float32") -> list[Contender]:
    """Return a contender, if its package is installed."""
    return [Contender(label, job, every=every, peak=peak)] if find_spec(package) else []
