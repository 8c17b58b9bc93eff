#!/usr/bin/env bash
# The tests of the CUDA kernels under compute-sanitizer, on a machine with a GPU: out-of-bounds and misaligned accesses, races in shared memory,
# reads of memory that was never written, barriers in branches. Arguments go to pytest: `tests/cuda_sanitize.sh -k wanted_pairs` takes seconds.
# On Hopper racecheck stops at float64 rows, which docs/cuda.md says more about; the other tools find nothing (an H200, some of the tests).
set -euo pipefail
cd "$(dirname "$0")/.."
command -v compute-sanitizer > /dev/null || { echo "compute-sanitizer is not on PATH; it comes with the CUDA toolkit" >&2; exit 2; }
export STREAMCCA_REQUIRE_CUDA=1 STREAMCCA_CUDA_BLOCK_ROWS=256 PYTORCH_NO_CUDA_MEMORY_CACHING=1
read -ra tools <<< "${SANITIZE_TOOLS:-memcheck racecheck initcheck synccheck}"
read -ra ladders <<< "${SANITIZE_LADDERS:-naive tiled tensor best}"
for tool in "${tools[@]}"; do
  for ladder in "${ladders[@]}"; do
    echo "=== $tool, $ladder"
    options=(--tool "$tool" --error-exitcode 1 --target-processes all)
    # Only our kernels, but for initcheck, which must see what others write.
    [ "$tool" = initcheck ] || options+=(--kernel-name kernel_substring=streamcca)
    [ "$tool" = memcheck ] && options+=(--leak-check full)
    STREAMCCA_CUDA_LADDER=$ladder compute-sanitizer "${options[@]}" python3 -m pytest -q -x tests/test_cuda*.py "$@"
  done
done
