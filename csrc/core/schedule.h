// The joint matrix of all views as a list of tiles. Symmetry and wanted pairs are decided here and
// nowhere else: the micro-kernel only ever sees rectangles.
//
// A view of width d is cut three ways. Packed, its columns form *groups* (one cache line of them a row). A tile of
// the product is one *slice* of rows times up to one *panel* of columns: as few panels as a tile's width allows, all nearly
// equal, since narrow tiles are slow. Groups are whole slices or slices whole groups, so that one packed copy serves both operands; packing
// each row twice cost 16 % at d = 1024 in the prototypes.
//
// For a pair of different views all tiles exist; for a view with itself only those that touch the upper triangle, and
// of a diagonal panel only the vectors on or right of the diagonal. Tiles lie in memory in the order in which they are
// visited, so the float64 state is streamed, is about half of a full square, and never hits a power-of-two stride.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace streamcca {

struct View {
  std::string name;
  std::size_t width = 0;
};

// Rows of the product come from `row_view`, columns from `col_view`; equal for a view with itself.
struct Pair {
  std::size_t row_view = 0;
  std::size_t col_view = 0;
  bool with_itself() const { return row_view == col_view; }
};

// Tile shape of one micro-kernel, in elements.
struct Geometry {
  std::size_t lanes = 0;          // columns in one vector
  std::size_t panel = 0;          // columns of one tile at most, a multiple of lanes
  std::size_t slice = 0;          // rows of one tile
  std::size_t group = 0;          // columns that are packed together, a multiple of lanes, and of slice or the other way round
  std::size_t longest_strip = 0;  // slices that follow each other in one strip, at most
  std::size_t strips = 0;         // down a view, at least, where that leaves a quarter of the longest
};

struct Tile {
  std::size_t first_vector = 0;  // within the panel
  std::size_t vectors = 0;
};

// A run of tiles in one panel of columns: the unit of work that one thread owns.
struct Strip {
  std::size_t pair = 0;
  std::size_t first_column = 0;  // of the panel, in its view
  std::size_t vectors = 0;       // of the panel
  std::size_t first_slice = 0;
  std::size_t last_slice = 0;  // exclusive
  std::size_t offset = 0;      // of its first tile, in float64 elements of the state
};

class Schedule {
 public:
  Schedule() = default;
  Schedule(const std::vector<View>& views, const std::vector<Pair>& pairs, Geometry geometry);
  // state_size() and groups() of a schedule, without the memory of making it.
  static std::size_t state_size(const std::vector<View>& views, const std::vector<Pair>& pairs, Geometry geometry);
  static std::size_t groups(const std::vector<View>& views, Geometry geometry);

  const Geometry& geometry() const { return geometry_; }
  const std::vector<Strip>& strips() const { return strips_; }
  // Half-open range of the strips that belong to one pair.
  std::size_t first_strip(std::size_t pair) const { return first_strip_[pair]; }
  std::size_t last_strip(std::size_t pair) const { return first_strip_[pair + 1]; }

  std::size_t state_size() const { return state_size_; }      // float64 elements
  std::size_t groups() const { return first_group_.back(); }  // of all views
  std::size_t first_group(std::size_t view) const { return first_group_[view]; }

  Tile tile(const Strip& strip, std::size_t slice) const;
  std::size_t tile_size(Tile tile) const { return geometry_.slice * tile.vectors * geometry_.lanes; }

  // Calls visit(slice, tile, offset) for every tile of a strip, in memory order.
  template <class Visit>
  void for_each_tile(const Strip& strip, Visit visit) const {
    std::size_t offset = strip.offset;
    for (std::size_t slice = strip.first_slice; slice < strip.last_slice; ++slice) {
      const Tile t = tile(strip, slice);
      visit(slice, t, offset);
      offset += tile_size(t);
    }
  }

 private:
  void add_slices(std::size_t pair, std::size_t first, std::size_t last);

  std::vector<View> views_;
  std::vector<Pair> pairs_;
  Geometry geometry_;
  std::vector<Strip> strips_;
  std::vector<std::size_t> first_strip_;
  std::vector<std::size_t> first_group_;
  std::size_t state_size_ = 0;
};

}  // namespace streamcca
