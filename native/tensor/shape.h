// Shape and strides by value: at most BALORA_MAX_DIMS extents, no allocation. Strides count
// elements.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "tensor/errors.h"
#include "tensor/view.h"

namespace balora {

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims)
      : Shape(std::span<const int64_t>(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims) {
    if (dims.size() > BALORA_MAX_DIMS) {
      throw ArgumentError(
          concat("a tensor has at most ", BALORA_MAX_DIMS, " dimensions, got ", dims.size()));
    }
    for (const int64_t dim : dims) dims_[static_cast<size_t>(ndim_++)] = dim;
  }

  int ndim() const { return ndim_; }
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  int64_t& operator[](int i) { return dims_[static_cast<size_t>(i)]; }
  const int64_t* begin() const { return dims_.data(); }
  const int64_t* end() const { return dims_.data() + ndim_; }
  void push_back(int64_t dim) {
    if (ndim_ == BALORA_MAX_DIMS) {
      throw ArgumentError(concat("a tensor has at most ", BALORA_MAX_DIMS, " dimensions"));
    }
    dims_[static_cast<size_t>(ndim_++)] = dim;
  }

  int64_t numel() const {
    int64_t n = 1;
    for (const int64_t dim : *this) n *= dim;
    return n;
  }

  bool operator==(const Shape& other) const {
    if (ndim_ != other.ndim_) return false;
    for (int i = 0; i < ndim_; ++i) {
      if ((*this)[i] != other[i]) return false;
    }
    return true;
  }

  std::string to_string() const {
    std::string text = "(";
    for (int i = 0; i < ndim_; ++i) text += (i ? "," : "") + std::to_string((*this)[i]);
    return text + ")";
  }

 private:
  std::array<int64_t, BALORA_MAX_DIMS> dims_{};
  int ndim_ = 0;
};

inline Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int i = shape.ndim() - 1; i >= 0; --i) {
    strides[i] = step;
    step *= shape[i] > 0 ? shape[i] : 1;
  }
  return strides;
}

}  // namespace balora
