#include "cuda/tile_plan.h"

#include <utility>

namespace streamcca::cuda {
namespace {

constexpr std::size_t tiles_of(std::size_t width) { return (width + kTile - 1) / kTile; }

}  // namespace

TilePlan::TilePlan(const std::vector<View>& views, const std::vector<Pair>& pairs, const Schedule& schedule) {
  for (std::size_t p = 0; p < pairs.size(); ++p) {
    const std::size_t down = tiles_of(views[pairs[p].row_view].width), across = tiles_of(views[pairs[p].col_view].width);
    first_task.push_back(tasks.size());
    first_unit.push_back(units.size());
    add_tasks(schedule, p, pairs[p], down, across);
    add_units(p, pairs[p].with_itself(), down, across);
  }
  first_task.push_back(tasks.size());
  first_unit.push_back(units.size());
}

void TilePlan::add_tasks(const Schedule& schedule, std::size_t pair, Pair views, std::size_t down, std::size_t across) {
  places.emplace_back(down * across, ~0u);
  for (std::size_t s = schedule.first_strip(pair); s < schedule.last_strip(pair); ++s) {
    const Strip& strip = schedule.strips()[s];
    schedule.for_each_tile(strip, [&](std::size_t slice, Tile tile, std::size_t) {
      for (std::size_t v = tile.first_vector; v < tile.first_vector + tile.vectors; ++v) {
        const std::size_t column = strip.first_column / kTile + v;
        places[pair][slice * across + column] = static_cast<std::uint32_t>(tasks.size() - first_task[pair]);
        tasks.push_back({static_cast<std::uint32_t>(schedule.first_group(views.row_view) + slice),
                         static_cast<std::uint32_t>(schedule.first_group(views.col_view) + column)});
      }
    });
  }
}

// Neighbors in a row of tiles share its group. Where their number is odd one is left: of a view with itself the one on the diagonal, which
// needs one group only, else the last one, which shares a column with that of the next row.
void TilePlan::add_units(std::size_t pair, bool square, std::size_t down, std::size_t across) {
  Unit left_over;
  const auto tile = [&](std::size_t row, std::size_t column) {
    return static_cast<std::uint32_t>(first_task[pair] + places[pair][row * across + column]);
  };
  for (std::size_t row = 0; row < down; ++row) {
    std::size_t first = square ? row : 0, last = across;
    if ((last - first) % 2) {
      const std::size_t odd = square ? first++ : --last;
      left_over.tile[left_over.tile[0] != kNoTile] = tile(row, odd);
      if (left_over.tile[1] != kNoTile) units.push_back(std::exchange(left_over, Unit{}));
    }
    for (std::size_t column = first; column < last; column += 2) units.push_back({{tile(row, column), tile(row, column + 1)}});
  }
  if (left_over.tile[0] != kNoTile) units.push_back(left_over);
}

}  // namespace streamcca::cuda
