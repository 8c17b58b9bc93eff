// What leaves the device as a matrix.
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace streamcca::cuda {
namespace {

STREAMCCA_KERNEL void covariance_kernel(Covariance job) {
  const std::size_t e = block_index() * kThreads + thread_index();
  if (e >= job.height * job.width) return;
  std::size_t row = e / job.width, column = e % job.width;
  if (job.row_sums == job.col_sums && row > column) {  // of a view with itself the upper triangle holds
    const std::size_t other = row;
    row = column;
    column = other;
  }
  const std::uint32_t place = job.places[row / kTile * job.tiles_across + column / kTile];
  const double moment = job.tiles[place * kTileSize + row % kTile * kTile + column % kTile];
  job.out[e] = (moment - job.row_sums[row] * (job.col_sums[column] / job.weight)) / (job.weight - job.ddof);
}

}  // namespace

void write_covariance(const Covariance& job, Stream stream) {
  launch(&covariance_kernel, (job.height * job.width + kThreads - 1) / kThreads, kThreads, 0, stream, job);
}

}  // namespace streamcca::cuda
