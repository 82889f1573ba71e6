// Sums of products against plain loops, in f64: of a gradient, whose terms are long and whose
// weights are dense or in blocks, and of a forward pass.
#include "kernels/cpu/products/product_sum.h"

#include "support/kernel_test.h"

using namespace balora;
using namespace balora::test;

namespace {

// More rows, and more terms of k, than are multiplied at a time.
constexpr int64_t kRows = 2100, kLong = 1537, kShort = 70, kColumns = 13, kRank = 5;

balora_encoding sixteenths() {
  return {"sixteenths", 1,
          [](const balora_encoding*, const void* data, int64_t first, int64_t count, float* out) {
            const auto* const codes = static_cast<const int8_t*>(data) + first;
            for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(codes[i]) / 16;
          }};
}

// A weight as stored rows, its values, and the same in blocks.
template <typename T>
struct Weight {
  int64_t rows, columns;
  std::vector<int8_t> codes;
  Array<T> values;

  static Weight random(int64_t rows, int64_t columns, std::mt19937& random) {
    std::uniform_int_distribution<int> code(-16, 16);
    std::vector<int8_t> codes;
    std::vector<double> values;
    for (int64_t i = 0; i < rows * columns; ++i) {
      codes.push_back(static_cast<int8_t>(code(random))), values.push_back(codes.back() / 16.0);
    }
    return {rows, columns, codes, Array<T>({rows, columns}, values)};
  }
  View view(const balora_encoding* encoding) {
    View w = values.view();
    if (encoding) w.data = codes.data(), w.encoding = encoding;
    return w;
  }
};

template <typename T>
void check_sum(bool transposed, bool in_blocks, bool accumulate) {
  std::mt19937 random(5);
  TestContext ctx(2);
  const balora_encoding blocks = sixteenths();
  std::vector<Array<T>> left;
  std::vector<Weight<T>> right;
  std::vector<View> views;
  for (const int64_t k : {kLong, kShort}) {
    left.emplace_back(std::vector<int64_t>{kRows, k}, random);
    right.push_back(
        Weight<T>::random(transposed ? kColumns : k, transposed ? k : kColumns, random));
  }
  Array<float> u({kRows, kRank}, random), b({kRank, kColumns}, random);
  const View low_rank = b.view();
  for (Weight<T>& weight : right) views.push_back(weight.view(in_blocks ? &blocks : nullptr));
  std::vector<ProductTerm> terms;
  for (size_t t = 0; t < views.size(); ++t) {
    terms.push_back(
        {left[t].data(), dtype_of<T>(), left[t].view().shape[1], &views[t], transposed});
  }
  terms.push_back({u.data(), BALORA_F32, kRank, &low_rank});
  Array<T> c({kRows, kColumns}, std::vector<double>(kRows * kColumns, 0.5));
  sum_products(ctx, {.m = kRows, .n = kColumns, .terms = terms, .accumulate = accumulate},
               {c.data(), dtype_of<T>(), kColumns});
  double worst = 0;
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kColumns; ++j) {
      double sum = accumulate ? 0.5 : 0;
      for (int64_t p = 0; p < kRank; ++p) sum += u[i * kRank + p] * b[p * kColumns + j];
      for (size_t t = 0; t < views.size(); ++t) {
        const int64_t k = terms[t].k();
        for (int64_t p = 0; p < k; ++p) {
          sum += left[t][i * k + p] * right[t].values[transposed ? j * k + p : p * kColumns + j];
        }
      }
      REQUIRE(std::isfinite(c[i * kColumns + j]));
      const double least = sizeof(T) == 4 ? 1e-4 : 1e-3;
      const double step = std::is_same_v<T, bf16> ? 0x1p-8 : std::is_same_v<T, f16> ? 0x1p-11 : 0;
      worst = std::max(worst, std::abs(sum - c[i * kColumns + j]) - step * std::abs(sum) - least);
    }
  }
  CHECK(worst <= 0);
}

}  // namespace

TEST_CASE_TEMPLATE("sums of products equal plain loops", T, float, bf16, f16) {
  for (const bool transposed : {false, true}) {
    for (const bool in_blocks : {false, true}) {
      for (const bool accumulate : {false, true}) {
        CAPTURE(transposed);
        CAPTURE(in_blocks);
        CAPTURE(accumulate);
        check_sum<T>(transposed, in_blocks, accumulate);
      }
    }
  }
}
