// column_scale on the device against the CPU, with each operand and gradient absent in turn, and
// its sums against f64; rows enough for several slabs.
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename T>
void check_forward(int64_t rows, int64_t columns) {
  DeviceTest t;
  const Array x = t.random<T>({rows, columns}), scale = t.random<Acc<T>>({columns}),
              bias = t.random<T>({columns}), y = t.empty<T>({rows, columns}),
              z = t.empty<T>({rows, columns});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.column_scale_forward, ctx,
                {.x = view(x), .scale = view(scale), .bias = view(bias), .y = view(y)}) |
           call(k.column_scale_forward, ctx, {.x = view(x), .scale = view(scale), .y = view(z)});
  });
  t.check_close(y, 2 * epsilon_of<T>());
  t.check_close(z, 2 * epsilon_of<T>());
}

template <typename T>
void check_backward(int64_t rows, int64_t columns, int wanted) {
  CAPTURE(rows);
  CAPTURE(columns);
  CAPTURE(wanted);
  DeviceTest t;
  const Array dy = t.random<T>({rows, columns}), scale = t.random<Acc<T>>({columns}),
              x = wanted & 2 ? t.random<T>({rows, columns}) : nullptr,
              dx = wanted & 1 ? t.empty<T>({rows, columns}) : nullptr,
              dscale = wanted & 2 ? t.empty<Acc<T>>({columns}) : nullptr,
              dbias = wanted & 4 ? t.empty<Acc<T>>({columns}) : nullptr;
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.column_scale_backward, ctx,
                {.dy = view(dy),
                 .x = view(x),
                 .scale = view(scale),
                 .dx = view(dx),
                 .dscale = view(dscale),
                 .dbias = view(dbias)});
  });
  if (dx) t.check_close(dx, 2 * epsilon_of<T>());
  std::vector<double> products, values;
  for (int64_t c = 0; c < columns; ++c) {
    long double product = 0, value = 0;
    for (int64_t r = 0; r < rows; ++r) {
      product +=
          x ? static_cast<long double>(dy->host(r * columns + c)) * x->host(r * columns + c) : 0;
      value += dy->host(r * columns + c);
    }
    products.push_back(static_cast<double>(product));
    values.push_back(static_cast<double>(value));
  }
  const double tolerance = 16 * epsilon_of<Acc<T>>();
  if (dscale) t.check_truth(dscale, products, tolerance, 1);
  if (dbias) t.check_truth(dbias, values, tolerance, 1);
}

TEST_CASE_TEMPLATE("column_scale agrees with the CPU", T, BALORA_FLOAT_TYPES) {
  for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 5}, {3, 0}, {1, 1}, {33, 31}, {5, 264}, {200, 24}, {70, 520}}) {
    check_forward<T>(rows, columns);
    for (int wanted = 0; wanted < 8; ++wanted) check_backward<T>(rows, columns, wanted);
  }
}

}  // namespace
