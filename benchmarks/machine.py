"""What ran the benchmark, for the record."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from streamcca import _backend
from streamcca.errors import StreamCCAError

_PACKAGES = ("streamcca", "numpy", "scipy", "torch", "scikit-learn", "scikit-learn-intelex", "numkong")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Return the commit, with a plus sign if sources differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
        sources = ["--", "../csrc", "../python", "../CMakeLists.txt", ".", ":!results"]
        changes = subprocess.run([*git, "diff", "--quiet", "HEAD", *sources], check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.returncode else "")


def describe() -> dict[str, Any]:
    """Return the CPU, the threads, the kernels in use and the versions of everything that was timed."""
    try:
        level = _backend.active_isa()
    except StreamCCAError as error:
        raise SystemExit(str(error)) from None
    return {
        "cpu": _cpu(),
        "threads": _backend.openmp_threads(),
        "isa": level,
        # Products of bfloat16 on registers; 0 where the kernels in use have no unit for them.
        "matrix_unit_gflops": round(_backend.peak_gflops("bfloat16", 0.2)),
        "compiler": _backend.COMPILER,
        "python": platform.python_version(),
        "revision": _revision(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }
