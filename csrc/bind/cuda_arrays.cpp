#include "bind/cuda_arrays.h"

#include <cstring>
#include <sstream>

#include "bind/dlpack.h"
#include "core/error.h"

namespace streamcca {
namespace {

std::int32_t own_memory() { return cuda::is_emulated() ? dlpack::kCpu : dlpack::kCuda; }

const dlpack::Tensor& tensor_of(const py::capsule& capsule, const std::string& view) {
  const char* name = capsule.name();
  if (name && std::strcmp(name, "dltensor_versioned") == 0) {
    const auto* managed = static_cast<const dlpack::ManagedTensorVersioned*>(capsule.get_pointer());
    if (managed->major <= 1) return managed->tensor;
    throw Error(ErrorKind::dtype, "view '" + view + "': got DLPack version " + std::to_string(managed->major) + ", expected at most 1");
  }
  if (name && std::strcmp(name, "dltensor") == 0) return static_cast<const dlpack::ManagedTensor*>(capsule.get_pointer())->tensor;
  throw Error(ErrorKind::dtype, "view '" + view + "': got a capsule that is no fresh DLPack tensor; pass the array itself");
}

DType dtype_of(const dlpack::DataType& type, const std::string& view) {
  if (type.lanes == 1 && type.code == dlpack::kBfloat && type.bits == 16) return DType::bf16;
  if (type.lanes == 1 && type.code == dlpack::kFloat) {
    if (type.bits == 16) return DType::f16;
    if (type.bits == 32) return DType::f32;
    if (type.bits == 64) return DType::f64;
  }
  throw Error(ErrorKind::dtype, "view '" + view + "': got elements of another type (DLPack code " + std::to_string(type.code) + ", " +
                                    std::to_string(type.bits) + " bits), expected float16, bfloat16, float32 or float64; convert first");
}

// (n, d), or (samples, m, d), of which every (sample, m) is a row; `strides` in bytes.
void lay_out(Rows* rows, const std::vector<std::size_t>& shape, const std::vector<std::ptrdiff_t>& strides) {
  const std::size_t last = shape.size() - 1;
  rows->cols = shape[last];
  rows->col_stride = strides[last];
  rows->row_stride = strides[last - 1];
  rows->rows = shape[last - 1];
  if (last == 1) return;
  const std::size_t inside = shape[1];
  rows->rows = shape[0] * inside;
  if (shape[0] <= 1 || inside == 0 || strides[0] == static_cast<std::ptrdiff_t>(inside) * strides[1]) return;
  if (inside == 1) {
    rows->row_stride = strides[0];
  } else {
    rows->sample_rows = inside;
    rows->sample_stride = strides[0];
  }
}

template <class Managed>
void destroy(Managed* managed) {
  delete[] managed->tensor.shape;
  delete static_cast<cuda::SharedBuffer*>(managed->manager_context);
  delete managed;
}

template <class Managed>
py::capsule new_capsule(const cuda::SharedBuffer& buffer, const std::vector<std::int64_t>& shape, int device, Managed* managed,
                        const char* name) {
  dlpack::Tensor& tensor = managed->tensor;
  tensor.data = buffer->as<void>();
  tensor.device = {own_memory(), device};
  tensor.ndim = static_cast<std::int32_t>(shape.size());
  tensor.dtype = {dlpack::kFloat, 64, 1};
  tensor.shape = new std::int64_t[shape.size()];
  std::memcpy(tensor.shape, shape.data(), shape.size() * sizeof(std::int64_t));
  tensor.strides = nullptr;
  tensor.byte_offset = 0;
  managed->manager_context = new cuda::SharedBuffer(buffer);
  managed->deleter = &destroy<Managed>;
  return py::capsule(managed, name, [](PyObject* capsule) {
    // A consumer renames what it has taken over, and deletes it itself.
    for (const char* fresh : {"dltensor", "dltensor_versioned"}) {
      if (!PyCapsule_IsValid(capsule, fresh)) continue;
      auto* unused = static_cast<Managed*>(PyCapsule_GetPointer(capsule, fresh));
      unused->deleter(unused);
      return;
    }
  });
}

}  // namespace

DeviceRows rows_of_capsule(const py::capsule& capsule, const std::string& view) {
  const dlpack::Tensor& tensor = tensor_of(capsule, view);
  if (tensor.device.device_type != own_memory()) {
    throw Error(ErrorKind::device, "view '" + view + "': got rows in memory of DLPack device type " +
                                       std::to_string(tensor.device.device_type) +
                                       ", expected a CUDA device, where these moments live; move them with .cuda(), or use device='cpu'");
  }
  DeviceRows result;
  result.device = tensor.device.device_id;
  result.rows.dtype = dtype_of(tensor.dtype, view);
  const auto axes = static_cast<std::size_t>(tensor.ndim);
  if (axes != 2 && axes != 3) {
    throw Error(ErrorKind::value,
                "view '" + view + "': got " + std::to_string(axes) +
                    " dimensions, expected rows as (n, width), or (samples, rows of each, width); reshape it, rows first");
  }
  const auto size = static_cast<std::ptrdiff_t>(size_of(result.rows.dtype));
  std::vector<std::size_t> shape(axes);
  std::vector<std::ptrdiff_t> strides(axes, size);
  for (std::size_t axis = axes; axis-- > 0;) {
    shape[axis] = static_cast<std::size_t>(tensor.shape[axis]);
    if (tensor.strides) strides[axis] *= tensor.strides[axis];
    if (!tensor.strides && axis + 1 < axes) strides[axis] = strides[axis + 1] * static_cast<std::ptrdiff_t>(shape[axis + 1]);
  }
  result.rows.data = static_cast<const unsigned char*>(tensor.data) + tensor.byte_offset;
  if (reinterpret_cast<std::uintptr_t>(result.rows.data) % static_cast<std::uintptr_t>(size))
    throw Error(ErrorKind::value,
                "view '" + view + "': rows start in the middle of an element, which a device cannot read; copy them first");
  lay_out(&result.rows, shape, strides);
  return result;
}

py::capsule DeviceArray::dlpack(const py::object& max_version) const {
  if (max_version.is_none() || max_version.cast<std::pair<int, int>>().first < 1)
    return new_capsule(buffer_, shape_, device_, new dlpack::ManagedTensor{}, "dltensor");
  auto* managed = new dlpack::ManagedTensorVersioned{};
  managed->major = 1;
  return new_capsule(buffer_, shape_, device_, managed, "dltensor_versioned");
}

py::tuple DeviceArray::dlpack_device() const { return py::make_tuple(own_memory(), device_); }

}  // namespace streamcca
