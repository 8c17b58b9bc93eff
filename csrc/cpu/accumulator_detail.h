// What the source files of Accumulator share.
#pragma once
#include <unistd.h>

#include <vector>

#include "core/error.h"
#include "cpu/accumulator.h"

namespace streamcca {

inline const long kProcessAtLoad = static_cast<long>(getpid());

inline double square(double x) { return x * x; }

inline Rows borrow(const std::vector<double>& values, std::size_t rows, std::size_t width) {
  const auto size = static_cast<std::ptrdiff_t>(sizeof(double));
  return {reinterpret_cast<const unsigned char*>(values.data()), rows, width, static_cast<std::ptrdiff_t>(width) * size, size, DType::f64};
}

inline std::vector<Rows> borrow_all(const PerView& values, const std::vector<View>& views, std::size_t rows) {
  std::vector<Rows> result;
  for (std::size_t v = 0; v < views.size(); ++v) result.push_back(borrow(values[v], rows, views[v].width));
  return result;
}

// Marks an update that is under way, so that a signal handler can read the moments but not change them.
class Accumulator::Busy {
 public:
  explicit Busy(bool* flag) : flag_(flag) {
    if (*flag) throw Error(ErrorKind::process, "these moments are being updated; a signal handler may read them, but not change them");
    *flag = true;
  }
  ~Busy() { *flag_ = false; }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  bool* flag_;
};

}  // namespace streamcca
