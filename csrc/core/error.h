// One exception type below the binding; the binding maps each kind to a Python class.
#pragma once
#include <stdexcept>
#include <string>

namespace streamcca {

enum class ErrorKind { value, dtype, nonfinite, device, process, isa, numeric };

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace streamcca
