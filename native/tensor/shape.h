// Shape and strides by value: at most BALORA_MAX_DIMS extents, no allocation. Strides count
// elements. And the one way from extents to a number of elements: none of its products
// overflows 64 bits.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>

#include "tensor/errors.h"
#include "tensor/view.h"

namespace balora {

// The most elements that a tensor may have, be they in memory or repeated by a stride of 0: the
// largest integer below which JavaScript's numbers hold each one. Elements of 8 bytes then have a
// size of less than 2^56, so that offsets, paddings and sums of a few sizes stay within 64 bits.
constexpr int64_t kMaxElements = (int64_t{1} << 53) - 1;

// The number of elements of these extents, or nothing where one is negative or the extents other
// than 0 multiply to more than kMaxElements. An extent of 0 hides no others: the product of any of
// the extents is within the bound, too.
inline std::optional<int64_t> checked_numel(std::span<const int64_t> extents) {
  int64_t product = 1;
  bool empty = false;
  for (const int64_t extent : extents) {
    if (extent < 0) return std::nullopt;
    empty = empty || extent == 0;
    if (extent == 0) continue;
    if (__builtin_mul_overflow(product, extent, &product) || product > kMaxElements) {
      return std::nullopt;
    }
  }
  return empty ? 0 : product;
}

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

  // Throws an ArgumentError for a shape that no tensor can have (checked_numel).
  int64_t numel() const {
    const auto count = checked_numel(std::span(begin(), static_cast<size_t>(ndim_)));
    if (!count) refuse();
    return *count;
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
    for (int i = 0; i < ndim_; ++i) {
      if (i > 0) text += ',';
      text += std::to_string((*this)[i]);
    }
    return text + ")";
  }

 private:
  [[noreturn]] void refuse() const {
    for (const int64_t dim : *this) {
      if (dim < 0) throw ArgumentError("a shape has no negative extents, got " + to_string());
    }
    throw ArgumentError("the shape " + to_string() +
                        " is too large: the extents other than 0 multiply to more than 2^53 - 1");
  }

  std::array<int64_t, BALORA_MAX_DIMS> dims_{};
  int ndim_ = 0;
};

// The strides of a contiguous tensor of a shape that numel() accepts.
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
