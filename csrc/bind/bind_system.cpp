#include <pybind11/stl.h>

#include <chrono>
#include <string>
#include <vector>

#include "bind/module.h"
#include "core/error.h"
#include "cpu/dispatch.h"
#include "cpu/threads.h"

namespace py = pybind11;

namespace streamcca {
namespace {

std::vector<std::string> isa_levels() {
  std::vector<std::string> names;
  for (const KernelTable* table : runnable_kernels()) names.emplace_back(table->name);
  return names;
}

// Multiply-adds on registers by all threads at once, for about `seconds`: GFLOP/s.
double peak_gflops(const std::string& dtype, double seconds, int threads) {
  if (dtype != "float32" && dtype != "float64")
    throw Error(ErrorKind::value, "dtype: got '" + dtype + "', expected 'float32' or 'float64'");
  const KernelTable& kernels = active_kernels();
  const auto run = dtype == "float32" ? kernels.multiply_add_f32 : kernels.multiply_add_f64;
  const py::gil_scoped_release release;
  constexpr std::size_t kIterations = 20000;
  double operations = 0, sink = 0;
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
#pragma omp parallel num_threads(thread_count(threads)) reduction(+ : operations, sink)
  while (elapsed() < seconds) operations += run(kIterations, &sink);
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
