#include "cuda/emulator.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "cuda/emulator_detail.h"
#include "cuda/fibers.h"

namespace streamcca::cuda::emulated {
namespace {

constexpr unsigned kLanes = 32;
constexpr std::size_t kLargestPayload = 48;
constexpr unsigned kSharedBase = 128;

struct Copy {
  void* to;
  const void* from;
};

struct Thread {
  Fiber fiber;
  bool done = false;
  const unsigned long* waits_for = nullptr;  // a count that has still this value:
  unsigned long value = 0;
  std::vector<Copy> open;                // copies after the last commit
  std::deque<std::vector<Copy>> groups;  // committed ones
  bool is_ready() const { return !done && !(waits_for && *waits_for == value); }
};

struct Warp {
  unsigned arrived = 0;
  unsigned long meetings = 0;
  const void* operation = nullptr;
  alignas(16) unsigned char in[kLanes][kLargestPayload];
  alignas(16) unsigned char out[kLanes][kLargestPayload];
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  unsigned size = 0, arrived = 0;
  unsigned long meetings = 0, landed = 0;
  std::size_t index = 0, count = 0;
  const std::function<void()>* body = nullptr;
  unsigned current = 0;
};

thread_local Block block;

Thread& self() { return *block.threads[block.current]; }

void run_thread() {
  (*block.body)();
  check_landed();
  self().done = true;
}

// All lanes of the warp give `in`; when the last has come, `all` computes what each of them gets.
template <class Out, class In, class All>
Out meet(const void* operation, const In& in, All all) {
  static_assert(sizeof(In) <= kLargestPayload && sizeof(Out) <= kLargestPayload);
  Warp& warp = block.warps[block.current / kLanes];
  const unsigned lane = block.current % kLanes;
  if (warp.arrived && warp.operation != operation) fail("the lanes of a warp are at different instructions");
  warp.operation = operation;
  std::memcpy(warp.in[lane], &in, sizeof in);
  if (++warp.arrived == kLanes) {
    In ins[kLanes];
    Out outs[kLanes];
    for (unsigned l = 0; l < kLanes; ++l) std::memcpy(&ins[l], warp.in[l], sizeof(In));
    all(ins, outs);
    for (unsigned l = 0; l < kLanes; ++l) std::memcpy(warp.out[l], &outs[l], sizeof(Out));
    warp.arrived = 0;
    ++warp.meetings;
  } else {
    wait_while(&warp.meetings, warp.meetings);
  }
  Out out;
  std::memcpy(&out, warp.out[lane], sizeof out);
  return out;
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "streamcca, emulated CUDA: %s\n", what);
  std::abort();
}

void wait_while(const unsigned long* count, unsigned long value) {
  Thread& me = self();
  me.waits_for = count;
  me.value = value;
  me.fiber.leave();
  me.waits_for = nullptr;
}

unsigned block_size() { return block.size; }

unsigned offset_in_shared(const void* p) {
  return static_cast<unsigned>(static_cast<const unsigned char*>(p) - shared_memory()) + kSharedBase;
}

const unsigned char* shared_at(unsigned address, std::size_t bytes) {
  const std::size_t offset = address - kSharedBase;
  const unsigned char* first = shared_memory();
  if (address < kSharedBase || first + offset + bytes > block.shared.data() + block.shared.size()) fail("an address beyond shared memory");
  return first + offset;
}

unsigned long& copies_landed() { return block.landed; }

void check_same(const void* values, std::size_t bytes) {
  static const char operation = 0;
  struct Seen {
    unsigned char values[kLargestPayload];
  };
  Seen mine{};
  if (bytes > sizeof mine.values) fail("too many values to compare");
  std::memcpy(mine.values, values, bytes);
  const bool same = meet<bool>(&operation, mine, [](const Seen* in, bool* out) {
    for (unsigned l = 0; l < kLanes; ++l) out[l] = std::memcmp(&in[l], &in[0], sizeof in[l]) == 0;
  });
  if (!same) fail("the lanes of a warp ask for different products");
}

unsigned thread_index() { return block.current; }
std::size_t block_index() { return block.index; }
std::size_t block_count() { return block.count; }
unsigned char* shared_memory() {
  return reinterpret_cast<unsigned char*>((reinterpret_cast<std::uintptr_t>(block.shared.data()) + 127) / 128 * 128);
}

void sync_block() {
  if (++block.arrived == block.size) {
    block.arrived = 0;
    ++block.meetings;
  } else {
    wait_while(&block.meetings, block.meetings);
  }
}

unsigned ballot(bool vote) {
  static const char operation = 0;
  return meet<unsigned>(&operation, vote, [](const bool* in, unsigned* out) {
    unsigned votes = 0;
    for (unsigned l = 0; l < kLanes; ++l) votes |= (in[l] ? 1u : 0u) << l;
    for (unsigned l = 0; l < kLanes; ++l) out[l] = votes;
  });
}

// ---------------------------------------------------------------- copies that take their time

void copy_async(void* shared, const void* global) {
  if (reinterpret_cast<std::uintptr_t>(shared) % 16 || reinterpret_cast<std::uintptr_t>(global) % 16)
    fail("a copy of 16 bytes that is not aligned");
  std::memset(shared, 0xff, 16);  // it may come at once: what was there is lost
  ++block.landed;
  self().open.push_back({shared, global});
}

void commit_copies() {
  self().groups.push_back(std::move(self().open));
  self().open.clear();
}

void wait_copies(int pending) {
  auto& groups = self().groups;
  while (groups.size() > static_cast<std::size_t>(pending)) {
    for (const Copy& c : groups.front()) std::memcpy(c.to, c.from, 16);
    if (!groups.front().empty()) ++block.landed;
    groups.pop_front();
  }
}

// ---------------------------------------------------------------- matrices

// PTX ISA, "Warp-level matrix instructions: ldmatrix". With .x4, threads 8 i to 8 i + 7 give the addresses of the rows of matrix i, and
// register i of each thread gets elements of matrix i. Without .trans thread t gets, of row t / 4, elements 2 (t % 4) and the next; with
// .trans the matrix is loaded in column-major order, so it gets rows 2 (t % 4) and the next of column t / 4.
void load_matrices_transposed(const void* shared_row, std::uint32_t (&r)[4]) {
  static const char operation = 0;
  struct Registers {
    std::uint32_t r[4];
  };
  if (reinterpret_cast<std::uintptr_t>(shared_row) % 16) fail("a row of a matrix that is not aligned");
  const Registers mine = meet<Registers>(&operation, shared_row, [](const void* const* rows, Registers* out) {
    for (unsigned thread = 0; thread < kLanes; ++thread) {
      for (unsigned matrix = 0; matrix < 4; ++matrix) {
        std::uint32_t pair = 0;
        for (unsigned element = 0; element < 2; ++element) {
          const unsigned row = 2 * (thread % 4) + element, column = thread / 4;
          std::uint16_t value;
          std::memcpy(&value, static_cast<const unsigned char*>(rows[8 * matrix + row]) + 2 * column, 2);
          pair |= static_cast<std::uint32_t>(value) << (16 * element);
        }
        out[thread].r[matrix] = pair;
      }
    }
  });
  for (int i = 0; i < 4; ++i) r[i] = mine.r[i];
}

namespace {

// 0 if all are zero, NaN if one is not finite.
double magnitude(const float* values, unsigned count) {
  double sum = 0;
  for (unsigned i = 0; i < count; ++i) sum += std::fabs(static_cast<double>(values[i]));
  return std::isfinite(sum) ? sum : std::nan("");
}

struct Operands {
  std::uint32_t a[4], b[2];
  float c[4];
};
struct Sums {
  float c[4];
};

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type". group = lane / 4, within = lane % 4.
// A (16 x 16): element i of 8 is in row group (i = 0, 1, 4, 5) or group + 8, column 2 within + i % 2, and 8 more from i = 4 on.
// B (16 x 8): element i of 4 is in row 2 within + i % 2, and 8 more from i = 2 on, column group.
// C (16 x 8): element i of 4 is in row group, and 8 more from i = 2 on, column 2 within + i % 2.
template <float (*Value)(std::uint16_t)>
void multiply_fragments(const Operands* in, Sums* out) {
  const auto half_of = [](std::uint32_t pair, unsigned half) { return Value(static_cast<std::uint16_t>(pair >> (16 * half))); };
  float left[16][16], right[16][8], sums[16][8];
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const unsigned group = lane / 4, within = lane % 4;
    for (unsigned i = 0; i < 8; ++i) {
      const unsigned row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
      left[row][2 * within + i % 2 + (i >= 4 ? 8 : 0)] = half_of(in[lane].a[i / 2], i % 2);
    }
    for (unsigned i = 0; i < 4; ++i) {
      right[2 * within + i % 2 + (i >= 2 ? 8 : 0)][group] = half_of(in[lane].b[i / 2], i % 2);
      sums[group + (i >= 2 ? 8 : 0)][2 * within + i % 2] = in[lane].c[i];
    }
  }
  for (unsigned half = 0; half < 2; ++half) {
    const double other = magnitude(right[8 * half], 64);
    for (unsigned row = 0; row < 16; ++row) {
      // Zeros times finite numbers change nothing: most of what small views multiply.
      if (magnitude(left[row] + 8 * half, 8) * other != 0) add_truncated(left[row] + 8 * half, right + 8 * half, sums[row]);
    }
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    for (unsigned i = 0; i < 4; ++i) out[lane].c[i] = sums[lane / 4 + (i >= 2 ? 8 : 0)][2 * (lane % 4) + i % 2];
  }
}

}  // namespace

void multiply_bfloat16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  static const char operation = 0;
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
  const Sums sums = meet<Sums>(&operation, mine, &multiply_fragments<from_bfloat16>);
  for (int i = 0; i < 4; ++i) c[i] = sums.c[i];
}

// The same fragments.
void multiply_float16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  static const char operation = 0;
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
  const Sums sums = meet<Sums>(&operation, mine, &multiply_fragments<from_half>);
  for (int i = 0; i < 4; ++i) c[i] = sums.c[i];
}

// PTX ISA, "Matrix Fragments for mma.m8n8k4 with .f64 floating point type". A (8 x 4): row lane / 4, column lane % 4. B (4 x 8): row lane %
// 4, column lane / 4. C (8 x 8): element i of 2 is in row lane / 4, column 2 (lane % 4) + i. Rounded like fused multiply-adds.
void multiply_float64(double& c0, double& c1, double a, double b) {
  static const char operation = 0;
  struct Operands {
    double a, b, c[2];
  };
  struct Sums {
    double c[2];
  };
  const Sums mine = meet<Sums>(&operation, Operands{a, b, {c0, c1}}, [](const Operands* in, Sums* out) {
    double left[8][4], right[4][8];
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      left[lane / 4][lane % 4] = in[lane].a;
      right[lane % 4][lane / 4] = in[lane].b;
    }
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      for (unsigned i = 0; i < 2; ++i) {
        double sum = in[lane].c[i];
        for (unsigned k = 0; k < 4; ++k) sum = std::fma(left[lane / 4][k], right[k][2 * (lane % 4) + i], sum);
        out[lane].c[i] = sum;
      }
    }
  });
  c0 = mine.c[0], c1 = mine.c[1];
}

// ---------------------------------------------------------------- blocks

void run_grid(std::size_t blocks, unsigned threads, std::size_t shared, const std::function<void()>& body) {
  if (threads % kLanes) fail("a block of threads that is not whole warps");
  block.size = threads;
  block.count = blocks;
  block.body = &body;
  while (block.threads.size() < threads) block.threads.push_back(std::make_unique<Thread>());
  block.warps.resize(threads / kLanes);
  unsigned turn = 0;
  for (std::size_t b = 0; b < blocks; ++b) {
    block.index = b;
    block.shared.assign(shared + 128, 0xff);
    ++block.landed;
    forget_barriers();
    for (unsigned t = 0; t < threads; ++t) {
      block.threads[t]->done = false;
      block.threads[t]->fiber.start(&run_thread);
    }
    for (unsigned running = threads; running;) {
      const unsigned warps = threads / kLanes, first = turn++ % warps;
      const bool backwards = turn % 3 == 1;
      bool moved = false;
      for (unsigned w = 0; w < warps; ++w) {
        const unsigned warp = (first + (backwards ? warps - 1 - w : w)) % warps;
        for (unsigned lane = 0; lane < kLanes; ++lane) {
          block.current = warp * kLanes + lane;
          if (!self().is_ready()) continue;
          moved = true;
          self().fiber.enter();
          if (self().done) --running;
        }
      }
      if (!moved && !land_bulk_copy()) fail("threads wait for others that have gone another way (a barrier in a branch)");
    }
    if (land_bulk_copy()) fail("a block ended before its bulk copies were waited for");
    for (unsigned t = 0; t < threads; ++t) {
      if (!block.threads[t]->open.empty() || !block.threads[t]->groups.empty()) fail("a thread ended before its copies were waited for");
    }
  }
}

}  // namespace streamcca::cuda::emulated
