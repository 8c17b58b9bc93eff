#include "bind/module.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native kernels of streamcca; use the streamcca package instead.";
  streamcca::bind_errors(m);
  streamcca::bind_accumulator(m);
  streamcca::bind_linalg(m);
  streamcca::bind_system(m);
}
