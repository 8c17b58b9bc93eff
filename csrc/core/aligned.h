// Zero-initialized array on a 64-byte boundary (one cache line, one AVX-512 vector).
#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

namespace streamcca {

template <class T>
class AlignedArray {
 public:
  static constexpr std::size_t kAlignment = 64;

  AlignedArray() = default;
  explicit AlignedArray(std::size_t size)
      : size_(size), data_(static_cast<T*>(::operator new[](size * sizeof(T), std::align_val_t{kAlignment}))) {
    std::fill_n(data_.get(), size, T{});
  }
  AlignedArray(const AlignedArray& other) : AlignedArray(other.size_, Uninitialized{}) { std::copy_n(other.data(), size_, data()); }
  AlignedArray(AlignedArray&& other) noexcept : size_(other.size_), data_(std::move(other.data_)) { other.size_ = 0; }
  AlignedArray& operator=(AlignedArray other) noexcept {
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
    return *this;
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  struct Uninitialized {};
  struct Delete {
    void operator()(T* p) const { ::operator delete[](p, std::align_val_t{kAlignment}); }
  };
  AlignedArray(std::size_t size, Uninitialized)
      : size_(size), data_(size ? static_cast<T*>(::operator new[](size * sizeof(T), std::align_val_t{kAlignment})) : nullptr) {}

  std::size_t size_ = 0;
  std::unique_ptr<T[], Delete> data_;
};

}  // namespace streamcca
