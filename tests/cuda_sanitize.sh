#!/usr/bin/env bash
# The tests of the CUDA kernels under compute-sanitizer, on a machine with a GPU: out-of-bounds and misaligned accesses, races in shared memory,
# reads of memory that was never written, barriers in branches. Some hundred times slower than without. It has never been run: see docs/cuda.md.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v compute-sanitizer > /dev/null || { echo "compute-sanitizer is not on PATH; it comes with the CUDA toolkit" >&2; exit 2; }
export STREAMCCA_REQUIRE_CUDA=1 STREAMCCA_CUDA_BLOCK_ROWS=256 PYTORCH_NO_CUDA_MEMORY_CACHING=1
ladders=(naive tiled tensor)
[ "$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)" = 9.0 ] && ladders+=(hopper)
for tool in memcheck racecheck initcheck synccheck; do
  for ladder in "${ladders[@]}"; do
    echo "=== $tool, $ladder"
    options=(--tool "$tool" --error-exitcode 1 --target-processes all --kernel-name kernel_substring=streamcca)
    [ "$tool" = memcheck ] && options+=(--leak-check full)
    STREAMCCA_CUDA_LADDER=$ladder compute-sanitizer "${options[@]}" python -m pytest -q -x tests/test_cuda*.py
  done
done
