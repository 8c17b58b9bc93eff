"""Registers and spills of every CUDA kernel, from the log of a verbose build (ptxas -v); fails where a kernel spills.

python csrc/cuda/registers.py build.log. The naive rung of the ladder may spill: it is there to be right.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

KERNEL = re.compile(
    r"entry function '(?P<name>\S+)' for '(?P<arch>\w+)'.*?(?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
# Kernels whose absence from the log means that it is not the log of a whole build.
EXPECTED = {
    *("planes_kernel", "groups_kernel", "doubles_kernel", "doubles_ring_kernel"),
    *("plain_kernel", "pack_kernel32", "pack_kernel64", "check_dense_kernel"),
}
ARCHITECTURES = {"sm_80", "sm_90a"}


def main(log: str) -> int:
    """Print the table; return the number of what is wrong."""
    seen, wrong = set(), 0
    for found in KERNEL.finditer(Path(log).read_text()):
        name = re.sub(r"^.*\d([a-z_]+_kernel(32|64)?)E?N.*$", r"\1", found["name"])
        spills = int(found["stores"]) + int(found["loads"])
        bad = spills > 0 and not name.startswith("naive")
        wrong += bad
        seen.add((name, found["arch"]))
        print(f"{name:20} {found['arch']:7} {found['registers']:>4} registers {spills:>4} bytes spilled{'  <--' * bad}")
    missing = {(name, arch) for name in EXPECTED for arch in ARCHITECTURES} - seen
    for name, arch in sorted(missing):
        print(f"{name} for {arch} is not in {log}")
    return wrong + len(missing)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1]), 1))
