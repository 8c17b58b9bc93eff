// The rows that wait until a block of them is full, packed, and the sums of their columns strip by strip: with as much device memory as
// they need. A stream of few rows, or of 16-bit ones that need one plane, takes a fraction of what others do.
#pragma once
#include <array>
#include <cstddef>

#include "cuda/kernels.h"
#include "cuda/runtime.h"

namespace streamcca::cuda {

class Block {
 public:
  bool is_for(Products products, std::size_t columns) const { return products == products_ && columns == columns_; }
  // For rows of that many columns of all groups. What was in it is void.
  void start(Products products, std::size_t columns, Stream stream);
  // Gives it room for `rows` (a multiple of kBlankRows) in a set of planes. What is in the first `filled` slots stays, in planes that were
  // there. Where memory is lacking it throws, and is as it was.
  void resize(std::size_t rows, unsigned planes, std::size_t filled, Stream stream);
  void follow(Stream stream);

  std::size_t rows() const { return packed_.rows; }
  unsigned planes() const { return planes_; }
  const Packed& packed() const { return packed_; }
  double* strip_sums() const { return strips_.as<double>(); }  // [strip * columns + column]
  double* strip_squares() const { return strip_sums() + packed_.rows / kStrip * columns_; }
  // What some room takes.
  static std::size_t bytes(Products products, std::size_t columns, std::size_t rows, unsigned planes);

 private:
  std::size_t row_bytes() const { return kTile * (products_ == Products::f32 ? sizeof(std::uint16_t) : sizeof(double)); }  // of a group

  Products products_ = Products::f32;
  std::size_t columns_ = 0;
  unsigned planes_ = 0;
  Packed packed_;
  std::array<Buffer, kPlaneSets> memory_;
  Buffer strips_;
};

}  // namespace streamcca::cuda
