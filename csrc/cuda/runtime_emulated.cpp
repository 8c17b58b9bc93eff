// The runtime of the emulator: host memory stands for device memory, and every call is done when it returns.
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/error.h"
#include "cuda/runtime.h"

namespace streamcca::cuda {

bool is_emulated() { return true; }
int device_count(std::string*) { return 1; }
std::string device_name(int) { return "emulated, for tests"; }
bool has_warp_groups(int) { return true; }
std::size_t free_memory(int) { return std::size_t{4} << 30; }

OnDevice::OnDevice(int) {}
OnDevice::~OnDevice() = default;

void* allocate(std::size_t bytes, Stream) {
  void* p = ::operator new(bytes, std::align_val_t{256});
  std::memset(p, 0xff, bytes);  // NaN: nothing may rely on fresh memory
  return p;
}
void release(void* p, Stream) noexcept { ::operator delete(p, std::align_val_t{256}); }
void copy(void* to, const void* from, std::size_t bytes, Stream) { std::memcpy(to, from, bytes); }
void fill(void* p, int byte, std::size_t bytes, Stream) { std::memset(p, byte, bytes); }
void wait_for(Stream) {}
void* allocate_pinned(std::size_t bytes) { return ::operator new(bytes); }
void release_pinned(void* p) noexcept { ::operator delete(p); }

Event::Event() = default;
Event::~Event() = default;
void Event::record(Stream) {}
bool Event::has_passed() const { return true; }
void Event::hold_back(Stream) const {}

void check_result(int, const char*) {}

}  // namespace streamcca::cuda
