#include "core/schedule.h"

#include <algorithm>
#include <stdexcept>

namespace streamcca {
namespace {

std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

// Slices of one strip. Long enough to use a panel while it is in the first-level cache, short enough to be shared
// out evenly among threads. Strips with the same slices follow each other, so these slices (16 of 8 float32 columns and 256
// rows: 128 KB; on the matrix unit 8 of 32 columns and 512 rows: 400 KB) stay in the second-level cache while panel after panel passes.
// At d = 1024, 8 to 64 slices of 8 measured alike.
std::size_t slices_per_strip(std::size_t slices, const Geometry& g) {
  return std::clamp(slices / g.strips, (g.longest_strip + 3) / 4, g.longest_strip);
}

}  // namespace

Schedule::Schedule(const std::vector<View>& views, const std::vector<Pair>& pairs, Geometry geometry)
    : views_(views), pairs_(pairs), geometry_(geometry) {
  first_group_.push_back(0);
  for (const View& view : views_) {
    first_group_.push_back(first_group_.back() + ceil_div(view.width, geometry_.group));
  }
  for (std::size_t pair = 0; pair < pairs_.size(); ++pair) {
    first_strip_.push_back(strips_.size());
    const std::size_t slices = ceil_div(views_[pairs_[pair].row_view].width, geometry_.slice);
    const std::size_t step = slices_per_strip(slices, geometry_);
    for (std::size_t first = 0; first < slices; first += step) add_slices(pair, first, std::min(slices, first + step));
  }
  first_strip_.push_back(strips_.size());
  if (state_size_ != state_size(views_, pairs_, geometry_)) throw std::logic_error("tiles and state size disagree");
}

std::size_t Schedule::groups(const std::vector<View>& views, Geometry geometry) {
  std::size_t count = 0;
  for (const View& view : views) count += ceil_div(view.width, geometry.group);
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
  const std::size_t vectors = ceil_div(views_[pairs_[pair].col_view].width, geometry_.lanes);
  const std::size_t panels = ceil_div(vectors * geometry_.lanes, geometry_.panel);
  for (std::size_t panel = 0; panel < panels; ++panel) {
    const std::size_t begin = vectors * panel / panels, end = vectors * (panel + 1) / panels;
    const std::size_t slices = triangle ? std::min(last, ceil_div(end * geometry_.lanes, geometry_.slice)) : last;
    if (slices <= first) continue;
    const Strip strip{pair, begin * geometry_.lanes, end - begin, first, slices, state_size_};
    strips_.push_back(strip);
    for_each_tile(strip, [this](std::size_t, Tile t, std::size_t) { state_size_ += tile_size(t); });
  }
}

Tile Schedule::tile(const Strip& strip, std::size_t slice) const {
  const std::size_t first_row = slice * geometry_.slice;
  if (!pairs_[strip.pair].with_itself() || first_row <= strip.first_column) return {0, strip.vectors};
  const std::size_t first_vector = (first_row - strip.first_column) / geometry_.lanes;
  return {first_vector, strip.vectors - first_vector};
}

}  // namespace streamcca
