// Element types of activation rows. Products and state have their own types (see kernels.h).
#pragma once
#include <cstddef>
#include <cstdint>

namespace streamcca {

enum class DType : std::uint8_t { f16, bf16, f32, f64 };
inline constexpr std::size_t kDTypes = 4;

constexpr std::size_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

// Half the distance from 1 to the next number.
constexpr double unit_roundoff(DType t) {
  constexpr double units[kDTypes] = {0x1p-11, 0x1p-8, 0x1p-24, 0x1p-53};
  return units[static_cast<std::size_t>(t)];
}

constexpr const char* name_of(DType t) {
  constexpr const char* names[kDTypes] = {"float16", "bfloat16", "float32", "float64"};
  return names[static_cast<std::size_t>(t)];
}

}  // namespace streamcca
