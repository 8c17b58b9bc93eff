// Barriers in shared memory, and the copies that they count, emulated: see PTX ISA, "mbarrier" and "cp.async.bulk".
#include <cstring>
#include <deque>
#include <map>

#include "cuda/emulator.h"
#include "cuda/emulator_detail.h"

namespace streamcca::cuda::emulated {
namespace {

struct Barrier {
  unsigned arrivals = 0, missing = 0;  // of a phase
  long bytes = 0;                      // announced and not come
  unsigned long phases = 0;            // that have ended
  bool known = false;                  // to copies and other threads
};

struct BulkCopy {
  unsigned to = 0, bytes = 0, barrier = 0;
  const void* from = nullptr;
};

thread_local std::map<unsigned, Barrier> barriers;
thread_local std::deque<BulkCopy> copies;

Barrier& at(unsigned address, bool known = true) {
  const auto found = barriers.find(address);
  if (found == barriers.end()) fail("a barrier that was not started");
  if (known && !found->second.known) fail("a barrier that copies do not know of yet");
  return found->second;
}

void end_phase_if_done(Barrier& barrier) {
  if (barrier.missing || barrier.bytes) return;
  barrier.missing = barrier.arrivals;
  ++barrier.phases;
}

unsigned char* writable(unsigned address, std::size_t bytes) { return const_cast<unsigned char*>(shared_at(address, bytes)); }

}  // namespace

void barrier_start(unsigned barrier, unsigned arrivals) {
  if (barrier % 8) fail("a barrier that is not aligned");
  if (barriers.count(barrier)) fail("a barrier that was started twice");
  (void)shared_at(barrier, 8);
  barriers[barrier].arrivals = barriers[barrier].missing = arrivals;
}

void barriers_started() {
  for (auto& [address, barrier] : barriers) barrier.known = true;
}

void barrier_arrive(unsigned address) {
  Barrier& barrier = at(address);
  if (!barrier.missing) fail("more arrivals at a barrier than it was started with");
  --barrier.missing;
  end_phase_if_done(barrier);
}

void barrier_announce(unsigned address, unsigned bytes) {
  at(address).bytes += bytes;
  barrier_arrive(address);
}

void barrier_wait(unsigned address, unsigned parity) {
  Barrier& barrier = at(address);
  while ((barrier.phases & 1) == parity) wait_while(&barrier.phases, barrier.phases);
}

void copy_bulk(unsigned shared, const void* global, unsigned bytes, unsigned barrier) {
  if (shared % 16 || reinterpret_cast<std::uintptr_t>(global) % 16 || bytes % 16) fail("a bulk copy that is not aligned");
  (void)at(barrier);
  std::memset(writable(shared, bytes), 0xff, bytes);  // it may come at once: what was there is lost
  ++copies_landed();
  copies.push_back({shared, bytes, barrier, global});
}

bool land_bulk_copy() {
  if (copies.empty()) return false;
  const BulkCopy copy = copies.front();
  copies.pop_front();
  std::memcpy(writable(copy.to, copy.bytes), copy.from, copy.bytes);
  ++copies_landed();
  Barrier& barrier = at(copy.barrier);
  barrier.bytes -= copy.bytes;
  end_phase_if_done(barrier);
  return true;
}

void forget_barriers() {
  barriers.clear();
  copies.clear();
}

}  // namespace streamcca::cuda::emulated
