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

// Walks through the upcoming rows in pieces of so many bytes, which the threads of a team take in turn. Views whose rows
// do not lie one behind the other are left out.
class Lookahead {
 public:
  Lookahead(Upcoming upcoming, int team, int thread, std::size_t piece)
      : upcoming_(upcoming), team_(static_cast<std::size_t>(team)), thread_(static_cast<std::size_t>(thread)), piece_(piece) {}
  // The next piece, or null.
  const unsigned char* next() {
    for (; upcoming_.rows && view_ < upcoming_.rows->size(); ++view_, offset_ = 0) {
      const Rows& rows = (*upcoming_.rows)[view_];
      if (rows.row_stride <= 0 || rows.row_stride != rows.col_stride * static_cast<std::ptrdiff_t>(rows.cols)) continue;
      const std::size_t bytes = upcoming_.count * static_cast<std::size_t>(rows.row_stride);
      const std::size_t at = (offset_ * team_ + thread_) * piece_;
      if (at >= bytes) continue;
      ++offset_;
      return rows.row(upcoming_.first) + at;
    }
    return nullptr;
  }

 private:
  Upcoming upcoming_;
  std::size_t team_, thread_, piece_;
  std::size_t view_ = 0;
  std::size_t offset_ = 0;
};

}  // namespace streamcca
