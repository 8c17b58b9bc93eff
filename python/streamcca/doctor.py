"""What this installation is and whether it computes: `streamcca doctor`."""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from streamcca import _backend
from streamcca.cca import cca
from streamcca.devices import checked_device
from streamcca.errors import DeviceError
from streamcca.moments import Moments

_PACKAGES = (
    "streamcca",
    "numpy",
    "scipy",
    "safetensors",
    "torch",
    "matplotlib",
    "tqdm",
    "scikit-learn",
    "cupy-cuda13x",
)
_SECONDS = 1.0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _blas() -> list[dict[str, Any]]:
    if importlib.util.find_spec("threadpoolctl") is None:
        config: dict[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
        blas = config.get("Build Dependencies", {}).get("blas", {})
        return [{"library": blas.get("name", "unknown"), "version": blas.get("version", "unknown")}]
    import scipy.linalg  # noqa: F401  (so that its BLAS is loaded)
    from threadpoolctl import threadpool_info

    keys = ("internal_api", "version", "architecture", "num_threads", "user_api")
    return [{key: info[key] for key in keys if key in info} for info in threadpool_info()]


def _check_exact(rng: np.random.Generator) -> bool:
    """Moments of small integers are exact: any rounding at all is a defect."""
    x = rng.integers(-8, 9, size=(int(rng.integers(2, 700)), int(rng.integers(1, 70)))).astype(np.float32)
    m = Moments({"x": x.shape[1]}, precision="float32")
    cut = int(rng.integers(0, len(x) + 1))
    m.update(x=x[:cut])
    m.update(x=x[cut:])
    i, j = (int(v) for v in rng.integers(0, x.shape[1], size=2))
    a, b = ([Fraction(float(v)) for v in x[:, k]] for k in (i, j))
    exact = sum(p * q for p, q in zip(a, b, strict=True)) - sum(a) * sum(b) / len(a)
    got = m.covariance("x", ddof=0)[i, j] * len(x)
    return bool(abs(got - float(exact)) <= 1e-9 * len(x))


def _check_cca(rng: np.random.Generator) -> bool:
    """Correlations that were planted exactly must come back."""
    planted = np.array([0.95, 0.6, 0.2])
    basis = np.linalg.qr(np.hstack([np.ones((400, 1)), rng.standard_normal((400, 6))]))[0][:, 1:]
    x = basis[:, :3]
    y = x * planted + basis[:, 3:] * np.sqrt(1 - planted**2)
    found = cca(x @ rng.standard_normal((3, 3)), y @ rng.standard_normal((3, 3))).correlations
    return bool(np.abs(found - planted).max() < 1e-9)


def self_check(seconds: float = _SECONDS) -> dict[str, Any]:
    """Compare moments with exact rationals and CCA with planted correlations, for about a second."""
    rng = np.random.default_rng(20221111)
    counts = {"exact moments": 0, "planted correlations": 0}
    failures = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for name, check in (("exact moments", _check_exact), ("planted correlations", _check_cca)):
            counts[name] += 1
            failures += not check(rng)
    return {"passed": failures == 0, "failures": failures, **counts}


def report(check: bool = True) -> dict[str, Any]:
    """Collect everything that a bug report needs."""
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "compiler": _backend.COMPILER,
        "isa": {
            "active": _backend.active_isa(),
            "runnable": _backend.isa_levels(),
            "forced": os.environ.get("STREAMCCA_ISA"),
        },
        "threads": {"openmp": _backend.openmp_threads(), "cores": os.cpu_count()},
        "blas": _blas(),
        "cuda": _cuda(),
        "block_rows": _backend.BLOCK_ROWS,
    }
    if check:
        result["self_check"] = self_check()
    return result


def _cuda() -> dict[str, Any]:
    try:
        checked_device("cuda")
    except DeviceError as error:
        return {"kernels": False, "note": str(error)}
    return {"kernels": True, "note": "kernels and a device are there (untried: docs/cuda.md)"}


def format_report(result: dict[str, Any]) -> str:
    """Lay a report out for reading."""
    lines = [f"python       {result['python']} on {result['platform']}"]
    lines += [f"{name:12} {found or 'not installed'}" for name, found in result["packages"].items()]
    isa = result["isa"]
    forced = f", forced by STREAMCCA_ISA={isa['forced']}" if isa["forced"] else ""
    lines.append(
        f"kernels      {isa['active']}{forced} (this CPU runs {', '.join(isa['runnable'])}); "
        f"compiler {result['compiler']}"
    )
    lines.append(f"threads      {result['threads']['openmp']} of {result['threads']['cores']} cores (OpenMP)")
    lines += ["blas         " + ", ".join(f"{k} {v}" for k, v in info.items()) for info in result["blas"]]
    lines.append(f"cuda         {result['cuda']['note']}")
    if "self_check" in result:
        check = result["self_check"]
        verdict = "passed" if check["passed"] else f"FAILED {check['failures']} times"
        lines.append(
            f"self-check   {verdict}: {check['exact moments']} x moments against exact rationals, "
            f"{check['planted correlations']} x planted correlations"
        )
    return "\n".join(lines)
