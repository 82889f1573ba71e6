// The batched product over every kind of view that permute, slice, expand and split can make, with
// extents of 1, even and odd ones, against plain loops. Values are small integers, so that each sum
// is exact in every type and is compared bit for bit. cpu_isa_test.cc runs this
// under each set of instructions.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <exception>
#include <random>
#include <set>
#include <string>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "support/kernel_test.h"

namespace balora::test {
namespace {

using Dims = std::array<int64_t, 4>;  // two of the batch, rows, columns

// How an operand lies in memory: the order of its dimensions from outermost to innermost, and what
// was done to each of them.
enum class Step { kPlain, kEverySecond, kExpanded };
struct Form {
  std::array<size_t, 4> order;
  std::array<Step, 4> steps;
};

// The strides of `form`. Those of an extent of 1 are what slicing leaves there: that
// of the larger tensor.
Dims strides_of(const Form& form, const Dims& shape) {
  Dims strides{};
  int64_t step = 1;
  for (size_t i = 4; i-- > 0;) {
    const size_t d = form.order[i];
    if (form.steps[d] == Step::kExpanded) continue;
    const int64_t factor = form.steps[d] == Step::kEverySecond ? 2 : 1;
    strides[d] = step * factor;
    step *= shape[d] * factor;
  }
  return strides;
}

constexpr Form kDense = {{0, 1, 2, 3}, {}};
constexpr Form kTransposed = {{0, 1, 3, 2}, {}};
constexpr Form kRowsOutermost = {{2, 0, 1, 3}, {}};  // as attention's heads lie
constexpr Form kRepeated = {{0, 1, 2, 3}, {Step::kExpanded, Step::kExpanded}};

// All orders and steps of a batch of one dimension.
std::vector<Form> forms_of_one_batch_dimension() {
  std::vector<Form> forms;
  Form form = kDense;
  do {
    for (int code = 0; code < 27; ++code) {
      const auto step = [code](int divisor) { return static_cast<Step>(code / divisor % 3); };
      form.steps = {Step::kPlain, step(9), step(3), step(1)};
      forms.push_back(form);
    }
  } while (std::next_permutation(form.order.begin() + 1, form.order.end()));
  return forms;
}

// All orders of two, each plain or repeated.
std::vector<Form> forms_of_two_batch_dimensions() {
  std::vector<Form> forms;
  Form form = kDense;
  do {
    for (const Step outer : {Step::kPlain, Step::kExpanded}) {
      for (const Step inner : {Step::kPlain, Step::kExpanded}) {
        form.steps = {outer, inner};
        forms.push_back(form);
      }
    }
  } while (std::next_permutation(form.order.begin(), form.order.end()));
  return forms;
}

template <typename T>
View view_of(Array<T>& array, const Dims& shape, const Dims& strides) {
  View view{};
  view.data = array.data();
  view.dtype = dtype_of<T>();
  view.ndim = 4;
  for (size_t i = 0; i < 4; ++i) view.shape[i] = shape[i], view.stride[i] = strides[i];
  return view;
}

std::string text(const View& v) {
  std::string out;
  for (int32_t d = 0; d < v.ndim; ++d) out += concat(d ? "," : "", v.shape[d], ":", v.stride[d]);
  return out;
}

struct Size {
  int64_t outer, inner, m, n, k;
};

template <typename T>
class Products {
 public:
  Products() : a_({4096}), b_({4096}) {
    std::mt19937 random(5);
    for (Array<T>* array : {&a_, &b_}) {
      for (int64_t i = 0; i < array->size(); ++i) {
        array->data()[i] = from_double<T>(static_cast<double>(random() % 5) - 2);
      }
    }
  }

  // Each form as either side, beside a few others.
  void check(const Size& size, const std::vector<Form>& forms) {
    for (const Form& form : forms) {
      for (const Form& other : {kDense, kTransposed, kRowsOutermost, kRepeated}) {
        check(size, form, other);
        check(size, other, form);
      }
    }
    seen_.clear();
  }

  ~Products() {
    CHECK_MESSAGE(wrong_ == 0, wrong_, " of ", count_, " pairs of views are wrong or refused");
  }

 private:
  void check(const Size& s, const Form& form_a, const Form& form_b) {
    const Dims shape_a = {s.outer, s.inner, s.m, s.k}, shape_b = {s.outer, s.inner, s.k, s.n};
    const Dims strides_a = strides_of(form_a, shape_a), strides_b = strides_of(form_b, shape_b);
    if (!seen_.insert({strides_a, strides_b}).second) return;
    const View a = view_of(a_, shape_a, strides_a), b = view_of(b_, shape_b, strides_b);
    Array<T> c({s.outer, s.inner, s.m, s.n});
    const View out = c.view();
    ++count_;
    try {
      if (matmul_kernel(ctx_, {.a = &a, .b = &b, .c = &out, .alpha = 0.5}) == 0 && equal(a, b, c))
        return;
    } catch (const std::exception&) {  // oneDNN refuses what it cannot read
    }
    if (++wrong_ <= 3)
      MESSAGE("wrong or refused: a (.,B,M,K) ", text(a), ", b (.,B,K,N) ", text(b));
  }

  bool equal(const View& a, const View& b, const Array<T>& c) const {
    const int64_t m = a.shape[2], k = a.shape[3], n = b.shape[3];
    for (int64_t at = 0; at < c.size(); ++at) {
      const int64_t y = at / (m * n) / a.shape[1], z = at / (m * n) % a.shape[1];
      const int64_t i = at / n % m, j = at % n;
      double sum = 0;
      for (int64_t q = 0; q < k; ++q) {
        sum += a_[y * a.stride[0] + z * a.stride[1] + i * a.stride[2] + q * a.stride[3]] *
               b_[y * b.stride[0] + z * b.stride[1] + q * b.stride[2] + j * b.stride[3]];
      }
      if (c[at] != 0.5 * sum) return false;
    }
    return true;
  }

  TestContext ctx_{1};
  Array<T> a_, b_;
  std::set<std::pair<Dims, Dims>> seen_;
  int64_t count_ = 0, wrong_ = 0;
};

template <typename T>
void check_views() {
  const std::vector<Form> forms = forms_of_one_batch_dimension();
  Products<T> products;
  for (const int64_t batch : {1, 2, 3}) {
    for (const int64_t m : {1, 2, 3}) {
      for (const int64_t n : {1, 2, 3}) {
        for (const int64_t k : {1, 2, 3, 33}) products.check({1, batch, m, n, k}, forms);
      }
    }
  }
  // More rows, or more columns, than a block of any instructions takes, and not a
  // whole number of blocks.
  for (const Size& size : {Size{1, 3, 1, 33, 5}, {1, 3, 33, 1, 5}, {1, 3, 33, 5, 1}}) {
    products.check(size, forms);
  }
  for (const int64_t m : {1, 3}) {
    for (const int64_t n : {1, 3}) {
      for (const int64_t k : {1, 3}) {
        products.check({2, 3, m, n, k}, forms_of_two_batch_dimensions());
      }
    }
  }
}

}  // namespace

TEST_CASE("matmul: every view, f32") {
  check_views<float>();
}
TEST_CASE("matmul: every view, bf16") {
  check_views<bf16>();
}
TEST_CASE("matmul: every view, f16") {
  check_views<f16>();
}
TEST_CASE("matmul: every view, f64") {
  check_views<double>();
}

}  // namespace balora::test
