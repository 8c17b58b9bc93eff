#include "cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/error.h"

namespace streamcca::cuda {
namespace {

cudaStream_t as_stream(Stream stream) { return static_cast<cudaStream_t>(stream); }

cudaMemPool_t pool_of(int device) {
  cudaMemPool_t pool;
  check_result(cudaDeviceGetDefaultMemPool(&pool, device), "a question about memory");
  return pool;
}

}  // namespace

void check_result(int code, const char* what) {
  if (code == cudaSuccess) return;
  (void)cudaGetLastError();  // else the next call would report it once more
  throw Error(ErrorKind::device, std::string("CUDA: ") + what + " failed (" + cudaGetErrorString(static_cast<cudaError_t>(code)) +
                                     "); expected success, see the driver's log, or use device='cpu'");
}

bool is_emulated() { return false; }

int device_count(std::string* why) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaSuccess && count > 0) return count;
  (void)cudaGetLastError();
  if (why) *why = code == cudaSuccess ? "no device was found" : cudaGetErrorString(code);
  return 0;
}

std::string device_name(int device) {
  cudaDeviceProp properties;
  check_result(cudaGetDeviceProperties(&properties, device), "a question about a device");
  return properties.name;
}

std::size_t free_memory(int device) {
  const OnDevice on(device);
  std::size_t free = 0, total = 0;
  check_result(cudaMemGetInfo(&free, &total), "a question about memory");
  return free;
}

MemoryUse memory_use(int device) {
  std::uint64_t now = 0, most = 0;
  check_result(cudaMemPoolGetAttribute(pool_of(device), cudaMemPoolAttrUsedMemCurrent, &now), "a question about memory");
  check_result(cudaMemPoolGetAttribute(pool_of(device), cudaMemPoolAttrUsedMemHigh, &most), "a question about memory");
  return {now, most};
}

void forget_most_used(int device) {
  std::uint64_t zero = 0;  // which stands for what is in use now
  check_result(cudaMemPoolSetAttribute(pool_of(device), cudaMemPoolAttrUsedMemHigh, &zero), "a question about memory");
}

bool has_warp_groups([[maybe_unused]] int device) {
#ifdef STREAMCCA_WARP_GROUPS  // else the kernels were compiled for other cards only, and trap
  int major = 0, minor = 0;
  check_result(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "a question about a device");
  check_result(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "a question about a device");
  return major == 9 && minor == 0;
#else
  return false;
#endif
}

OnDevice::OnDevice(int device) {
  check_result(cudaGetDevice(&before_), "the choice of a device");
  if (before_ == device) {
    before_ = -1;
    return;
  }
  check_result(cudaSetDevice(device), "the choice of a device");
}

OnDevice::~OnDevice() {
  if (before_ >= 0) (void)cudaSetDevice(before_);
}

void* allocate(std::size_t bytes, Stream stream) {
  void* p = nullptr;
  check_result(cudaMallocAsync(&p, bytes, as_stream(stream)), ("allocation of " + std::to_string(bytes) + " bytes on the device").c_str());
  return p;
}

// The default stream is that of the current device, and whoever lets go of memory last may be at another.
void release(void* p, Stream stream) noexcept {
  cudaPointerAttributes attributes;
  int before = -1;
  if (cudaPointerGetAttributes(&attributes, p) == cudaSuccess && cudaGetDevice(&before) == cudaSuccess && before != attributes.device)
    (void)cudaSetDevice(attributes.device);
  (void)cudaFreeAsync(p, as_stream(stream));
  if (before >= 0) (void)cudaSetDevice(before);
}

void copy(void* to, const void* from, std::size_t bytes, Stream stream) {
  if (bytes) check_result(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, as_stream(stream)), "a copy");
}

void copy_lines(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t bytes, std::size_t lines,
                Stream stream) {
  check_result(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, bytes, lines, cudaMemcpyDeviceToDevice, as_stream(stream)), "a copy");
}

void fill(void* p, int byte, std::size_t bytes, Stream stream) {
  if (bytes) check_result(cudaMemsetAsync(p, byte, bytes, as_stream(stream)), "the clearing of memory");
}

void wait_for(Stream stream) { check_result(cudaStreamSynchronize(as_stream(stream)), "work on the device"); }

void* allocate_pinned(std::size_t bytes) {
  void* p = nullptr;
  check_result(cudaHostAlloc(&p, bytes, cudaHostAllocPortable | cudaHostAllocMapped), "allocation of pinned host memory");
  return p;
}

void release_pinned(void* p) noexcept { (void)cudaFreeHost(p); }

Event::Event() {
  cudaEvent_t event;
  check_result(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
  event_ = event;
}
Event::~Event() { (void)cudaEventDestroy(static_cast<cudaEvent_t>(event_)); }
void Event::record(Stream stream) { check_result(cudaEventRecord(static_cast<cudaEvent_t>(event_), as_stream(stream)), "an event"); }
bool Event::has_passed() const { return cudaEventQuery(static_cast<cudaEvent_t>(event_)) != cudaErrorNotReady; }
void Event::hold_back(Stream stream) const {
  check_result(cudaStreamWaitEvent(as_stream(stream), static_cast<cudaEvent_t>(event_), 0), "waiting for an event");
}

}  // namespace streamcca::cuda
