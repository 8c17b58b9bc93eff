// Memory for large arrays: whole huge pages where the system gives them on request (Linux with transparent huge
// pages set to "madvise", the usual setting; NumPy asks for them, too). A matrix of 4096 x 4096 float64 then costs
// 64 page faults instead of 32768, and the tables of the processor hold the addresses of all tiles.
#pragma once
#include <cstddef>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace streamcca {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Uninitialized, on a cache line, or on a huge page from twice that size on.
inline void* allocate_pages(std::size_t bytes) {
  const bool huge = bytes >= 2 * kHugePage;
  void* p = ::operator new(bytes, std::align_val_t{huge ? kHugePage : kCacheLine});
#ifdef __linux__
  if (huge) madvise(p, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // advice: what it returns does not matter
#endif
  return p;
}

inline void release_pages(void* p, std::size_t bytes) {
  ::operator delete(p, std::align_val_t{bytes >= 2 * kHugePage ? kHugePage : kCacheLine});
}

template <class T>
struct PageAllocator {
  using value_type = T;
  PageAllocator() = default;
  template <class U>
  PageAllocator(const PageAllocator<U>&) {}
  T* allocate(std::size_t count) { return static_cast<T*>(allocate_pages(count * sizeof(T))); }
  void deallocate(T* p, std::size_t count) { release_pages(p, count * sizeof(T)); }
  bool operator==(const PageAllocator&) const { return true; }
  bool operator!=(const PageAllocator&) const { return false; }
};

}  // namespace streamcca
