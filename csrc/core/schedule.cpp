#include "core/schedule.h"

#include <algorithm>
#include <stdexcept>

namespace streamcca {
namespace {

// Longest strip, in slices. Strips with the same slices follow each other, so these slices (for 64 of 8
// float32 columns and 256 rows: 512 KB) stay in the second-level cache while panel after panel passes.
constexpr std::size_t kSlicesPerStrip = 64;

std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

}  // namespace

Schedule::Schedule(const std::vector<View>& views, const std::vector<Pair>& pairs, Geometry geometry)
    : views_(views), pairs_(pairs), geometry_(geometry) {
  first_panel_.push_back(0);
  for (const View& view : views_) {
    first_panel_.push_back(first_panel_.back() + ceil_div(view.width, geometry_.panel));
  }
  for (std::size_t pair = 0; pair < pairs_.size(); ++pair) {
    first_strip_.push_back(strips_.size());
    const std::size_t slices = ceil_div(views_[pairs_[pair].row_view].width, geometry_.slice);
    for (std::size_t first = 0; first < slices; first += kSlicesPerStrip)
      add_slices(pair, first, std::min(slices, first + kSlicesPerStrip));
  }
  first_strip_.push_back(strips_.size());
  if (state_size_ != state_size(views_, pairs_, geometry_)) throw std::logic_error("tiles and state size disagree");
}

std::size_t Schedule::panels(const std::vector<View>& views, Geometry geometry) {
  std::size_t count = 0;
  for (const View& view : views) count += ceil_div(view.width, geometry.panel);
  return count;
}

std::size_t Schedule::state_size(const std::vector<View>& views, const std::vector<Pair>& pairs, Geometry geometry) {
  std::size_t vectors = 0;
  for (const Pair& pair : pairs) {
    const std::size_t across = ceil_div(views[pair.col_view].width, geometry.lanes);
    const std::size_t slices = ceil_div(views[pair.row_view].width, geometry.slice);
    for (std::size_t slice = 0; slice < slices; ++slice) {
      vectors += across - (pair.with_itself() ? slice * geometry.slice / geometry.lanes : 0);
    }
  }
  return vectors * geometry.lanes * geometry.slice;
}

void Schedule::add_slices(std::size_t pair, std::size_t first, std::size_t last) {
  const bool triangle = pairs_[pair].with_itself();
  const std::size_t panels = ceil_div(views_[pairs_[pair].col_view].width, geometry_.panel);
  for (std::size_t panel = triangle ? first * geometry_.slice / geometry_.panel : 0; panel < panels; ++panel) {
    std::size_t end = last;
    if (triangle) end = std::min(end, ceil_div((panel + 1) * geometry_.panel, geometry_.slice));
    const Strip strip{pair, panel, first, end, state_size_};
    strips_.push_back(strip);
    for_each_tile(strip, [this](std::size_t, Tile t, std::size_t) { state_size_ += tile_size(t); });
  }
}

Tile Schedule::tile(const Strip& strip, std::size_t slice) const {
  const Pair& pair = pairs_[strip.pair];
  const std::size_t first_column = strip.panel * geometry_.panel;
  const std::size_t columns = std::min(geometry_.panel, views_[pair.col_view].width - first_column);
  const std::size_t vectors = ceil_div(columns, geometry_.lanes);
  const std::size_t first_row = slice * geometry_.slice;
  if (!pair.with_itself() || first_row <= first_column) return {0, vectors};
  const std::size_t first_vector = (first_row - first_column) / geometry_.lanes;
  return {first_vector, vectors - first_vector};
}

}  // namespace streamcca
