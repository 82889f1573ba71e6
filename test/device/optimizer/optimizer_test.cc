// The optimiser's rows on the device against the CPU: both state types, with and without a
// coefficient and a buffer, odd sizes, addresses that fit no vector access; norms repeat
// bit by bit.
#include <array>
#include <limits>
#include <vector>

#include "kernels/shared/op_codes.h"
#include "support/device_test.h"
#include "support/strided_views.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr int64_t kSizes[] = {0, 1, 31, 33, 123, 5001};

TEST_CASE_TEMPLATE("AdamW steps", T, float, double) {
  for (const int64_t n : kSizes) {
    for (const int64_t skip : {int64_t{0}, std::min<int64_t>(n, 1)}) {
      DeviceTest t;
      const Array grad = t.random<T>({n}), param = t.random<T>({n}), m = t.random<T>({n}),
                  v = t.random<T>({n}), coefficient = t.values<double>({}, {0.5}),
                  rate = t.values<double>({3}, {0.01, 0.037, 5.8}),
                  later = t.values<double>({3}, {0.01, 0.03, 5.1});
      for (int64_t i = 0; i < n; ++i) v->set(i, std::abs(v->host(i)));
      t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
        const View g = from(*view(grad), skip), p = from(*view(param), skip),
                   first = from(*view(m), skip), second = from(*view(v), skip);
        const AdamwOperands now{.grad = &g,
                                .rate = view(rate),
                                .param = &p,
                                .m = &first,
                                .v = &second,
                                .weight_decay = 0.1};
        AdamwOperands then = now;
        then.rate = view(later);
        const AdamwList one{&now, 1}, other{&then, 1};
        return call(k.adamw_step, ctx,
                    {.tensors = &one,
                     .coefficient = view(coefficient),
                     .beta1 = 0.9,
                     .beta2 = 0.99,
                     .eps = 1e-6}) |
               call(k.adamw_step, ctx,
                    {.tensors = &other, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-6});
      });
      t.check_close(param, 8 * epsilon_of<T>());
      t.check_close(m, 8 * epsilon_of<T>());
      t.check_close(v, 8 * epsilon_of<T>());
    }
  }
}

// More than fit one table, f32 and f64 mixed, sizes around a block's chunk, some of nothing; every
// third with another rate and decay, every fourth at an address that fits no vector access.
TEST_CASE("AdamW steps of many tensors") {
  DeviceTest t;
  const Array coefficient = t.values<double>({}, {0.5}),
              slow = t.values<double>({3}, {0.01, 0.037, 5.8}),
              fast = t.values<double>({3}, {0.16, 0.6, 5.8});
  const int64_t sizes[] = {0, 1, 31, 33, 123, 4095, 4096, 4097};
  std::vector<std::array<Array, 4>> all;
  for (int i = 0; i < 70; ++i) {
    const int64_t n = i == 40 ? 9001 : sizes[i % 8 > 4 && i > 8 ? i % 5 : i % 8];
    const int32_t dtype = i % 7 == 3 ? BALORA_F64 : BALORA_F32;
    all.push_back(
        {t.random(dtype, {n}), t.random(dtype, {n}), t.random(dtype, {n}), t.random(dtype, {n})});
    for (int64_t j = 0; j < n; ++j) all.back()[3]->set(j, std::abs(all.back()[3]->host(j)));
  }
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    std::vector<std::array<View, 4>> views;
    for (size_t i = 0; i < all.size(); ++i) {
      auto& mine = views.emplace_back();
      for (size_t j = 0; j < 4; ++j) {
        const int64_t skip = i % 4 == 1 && all[i][j]->size() > 0 ? 1 : 0;
        mine[j] = from(*view(all[i][j]), skip);
      }
    }
    std::vector<AdamwOperands> tensors;
    for (size_t i = 0; i < all.size(); ++i) {
      const auto& [grad, param, m, v] = views[i];
      tensors.push_back({.grad = &grad,
                         .rate = view(i % 3 ? slow : fast),
                         .param = &param,
                         .m = &m,
                         .v = &v,
                         .weight_decay = i % 3 ? 0.1 : 0});
    }
    const AdamwList list{tensors.data(), static_cast<int32_t>(tensors.size())}, none{};
    return call(k.adamw_step, ctx,
                {.tensors = &list,
                 .coefficient = view(coefficient),
                 .beta1 = 0.9,
                 .beta2 = 0.99,
                 .eps = 1e-6}) |
           call(k.adamw_step, ctx,
                {.tensors = &none,
                 .coefficient = view(coefficient),
                 .beta1 = 0.9,
                 .beta2 = 0.99,
                 .eps = 1e-6});
  });
  for (const auto& [grad, param, m, v] : all) {
    for (const Array& array : {param, m, v}) t.check_close(array, 8 * epsilon_of<float>());
    t.check_equal(grad);
  }
}

TEST_CASE_TEMPLATE("SGD steps, with and without momentum", T, float, double) {
  for (const int64_t n : kSizes) {
    for (const int32_t nesterov : {0, 1}) {
      for (const int32_t first : {0, 1}) {
        DeviceTest t;
        const Array grad = t.random<T>({n}), param = t.random<T>({n}), plain = t.random<T>({n}),
                    buffer = first ? t.empty<T>({n}) : t.random<T>({n});
        const Array coefficient = t.values<double>({}, {0.3});
        t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
          return call(k.sgd_step, ctx,
                      {.grad = view(grad),
                       .coefficient = view(coefficient),
                       .param = view(param),
                       .buffer = view(buffer),
                       .lr = 0.2,
                       .momentum = 0.9,
                       .dampening = 0.3,
                       .weight_decay = 0.1,
                       .nesterov = nesterov,
                       .first = first}) |
                 call(k.sgd_step, ctx,
                      {.grad = view(grad),
                       .param = view(plain),
                       .lr = 0.2,
                       .momentum = 0,
                       .dampening = 0,
                       .weight_decay = 0.1,
                       .nesterov = nesterov,
                       .first = first});
        });
        t.check_close(param, 8 * epsilon_of<T>());
        t.check_close(buffer, 8 * epsilon_of<T>());
        t.check_close(plain, 8 * epsilon_of<T>());
      }
    }
  }
}

TEST_CASE("optimiser state must be f32 or f64") {
  DeviceTest t;
  const Array x = t.random<bf16>({3}), rate = t.values<double>({3}, {0, 0, 0});
  CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    const AdamwOperands tensor{
        .grad = view(x), .rate = view(rate), .param = view(x), .m = view(x), .v = view(x)};
    const AdamwList list{&tensor, 1};
    return call(k.adamw_step, ctx, {.tensors = &list, .beta1 = 0, .beta2 = 0, .eps = 0});
  }) != 0);
  CHECK(t.error() == "optimiser state must be f32 or f64");
}

// Adds the norm of the tensors to the total.
auto accumulation_of(const std::vector<Array>& tensors, const Array& total, balora_norm_kind kind) {
  return [=](const KernelTable& k, Context* ctx, const auto& view) {
    std::vector<const View*> views;
    for (const Array& x : tensors) views.push_back(view(x));
    const ViewList list{views.data(), static_cast<int32_t>(views.size())};
    return call(k.norm_accumulate, ctx, {.tensors = &list, .total = view(total), .kind = kind});
  };
}

TEST_CASE_TEMPLATE("norms add up over calls and repeat bit by bit", T, BALORA_FLOAT_TYPES) {
  for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{33}, int64_t{20001}}) {
    for (const balora_norm_kind kind : {BALORA_NORM_1, BALORA_NORM_2, BALORA_NORM_INF}) {
      CAPTURE(static_cast<int>(kind));
      DeviceTest t;
      const Array x = t.random<T>({n}), total = t.values<double>({}, {0.5}),
                  again = t.values<double>({}, {0.5});
      t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
        return accumulation_of({x}, total, kind)(k, ctx, view) |
               accumulation_of({x}, again, kind)(k, ctx, view);
      });
      t.check_close(total, 1e-13);
      CHECK(total->from_device() == again->from_device());
    }
  }
}

TEST_CASE("the norm of many tensors") {
  DeviceTest t;
  const int32_t dtypes[] = {BALORA_F32, BALORA_BF16, BALORA_F16, BALORA_F64};
  std::vector<Array> all;
  for (int i = 0; i < 131; ++i) {  // three tables
    all.push_back(t.random(dtypes[i % 4], {i == 70 ? 30001 : i % 6 * 29}));
  }
  for (const balora_norm_kind kind : {BALORA_NORM_1, BALORA_NORM_2, BALORA_NORM_INF}) {
    const Array total = t.values<double>({}, {0.5}), again = t.values<double>({}, {0.5}),
                still = t.values<double>({}, {0.5});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return accumulation_of(all, total, kind)(k, ctx, view) |
             accumulation_of(all, again, kind)(k, ctx, view) |
             accumulation_of({}, still, kind)(k, ctx, view);
    });
    t.check_close(total, 1e-13);
    CHECK(total->from_device() == again->from_device());
    CHECK(still->from_device()[0] == 0.5);
  }
}

TEST_CASE("the largest magnitude keeps a NaN") {
  DeviceTest t;
  const Array x = t.random<float>({700}), total = t.values<double>({}, {0.5});
  x->set(650, std::numeric_limits<double>::quiet_NaN());
  t.both(accumulation_of({x}, total, BALORA_NORM_INF));
  CHECK(std::isnan(total->from_device()[0]));
}

TEST_CASE_TEMPLATE("scale, scale_by and adding a multiple", T, BALORA_FLOAT_TYPES) {
  for (const int64_t n : kSizes) {
    DeviceTest t;
    const Array x = t.random<T>({n}), y = t.empty<T>({n}), sum = t.random<T>({n}),
                source = t.random<bf16>({n}), wide = t.random<double>({n}),
                coefficient = t.values<double>({}, {0.3});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.scale_by, ctx, {.x = view(x), .factor = view(coefficient), .y = view(y)}) |
             call(k.scale, ctx, {.coefficient = view(coefficient), .x = view(x)}) |
             call(k.add_scaled, ctx,
                  {.source = view(source), .destination = view(sum), .alpha = -1.5}) |
             call(k.add_scaled, ctx,
                  {.source = view(wide), .destination = view(sum), .alpha = 0.25});
    });
    t.check_equal(x);
    t.check_equal(y);
    t.check_close(sum, 4 * epsilon_of<T>());
  }
}

}  // namespace
