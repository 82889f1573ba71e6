// Gradients of qr, eigh and svd on the device against the CPU's, each gradient absent in turn.
#include "support/device_test.h"
#include "support/matrices.h"

namespace {

using namespace balora;
using namespace balora::test;

// f64 products differ in their order, 1 / gap multiplies that; f32 is rounded once from there.
double tolerance_of(int32_t dtype) {
  return dtype == BALORA_F64 ? 1e-10 : dtype == BALORA_F32 ? 1e-6 : 1e-2;
}

Array store(DeviceTest& t, int32_t dtype, const Matrix& a) {
  return t.of_values(dtype, {a.rows, a.cols}, a.values);
}

Context cpu_context() {
  Context ctx{};
  ctx.num_threads = 1;
  return ctx;
}

TEST_CASE("qr_backward on the device gives the CPU's gradient") {
  Context cpu = cpu_context();
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{41, 35}, {7, 4}, {3, 3}, {9, 1}, {1, 1}}) {
    for (const int32_t dtype : {BALORA_F64, BALORA_F32, BALORA_BF16}) {
      for (int without = 0; without < (dtype == BALORA_F64 ? 3 : 1); ++without) {
        CAPTURE(m);
        CAPTURE(without);
        DeviceTest t;
        const QrResult f = thin_qr(&cpu, random_matrix(m, n, 3));
        const Array q = store(t, dtype, f.q), r = store(t, dtype, f.r), da = t.make(dtype, {m, n});
        const Array dq = without == 1 ? nullptr : t.random(dtype, {m, n}),
                    dr = without == 2 ? nullptr : t.random(dtype, {n, n});
        t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
          return call(k.qr_backward, ctx,
                      {.q = view(q), .r = view(r), .dq = view(dq), .dr = view(dr), .da = view(da)});
        });
        t.check_close(da, tolerance_of(dtype));
      }
    }
  }
}

TEST_CASE("eigh_backward on the device gives the CPU's gradient; equal values have none") {
  for (const int64_t n : {int64_t{1}, int64_t{5}, int64_t{33}}) {
    for (const int32_t dtype : {BALORA_F64, BALORA_F32, BALORA_BF16}) {
      for (int without = 0; without < (dtype == BALORA_F64 ? 3 : 1); ++without) {
        CAPTURE(n);
        CAPTURE(without);
        DeviceTest t;
        std::vector<double> values;
        for (int64_t i = 0; i < n; ++i) values.push_back(static_cast<double>(i == 2 ? 1 : i));
        const EighResult f = symmetric_eigen(designed(values, 5));
        const int32_t wide = dtype == BALORA_F64 ? BALORA_F64 : BALORA_F32;
        const Array w = t.of_values(wide, {n}, values), v = store(t, dtype, f.vectors),
                    da = t.make(dtype, {n, n});
        const Array dw = without == 1 ? nullptr : t.random(wide, {n}),
                    dv = without == 2 ? nullptr : t.random(dtype, {n, n});
        t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
          return call(k.eigh_backward, ctx,
                      {.values = view(w),
                       .vectors = view(v),
                       .dvalues = view(dw),
                       .dvectors = view(dv),
                       .da = view(da)});
        });
        t.check_close(da, tolerance_of(dtype));
      }
    }
  }
}

TEST_CASE("svd_backward on the device gives the CPU's gradient") {
  Context cpu = cpu_context();
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{31, 9}, {6, 13}, {5, 5}, {1, 4}}) {
    for (const int32_t dtype : {BALORA_F64, BALORA_F32, BALORA_BF16}) {
      for (int mask = dtype == BALORA_F64 ? 1 : 7; mask < 8; ++mask) {
        CAPTURE(m);
        CAPTURE(mask);
        DeviceTest t;
        const int64_t k = std::min(m, n);
        std::vector<double> values;
        for (int64_t i = 0; i < k; ++i) values.push_back(static_cast<double>(i == 4 ? 0 : k - i));
        const SvdResult f = thin_svd(&cpu, with_values(m, n, values, 7));
        const int32_t wide = dtype == BALORA_F64 ? BALORA_F64 : BALORA_F32;
        std::sort(values.rbegin(), values.rend());
        const Array u = store(t, dtype, f.u), s = t.of_values(wide, {k}, values),
                    vt = store(t, dtype, f.vt), da = t.make(dtype, {m, n});
        const Array du = mask & 1 ? t.random(dtype, {m, k}) : nullptr,
                    ds = mask & 2 ? t.random(wide, {k}) : nullptr,
                    dvt = mask & 4 ? t.random(dtype, {k, n}) : nullptr;
        t.both([&](const KernelTable& table, Context* ctx, const auto& view) {
          return call(table.svd_backward, ctx,
                      {.u = view(u),
                       .s = view(s),
                       .vt = view(vt),
                       .du = view(du),
                       .ds = view(ds),
                       .dvt = view(dvt),
                       .da = view(da)});
        });
        t.check_close(da, tolerance_of(dtype));
      }
    }
  }
}

}  // namespace
