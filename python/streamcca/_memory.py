"""How much memory may be allocated, and who says so; how much was used."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from streamcca.errors import MemoryLimitError

_CGROUP = Path("/sys/fs/cgroup")
# Asking the system takes some 100 microseconds; smaller needs are not worth the question.
_ASK_ABOVE = 256 << 20


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text().strip())
    except (OSError, ValueError):  # absent, or "max"
        return None


def available_memory() -> tuple[int, str]:
    """Return the bytes that may still be allocated, and the name of the limit that binds."""
    limits: list[tuple[int, str]] = []
    try:
        info = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append((int(info["MemAvailable"].split()[0]) * 1024, "free memory (MemAvailable)"))
        resident = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # no /proc: no limit known but RLIMIT
        resident = 0
    allowed, used = _read_int(_CGROUP / "memory.max"), _read_int(_CGROUP / "memory.current")
    if allowed is not None and used is not None:
        limits.append((max(0, allowed - used), "the cgroup limit (memory.max)"))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append((max(0, soft - resident), "RLIMIT_AS"))
    return min(limits) if limits else (2**63, "no known limit")


def check_memory(need: int, what: str, remedy: str) -> None:
    """Raise MemoryLimitError if `need` bytes are more than what is available."""
    if need < _ASK_ABOVE:
        return
    limit, source = available_memory()
    if need > limit:
        raise MemoryLimitError(
            f"{what} need {need / 2**30:.1f} GiB, but {source} leaves {limit / 2**30:.1f} GiB; {remedy}"
        )


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise OSError(key)


def reset_peak() -> int:
    """Forget the peak of this process where the system can (Linux), and return the resident bytes now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return peak_resident()


def peak_resident() -> int:
    """Return the largest resident set of this process, in bytes."""
    try:
        return _status("VmHWM")
    except OSError:
        # Only the second choice: on Linux a child inherits its parent's ru_maxrss.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
