// What the kernels for Hopper share: blocks of three groups of four warps, of which two multiply, and one thread of the third has packed
// rows copied to a ring of slots in shared memory. No thread touches what is copied, and no two warps wait for each other but through
// slots.
#pragma once
#include "cuda/device.h"

namespace streamcca::cuda {

constexpr unsigned kGroupThreads = 384;
constexpr unsigned kMultiplying = 256;
constexpr unsigned kSlotAlignment = 1024;  // 8 rows of 64 columns, within which wgmma's operands are swizzled

// Registers go from the group that copies to those that multiply: 168 each at first.
STREAMCCA_DEVICE void give_registers() { fewer_registers<24>(); }
STREAMCCA_DEVICE void take_registers() { more_registers<240>(); }

// Addresses in shared memory, and the number of the slot that comes next for this thread.
template <unsigned kSlots, unsigned kSlotBytes>
struct SlotRing {
  static constexpr unsigned kBytes = kSlots * kSlotBytes + kSlotAlignment + 2 * kSlots * 8;
  static_assert(kBytes + 64 <= 227 * 1024, "what a block of Hopper can have");
  unsigned slots = 0, full = 0, empty = 0;
  unsigned next = 0;

  // Returns the first address after it.
  STREAMCCA_DEVICE unsigned place(unsigned memory) {
    slots = memory + (kSlotAlignment - memory % kSlotAlignment) % kSlotAlignment;
    full = slots + kSlots * kSlotBytes;
    empty = full + kSlots * 8;
    return empty + kSlots * 8;
  }
  // By one thread. `readers` arrive at the barrier of a slot that they are done with.
  STREAMCCA_DEVICE void start(unsigned readers) const {
    for (unsigned n = 0; n < kSlots; ++n) {
      barrier_start(full_at(n), 1);
      barrier_start(empty_at(n), readers);
    }
  }
  STREAMCCA_DEVICE unsigned slot(unsigned n) const { return slots + n % kSlots * kSlotBytes; }
  STREAMCCA_DEVICE unsigned full_at(unsigned n) const { return full + n % kSlots * 8; }
  STREAMCCA_DEVICE unsigned empty_at(unsigned n) const { return empty + n % kSlots * 8; }
  STREAMCCA_DEVICE void wait_full(unsigned n) const { barrier_wait(full_at(n), n / kSlots & 1); }
  // Of the round before; before the first one there is nothing to wait for.
  STREAMCCA_DEVICE void wait_empty(unsigned n) const { barrier_wait(empty_at(n), (n / kSlots & 1) ^ 1); }
};

}  // namespace streamcca::cuda
