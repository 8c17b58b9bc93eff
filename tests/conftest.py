"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# Before NumPy: the tests' matrices are small, and threads of its BLAS, and of SciPy's, spin while the others work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import importlib
import signal
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent))  # for the package of benchmarks

import fake_cupy

import streamcca as sc
from streamcca import _backend, devices

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

LEVELS = _backend.isa_levels()


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """A shell starts background jobs with SIGINT ignored, and so would CI; the tests of Ctrl-C need it."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def rng():
    return np.random.default_rng(1729)


@pytest.fixture(params=LEVELS)
def isa(request, monkeypatch):
    """Every instruction-set level that this machine can run; a level forced from outside is kept."""
    forced = os.environ.get("STREAMCCA_ISA")
    if forced and forced != request.param:
        pytest.skip(f"STREAMCCA_ISA={forced} is set for the whole run")
    monkeypatch.setenv("STREAMCCA_ISA", request.param)
    return request.param


@pytest.fixture
def decaying(rng):
    """Make views with a decaying spectrum and shared signals: decaying(n, dx, dy, power)."""

    def make(n, dx, dy, power=0.7, shared=10, noise=0.3):
        latent = rng.standard_normal((n, shared))
        views = []
        for d in (dx, dy):
            scale = np.arange(1, d + 1) ** -power
            own = rng.standard_normal((n, d))
            own[:, : min(shared, d)] += latent[:, : min(shared, d)] / noise
            views.append((own * scale) @ np.linalg.qr(rng.standard_normal((d, d)))[0])
        return views

    return make


def bits(m: sc.Moments) -> list[bytes]:
    """All numbers of some moments, as bytes."""
    numbers = [m.mean(view) for view in m.views] + [m.covariance(a, b) for a, b in m.pairs]
    return [np.ascontiguousarray(x).tobytes() for x in numbers] + [repr((m.n, m.rows, m.skipped)).encode()]


@pytest.fixture
def same_bits():
    def check(a: sc.Moments, b: sc.Moments) -> None:
        assert bits(a) == bits(b)

    return check


def _why_no_device():
    """Why moments cannot live on a CUDA device here, or nothing."""
    try:
        devices.checked_device("cuda")
    except sc.DeviceError as error:
        return str(error)
    return ""


@pytest.fixture
def library(device, monkeypatch):
    """The library whose arrays live on `device`: NumPy, CuPy on a GPU, or on the emulator what stands in for it."""
    if device == "cpu":
        return np
    if devices._extension().EMULATED:
        return fake_cupy.install(monkeypatch)
    if os.environ.get("STREAMCCA_REQUIRE_CUDA") == "1":
        return importlib.import_module("cupy")
    return pytest.importorskip("cupy")


@pytest.fixture(params=["cuda"] if os.environ.get("STREAMCCA_REQUIRE_CUDA") == "1" else ["cpu", "cuda"])
def device(request, monkeypatch):
    """Every device that moments can live on; see test_cuda.py. Where a CUDA device is required, that alone."""
    if request.param == "cuda" and (why := _why_no_device()):
        if os.environ.get("STREAMCCA_REQUIRE_CUDA") == "1":
            pytest.fail(why)
        pytest.skip(why)
    # Blocks that few rows fill; the default is thousands.
    monkeypatch.setenv("STREAMCCA_CUDA_BLOCK_ROWS", "256")
    return request.param
