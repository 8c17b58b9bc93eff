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


def _groups() -> list[Path]:
    """Folders of this process's memory control group and of all above it (version 2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    group = _CGROUP / own
    return [group, *(parent for parent in group.parents if parent.is_relative_to(_CGROUP))]


def _left_in_group(folder: Path) -> int | None:
    """Return what a group may still take, or None if it has no limit; cached files count as free."""
    allowed, used = _read_int(folder / "memory.max"), _read_int(folder / "memory.current")
    if allowed is None or used is None:
        return None
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used -= int(stat["inactive_file"]) + int(stat["active_file"])
    except (OSError, KeyError, ValueError):
        pass
    return max(0, allowed - used)


def available_memory() -> tuple[int, str]:
    """Return the bytes that may still be allocated, and the name of the limit that binds."""
    limits: list[tuple[int, str]] = []
    try:
        info = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append((int(info["MemAvailable"].split()[0]) * 1024, "free memory (MemAvailable)"))
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, KeyError, ValueError):  # no such /proc: no limit known but RLIMIT
        mapped = 0
    limits += [(left, "the cgroup limit (memory.max)") for left in map(_left_in_group, _groups()) if left is not None]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append((max(0, soft - mapped), "RLIMIT_AS"))
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
