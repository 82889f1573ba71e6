// From extents to numbers of elements and bytes: exact up to the bound, and refused beyond it,
// never wrapped.
#include "tensor/shape.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include "tensor/tensor.h"

namespace balora::test {
namespace {

// The definition in 128 bits.
std::optional<int64_t> definition(const std::vector<int64_t>& extents) {
  __int128 product = 1, bound = 1;
  for (const int64_t extent : extents) {
    if (extent < 0) return std::nullopt;
    product *= extent;
    bound *= std::max<int64_t>(extent, 1);
    if (bound > kMaxElements) return std::nullopt;
  }
  return static_cast<int64_t>(product);
}

}  // namespace

TEST_CASE("shape: a number of elements is exact or refused") {
  constexpr int64_t kTwo32 = int64_t{1} << 32, kTwo53 = int64_t{1} << 53;
  constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
  const std::vector<int64_t> extents = {
      0,          1,      2,          3,  7,        65536,        kTwo32,       kTwo32 + 1,
      kTwo53 / 2, kTwo53, kTwo53 - 1, -1, kLargest, kLargest / 2, -kLargest - 1};
  std::mt19937 random(1);
  int64_t refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<int64_t> shape(random() % (BALORA_MAX_DIMS + 1));
    for (int64_t& extent : shape) extent = extents[random() % (random() % 2 ? 6 : extents.size())];
    const auto want = definition(shape);
    CHECK(checked_numel(shape) == want);
    if (want) {
      CHECK(Shape(shape).numel() == *want);
      CHECK(bytes_of(Shape(shape), DType::kF64) == 8 * *want);
      for (const int64_t stride : contiguous_strides(Shape(shape))) CHECK(stride <= kMaxElements);
    } else {
      ++refused;
      CHECK_THROWS_AS(Shape(shape).numel(), ArgumentError);
    }
  }
  CHECK(refused > 1000);
}

TEST_CASE("shape: products that wrap are refused, beside an extent of 0 as well") {
  constexpr int64_t k = int64_t{1} << 32;
  CHECK_THROWS_WITH_AS(Shape({k, k}).numel(),
                       "the shape (4294967296,4294967296) is too large: the extents other than 0 "
                       "multiply to more than 2^53 - 1",
                       ArgumentError);
  CHECK_THROWS_AS(Shape({0, k, k}).numel(), ArgumentError);
  CHECK_THROWS_AS(Shape({k, k, 0}).numel(), ArgumentError);
  CHECK_THROWS_WITH_AS(Shape({2, -1}).numel(), "a shape has no negative extents, got (2,-1)",
                       ArgumentError);
  CHECK(Shape({0, k, 3}).numel() == 0);
}

}  // namespace balora::test
