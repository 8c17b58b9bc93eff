#include "cpu/matrix_store.h"

namespace streamcca {
namespace {

constexpr std::size_t kLanes = kGroup<float>;
static_assert(kUnitDepth <= kLongestBlock, "pending rows of a state file");

}  // namespace

Layout MatrixStore::layout(const std::vector<View>& views) {
  const Geometry geometry{kLanes, kSide, kSide, kLanes, 8, 4};
  return {geometry, kUnitDepth, blocks_at_once(Schedule::groups(views, geometry) * kUnitDepth * kLineBytes), false};
}

std::size_t MatrixStore::products_per_value(const std::vector<View>& views, const std::vector<Pair>& pairs) {
  std::size_t columns = 0;
  for (const View& view : views) columns += view.width;
  return Schedule::state_size(views, pairs, layout(views).geometry) / std::max<std::size_t>(columns, 1);
}

std::size_t MatrixStore::bytes(const std::vector<View>& views, const std::vector<Pair>& pairs) {
  const Layout plan = layout(views);
  return TypedStore::bytes(views, pairs, plan, false) +
         Schedule::groups(views, plan.geometry) * plan.blocks * (2 * kFormBytes + kLanes * sizeof(double));
}

MatrixStore::MatrixStore(const std::vector<View>& views, const std::vector<Pair>& pairs, const KernelTable& kernels)
    : TypedStore(views, pairs, layout(views), kernels.f32, nullptr), unit_(*kernels.matrix), forms_(schedule_.groups() * blocks_) {}

// ---------------------------------------------------------------- forms

void MatrixStore::look_at(std::size_t g, Forms* forms) const {
  for (std::size_t block = 0; block < pending_blocks(); ++block) {
    const std::size_t form = form_of(g, block);
    forms->fits[form] = unit_.look(group(g) + block * depth_ * kLanes, rows_in(block), forms->units.data() + form * kLanes);
  }
}

// A block has one form for all groups, so that any two of them can be multiplied.
bool MatrixStore::is_narrow(const Forms& forms, std::size_t block) const {
  for (std::size_t g = 0; g < schedule_.groups(); ++g) {
    if (forms.fits[form_of(g, block)] == Fit::digits) return false;
  }
  return true;
}

void MatrixStore::split(std::size_t begin, std::size_t end, Forms* forms) const {
  for (std::size_t block = 0; block < pending_blocks(); ++block) {
    const bool narrow = is_narrow(*forms, block);
    for (std::size_t g = begin; g < end; ++g) {
      const std::size_t form = form_of(g, block);
      const float* rows = group(g) + block * depth_ * kLanes;
      unsigned char* split = forms->split.data() + form * kFormBytes;
      unsigned char* turned = forms->turned.data() + form * kFormBytes;
      if (forms->fits[form] == Fit::unfit) continue;
      if (narrow) {
        unit_.split_narrow(rows, rows_in(block), split, turned);
      } else {
        forms->fourth_order[form] = unit_.split_digits(rows, rows_in(block), forms->units.data() + form * kLanes, split, turned);
      }
    }
  }
}

Operand MatrixStore::operand(const Forms& forms, const RawArray<unsigned char>& layout, std::size_t view, std::size_t column,
                             std::size_t groups, std::size_t block) const {
  const std::size_t first = schedule_.first_group(view) + column / kLanes;
  const std::size_t second = std::min(first + groups, schedule_.first_group(view + 1)) - 1;
  const std::size_t a = form_of(first, block), b = form_of(second, block);
  return {{layout.data() + a * kFormBytes, layout.data() + b * kFormBytes},
          {forms.units.data() + a * kLanes, forms.units.data() + b * kLanes},
          forms.fourth_order[a] || forms.fourth_order[b]};
}

bool MatrixStore::all_fit(const Forms& forms, std::size_t view, std::size_t column, std::size_t groups, std::size_t block) const {
  const std::size_t first = schedule_.first_group(view) + column / kLanes;
  const std::size_t last = std::min(first + groups, schedule_.first_group(view + 1));
  for (std::size_t g = first; g < last; ++g) {
    if (forms.fits[form_of(g, block)] == Fit::unfit) return false;
  }
  return true;
}

// ---------------------------------------------------------------- products

void MatrixStore::multiply_pending(int team, Upcoming upcoming) {
  const std::size_t strips = schedule_.strips().size();
  std::atomic<std::size_t> untaken{0};
#pragma omp parallel num_threads(team) if (team > 1)
  {
    const int size = team_size();
    const std::size_t begin = first_group_of(thread_number(), size), end = first_group_of(thread_number() + 1, size);
    for (std::size_t g = begin; g < end; ++g) look_at(g, &forms_);
#pragma omp barrier
    split(begin, end, &forms_);
#pragma omp barrier
    Lookahead lookahead(upcoming, size, thread_number(), depth_ / 4 * kLineBytes);
    Waiting waiting;
    waiting.rows = 0;
    unit_.enter();
    for (std::size_t s = untaken++; s < strips; s = untaken++) {
      const Strip& strip = schedule_.strips()[s];
      for (std::size_t block = 0; block < pending_blocks(); ++block) {
        const bool narrow = is_narrow(forms_, block);
        schedule_.for_each_tile(strip, [&](std::size_t slice, Tile tile, std::size_t offset) {
          double* out = state_.values.data() + offset;
          if (state_.blank && block == 0) std::fill_n(out, schedule_.tile_size(tile), 0.0);
          multiply_block(forms_, strip, slice, tile, block, narrow, out, &waiting, lookahead.next());
        });
      }
    }
    unit_.finish(&waiting);
    unit_.leave();
  }
}

void MatrixStore::multiply_block(const Forms& forms, const Strip& strip, std::size_t slice, Tile tile, std::size_t block, bool narrow,
                                 double* out, Waiting* waiting, const void* ahead) const {
  const Pair& pair = pairs_[strip.pair];
  const std::size_t column = strip.first_column + tile.first_vector * kLanes;
  if (all_fit(forms, pair.row_view, slice * kSide, 2, block) && all_fit(forms, pair.col_view, column, tile.vectors, block)) {
    const Operand rows = operand(forms, forms.turned, pair.row_view, slice * kSide, 2, block);
    const Operand columns = operand(forms, forms.split, pair.col_view, column, tile.vectors, block);
    const auto multiply = narrow ? unit_.multiply_narrow : unit_.multiply_digits;
    return multiply(rows_in(block), &rows, &columns, tile.vectors, out, waiting, ahead ? ahead : columns.form[0]);
  }
  unit_.finish(waiting);  // of the same tile, perhaps: blocks are added in their order
  multiply_with_vectors(strip, slice, tile, block, out);
}

void MatrixStore::multiply_with_vectors(const Strip& strip, std::size_t slice, Tile tile, std::size_t block, double* out) const {
  const Pair& pair = pairs_[strip.pair];
  const std::size_t height = views_[pair.row_view].width, depth = kernels_.depth;
  for (std::size_t k = 0; k < rows_in(block); k += depth) {
    const float* columns[kLargestVectors];
    for (std::size_t v = 0; v < tile.vectors; ++v)
      columns[v] = packed(pair.col_view, strip.first_column + (tile.first_vector + v) * kLanes, block) + k * kLanes;
    for (std::size_t row = 0; row < kSide && slice * kSide + row < height; row += kernels_.slice) {
      const float* rows = packed(pair.row_view, slice * kSide + row, block) + k * kLanes;
      kernels_.tile(std::min(depth, rows_in(block) - k), columns, tile.vectors, rows, out + row * tile.vectors * kLanes, columns[0]);
    }
  }
}

void MatrixStore::read_pair(std::size_t pair, bool with_pending, double* out, int threads) const {
  if (!with_pending || fill_ == 0) return TypedStore::read_pair(pair, false, out, threads);
  Forms forms(forms_);
  for (std::size_t g = 0; g < schedule_.groups(); ++g) look_at(g, &forms);
  split(0, schedule_.groups(), &forms);
  read_tiles(pair, out, threads, [&](const Strip& strip, std::size_t slice, Tile tile, double* sums) {
    Waiting waiting;
    waiting.rows = 0;
    unit_.enter();
    for (std::size_t block = 0; block < pending_blocks(); ++block)
      multiply_block(forms, strip, slice, tile, block, is_narrow(forms, block), sums, &waiting, nullptr);
    unit_.finish(&waiting);
    unit_.leave();
  });
}

}  // namespace streamcca
