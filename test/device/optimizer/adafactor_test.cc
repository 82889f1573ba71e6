// adafactor_step on the device against the CPU: vectors, matrices and stacks of them, with and
// without a first moment, a coefficient and a rate that follows the parameter.
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

struct Case {
  std::vector<int64_t> shape, row, column;  // column empty: a vector
};
const std::vector<Case> kCases{
    {{1}, {1}, {}},
    {{123}, {123}, {}},
    {{5001}, {5001}, {}},
    {{33, 31}, {33}, {31}},
    {{300, 65}, {300}, {65}},
    {{3, 4500}, {3}, {4500}},
    {{2, 3, 17, 40}, {2, 3, 17}, {2, 3, 40}},
};

template <typename T>
Array positive(DeviceTest& t, const std::vector<int64_t>& shape) {
  const Array x = t.random<T>(shape);
  for (int64_t i = 0; i < x->size(); ++i) x->set(i, std::abs(x->host(i)) + 0.1);
  return x;
}

TEST_CASE_TEMPLATE("Adafactor steps", T, float, double) {
  for (const Case& c : kCases) {
    for (const bool plain : {false, true}) {
      CAPTURE(plain);
      DeviceTest t;
      const Array grad = t.random<T>(c.shape), param = t.random<T>(c.shape),
                  row = positive<T>(t, c.row), m = plain ? nullptr : t.random<T>(c.shape),
                  column = c.column.empty() ? nullptr : positive<T>(t, c.column),
                  coefficient = plain ? nullptr : t.values<double>({}, {0.5});
      t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
        return call(k.adafactor_step, ctx,
                    {.grad = view(grad),
                     .coefficient = view(coefficient),
                     .param = view(param),
                     .row = view(row),
                     .column = view(column),
                     .m = view(m),
                     .lr = 0.02,
                     .beta1 = 0.9,
                     .beta2 = 0.8,
                     .eps = 1e-30,
                     .clip = plain ? 1.0 : 0.3,
                     .weight_decay = 0.1,
                     .scale_floor = plain ? -1 : 1e-3});
      });
      t.check_close(param, 8 * epsilon_of<T>());
      t.check_close(row, 4 * epsilon_of<T>());
      if (column) t.check_close(column, 4 * epsilon_of<T>());
      if (m) t.check_close(m, 16 * epsilon_of<T>());
    }
  }
}

}  // namespace
