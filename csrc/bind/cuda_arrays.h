// Between arrays on a device and the kernels' types.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "core/rows.h"
#include "cuda/accumulator.h"

namespace streamcca {

namespace py = pybind11;

// Rows of one view in a DLPack capsule, which must outlive them, and the number of the device they are on. Throws Error naming the view for
// anything but 2 or 3 dimensions of float16, bfloat16, float32 or float64 in the memory of a CUDA device (of the host, where it is
// emulated).
struct DeviceRows {
  Rows rows;
  int device = 0;
};
DeviceRows rows_of_capsule(const py::capsule& capsule, const std::string& view);

// Float64 values on a device, which any DLPack consumer may share.
class DeviceArray {
 public:
  DeviceArray(cuda::SharedBuffer buffer, std::vector<std::int64_t> shape, int device)
      : buffer_(std::move(buffer)), shape_(std::move(shape)), device_(device) {}
  py::capsule dlpack(const py::object& max_version) const;
  py::tuple dlpack_device() const;
  const std::vector<std::int64_t>& shape() const { return shape_; }

 private:
  cuda::SharedBuffer buffer_;
  std::vector<std::int64_t> shape_;
  int device_;
};

}  // namespace streamcca
