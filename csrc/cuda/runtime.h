// The few services of the CUDA runtime that streamcca needs, without its headers: above this file nothing knows whether a driver, or the
// emulator of the tests, is below. All functions throw Error (device) with one sentence.
#pragma once
#include <cstddef>
#include <string>
#include <utility>

#include "core/error.h"

namespace streamcca::cuda {

using Stream = void*;  // cudaStream_t; null is the legacy default stream

bool is_emulated();
// Devices that can be used, 0 without a driver; `why` says what is missing.
int device_count(std::string* why);
std::string device_name(int device);
std::size_t free_memory(int device);
// Bytes of its default pool, where all of our memory is, that are in use; and the most since forget_most_used().
struct MemoryUse {
  std::size_t now = 0, most = 0;
};
MemoryUse memory_use(int device);
void forget_most_used(int device);
// Whether a device runs the code that was compiled for Hopper's warp groups (compute capability 9.0).
bool has_warp_groups(int device);

// Makes a device current for the calling thread, and the former one again.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = -1;
};

void* allocate(std::size_t bytes, Stream stream);  // in the order of the stream; what is in it is undefined
void release(void* p, Stream stream) noexcept;
void copy(void* to, const void* from, std::size_t bytes, Stream stream);  // any direction; asynchronous for pinned host memory
// `lines` pieces of `bytes` bytes each, which begin `from_pitch` bytes after one another, and so in the copy; on the device.
void copy_lines(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t bytes, std::size_t lines,
                Stream stream);
void fill(void* p, int byte, std::size_t bytes, Stream stream);
void wait_for(Stream stream);

// Host memory that kernels can write, and that copies read without a halt.
void* allocate_pinned(std::size_t bytes);
void release_pinned(void* p) noexcept;

class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(Stream stream);
  bool has_passed() const;
  void hold_back(Stream stream) const;  // later work of the stream waits for the event, the caller does not

 private:
  void* event_ = nullptr;
};

// Device memory that belongs to one stream after the other.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::size_t bytes, Stream stream) : data_(bytes ? allocate(bytes, stream) : nullptr), bytes_(bytes), stream_(stream) {}
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)), stream_(other.stream_) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_), std::swap(bytes_, other.bytes_), std::swap(stream_, other.stream_);
    return *this;
  }
  ~Buffer() {
    if (data_) release(data_, stream_);
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }
  void follow(Stream stream) { stream_ = stream; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Stream stream_ = nullptr;
};

inline void check_grid(std::size_t blocks) {
  if (blocks >= std::size_t{1} << 31)
    throw Error(ErrorKind::device,
                "CUDA: a launch of " + std::to_string(blocks) + " blocks, expected fewer than 2^31; pass smaller batches");
}
void check_result(int code, const char* what);  // a cudaError_t

}  // namespace streamcca::cuda
