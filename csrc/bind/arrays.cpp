#include "bind/arrays.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "bind/dlpack.h"
#include "core/error.h"

namespace streamcca {
namespace {

[[noreturn]] void refuse_dtype(const std::string& view, const std::string& got, const std::string& remedy) {
  throw Error(ErrorKind::dtype, "view '" + view + "': got dtype " + got + ", expected float16, bfloat16, float32 or float64; " + remedy);
}

[[noreturn]] void refuse_shape(const std::string& view, const std::vector<std::int64_t>& shape) {
  std::ostringstream text;
  text << "view '" << view << "': got an array of shape (";
  for (std::size_t i = 0; i < shape.size(); ++i) text << (i ? ", " : "") << shape[i];
  text << (shape.size() == 1 ? ",)" : ")") << ", expected rows as (n, width), or (samples, rows of each, width); reshape it, rows first";
  throw Error(ErrorKind::value, text.str());
}

// (n, d), or (samples, m, d), of which every (sample, m) is a row; `strides` in bytes.
void lay_out(Rows* rows, const std::vector<std::int64_t>& shape, const std::vector<std::ptrdiff_t>& strides) {
  const std::size_t last = shape.size() - 1;
  rows->cols = static_cast<std::size_t>(shape[last]);
  rows->col_stride = strides[last];
  rows->row_stride = strides[last - 1];
  rows->rows = static_cast<std::size_t>(shape[last - 1]);
  if (last == 1) return;
  const auto samples = static_cast<std::size_t>(shape[0]), inside = rows->rows;
  rows->rows = samples * inside;
  if (samples <= 1 || inside == 0 || strides[0] == static_cast<std::ptrdiff_t>(inside) * strides[1]) return;
  if (inside == 1) {
    rows->row_stride = strides[0];
    return;
  }
  rows->sample_rows = inside;
  rows->sample_stride = strides[0];
}

bool has_rows(std::size_t dimensions) { return dimensions == 2 || dimensions == 3; }

Borrowed borrow_numpy(const py::array& array, const std::string& view) {
  std::vector<std::int64_t> shape(array.shape(), array.shape() + array.ndim());
  const py::dtype dtype = array.dtype();
  const char kind = dtype.kind();
  const auto size = static_cast<std::size_t>(dtype.itemsize());
  Borrowed result;
  if (kind == 'f' && (size == 2 || size == 4 || size == 8)) {
    if (dtype.byteorder() == (py::module_::import("sys").attr("byteorder").cast<std::string>() == "little" ? '>' : '<')) {
      refuse_dtype(view, py::str(dtype.attr("str")), "convert with x.astype(x.dtype.newbyteorder('='))");
    }
    result.rows.dtype = size == 2 ? DType::f16 : size == 4 ? DType::f32 : DType::f64;
  } else if (kind == 'V' && py::str(dtype.attr("name")).cast<std::string>() == "bfloat16") {
    result.rows.dtype = DType::bf16;
  } else {
    refuse_dtype(view, py::str(dtype.attr("name")),
                 kind == 'c' ? "take x.real or x.imag" : "convert with x.astype('float32') or 'float64'");
  }
  if (!has_rows(shape.size())) refuse_shape(view, shape);
  result.rows.data = static_cast<const unsigned char*>(array.data());
  lay_out(&result.rows, shape, {array.strides(), array.strides() + array.ndim()});
  result.owner = array;
  return result;
}

DType dlpack_dtype(const dlpack::DataType& type, const std::string& view) {
  if (type.lanes == 1 && type.code == dlpack::kBfloat && type.bits == 16) return DType::bf16;
  if (type.lanes == 1 && type.code == dlpack::kFloat) {
    if (type.bits == 16) return DType::f16;
    if (type.bits == 32) return DType::f32;
    if (type.bits == 64) return DType::f64;
  }
  const char* kinds[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  const std::string name = type.code <= dlpack::kBool ? kinds[type.code] + std::to_string(type.bits) : "code " + std::to_string(type.code);
  refuse_dtype(view, name, type.code == dlpack::kComplex ? "take its real or imaginary part" : "convert to float32 or float64 first");
}

py::object export_dlpack(const py::object& source) {
  try {
    return source.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    return source.attr("__dlpack__")();  // a producer older than DLPack 1.0
  }
}

// Runs a step of the protocol; sparse, meta and quantized tensors, say, have no memory that could be read.
template <class Step>
auto exporting(py::handle array, const std::string& view, Step step) {
  try {
    return step();
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;
    const std::string kind = py::str(py::type::handle_of(array).attr("__name__")), reason = py::str(error.value());
    throw Error(ErrorKind::dtype, "view '" + view + "': this " + kind + " gives no access to its values (" +
                                      reason.substr(0, reason.find('\n')) + "); pass a dense array");
  }
}

// Whether it is a torch tensor itself, no subclass, in CPU memory. Its attributes say at once what the methods of the protocol, written in
// Python, take microseconds to find out: an update of a few rows takes half the time.
bool is_plain_torch(py::handle array) {
  PyObject* torch = PyDict_GetItemString(PyImport_GetModuleDict(), "torch");  // borrowed; null where nobody imported it
  return torch && py::hasattr(torch, "Tensor") && py::type::handle_of(array).is(py::handle(torch).attr("Tensor")) &&
         array.attr("is_cpu").cast<bool>();
}

py::object capsule_of_torch(py::handle array) {
  py::object source = py::reinterpret_borrow<py::object>(array);
  if (source.attr("is_neg")().cast<bool>()) source = source.attr("detach")().attr("resolve_neg")();
  return py::module_::import("torch.utils.dlpack").attr("to_dlpack")(source);
}

py::object dlpack_capsule(py::handle array) {
  // torch refuses to export a tensor that takes part in autograd, and exports one with a pending negation
  // without it; values are all that is read here.
  py::object source = py::reinterpret_borrow<py::object>(array);
  if (py::hasattr(source, "detach")) source = source.attr("detach")();
  if (py::hasattr(source, "resolve_neg")) source = source.attr("resolve_neg")();
  return export_dlpack(source);
}

const dlpack::Tensor& tensor_of(const py::capsule& capsule, const std::string& view) {
  const char* name = capsule.name();
  // The capsule is kept, not consumed: its own destructor releases the tensor.
  if (name && std::strcmp(name, "dltensor_versioned") == 0) {
    const auto* managed = static_cast<const dlpack::ManagedTensorVersioned*>(capsule.get_pointer());
    if (managed->major <= 1) return managed->tensor;
    throw Error(ErrorKind::dtype, "view '" + view + "': got DLPack version " + std::to_string(managed->major) + ", expected at most 1");
  }
  if (name && std::strcmp(name, "dltensor") == 0) return static_cast<const dlpack::ManagedTensor*>(capsule.get_pointer())->tensor;
  throw Error(ErrorKind::dtype,
              "view '" + view + "': got a capsule named " + (name ? name : "nothing") + ", expected a fresh DLPack capsule");
}

void check_in_cpu_memory(py::handle array, const std::string& view) {
  const auto device = exporting(array, view, [&] { return array.attr("__dlpack_device__")().cast<std::pair<int, int>>(); });
  if (device.first != dlpack::kCpu && device.first != dlpack::kCudaHost) {
    throw Error(
        ErrorKind::device,
        "view '" + view + "': got rows on " +
            (device.first == dlpack::kCuda ? "CUDA device " : "a device of DLPack type " + std::to_string(device.first) + ", number ") +
            std::to_string(device.second) + ", expected CPU memory, since this build has no CUDA kernels; pass x.cpu()");
  }
}

Borrowed borrow_dlpack(py::handle array, const std::string& view) {
  const bool plain = is_plain_torch(array);
  if (!plain) check_in_cpu_memory(array, view);
  py::object exported = exporting(array, view, [&] { return plain ? capsule_of_torch(array) : dlpack_capsule(array); });
  if (!py::isinstance<py::capsule>(exported)) {
    throw Error(ErrorKind::dtype, "view '" + view + "': __dlpack__ returned no capsule; convert with numpy.asarray(x)");
  }
  py::capsule capsule = std::move(exported);
  const dlpack::Tensor* tensor = &tensor_of(capsule, view);

  Borrowed result;
  result.rows.dtype = dlpack_dtype(tensor->dtype, view);
  const std::vector<std::int64_t> shape(tensor->shape, tensor->shape + tensor->ndim);
  if (!has_rows(shape.size())) refuse_shape(view, shape);
  std::vector<std::ptrdiff_t> strides(shape.size(), static_cast<std::ptrdiff_t>(size_of(result.rows.dtype)));
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    if (tensor->strides) strides[axis] *= tensor->strides[axis];
    if (!tensor->strides && axis + 1 < shape.size()) strides[axis] = strides[axis + 1] * shape[axis + 1];
  }
  result.rows.data = static_cast<const unsigned char*>(tensor->data) + tensor->byte_offset;
  lay_out(&result.rows, shape, strides);
  result.owner = std::move(capsule);
  return result;
}

template <class Vector>
py::array array_that_owns(Vector&& values, std::vector<py::ssize_t> shape) {
  auto* owned = new Vector(std::move(values));
  py::capsule owner(owned, [](void* p) { delete static_cast<Vector*>(p); });
  return py::array_t<double>(std::move(shape), owned->data(), owner);
}

}  // namespace

Borrowed borrow_rows(py::handle array, const std::string& view) {
  if (py::isinstance<py::array>(array)) {
    if (py::hasattr(array, "mask")) {
      throw Error(ErrorKind::dtype,
                  "view '" + view + "': got a masked array, whose mask would be ignored; pass x.data[~mask_rows], or weights of 0");
    }
    return borrow_numpy(py::reinterpret_borrow<py::array>(array), view);
  }
  if (py::hasattr(array, "__dlpack__")) return borrow_dlpack(array, view);
  throw Error(ErrorKind::dtype, "view '" + view + "': got " + py::str(py::type::handle_of(array).attr("__name__")).cast<std::string>() +
                                    ", expected a NumPy array, a torch tensor or anything with __dlpack__; convert with numpy.asarray(x)");
}

py::array to_array(std::vector<double>&& values, std::vector<py::ssize_t> shape) {
  return array_that_owns(std::move(values), std::move(shape));
}

py::array to_array(AlignedArray<double>&& values, std::vector<py::ssize_t> shape) {
  return array_that_owns(std::move(values), std::move(shape));
}

py::array to_array(Matrix&& matrix) {
  const auto rows = static_cast<py::ssize_t>(matrix.rows), cols = static_cast<py::ssize_t>(matrix.cols);
  return to_array(std::move(matrix.values), {cols, rows}).attr("T");
}

std::vector<double> to_vector(const DoubleArray& array) { return {array.data(), array.data() + array.size()}; }

Matrix to_matrix(const DoubleArray& array) {
  Matrix m(static_cast<std::size_t>(array.shape(0)), static_cast<std::size_t>(array.shape(1)));
  constexpr std::size_t kTile = 32;  // both sides of the transposition stay in the cache
  for (std::size_t i0 = 0; i0 < m.rows; i0 += kTile) {
    for (std::size_t j0 = 0; j0 < m.cols; j0 += kTile) {
      for (std::size_t j = j0; j < std::min(m.cols, j0 + kTile); ++j) {
        for (std::size_t i = i0; i < std::min(m.rows, i0 + kTile); ++i) m.column(j)[i] = array.data()[i * m.cols + j];
      }
    }
  }
  return m;
}

}  // namespace streamcca
