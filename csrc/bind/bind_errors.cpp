#include "bind/module.h"
#include "core/error.h"

namespace py = pybind11;

namespace streamcca {
namespace {

const char* class_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::value: return "InputError";
    case ErrorKind::dtype: return "DTypeError";
    case ErrorKind::nonfinite: return "NonFiniteError";
    case ErrorKind::device: return "DeviceError";
    case ErrorKind::process: return "ProcessError";
    case ErrorKind::isa: return "InstructionSetError";
    case ErrorKind::numeric: return "NumericError";
  }
  return "StreamCCAError";
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Error& error) {
      const py::object type = py::module_::import("streamcca.errors").attr(class_name(error.kind()));
      py::set_error(type, error.what());
    }
  });
}

}  // namespace streamcca
