// The contract of the CUDA kernels: what the host launches, in the order of a stream. No CUDA header is needed here. Each function only
// launches; pointers are to device memory unless they say otherwise.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/layout.h"
#include "cuda/runtime.h"

namespace streamcca::cuda {

enum class Products { f32, f64 };
// How products are formed: entry by entry in float64; in tiles on the ordinary units; on the tensor cores; on those of Hopper, where
// copies need no threads. Each rung is tested against the one before. `best`: the last one that the card can run.
enum class Ladder { best, naive, tiled, tensor, hopper };

// The rows of one view in one batch, those that take part: all `count` from `first` on, or those of a list.
struct Batch {
  Rows rows;
  std::size_t first = 0;
  std::size_t count = 0;
  const std::uint64_t* list = nullptr;  // numbers of rows, from `first` on in the list
  const double* roots = nullptr;        // roots of the weights, as `list`; null: all 1
  const unsigned char* bad = nullptr;   // by number of row: left out; null: none
};

// Refuses, or marks, rows whose values are not finite or too large in magnitude.
struct Check {
  Batch batch;
  double limit = 0;              // largest magnitude of a finite value; above 65504
  std::uint64_t limit_bits = 0;  // of the largest number of the rows' type up to it; check_rows() sets it
  bool skip = false;             // rows that are not finite are marked in `bad` instead
  unsigned char* bad = nullptr;  // by number of row
  std::uint32_t view = 0;
  Status* status = nullptr;
  unsigned long long number = 0;         // of the batch
  volatile unsigned* refused = nullptr;  // pinned host memory: becomes 1
};
void check_rows(const Check& check, Stream stream);

// Counts marked rows of the list or range, and their weights (roots squared), once for all views.
struct Count {
  Batch batch;
  Status* status = nullptr;
  unsigned long long number = 0;
};
void count_skipped(const Count& count, Stream stream);

// Rows into the head, as float64, without shift or weight: head[(slot + k) * pitch + column]. Left-out rows are zero, with root 0.
struct HeadRows {
  Batch batch;
  Ticket ticket;
  std::size_t slot = 0;
  std::size_t pitch = 0;    // columns of all groups
  double* head = nullptr;   // from the first column of the view
  double* roots = nullptr;  // of all slots; null: another view's call writes them
};
void fill_head(const HeadRows& rows, Stream stream);

// The shift of every column from the head: see cpu/shift.h, of which this is the same rule. Columns of bfloat16 values, or of float16
// values, with a mean within one deviation of zero are not shifted where `keep_narrow`.
struct ShiftChoice {
  Ticket ticket;
  const double* head = nullptr;
  const double* roots = nullptr;
  std::size_t rows = 0;  // slots of the head that are in use
  std::size_t columns = 0;
  Products products = Products::f32;
  bool keep_narrow = false;
  double* shift = nullptr;
};
void choose_shift(const ShiftChoice& choice, Stream stream);

// Tells the host whether any of some columns has a shift.
struct ShiftReport {
  Ticket ticket;
  const double* shift = nullptr;
  std::size_t columns = 0;
  volatile unsigned* report = nullptr;  // pinned host memory: becomes kUnmoved or kMoved
};
constexpr unsigned kUnmoved = 1, kMoved = 2;
void report_shift(const ShiftReport& report, Stream stream);

// Rows into the slots of a block from `slot` on: p = (x - shift) * root, and the sums of root * p and p^2 of each column, in float64, strip
// by strip.
struct Pack {
  Batch batch;
  Ticket ticket;
  std::size_t slot = 0;
  std::size_t group = 0;          // first one of the view
  std::size_t columns = 0;        // of all groups: pitch of the strips
  const double* shift = nullptr;  // of all columns
  Packed packed;
  std::uint32_t* planes = nullptr;  // by group: how many planes its values need; rises
  double* strip_sums = nullptr;     // [strip * columns + column]
  double* strip_squares = nullptr;
  std::uint32_t* halves = nullptr;  // by group: whether the fourth plane holds all its values
  bool half = false;                // all rows of the block so far are float16 without weights: groups without a shift write that plane
  bool alone = false;               // of all views: no group has a shift, and writes no other plane
  bool narrow = false;              // all rows of the block so far are bfloat16 without weights: groups without a shift write one plane
  bool unmoved = false;             // no column of the view has a shift, as the host has seen
};
void pack_rows(const Pack& pack, Products products, Stream stream);

// Makes the three planes of values that are in the fourth one alone.
struct Split {
  Ticket ticket;
  std::size_t groups = 0;
  std::size_t count = 0;  // slots from the first one on
  Packed packed;
  std::uint32_t* planes = nullptr;  // as in Pack
};
void split_halves(const Split& split, Stream stream);

// Zeros into slots [slot, slot + count) of some groups, and of float32 products some planes.
struct Blank {
  Ticket ticket;
  std::size_t group = 0, groups = 0;
  std::size_t slot = 0, count = 0;
  std::size_t plane = 0, planes = 1;
  Packed packed;
  const std::uint32_t* needed = nullptr;  // by group: those that need more than one plane are left alone; null: none is
};
void blank_slots(const Blank& blank, Products products, Stream stream);

// Adds the sums of the strips that hold rows to those of the columns, strip after strip. Last of what is done for a block.
struct ColumnSums {
  Ticket ticket;
  const double* strip_sums = nullptr;
  const double* strip_squares = nullptr;
  std::size_t strips = 0;
  std::size_t columns = 0;
  double* sums = nullptr;
  double* squares = nullptr;
  std::uint32_t* planes = nullptr;  // by group; becomes 1, as of a new block; null: stays
};
void add_columns(const ColumnSums& sums, Stream stream);

// Products of the packed rows, tile by tile, into float64 tiles: target[task * kTileSize + ...]. Rows up to the next multiple of
// kBlankRows must be zero. Where `splits` is more than one, each part of `part` rows is summed for itself, then added part after part.
struct Product {
  Ticket ticket;
  const Task* tasks = nullptr;
  std::size_t count = 0;
  const Unit* units = nullptr;  // of the same tiles, for Ladder::hopper
  std::size_t unit_count = 0;
  std::size_t first_tile = 0;  // what units call the first task
  std::size_t splits = 1;
  std::size_t part = 0;  // rows of the whole block / splits, full or not
  std::size_t rows = 0;
  Packed packed;
  const std::uint32_t* planes = nullptr;
  const std::uint32_t* halves = nullptr;
  double* target = nullptr;
  double* parts = nullptr;  // count * splits tiles, if splits > 1 (not for Ladder::naive)
};
void multiply(const Product& product, Products products, Ladder ladder, Stream stream);
// The rungs that have files of their own.
void multiply_on_ordinary_units(const Product& product, Products products, Ladder ladder, Stream stream);
void multiply_planes(const Product& product, Stream stream);
void multiply_planes_by_groups(const Product& product, Stream stream);
void multiply_doubles(const Product& product, Stream stream);
void multiply_doubles_by_groups(const Product& product, Stream stream);

// The covariance of one pair, row-major: (S - s t' / weight) / (weight - ddof). Of a view with itself both triangles.
struct Covariance {
  const double* tiles = nullptr;          // of the pair
  const std::uint32_t* places = nullptr;  // number of the tile of (row tile, column tile) within the pair; ~0: below the diagonal
  std::size_t height = 0, width = 0;
  std::size_t tiles_across = 0;
  const double* row_sums = nullptr;
  const double* col_sums = nullptr;
  double weight = 0, ddof = 0;
  double* out = nullptr;
};
void write_covariance(const Covariance& covariance, Stream stream);

}  // namespace streamcca::cuda
