#include "cuda/block.h"

#include <bitset>

namespace streamcca::cuda {
namespace {

constexpr std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

std::size_t Block::bytes(Products products, std::size_t columns, std::size_t rows, unsigned planes) {
  const std::size_t count = std::bitset<kPlaneSets>(planes).count();
  const std::size_t value = products == Products::f32 ? count * sizeof(std::uint16_t) : sizeof(double);
  return columns * (rows * value + 2 * (rows / kStrip) * sizeof(double));
}

void Block::start(Products products, std::size_t columns, Stream stream) {
  if (is_for(products, columns)) return;  // the memory can be used again
  follow(stream);
  for (Buffer& plane : memory_) plane = Buffer();
  strips_ = Buffer();
  products_ = products;
  columns_ = columns;
  planes_ = 0;
  packed_ = Packed{};
}

void Block::follow(Stream stream) {
  for (Buffer& plane : memory_) plane.follow(stream);
  strips_.follow(stream);
}

void Block::resize(std::size_t rows, unsigned planes, std::size_t filled, Stream stream) {
  follow(stream);  // what is given up is given up in the order of this stream
  const bool moved = rows != packed_.rows;
  const std::size_t size = columns_ / kTile * rows * row_bytes(), groups = columns_ / kTile;
  const unsigned made = moved ? planes : planes & ~planes_, kept = planes & planes_;
  std::array<Buffer, kPlaneSets> fresh;
  for (std::size_t p = 0; p < kPlaneSets; ++p) {
    if (made >> p & 1) fresh[p] = Buffer(size, stream);
  }
  if (moved) {
    Buffer strips(2 * (rows / kStrip) * columns_ * sizeof(double), stream);
    const std::size_t summed = (filled + kStrip - 1) / kStrip * columns_ * sizeof(double);
    copy(strips.as<double>(), strip_sums(), summed, stream);
    copy(strips.as<double>() + rows / kStrip * columns_, strip_squares(), summed, stream);
    strips_ = std::move(strips);
    // Whole slabs, of every group.
    const std::size_t bytes = round_up(filled, kSlabRows) * row_bytes();
    for (std::size_t p = 0; p < kPlaneSets && filled; ++p) {
      if (kept >> p & 1)
        copy_lines(fresh[p].as<void>(), rows * row_bytes(), packed_.plane[p], packed_.rows * row_bytes(), bytes, groups, stream);
    }
  }
  for (std::size_t p = 0; p < kPlaneSets; ++p) {
    if (moved || !(kept >> p & 1)) memory_[p] = std::move(fresh[p]);
    packed_.plane[p] = memory_[p].as<void>();
  }
  planes_ = planes;
  packed_.rows = rows;
}

}  // namespace streamcca::cuda
