"""Freed memory is kept by the process that asks for it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from streamcca.multiplicity.insides import allocator

PROGRAM = """
import resource, sys
import numpy as np
from streamcca.multiplicity.insides.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
small = []
def work(times):
    for _ in range(times):
        large = [np.ones(400_000) for _ in range(8)]
        small.append(np.ones(4096))
        del large
work(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work(20)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_pages_are_fetched_once():
    """160 arrays of 3.2 MB, 781 pages each: a third is fetched anew by default (43,638), hardly any if kept (112).

    By default it also depends on what was freed before; where pages happen to stay, there is nothing to be seen.
    """
    _, usual = faults("leave")
    kept, few = faults("keep")
    assert kept == "True"
    assert few < 1000
    if usual < 10_000:
        pytest.skip(f"{usual} faults by default: pages stayed by themselves")


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("there is no such library"))
    assert allocator.keep_freed_memory() is False
