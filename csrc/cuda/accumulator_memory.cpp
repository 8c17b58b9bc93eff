// The memory of moments on a device: made for the first batch, and by and by as much for waiting rows as they need.
#include <algorithm>

#include "core/error.h"
#include "cuda/accumulator.h"

namespace streamcca::cuda {
namespace {

// A block has room for a part of its rows, one of so many, until more come.
constexpr std::size_t kFewRows = 8;

}  // namespace

void Accumulator::start(Products products) {
  if (options_.ladder == Ladder::best) options_.ladder = has_warp_groups(options_.device) ? Ladder::hopper : Ladder::tensor;
  if (options_.ladder == Ladder::hopper && !has_warp_groups(options_.device)) {
    throw Error(
        ErrorKind::device,
        "STREAMCCA_CUDA_LADDER: got 'hopper', which cuda:" + std::to_string(options_.device) +
            " cannot run, expected a card of compute capability 9.0 and kernels compiled for sm_90a; leave it out, or use 'tensor'");
  }
  const bool by_units = options_.ladder == Ladder::hopper && products == Products::f32;
  const std::size_t splits = splits_for(by_units ? plan_.units.size() : plan_.tasks.size(), depth());
  make_memory(products, splits);
  splits_ = splits;
  now_.started = true;
  now_.products = products;
  now_.kinds = every_kind(true);
  for (std::size_t i = 0; i <= views_.size(); ++i) refused_[i] = 0;
  fill(state_->as<void>(), 0, state_->bytes(), stream_);
  fill(sums_.as<void>(), 0, sums_.bytes(), stream_);
  fill(head_.as<void>(), 0, head_.bytes(), stream_);
  const std::vector<std::uint32_t> ones(schedule_.groups(), 1);
  const Buffer from = uploads_.send(ones.data(), ones.size() * sizeof ones[0], stream_);
  copy(planes_.as<void>(), from.as<void>(), from.bytes(), stream_);
}

// Where there is too little of it, what was there stays.
void Accumulator::make_memory(Products products, std::size_t splits) {
  const std::size_t state = plan_.tasks.size() * kTileSize * sizeof(double), head = kHead * columns() * sizeof(double);
  const std::size_t parts = splits > 1 ? splits * state : 0;
  // The block grows as rows come, but what does not fit in the end is better said now.
  const bool has_block = block_.rows() && block_.is_for(products, columns());
  const std::size_t block = has_block ? 0 : Block::bytes(products, columns(), depth(), kSplitPlanes);
  if (const std::size_t needed = block + (state_ ? 0 : state + head) + (parts_.bytes() == parts ? 0 : parts); needed) {
    const std::size_t available = free_memory(options_.device);
    if (needed > available) {
      throw Error(ErrorKind::device, "these moments need " + std::to_string(needed >> 20) +
                                         " MiB on cuda:" + std::to_string(options_.device) + ", expected at most the " +
                                         std::to_string(available >> 20) + " MiB that are free; ask for fewer pairs, or use device='cpu'");
    }
  }
  if (!state_) make_state(state, head);
  if (parts_.bytes() != parts) parts_ = Buffer(parts, stream_);
  block_.start(products, columns(), stream_);
}

void Accumulator::make_state(std::size_t state, std::size_t head) {
  if (!refused_) refused_ = static_cast<volatile unsigned*>(allocate_pinned((1 + views_.size()) * sizeof(unsigned)));
  if (!status_copy_) status_copy_ = static_cast<Status*>(allocate_pinned(sizeof(Status)));
  if (!last_) last_ = std::make_unique<Event>();
  try {
    state_ = std::make_shared<Buffer>(state, stream_);
    head_ = Buffer(head, stream_);
    head_roots_ = Buffer(kHead * sizeof(double), stream_);
    shift_ = Buffer(columns() * sizeof(double), stream_);
    sums_ = Buffer(2 * columns() * sizeof(double), stream_);
    planes_ = Buffer(schedule_.groups() * sizeof(std::uint32_t), stream_);
    halves_ = Buffer(schedule_.groups() * sizeof(std::uint32_t), stream_);
    status_ = uploads_.send(&seen_, sizeof seen_, stream_);
    device_tasks_ = uploads_.send(plan_.tasks.data(), plan_.tasks.size() * sizeof(Task), stream_);
    device_units_ = uploads_.send(plan_.units.data(), plan_.units.size() * sizeof(Unit), stream_);
  } catch (...) {
    state_.reset();
    throw;
  }
}

Accumulator::Kinds Accumulator::kinds_of(const std::vector<Rows>& rows, bool weighted) const {
  Kinds kinds;
  for (const Rows& view : rows) {
    kinds.half.push_back(view.dtype == DType::f16 && !weighted);
    kinds.narrow.push_back(view.dtype == DType::bf16 && !weighted);
  }
  return kinds;
}

bool Accumulator::are_halves_alone(const Kinds& kinds) const {
  bool alone = now_.products == Products::f32;
  for (std::size_t v = 0; v < views_.size(); ++v) alone = alone && kinds.half[v] && is_unmoved(v);
  return alone;
}

unsigned Accumulator::planes_in_use() const {
  if (now_.fill == 0 || !now_.settled) return 0;
  return planes_for(now_.kinds, now_.products);
}

unsigned Accumulator::planes_for(const Kinds& kinds, Products products) const {
  if (products == Products::f64) return kOnePlane;
  if (now_.settled && (now_.fill == 0 || now_.halves_alone) && are_halves_alone(kinds)) return kHalvesAlone;
  bool narrow = true, half = false;
  for (std::size_t v = 0; v < views_.size(); ++v) {
    narrow = narrow && kinds.narrow[v] && is_unmoved(v);
    half = half || kinds.half[v];
  }
  return narrow ? kOnePlane : half ? kSplitPlanes | kHalvesAlone : kSplitPlanes;
}

void Accumulator::reserve(std::size_t count, const Kinds& kinds, bool known) {
  const std::size_t slots = std::min(depth(), now_.fill + count), few = (depth() / kFewRows + kBlankRows - 1) / kBlankRows * kBlankRows;
  if (!now_.settled && now_.fill + count < kHead) return;  // they wait in the head
  const std::size_t rows = slots <= block_.rows() ? block_.rows() : slots <= few ? few : depth();
  Kinds here = kinds;  // where the batch ends in this block: a view has the plane of float16 numbers if all its rows have been such
  for (std::size_t v = 0; v < views_.size() && now_.fill + count <= depth(); ++v)
    here.half[v] = kinds.half[v] && now_.settled && (now_.fill == 0 || now_.kinds.half[v]);
  unsigned planes = (known ? planes_in_use() : block_.planes()) | planes_for(here, now_.products);
  if (now_.fill && now_.halves_alone && !are_halves_alone(kinds)) planes |= kSplitPlanes;
  if (rows != block_.rows() || planes != block_.planes()) block_.resize(rows, planes, now_.settled ? now_.fill : 0, stream_);
}

// Room that the rows of the block do not need goes back, since decompositions that follow want much memory. The next batch makes it again.
// Where few rows would be left out their copy, beside which the others stay meanwhile, is not worth it.
void Accumulator::give_back() {
  const std::size_t rows = (now_.fill + kBlankRows - 1) / kBlankRows * kBlankRows;
  block_.resize(block_.rows(), planes_in_use(), now_.fill, stream_);  // first, so that the copy finds room
  if (4 * rows <= block_.rows()) block_.resize(rows, block_.planes(), now_.fill, stream_);
}

}  // namespace streamcca::cuda
