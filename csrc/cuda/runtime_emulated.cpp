// The runtime of the emulator: host memory stands for device memory, and every call is done when it returns.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <string>

#include "core/error.h"
#include "cuda/emulator.h"
#include "cuda/emulator_detail.h"
#include "cuda/runtime.h"

namespace streamcca::cuda {
namespace {

std::mutex memory_mutex;
std::map<void*, std::size_t> held;  // bytes by address
MemoryUse use;

// Tests set this, to see what happens where memory is lacking; and what is_late() asks for, where the host never hears from the device
// unless it waits.
std::size_t total() {
  const char* bytes = std::getenv("STREAMCCA_EMULATED_MEMORY");
  return bytes ? std::strtoull(bytes, nullptr, 10) : std::size_t{4} << 30;
}

// How many things were asked of each stream.
using Clock = std::map<Stream, unsigned long>;
std::mutex order_mutex;
Clock asked, seen_by_host;
std::map<Stream, Clock> seen_by;  // what later work of a stream comes after

void merge(Clock* into, const Clock& from) {
  for (const auto& [stream, count] : from) (*into)[stream] = std::max((*into)[stream], count);
}
Clock clock_of(Stream stream) {
  Clock clock = seen_by[stream];
  clock[stream] = asked[stream];
  merge(&clock, seen_by_host);
  return clock;
}

}  // namespace

namespace emulated {
bool is_late() { return std::getenv("STREAMCCA_EMULATED_LATE") != nullptr; }

void check_order(Stream stream) {
  const char* test = std::getenv("STREAMCCA_EMULATED_ORDER");
  if (!test) return;
  const std::lock_guard<std::mutex> lock(order_mutex);
  static std::string last;
  if (last != test) {
    last = test;
    asked.clear(), seen_by_host.clear(), seen_by.clear();
  }
  for (const auto& [other, count] : asked) {
    if (other != stream && std::max(seen_by[stream][other], seen_by_host[other]) < count)
      fail("a stream that does not wait for another one");
  }
  ++asked[stream];
}
}  // namespace emulated

bool is_emulated() { return true; }
int device_count(std::string*) { return 1; }
std::string device_name(int) { return "emulated, for tests"; }
bool has_warp_groups(int) { return true; }
std::size_t free_memory(int device) {
  const std::size_t now = memory_use(device).now;
  return total() > now ? total() - now : 0;
}

OnDevice::OnDevice(int) {}
OnDevice::~OnDevice() = default;

MemoryUse memory_use(int) {
  const std::lock_guard<std::mutex> lock(memory_mutex);
  return use;
}
void forget_most_used(int) {
  const std::lock_guard<std::mutex> lock(memory_mutex);
  use.most = use.now;
}

void* allocate(std::size_t bytes, Stream stream) {
  if (bytes > free_memory(0)) throw Error(ErrorKind::device, "CUDA: allocation of " + std::to_string(bytes) + " bytes failed (emulated)");
  emulated::check_order(stream);
  void* p = ::operator new(bytes, std::align_val_t{256});
  std::memset(p, 0xff, bytes);  // NaN: nothing may rely on fresh memory
  const std::lock_guard<std::mutex> lock(memory_mutex);
  held[p] = bytes;
  use.now += bytes;
  use.most = std::max(use.most, use.now);
  return p;
}
void release(void* p, Stream) noexcept {
  const std::lock_guard<std::mutex> lock(memory_mutex);
  use.now -= held[p];
  held.erase(p);
  ::operator delete(p, std::align_val_t{256});
}
void copy(void* to, const void* from, std::size_t bytes, Stream stream) {
  emulated::check_order(stream);
  std::memcpy(to, from, bytes);
}
void copy_lines(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t bytes, std::size_t lines,
                Stream stream) {
  emulated::check_order(stream);
  for (std::size_t i = 0; i < lines; ++i)
    std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, bytes);
}
void fill(void* p, int byte, std::size_t bytes, Stream stream) {
  emulated::check_order(stream);
  std::memset(p, byte, bytes);
}
void wait_for(Stream stream) {
  const std::lock_guard<std::mutex> lock(order_mutex);
  merge(&seen_by_host, clock_of(stream));
}
void* allocate_pinned(std::size_t bytes) { return ::operator new(bytes); }
void release_pinned(void* p) noexcept { ::operator delete(p); }

Event::Event() : event_(new Clock) {}
Event::~Event() { delete static_cast<Clock*>(event_); }
void Event::record(Stream stream) {
  const std::lock_guard<std::mutex> lock(order_mutex);
  *static_cast<Clock*>(event_) = clock_of(stream);
}
bool Event::has_passed() const {
  if (emulated::is_late()) return false;
  const std::lock_guard<std::mutex> lock(order_mutex);
  merge(&seen_by_host, *static_cast<Clock*>(event_));
  return true;
}
void Event::hold_back(Stream stream) const {
  const std::lock_guard<std::mutex> lock(order_mutex);
  merge(&seen_by[stream], *static_cast<Clock*>(event_));
}

void check_result(int, const char*) {}

}  // namespace streamcca::cuda
