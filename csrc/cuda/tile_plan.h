// Which tiles the state of some views has, in what order, and which of them are multiplied together.
#pragma once
#include <cstdint>
#include <vector>

#include "core/schedule.h"
#include "cuda/layout.h"

namespace streamcca::cuda {

struct TilePlan {
  TilePlan(const std::vector<View>& views, const std::vector<Pair>& pairs, const Schedule& schedule);

  std::vector<Task> tasks;
  std::vector<Unit> units;
  std::vector<std::size_t> first_task, first_unit;  // by pair, and the end
  std::vector<std::vector<std::uint32_t>> places;   // by pair: number of a tile within the pair, by row and column of tiles

 private:
  void add_tasks(const Schedule& schedule, std::size_t pair, Pair groups, std::size_t down, std::size_t across);
  void add_units(std::size_t pair, bool square, std::size_t down, std::size_t across);
};

}  // namespace streamcca::cuda
