// A linear's rows on the device where they must not depend on each other: the same bits for a row
// alone and among others, and the values of the CPU, in every type, with a bias, low-rank parts and
// an output scale.
#include "support/device_test.h"
#include "support/linear_rows_case.h"
#include "support/setting.h"

namespace {

using namespace balora;
using namespace balora::test;

using Case = LinearRowsCase;

template <typename T>
struct Layer {
  DeviceTest t;
  Case c;
  Array x, w, bias, a, b, start_a, start_b, a2, b2, u, u2, scale, y;

  explicit Layer(const Case& given) : c(given) {
    using A = Acc<T>;
    x = t.random<T>({c.rows, c.in}), w = t.random<T>({c.outs, c.in}, 0.5);
    bias = t.random<T>({c.outs}), scale = t.random<A>({c.outs}, 2),
    y = t.empty<T>({c.rows, c.outs});
    const int64_t rank = std::max<int64_t>(c.rank, 1);
    a = t.random<A>({rank, c.in}), b = t.random<A>({c.outs, rank});
    start_a = t.random<A>({rank, c.in}), start_b = t.random<A>({c.outs, rank});
    a2 = t.random<A>({rank, c.in}), b2 = t.random<A>({c.outs, rank});
    u = t.empty<A>({c.rows, rank}), u2 = t.empty<A>({c.rows, rank});
    // Near its start, as a pair is that is computed by its change.
    for (int64_t i = 0; i < a->size(); ++i) a->set(i, 1.1 * start_a->host(i));
    for (int64_t i = 0; i < b->size(); ++i) b->set(i, 0.95 * start_b->host(i));
  }

  // Rows [first, first + count), where they are among all.
  int32_t run(const KernelTable& table, Context* ctx, const DeviceTest::ViewOf& view, int64_t first,
              int64_t count) const {
    const auto rows = [&](const Array& array) {
      View part = *view(array);
      const int64_t bytes = part.stride[0] * dtype_size(static_cast<DType>(part.dtype));
      part.data = static_cast<char*>(part.data) + first * bytes;
      part.shape[0] = count;
      return part;
    };
    const View vx = rows(x), vy = rows(y), vu = rows(u), vu2 = rows(u2);
    const balora_low_rank parts[] = {{.a = view(a),
                                      .b = view(b),
                                      .start_a = view(start_a),
                                      .start_b = view(start_b),
                                      .u = &vu,
                                      .scale = 0.5},
                                     {.a = view(a2), .b = view(b2), .u = &vu2, .scale = 0.25}};
    const balora_linear linear{.weight = {.dense = view(w)},
                               .bias = view(bias),
                               .output_scale = c.scaled ? view(scale) : nullptr,
                               .y = &vy,
                               .parts = parts,
                               .part_count = c.rank > 0 ? 2 : 0};
    return call(table.linear_forward, ctx,
                {.x = &vx, .linears = &linear, .count = 1, .batch_invariant = 1});
  }
};

std::vector<Case> cases() {
  return {{1, 8, 1, 0}, {5, 31, 7, 0}, {70, 96, 130, 16}, {33, 64, 40, 3, true}, {9, 40, 9, 4}};
}

TEST_CASE_TEMPLATE("linear: rows on the device do not depend on each other", T,
                   BALORA_FLOAT_TYPES) {
  const Setting way("BALORA_CUDA_LINEAR", "cublas");
  for (const Case& c : cases()) {
    CAPTURE(c.in);
    CAPTURE(c.outs);
    Layer<T> layer(c);
    const auto run = [&](int64_t first, int64_t count) {
      REQUIRE(layer.t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
        return layer.run(k, ctx, view, first, count);
      }) == 0);
      return layer.y->from_device();
    };
    const std::vector<double> all = run(0, c.rows);
    for (const int64_t count : {1, 2, 4, 5, 16, 33}) {
      for (const int64_t first : {int64_t{0}, c.rows - count}) {
        if (count > c.rows) continue;
        CAPTURE(count);
        CAPTURE(first);
        const std::vector<double> some = run(first, count);
        const auto begin = some.begin() + first * c.outs;
        CHECK(std::equal(begin, begin + count * c.outs, all.begin() + first * c.outs));
      }
    }
  }
}

TEST_CASE_TEMPLATE("linear: rows that do not depend on each other are right on the device", T,
                   BALORA_FLOAT_TYPES) {
  for (const Case& c : cases()) {
    CAPTURE(c.in);
    CAPTURE(c.outs);
    Layer<T> layer(c);
    layer.t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return layer.run(k, ctx, view, 0, c.rows);
    });
    layer.t.check_close(layer.y, std::is_same_v<T, double>  ? 1e-13
                                 : std::is_same_v<T, float> ? 1e-5
                                                            : 4 * epsilon_of<T>());
  }
}

}  // namespace
