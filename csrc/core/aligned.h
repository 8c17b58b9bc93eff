// Zero-initialized array on a 64-byte boundary (one cache line, one AVX-512 vector).
#pragma once
#include <cstddef>
#include <vector>

#include "core/pages.h"

namespace streamcca {

template <class T>
using AlignedArray = std::vector<T, PageAllocator<T>>;

}  // namespace streamcca
