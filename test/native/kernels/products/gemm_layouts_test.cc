// Products of matrices of every layout that gemm.h can name (transposed or not, rows dense or
// apart, batches one after the other, apart, side by side or repeated, extents of 1), against plain
// loops. Values are small integers, so that each sum is exact in every type and is
// compared bit for bit.
#include <doctest/doctest.h>

#include <exception>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/products/gemm.h"
#include "support/kernel_test.h"

namespace balora::test {
namespace {

// The matrices of a batch: one after the other, further apart, row beside row (as attention's heads
// are), or all the same.
enum class Batch { kDense, kApart, kBeside, kRepeated };
constexpr Batch kBatches[] = {Batch::kDense, Batch::kApart, Batch::kBeside, Batch::kRepeated};

struct Stored {
  bool transposed;
  int64_t gap;  // elements between the rows
  Batch batch;
};

struct Sizes {
  int64_t batch, m, n, k;
};

// The layouts of an operand; those of a batch only where there is one.
std::vector<Stored> layouts(const Sizes& s) {
  std::vector<Stored> all;
  for (const bool transposed : {false, true}) {
    for (const int64_t gap : {0, 2}) {
      for (const Batch batch : kBatches) {
        if (s.batch > 1 || batch == Batch::kDense) all.push_back({transposed, gap, batch});
      }
    }
  }
  return all;
}

struct Placed {
  int64_t ld, batch_stride;
};

Placed placed(const Stored& layout, int64_t batch, int64_t rows, int64_t cols) {
  if (layout.transposed) std::swap(rows, cols);
  const int64_t ld = cols + layout.gap;
  switch (layout.batch) {
    case Batch::kDense:
      return {ld, rows * ld};
    case Batch::kApart:
      return {ld, rows * ld + 3};
    case Batch::kBeside:
      return {batch * ld, ld};
    default:
      return {ld, 0};
  }
}

std::string text(const char* name, const Stored& layout, const Placed& at) {
  return concat(" ", name, layout.transposed ? "^T" : "", " ld ", at.ld, " batch stride ",
                at.batch_stride);
}

template <typename T>
Array<T> small_integers(int64_t count, uint32_t seed) {
  Array<T> array({count});
  std::mt19937 random(seed);
  for (int64_t i = 0; i < count; ++i) {
    array.data()[i] = from_double<T>(static_cast<double>(random() % 5) - 2);
  }
  return array;
}

template <typename A, typename B, typename C>
class Layouts {
 public:
  ~Layouts() {
    CHECK_MESSAGE(wrong_ == 0, wrong_, " of ", count_, " layouts are wrong or refused");
  }

  void check(const Sizes& s) {
    for (const Stored& a : layouts(s)) {
      for (const Stored& b : layouts(s)) {
        for (const int64_t gap : {0, 2}) {
          for (const double beta : {0.0, 1.0}) check(s, a, b, gap, beta);
        }
      }
    }
  }

 private:
  void check(const Sizes& s, const Stored& layout_a, const Stored& layout_b, int64_t gap,
             double beta) {
    const Placed a = placed(layout_a, s.batch, s.m, s.k), b = placed(layout_b, s.batch, s.k, s.n);
    const int64_t ldc = s.n + gap, c_stride = s.m * ldc;
    Array<C> c = small_integers<C>(s.batch * c_stride, 3);
    const std::vector<double> before = c.values();
    ++count_;
    bool equal = true;
    try {
      gemm(ctx_, {s.m, s.n, s.k, s.batch},
           {a_.data(), dtype_of<A>(), a.ld, layout_a.transposed, a.batch_stride},
           {b_.data(), dtype_of<B>(), b.ld, layout_b.transposed, b.batch_stride},
           {c.data(), dtype_of<C>(), ldc, c_stride}, {1, beta});
    } catch (const std::exception&) {
      equal = false;
    }
    const auto at = [](const Stored& layout, const Placed& x, int64_t z, int64_t i, int64_t j) {
      return z * x.batch_stride + (layout.transposed ? j * x.ld + i : i * x.ld + j);
    };
    for (int64_t where = 0; where < c.size(); ++where) {
      const int64_t z = where / c_stride, i = where % c_stride / ldc, j = where % ldc;
      double expected = before[static_cast<size_t>(where)];
      if (j < s.n) {
        expected *= beta;
        for (int64_t q = 0; q < s.k; ++q) {
          expected += a_[at(layout_a, a, z, i, q)] * b_[at(layout_b, b, z, q, j)];
        }
      }
      equal = equal && c[where] == expected;
    }
    if (equal || ++wrong_ > 3) return;
    MESSAGE("wrong or refused: batch ", s.batch, " m ", s.m, " n ", s.n, " k ", s.k,
            text("a", layout_a, a), text("b", layout_b, b), " ldc ", ldc, " beta ", beta);
  }

  TestContext ctx_{1};
  Array<A> a_ = small_integers<A>(512, 1);
  Array<B> b_ = small_integers<B>(512, 2);
  int64_t count_ = 0, wrong_ = 0;
};

template <typename A, typename B, typename C>
void check_layouts() {
  Layouts<A, B, C> layouts;
  for (const int64_t batch : {1, 3}) {
    for (const int64_t m : {1, 3}) {
      for (const int64_t n : {1, 3}) {
        for (const int64_t k : {1, 5}) layouts.check({batch, m, n, k});
      }
    }
  }
}

}  // namespace

TEST_CASE("gemm: every layout, f32") {
  check_layouts<float, float, float>();
}
TEST_CASE("gemm: every layout, bf16 into f32") {
  check_layouts<bf16, bf16, float>();
}
TEST_CASE("gemm: every layout, bf16") {
  check_layouts<bf16, bf16, bf16>();
}
TEST_CASE("gemm: every layout, f16") {
  check_layouts<f16, f16, f16>();
}
TEST_CASE("gemm: every layout, f64") {
  check_layouts<double, double, double>();
}
TEST_CASE("gemm: every layout, f32 by bf16") {
  check_layouts<float, bf16, float>();
}

}  // namespace balora::test
