// Equal operands give equal bits, whichever block, warp or lane comes first: every row that sums,
// ranks or places items through atomics or across blocks. Attention's and the teacher summary's are
// beside their other tests.
#include "kernels/shared/op_codes.h"
#include "support/head_arrays.h"
#include "support/orders.h"

namespace {

using namespace balora;
using namespace balora::test;

// Runs the row in every order; `results` are overwritten by it.
void check_row(DeviceTest& t, const std::vector<Array>& results, const DeviceTest::Row& row) {
  check_orders([&] {
    REQUIRE_MESSAGE(t.on_device(row) == 0, t.error());
    REQUIRE_MESSAGE(t.synchronize() == 0, t.error());
    return values_of(results);
  });
}

// Logits repeat every `period` classes (0: never), so that the K-th largest has equals beyond it:
// which of them count shows in the gradients.
template <typename T>
void check_head(const HeadSetting& s, int64_t period) {
  CAPTURE(s.options.entropy_top_k);
  CAPTURE(period);
  DeviceTest t;
  const HeadArrays a = make_head_arrays<T>(t, s);
  for (int64_t i = 0; period > 0 && i < s.v * s.c; ++i) {
    a.w->set(i, a.w->host(i % (period * s.c)));
  }
  check_row(t, {a.sums, a.rows, a.dh, a.dw}, head_losses_of(a, s));
}

TEST_CASE("head losses give the same bits in every order") {
  HeadSetting s;
  s.m = 3, s.v = 1100;
  check_head<bf16>(s, 0);  // the largest by a bound, listed as they come
  check_head<float>(s, 300);
  s.options.entropy_top_k = 70;
  check_head<float>(s, 30);
  s.m = 2, s.v = 4500;
  check_head<float>(s, 3);  // more equal ones than the list holds: by digits
  s.options.entropy_top_k = 1000;
  check_head<bf16>(s, 700);
  s.options.entropy_top_k = -1;
  s.options.chunk_bytes = 1;
  check_head<double>(s, 0);
}

TEST_CASE("topk gives the same columns in every order") {
  for (const auto& [size, k] : std::vector<std::pair<int64_t, int64_t>>{{900, 5}, {2500, 1500}}) {
    CAPTURE(size);
    DeviceTest t;
    const Array x = t.random<float>({2, size}, 40);
    for (int64_t i = 0; i < x->size(); ++i) x->set(i, std::round(x->host(i)));  // many ties
    const Array values = t.empty<float>({2, k}), columns = t.empty<int32_t>({2, k});
    check_row(t, {values, columns}, [&](const KernelTable& table, Context* ctx, const auto& view) {
      return call(table.topk, ctx,
                  {.x = view(x), .values = view(values), .columns = view(columns)});
    });
  }
}

TEST_CASE("sums by index give the same bits in every order") {
  DeviceTest t;
  const int64_t n = 700, v = 9, c = 6;
  const auto index = [&](std::vector<int64_t> shape) {
    const Array ids = t.empty<int32_t>(std::move(shape));
    for (int64_t i = 0; i < ids->size(); ++i) ids->set(i, t.generator()() % 3 ? 4 : i * 5 % v);
    return ids;
  };
  const Array ids = index({n}), dy = t.random<float>({n, c}), dx = t.empty<float>({v, c});
  check_row(t, {dx}, [&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.select_rows_backward, ctx, {.dy = view(dy), .ids = view(ids), .dx = view(dx)});
  });
  const Array places = index({2, n, c}), base = t.random<float>({2, v, c}),
              source = t.random<float>({2, n, c}), y = t.empty<float>({2, v, c});
  check_row(t, {y}, [&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.scatter_add, ctx,
                {.base = view(base), .index = view(places), .source = view(source), .y = view(y)});
  });
}

TEST_CASE("sums over rows and blocks give the same bits in every order") {
  DeviceTest t;
  const int64_t n = 300, c = 70;
  const Array x = t.random<bf16>({n, c}), dy = t.random<bf16>({n, c}), w = t.random<bf16>({c}),
              mean = t.random<float>({n}), rstd = t.random<float>({n}), dx = t.empty<bf16>({n, c}),
              dw = t.empty<float>({c}), db = t.empty<float>({c});
  check_row(t, {dx, dw}, [&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.rms_norm_backward, ctx,
                {.dy = view(dy),
                 .x = view(x),
                 .weight = view(w),
                 .rstd = view(rstd),
                 .dx = view(dx),
                 .dweight = view(dw)});
  });
  check_row(t, {dx, dw, db}, [&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.layer_norm_backward, ctx,
                {.dy = view(dy),
                 .x = view(x),
                 .weight = view(w),
                 .mean = view(mean),
                 .rstd = view(rstd),
                 .dx = view(dx),
                 .dweight = view(dw),
                 .dbias = view(db)});
  });
  check_row(t, {db}, [&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.linear_weight_backward, ctx, {.dy = view(dy), .dbias = view(db)});
  });
  const Array long_row = t.random<float>({1, 30'000, 1}), one = t.empty<float>({1, 1});
  for (const int32_t op : {BALORA_SUM, BALORA_LOGSUMEXP, BALORA_VARIANCE}) {
    check_row(t, {one}, [&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.reduce, ctx,
                  {.x = view(long_row),
                   .y = view(one),
                   .op = static_cast<balora_reduce_op>(op),
                   .correction = 1});
    });
  }
}

TEST_CASE("the SVD term and decompositions give the same bits in every order") {
  DeviceTest t;
  const Array h = t.random<float>({9, 16}), w = t.random<float>({40, 16}, 2),
              value = t.empty<double>({}), dh = t.empty<float>({9, 16}),
              dw = t.empty<float>({40, 16});
  check_row(t, {value, dh, dw}, [&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.svd_ratio_tiles, ctx,
                {.h = view(h),
                 .w = view(w),
                 .value = view(value),
                 .dh = view(dh),
                 .dw = view(dw),
                 .k = 3,
                 .nuclear = 0,
                 .softcap = 0,
                 .chunk_bytes = 9 * 16 * 5});
  });
  const Array a = t.random<double>({33, 20}), u = t.empty<double>({33, 20}),
              s = t.empty<double>({20}), vt = t.empty<double>({20, 20});
  check_row(t, {u, s, vt}, [&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.svd, ctx, {.a = view(a), .u = view(u), .s = view(s), .vt = view(vt)});
  });
  const Array us = t.empty<double>({33, 4}), ss = t.empty<double>({4}),
              vts = t.empty<double>({4, 20});
  check_row(t, {us, ss, vts}, [&](const KernelTable& k, Context* ctx, const auto& view) {
    const SvdOperands operands{view(a), view(us), view(ss), view(vts), 7};
    return call(k.randomized_svds, ctx,
                {.tasks = &operands, .count = 1, .niter = -1, .oversample = 4});
  });
}

}  // namespace
