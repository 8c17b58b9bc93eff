"""What importing costs and brings, names, docstring examples."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import statistics
import subprocess
import sys
import time

import pytest

import streamcca as sc

LATE = ("torch", "matplotlib", "scipy.linalg", "cupy", "sklearn", "safetensors", "tqdm", "dask")


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    ).stdout


def test_import_brings_no_late_library():
    assert python(f"import sys, streamcca; print([m for m in {LATE} if m in sys.modules])").strip() == "[]"


def test_import_takes_less_than_three_tenths_of_a_second():
    def seconds():
        start = time.perf_counter()
        python("import streamcca")
        return time.perf_counter() - start

    python("import streamcca")
    assert statistics.median(seconds() for _ in range(5)) < 0.3


@pytest.mark.parametrize(
    "code",
    [
        "import streamcca as sc; sc.watch; sc.watch; print(callable(sc.watch), callable(sc.compare))",
        "from streamcca import watch, compare; print(callable(watch), callable(compare))",
        "import streamcca.watch, streamcca as sc; print(callable(sc.watch), callable(sc.compare))",
        "from streamcca.watch import watch; import streamcca as sc; print(callable(sc.watch), sc.watch is watch)",
    ],
)
def test_functions_named_like_their_modules(code):
    assert python(code).split() == ["True", "True"]


def test_public_names_exist_and_are_documented():
    for name in sc.__all__:
        item = getattr(sc, name)
        assert not callable(item) or item.__doc__, name


@pytest.mark.parametrize(
    "name",
    [
        m.name.removeprefix("streamcca.")
        for m in pkgutil.walk_packages(sc.__path__, "streamcca.")
        if m.name.split(".")[-1] not in ("__main__", "_core", "_cuda")
    ],
)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"streamcca.{name}")
    result = doctest.testmod(module, extraglobs={"np": __import__("numpy")})
    assert result.failed == 0


def test_one_openmp_runtime_is_shared_with_torch():
    """Two pools of threads would fight for the cores; both orders of import."""
    code = """
import {}
import numpy as np
from threadpoolctl import threadpool_info
m = streamcca.Moments({{"a": 300}})
m.update(a=torch.randn(4000, 300))
torch.randn(500, 500) @ torch.randn(500, 500)
pools = [p["filepath"] for p in threadpool_info() if p["user_api"] == "openmp"]
print(len(pools))
"""
    for order in ("streamcca, torch", "torch, streamcca"):
        assert python(code.format(order)).strip() == "1", order
