// MomentStore in one product type: packs rows, and multiplies them tile by tile with the kernels of a level.
#pragma once
#include <algorithm>
#include <atomic>
#include <new>
#include <type_traits>

#include "core/error.h"
#include "cpu/moment_store.h"
#include "cpu/narrow_rows.h"
#include "cpu/relay.h"
#include "cpu/threads.h"

namespace streamcca {

template <class T>
class TypedStore : public MomentStore {
 public:
  // `narrow` may be null; for float32 products only.
  TypedStore(const std::vector<View>& views, const std::vector<Pair>& pairs, const Layout& layout, const ProductKernels<T>& kernels,
             const NarrowKernels* narrow)
      : MomentStore(views, pairs, layout),
        kernels_(kernels),
        narrow_kernels_(narrow),
        packed_(schedule_.groups() * group_stride()),
        narrow_(narrow_forms(blocks_), narrow_stride()),
        shift_(schedule_.groups() * kGroup<T>) {
    if (layout.geometry.slice * layout.geometry.panel > kLargestTile) throw Error(ErrorKind::isa, "tile larger than its buffer");
  }

  TypedStore(const TypedStore& other)
      : MomentStore(other),
        kernels_(other.kernels_),
        narrow_kernels_(other.narrow_kernels_),
        packed_(other.packed_.size()),
        narrow_(narrow_forms(blocks_), narrow_stride()),
        shift_(other.shift_),
        team_(other.team_) {
    copy_pending(other);
  }
  TypedStore& operator=(const TypedStore&) = delete;

  std::unique_ptr<MomentStore> clone() const override { return std::make_unique<TypedStore>(*this); }

  void assign(const MomentStore& other) override {
    const auto& same = static_cast<const TypedStore&>(other);
    MomentStore::operator=(same);
    shift_ = same.shift_;
    copy_pending(same);
  }

  static std::size_t bytes(const std::vector<View>& views, const std::vector<Pair>& pairs, const Layout& layout, bool narrow) {
    const auto blocks = [&](std::size_t count) {
      const std::size_t rows = layout.depth * count + kPadRows, pairs_of_rows = narrow ? (layout.depth / 2 + kPadLines) * count : 0;
      return Schedule::groups(views, layout.geometry) * (rows + pairs_of_rows) * kLineBytes;
    };
    return Schedule::state_size(views, pairs, layout.geometry) * sizeof(double) + blocks(layout.blocks) +
           (layout.relay ? static_cast<std::size_t>(thread_count(0)) * blocks(layout.blocks) : 0);
  }

  void set_shift(const PerView& shift) override {
    for (std::size_t view = 0; view < views_.size(); ++view) {
      T* out = shift_.data() + schedule_.first_group(view) * kGroup<T>;
      for (std::size_t c = 0; c < views_[view].width; ++c) out[c] = static_cast<T>(shift[view][c]);
    }
  }

  // Threads share out the groups, not the rows, since the sums of a column have one order.
  void append(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots, int threads) override {
    team_.run(static_cast<double>(count * schedule_.groups() * kGroup<T>) / kElementsPackedPerSecond, threads, [&](int team) {
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
      for (int t = 0; t < team; ++t) append_groups(rows, first, count, roots, first_group_of(t, team), first_group_of(t + 1, team));
    });
    for (std::size_t k = 0; k < count; ++k) roots_[fill_ + k] = roots ? roots[k] : 1.0;
    fill_ += count;
  }

  void flush(int threads, Upcoming upcoming) override {
    if (fill_ == 0) return;
    reserve();
    upcoming.count = std::min(upcoming.count, depth_ * blocks_);
    if (fill_ % depth_) narrow_rows(block_at(pending_blocks() - 1), 0, schedule_.groups(), &narrow_);
    const double products = static_cast<double>(schedule_.state_size()) * static_cast<double>(fill_);
    team_.run(products / kProductsPerSecond, threads, [&](int team) { multiply_pending(team, upcoming); });
    if (fill_ % depth_) close_block(0, schedule_.groups());
    fill_ = 0;
    state_.blank = false;
  }

  std::size_t add_blocks(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots, int threads,
                         const Passes& passes) override {
    const auto most = static_cast<std::size_t>(thread_count(threads));
    if (!make_own_blocks(most)) return 0;
    // Two turns for each thread at least, so that none is left alone with a long one.
    const std::size_t each = std::clamp(count / (2 * most), std::size_t{1}, blocks_), turns = (count + each - 1) / each;
    Relay relay(schedule_.strips().size() + 1, turns);
    const double products = static_cast<double>(schedule_.state_size()) * static_cast<double>(count * depth_);
    team_.run(products / kProductsPerSecond, threads, [&](int team) {
#pragma omp parallel num_threads(team) if (team > 1)
      {
        const auto size = static_cast<std::size_t>(team_size()), me = static_cast<std::size_t>(thread_number());
        const auto rows_of = [&](std::size_t turn) { return turn < turns ? depth_ * std::min(each, count - turn * each) : 0; };
        for (std::size_t turn = me; turn < relay.end(); turn += size) {
          const std::size_t before = turn * each * depth_, next = before + size * each * depth_;
          if (passes && !passes({first + before, rows_of(turn)})) relay.refuse(turn);
          if (turn >= relay.end()) break;
          Lookahead lookahead({&rows, first + next, rows_of(turn + size)}, 1, 0, depth_ / 4 * kLineBytes);
          pack_own(rows, first + before, rows_of(turn) / depth_, roots ? roots + before : nullptr, &own_[me]);
          carry_through(turn, rows_of(turn) / depth_, own_[me], &relay, lookahead);
        }
      }
    });
    if (relay.end() > 0) state_.blank = false;
    return std::min(count, relay.end() * each);
  }

  void read_pair(std::size_t pair, bool with_pending, double* out, int threads) const override {
    const std::size_t blocks = with_pending ? pending_blocks() : 0;
    NarrowRows narrow(narrow_forms(blocks), narrow_stride());
    std::vector<Block> pending;
    for (std::size_t block = 0; block < blocks; ++block) {
      pending.push_back({block_at(block).rows, rows_in(block), &narrow, block, blocks});
      narrow_rows(pending.back(), 0, schedule_.groups(), &narrow);
    }
    read_tiles(pair, out, threads, [&](const Strip& strip, std::size_t slice, Tile tile, double* sums) {
      for (const Block& block : pending) multiply(strip, slice, tile, block, sums, nullptr);
    });
  }

  void read_pending(std::size_t view, double* out) const override {
    const std::size_t width = views_[view].width;
    for (std::size_t k = 0; k < fill_; ++k) {
      for (std::size_t c = 0; c < width; ++c) {
        out[k * width + c] = static_cast<double>(group(schedule_.first_group(view) + c / kGroup<T>)[k * kGroup<T> + c % kGroup<T>]);
      }
    }
  }

  // The rows are scaled already, but their sums are not. Another level of kernels may have had longer blocks.
  void restore_pending(const std::vector<Rows>& rows, const std::vector<double>& roots, int threads) override {
    for (std::size_t done = 0; done < roots.size();) {
      const std::size_t count = std::min(roots.size() - done, depth_);
      append_scaled(rows, done, count, roots.data() + done);
      done += count;
      if (has_full_block()) flush(threads, {});
    }
  }

 protected:
  // 32 x 32, of the matrix unit: the largest tile of any level.
  static constexpr std::size_t kLargestTile = 32 * 32;
  // Unused rows after each group. Without them groups start at multiples of 4096 bytes, and the same row of
  // all groups falls into the same sets of the caches: 5 to 10 % at d = 1024 and 2048.
  static constexpr std::size_t kPadRows = 5;
  static constexpr std::size_t kPadLines = 3;  // likewise, of narrow rows

  // Where packed rows are: the first row of group 0, and the values from one group to the next.
  template <class Value>
  struct Packed {
    Value* first;
    std::size_t group_stride;
    Value* group(std::size_t g) const { return first + g * group_stride; }
  };

  // One block of packed rows, and where its narrow forms are.
  struct Block {
    Packed<const T> rows;
    std::size_t depth;
    const NarrowRows* narrow;
    std::size_t number, blocks;  // of this one, of all in `narrow`
    std::size_t form_of(std::size_t group) const { return group * blocks + number; }
    bool is_narrow(std::size_t group) const { return narrow->fits[form_of(group)] != 0; }
  };

  // Packed blocks and, block by block, the sums of their columns: what a thread works on alone.
  struct OwnBlocks {
    RawArray<T> packed;
    NarrowRows narrow;
    AlignedArray<double> sums, squares;
    OwnBlocks(OwnBlocks&&) noexcept = default;
    OwnBlocks(std::size_t groups, std::size_t stride, std::size_t blocks, std::size_t forms, std::size_t form_stride)
        : packed(groups * stride), narrow(forms, form_stride), sums(groups * kGroup<T> * blocks), squares(groups * kGroup<T> * blocks) {}
  };

  std::size_t narrow_forms(std::size_t blocks) const { return narrow_kernels_ ? schedule_.groups() * blocks : 0; }
  std::size_t narrow_stride() const { return kGroup<float> * (depth_ / 2 + kPadLines); }
  std::size_t group_stride() const { return kGroup<T> * (depth_ * blocks_ + kPadRows); }
  const T* group(std::size_t g) const { return packed_.data() + g * group_stride(); }
  Block block_at(std::size_t block) const {
    return {{group(0) + block * depth_ * kGroup<T>, group_stride()}, rows_in(block), &narrow_, block, blocks_};
  }
  std::size_t pending_blocks() const { return (fill_ + depth_ - 1) / depth_; }
  std::size_t rows_in(std::size_t block) const { return std::min(depth_, fill_ - block * depth_); }
  // First row of a block in a column of a view.
  const T* packed(std::size_t view, std::size_t column, const Block& block) const {
    return block.rows.group(schedule_.first_group(view) + column / kGroup<T>) + column % kGroup<T>;
  }
  const T* packed(std::size_t view, std::size_t column, std::size_t block) const { return packed(view, column, block_at(block)); }

  // Threads of a team take neighboring groups, the same ones in packing and after.
  std::size_t first_group_of(int thread, int team) const {
    return schedule_.groups() * static_cast<std::size_t>(thread) / static_cast<std::size_t>(team);
  }

  void copy_pending(const TypedStore& other) {
    for (std::size_t g = 0; g < schedule_.groups(); ++g)
      std::copy_n(other.group(g), fill_ * kGroup<T>, packed_.data() + g * group_stride());
    for (std::size_t block = 0; block < fill_ / depth_; ++block) narrow_rows(block_at(block), 0, schedule_.groups(), &narrow_);
  }

  // Writes the narrow forms of groups [begin, end) of a block.
  void narrow_rows(const Block& block, std::size_t begin, std::size_t end, NarrowRows* out) const {
    if constexpr (std::is_same_v<T, float>) {
      for (std::size_t g = begin; narrow_kernels_ && g < end; ++g) {
        const std::size_t form = block.form_of(g);
        out->fits[form] = narrow_kernels_->narrow(block.rows.group(g), block.depth, out->form(form));
      }
    }
  }

  // The columns of groups [begin, end), of all views counted, of `count` rows: piece by piece, up to the end of a block each.
  void append_groups(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots, std::size_t begin,
                     std::size_t end) {
    for (std::size_t done = 0; done < count;) {
      const std::size_t at = fill_ + done, piece = std::min(count - done, depth_ - at % depth_);
      const Packed<T> out{packed_.data() + at * kGroup<T>, group_stride()};
      pack_groups(rows, first + done, piece, roots ? roots + done : nullptr, begin, end, out, block_sums_.data(), block_squares_.data());
      done += piece;
      if ((fill_ + done) % depth_) continue;
      close_block(begin, end);
      const std::size_t block = (fill_ + done) / depth_ - 1;
      narrow_rows({block_at(block).rows, depth_, &narrow_, block, blocks_}, begin, end, &narrow_);
    }
  }

  // `sums` and `squares` are those of all groups.
  void pack_groups(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots, std::size_t begin,
                   std::size_t end, Packed<T> out, double* sums, double* squares) const {
    for (std::size_t view = 0; view < views_.size(); ++view) {
      const std::size_t from = std::max(begin, schedule_.first_group(view)), to = std::min(end, schedule_.first_group(view + 1));
      if (from >= to) continue;
      const std::size_t column = (from - schedule_.first_group(view)) * kGroup<T>, g = from * kGroup<T>;
      const Rows& own = rows[view];
      const std::size_t columns = std::min(own.cols - column, (to - from) * kGroup<T>);
      for (std::size_t done = 0; done < count;) {
        const std::size_t run = own.run_from(first + done, count - done);
        const PackSource source{own.element(first + done, column), own.row_stride, own.col_stride, run, columns};
        kernels_.pack[static_cast<std::size_t>(own.dtype)](&source, shift_.data() + g, roots ? roots + done : nullptr,
                                                           out.group(from) + done * kGroup<T>, out.group_stride, sums + g, squares + g);
        done += run;
      }
    }
  }

  // The sums of the present block, of groups [begin, end), go where those of the full blocks are.
  void close_block(std::size_t begin, std::size_t end) {
    for (std::size_t c = begin * kGroup<T>; c < end * kGroup<T>; ++c) {
      sums_[c] += block_sums_[c];
      squares_[c] += block_squares_[c];
      block_sums_[c] = block_squares_[c] = 0;
    }
  }

  void append_scaled(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots) {
    const AlignedArray<double> sums = sums_, squares = squares_;
    append(rows, first, count, nullptr, 1);
    std::copy_n(roots, count, roots_.begin());
    sums_ = sums, squares_ = squares;
    for (AlignedArray<double>* values : {&block_sums_, &block_squares_}) std::fill(values->begin(), values->end(), 0.0);
    for (std::size_t g = 0; g < schedule_.groups(); ++g)
      kernels_.sum_columns(group(g), count, roots, block_sums_.data() + g * kGroup<T>, block_squares_.data() + g * kGroup<T>);
    if (has_full_block()) close_block(0, schedule_.groups());
  }

  // Calls add(strip, slice, tile, sums) for every tile of a pair, to add what is pending, and writes the sums where they belong.
  template <class Add>
  void read_tiles(std::size_t pair, double* out, int threads, Add add) const {
    const std::size_t width = views_[pairs_[pair].col_view].width;
    const bool symmetric = pairs_[pair].with_itself();
    const auto first = static_cast<std::ptrdiff_t>(schedule_.first_strip(pair));
    const auto last = static_cast<std::ptrdiff_t>(schedule_.last_strip(pair));
#pragma omp parallel for schedule(dynamic) num_threads(thread_count(threads))
    for (std::ptrdiff_t s = first; s < last; ++s) {
      const Strip& strip = schedule_.strips()[static_cast<std::size_t>(s)];
      schedule_.for_each_tile(strip, [&](std::size_t slice, Tile tile, std::size_t offset) {
        alignas(64) double sums[kLargestTile];
        if (state_.blank) {
          std::fill_n(sums, schedule_.tile_size(tile), 0.0);
        } else {
          std::copy_n(state_.values.data() + offset, schedule_.tile_size(tile), sums);
        }
        add(strip, slice, tile, sums);
        for_each_entry_of(strip, slice, tile, [&](std::size_t row, std::size_t column, std::size_t i) {
          if (!symmetric || column >= row) out[row * width + column] = sums[i];
        });
      });
    }
  }

  // The products of all pending rows, into the state. A thread takes its next strip before it works on the present one, so that it
  // can call for the panel of the next.
  virtual void multiply_pending(int team, Upcoming upcoming) {
    const std::size_t strips = schedule_.strips().size();
    std::atomic<std::size_t> untaken{0};
#pragma omp parallel num_threads(team) if (team > 1)
    {
      Lookahead lookahead(upcoming, team_size(), thread_number(), depth_ / 4 * kLineBytes);
      for (std::size_t strip = untaken++; strip < strips;) {
        const std::size_t next = untaken++;
        add_strip(schedule_.strips()[strip], next < strips ? &schedule_.strips()[next] : nullptr, lookahead);
        strip = next;
      }
    }
  }

  void add_strip(const Strip& strip, const Strip* next, Lookahead& lookahead) {
    for (std::size_t block = 0; block < pending_blocks(); ++block) {
      std::size_t tiles = 0;
      schedule_.for_each_tile(strip, [&](std::size_t slice, Tile tile, std::size_t offset) {
        // Several blocks fit the second-level cache; the panels of a single one may not.
        const void* ahead = blocks_ == 1 && next ? part_of_panel(*next, tiles++) : nullptr;
        if (!ahead) ahead = lookahead.next();
        double* out = state_.values.data() + offset;
        if (state_.blank && block == 0) std::fill_n(out, schedule_.tile_size(tile), 0.0);
        multiply(strip, slice, tile, block, out, ahead);
      });
    }
  }

  // False where memory is short: the rows then take the other way.
  bool make_own_blocks(std::size_t count) {
    try {
      while (own_.size() < count) own_.emplace_back(schedule_.groups(), group_stride(), blocks_, narrow_forms(blocks_), narrow_stride());
    } catch (const std::bad_alloc&) {
      own_.clear();
      return false;
    }
    return true;
  }

  Block own_block(const OwnBlocks& own, std::size_t block) const {
    return {{own.packed.data() + block * depth_ * kGroup<T>, group_stride()}, depth_, &own.narrow, block, blocks_};
  }

  void pack_own(const std::vector<Rows>& rows, std::size_t first, std::size_t blocks, const double* roots, OwnBlocks* own) const {
    std::fill(own->sums.begin(), own->sums.end(), 0.0);
    std::fill(own->squares.begin(), own->squares.end(), 0.0);
    for (std::size_t block = 0; block < blocks; ++block) {
      const std::size_t row = block * depth_, column = block * sums_.size();
      pack_groups(rows, first + row, depth_, roots ? roots + row : nullptr, 0, schedule_.groups(),
                  {own->packed.data() + row * kGroup<T>, group_stride()}, own->sums.data() + column, own->squares.data() + column);
      narrow_rows(own_block(*own, block), 0, schedule_.groups(), &own->narrow);
    }
  }

  // Carries a thread's blocks through the strips, the last of which is that of the column sums.
  void carry_through(std::size_t turn, std::size_t blocks, const OwnBlocks& own, Relay* relay, Lookahead& lookahead) {
    const std::size_t strips = schedule_.strips().size();
    for (std::size_t s = 0; s < strips; ++s) {
      if (!relay->wait_for(s, turn)) return;
      for (std::size_t block = 0; block < blocks; ++block) {
        const Block rows = own_block(own, block);
        const Strip& strip = schedule_.strips()[s];
        schedule_.for_each_tile(strip, [&](std::size_t slice, Tile tile, std::size_t offset) {
          double* out = state_.values.data() + offset;
          if (state_.blank && turn == 0 && block == 0) std::fill_n(out, schedule_.tile_size(tile), 0.0);
          multiply(strip, slice, tile, rows, out, lookahead.next());
        });
      }
      relay->pass_on(s, turn);
    }
    if (!relay->wait_for(strips, turn)) return;
    for (std::size_t block = 0; block < blocks; ++block) {
      const double *sums = own.sums.data() + block * sums_.size(), *squares = own.squares.data() + block * sums_.size();
      for (std::size_t c = 0; c < sums_.size(); ++c) sums_[c] += sums[c], squares_[c] += squares[c];
    }
    relay->pass_on(strips, turn);
  }

  // What one tile can call ahead: a quarter of a group, half of it if it is narrow; null after the last one of the panel.
  const void* part_of_panel(const Strip& strip, std::size_t part) const {
    const Block block = block_at(0);
    const std::size_t first = schedule_.first_group(pairs_[strip.pair].col_view) + strip.first_column / kGroup<T>;
    const std::size_t groups = strip.vectors * kernels_.lanes / kGroup<T>;
    const bool narrow = narrow_kernels_ && block.is_narrow(first);
    const std::size_t parts = narrow ? 2 : 4, group = first + part / parts, lines = part % parts * (depth_ / 4);
    if (part / parts >= groups) return nullptr;
    if (narrow) return narrow_.form(block.form_of(group)) + lines * kGroup<float>;
    return block.rows.group(group) + lines * kGroup<T>;
  }

  void multiply(const Strip& strip, std::size_t slice, Tile tile, std::size_t block, double* out, const void* ahead) const {
    multiply(strip, slice, tile, block_at(block), out, ahead);
  }

  void multiply(const Strip& strip, std::size_t slice, Tile tile, const Block& block, double* out, const void* ahead) const {
    if (narrow_kernels_ && multiply_narrow(strip, slice, tile, block, out, ahead)) return;
    const Pair& pair = pairs_[strip.pair];
    const T* columns[kLargestVectors];
    for (std::size_t v = 0; v < tile.vectors; ++v)
      columns[v] = packed(pair.col_view, strip.first_column + (tile.first_vector + v) * kernels_.lanes, block);
    kernels_.tile(block.depth, columns, tile.vectors, packed(pair.row_view, slice * kernels_.slice, block), out,
                  ahead ? ahead : columns[0]);
  }

  // Where all groups of the tile are narrow. A vector is a whole group at levels that have these kernels.
  bool multiply_narrow(const Strip& strip, std::size_t slice, Tile tile, const Block& block, double* out, const void* ahead) const {
    const Pair& pair = pairs_[strip.pair];
    const std::size_t row = slice * kernels_.slice, row_group = schedule_.first_group(pair.row_view) + row / kGroup<float>;
    const std::size_t column_group = schedule_.first_group(pair.col_view) + strip.first_column / kGroup<float> + tile.first_vector;
    if (!block.is_narrow(row_group)) return false;
    const float* columns[kLargestVectors];
    for (std::size_t v = 0; v < tile.vectors; ++v) {
      if (!block.is_narrow(column_group + v)) return false;
      columns[v] = block.narrow->form(block.form_of(column_group + v));
    }
    narrow_kernels_->tile((block.depth + 1) / 2, columns, tile.vectors, block.narrow->form(block.form_of(row_group)) + row % kGroup<float>,
                          out, ahead ? ahead : columns[0]);
    return true;
  }

  ProductKernels<T> kernels_;
  const NarrowKernels* narrow_kernels_;
  RawArray<T> packed_;
  NarrowRows narrow_;
  AlignedArray<T> shift_;
  std::vector<OwnBlocks> own_;  // of each thread; empty until add_blocks
  TeamChoice team_;
};

}  // namespace streamcca
