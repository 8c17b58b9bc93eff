// Products of warp groups, emulated: see PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "cuda/emulator.h"
#include "cuda/emulator_detail.h"

namespace streamcca::cuda::emulated {
namespace {

constexpr unsigned kDepth = 16, kRows = 64, kColumns = 128;

struct Request {  // no padding, since its bytes are compared
  std::uint64_t left, right, half, add;
};

// Where element (column, row) of an operand lies whose columns are behind one another: "Matrix Descriptor Format", and of "Canonical
// Layouts" that of an M- or N-major operand with a swizzle of 128 bytes: blocks of 64 columns are the leading offset apart, blocks of 8
// rows the stride offset, rows 128 bytes; then bits 4 to 6 of the address change with bits 7 to 9.
unsigned address_of(std::uint64_t descriptor, unsigned column, unsigned row) {
  const auto field = [descriptor](unsigned bit) { return static_cast<unsigned>(descriptor >> bit & 0x3fff) << 4; };
  if (descriptor >> 62 != 1) fail("a descriptor without a swizzle of 128 bytes");
  if (descriptor >> 49 & 7) fail("a descriptor with a base offset");
  const unsigned address = field(0) + column / 64 * field(16) + column % 64 * 2 + row / 8 * field(32) + row % 8 * 128;
  return address ^ (address >> 7 & 7) << 4;
}

std::uint16_t shared_value(unsigned address) {
  std::uint16_t value;
  std::memcpy(&value, shared_at(address, sizeof value), sizeof value);
  return value;
}

// By row of the operands: the values of the left one, then of the right one.
struct Operands {
  std::vector<std::uint16_t> bits;
  std::vector<float> values;
  // By eight rows and column, and of all: zeros times finite numbers change nothing, most of what small views multiply.
  bool zero[2][kRows + kColumns];
  bool finite = true;
};
using Values = std::shared_ptr<const Operands>;

std::vector<std::uint16_t> bits_of(const Request& request) {
  std::vector<std::uint16_t> values;
  values.reserve(kDepth * (kRows + kColumns));
  for (unsigned row = 0; row < kDepth; ++row) {
    for (unsigned m = 0; m < kRows; ++m) values.push_back(shared_value(address_of(request.left, m, row)));
    for (unsigned n = 0; n < kColumns; ++n) values.push_back(shared_value(address_of(request.right, n, row)));
  }
  return values;
}

Values operands(const Request& request) {
  Operands operands;
  operands.bits = bits_of(request);
  operands.values.reserve(operands.bits.size());
  for (auto& of_rows : operands.zero) std::fill(std::begin(of_rows), std::end(of_rows), true);
  for (std::size_t i = 0; i < operands.bits.size(); ++i) {
    const float value = request.half ? from_half(operands.bits[i]) : from_bfloat16(operands.bits[i]);
    operands.values.push_back(value);
    bool& zero = operands.zero[i / (8 * (kRows + kColumns))][i % (kRows + kColumns)];
    zero = zero && value == 0;
    operands.finite = operands.finite && std::isfinite(value);
  }
  return std::make_shared<const Operands>(std::move(operands));
}

// The same, read once for all threads that ask while no copy comes.
Values operands_now(const Request& request) {
  struct Entry {
    std::uint64_t left = 0, right = 0, half = 0;
    unsigned long landed = 0;
    Values values;
  };
  thread_local std::vector<Entry> entries(64);
  Entry& entry = entries[(request.left ^ request.left >> 16 ^ request.right * 7) % 64];
  if (entry.left != request.left || entry.right != request.right || entry.half != request.half || entry.landed != copies_landed())
    entry = {request.left, request.right, request.half, copies_landed(), operands(request)};
  return entry.values;
}

// What a thread has in flight.
struct Flight {
  Request request;
  Values values;
};
struct Group {
  float* registers = nullptr;
  float sums[64];
  bool flying = false, arrived = false;
  std::vector<Flight> open;
  std::deque<std::vector<Flight>> committed;
};

thread_local std::vector<Group> groups;

Group& own() {
  if (groups.size() < block_size()) groups.resize(block_size());
  return groups[thread_index()];
}

}  // namespace

unsigned shared_address(const void* p) { return offset_in_shared(p); }

void group_arrive() { own().arrived = true; }

void group_commit() {
  own().committed.push_back(std::move(own().open));
  own().open.clear();
}

void group_wait(int pending) {
  Group& group = own();
  while (group.committed.size() > static_cast<std::size_t>(pending)) {
    for (const Flight& flight : group.committed.front()) {
      if (thread_index() % 128 == 0 && flight.values->bits != bits_of(flight.request))
        fail("shared memory changed while it was multiplied");
    }
    group.committed.pop_front();
  }
  group.arrived = false;
  if (!group.committed.empty() || !group.open.empty() || !group.flying) return;
  std::memcpy(group.registers, group.sums, sizeof group.sums);
  group.flying = false;
}

// "Register Fragments": element i of a thread of warp w of the group is in row 16 w + lane / 4, and 8 more from i % 4 = 2 on, and in column
// 8 (i / 4) + 2 (lane % 4) + i % 2.
void multiply_group(bool half, float (&d)[64], std::uint64_t left, std::uint64_t right, bool add) {
  const Request request{left, right, half, add};
  check_same(&request, sizeof request);
  Group& group = own();
  if (!group.arrived) fail("products of a group whose registers were not fenced");
  if (group.flying && group.registers != d) fail("products of a group into two sets of registers at once");
  if (!group.flying) std::memcpy(group.sums, d, sizeof group.sums);
  group.registers = d;
  group.flying = true;
  const Values values = operands_now(request);
  const unsigned first = thread_index() % 128 / 32 * 16 + thread_index() % 32 / 4, column = thread_index() % 4 * 2;
  for (unsigned lower = 0; lower < 2; ++lower) {
    for (unsigned blocks = 0; blocks < kColumns / 8; blocks += 4) {  // two columns of each of four
      const auto sum = [&](unsigned n) -> float& { return group.sums[4 * (blocks + n / 2) + 2 * lower + n % 2]; };
      float c[8];
      for (unsigned n = 0; n < 8; ++n) c[n] = add ? sum(n) : 0;
      for (unsigned k = 0; k < kDepth; k += 8) {
        const bool* zero = values->zero[k / 8];
        bool right_zero = true;
        for (unsigned n = 0; n < 8; ++n) right_zero = right_zero && zero[kRows + 8 * (blocks + n / 2) + column + n % 2];
        if (values->finite && (zero[first + 8 * lower] || right_zero)) continue;
        float a[8], b[8][8];
        for (unsigned row = 0; row < 8; ++row) {
          const float* at = values->values.data() + (k + row) * (kRows + kColumns);
          a[row] = at[first + 8 * lower];
          for (unsigned n = 0; n < 8; ++n) b[row][n] = at[kRows + 8 * (blocks + n / 2) + column + n % 2];
        }
        add_truncated(a, b, c);
      }
      for (unsigned n = 0; n < 8; ++n) sum(n) = c[n];
    }
  }
  for (float& x : d) x = std::nanf("");
  group.open.push_back({request, values});
}

void check_landed() {
  if (own().flying || !own().committed.empty()) fail("a thread ended before its products were waited for");
}

}  // namespace streamcca::cuda::emulated
