// What to call into the cache while the present rows are multiplied: the rows that come next.
#pragma once
#include <cstddef>
#include <vector>

#include "core/rows.h"

namespace streamcca {

// The rows that will be appended next, if any: they are called into the cache while the present ones are multiplied.
struct Upcoming {
  const std::vector<Rows>* rows = nullptr;
  std::size_t first = 0;
  std::size_t count = 0;
};

// Walks through the upcoming rows in pieces of so many bytes, which the threads of a team take in turn. Views whose rows lie one
// behind the other are one run of bytes, those whose columns are dense (channels first) a run for each column; others are left out.
// Of rows in samples it is what is left of the first sample.
class Lookahead {
 public:
  Lookahead(Upcoming upcoming, int team, int thread, std::size_t piece)
      : upcoming_(upcoming), team_(static_cast<std::size_t>(team)), thread_(static_cast<std::size_t>(thread)), piece_(piece) {}
  // The next piece, or null.
  const unsigned char* next() {
    for (; upcoming_.rows && view_ < upcoming_.rows->size(); ++view_, taken_ = 0) {
      const Rows& rows = (*upcoming_.rows)[view_];
      const auto stride = static_cast<std::size_t>(rows.row_stride), unit = size_of(rows.dtype);
      const bool dense = stride == unit * rows.cols && rows.col_stride == static_cast<std::ptrdiff_t>(unit);
      if (rows.row_stride <= 0 || !(dense || stride == unit)) continue;
      const std::size_t count = rows.run_from(upcoming_.first, upcoming_.count);
      const std::size_t pieces = (count * stride + piece_ - 1) / piece_;  // of one run
      const std::size_t piece = taken_ * team_ + thread_;
      if (piece >= pieces * (dense ? 1 : rows.cols)) continue;
      ++taken_;
      return rows.element(upcoming_.first, piece / pieces) + piece % pieces * piece_;
    }
    return nullptr;
  }

 private:
  Upcoming upcoming_;
  std::size_t team_, thread_, piece_;
  std::size_t view_ = 0;
  std::size_t taken_ = 0;  // pieces of the view, by this thread
};

}  // namespace streamcca
