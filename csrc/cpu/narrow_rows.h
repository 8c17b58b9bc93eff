// The groups of some blocks once more, as pairs of rows (NarrowKernels), where their values allow it.
#pragma once
#include <cstddef>
#include <vector>

#include "core/aligned.h"

namespace streamcca {

// One form for each group and block.
struct NarrowRows {
  RawArray<float> values;
  std::vector<char> fits;
  std::size_t stride;  // values from one form to the next

  NarrowRows(std::size_t forms, std::size_t form_stride) : values(forms * form_stride), fits(forms), stride(form_stride) {}
  const float* form(std::size_t i) const { return values.data() + i * stride; }
  float* form(std::size_t i) { return values.data() + i * stride; }
};

}  // namespace streamcca
