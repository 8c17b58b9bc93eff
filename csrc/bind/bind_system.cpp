#include <pybind11/stl.h>

#include <chrono>
#include <string>
#include <vector>

#include "bind/module.h"
#include "core/error.h"
#include "cpu/dispatch.h"
#include "cpu/matrix_unit.h"
#include "cpu/threads.h"

namespace py = pybind11;

namespace streamcca {
namespace {

std::vector<std::string> isa_levels() {
  std::vector<std::string> names;
  for (const KernelTable* table : runnable_kernels()) names.emplace_back(table->name);
  return names;
}

// Multiply-adds on registers by all threads at once, for about `seconds`: GFLOP/s. bfloat16: of the matrix unit, 0 without one.
double peak_gflops(const std::string& dtype, double seconds, int threads) {
  if (dtype != "float32" && dtype != "float64" && dtype != "bfloat16")
    throw Error(ErrorKind::value, "dtype: got '" + dtype + "', expected 'float32', 'float64' or 'bfloat16'");
  const KernelTable& kernels = active_kernels();
  if (dtype == "bfloat16" && !kernels.matrix) return 0;
  const auto run = [&](std::size_t iterations, double* sink) {
    if (dtype == "bfloat16") return kernels.matrix->multiply_add(iterations);
    return (dtype == "float32" ? kernels.multiply_add_f32 : kernels.multiply_add_f64)(iterations, sink);
  };
  const py::gil_scoped_release release;
  constexpr std::size_t kIterations = 20000;
  double operations = 0, sink = 0;
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
#pragma omp parallel num_threads(thread_count(threads)) reduction(+ : operations, sink)
  {
    if (kernels.matrix) kernels.matrix->enter();
    while (elapsed() < seconds) operations += run(kIterations, &sink);
    if (kernels.matrix) kernels.matrix->leave();
  }
  return operations / elapsed() / 1e9;
}

}  // namespace

void bind_system(py::module_& m) {
  m.def("isa_levels", &isa_levels);
  m.def("active_isa", [] { return std::string(active_kernels().name); });
  m.def("openmp_threads", [] { return thread_count(0); });
  m.def("peak_gflops", &peak_gflops, py::arg("dtype"), py::arg("seconds"), py::arg("threads") = 0);
  m.attr("COMPILER") = __VERSION__;
  m.attr("VERSION") = STREAMCCA_VERSION;
}

}  // namespace streamcca
