// Arrays on a 64-byte boundary (one cache line, one AVX-512 vector).
#pragma once
#include <cstddef>
#include <new>
#include <vector>

#include "core/pages.h"

namespace streamcca {

// Zero-initialized.
template <class T>
using AlignedArray = std::vector<T, PageAllocator<T>>;

template <class T>
struct UninitializedAllocator : PageAllocator<T> {
  template <class U>
  struct rebind {
    using other = UninitializedAllocator<U>;
  };
  UninitializedAllocator() = default;
  template <class U>
  UninitializedAllocator(const UninitializedAllocator<U>&) {}
  void construct(T* p) { ::new (static_cast<void*>(p)) T; }
};

// Whatever was in memory: pages that are never written cost nothing.
template <class T>
using RawArray = std::vector<T, UninitializedAllocator<T>>;

}  // namespace streamcca
