// Cross-entropy on the device against f64: every reduction, ignored rows, rows that do not begin on
// 16 bytes, a vocabulary, a row that is one part of many, and targets that are no class.
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr balora_reduction kNone = BALORA_REDUCTION_NONE, kSum = BALORA_REDUCTION_SUM,
                           kMean = BALORA_REDUCTION_MEAN;

struct Truth {
  std::vector<double> loss, lse, dlogits;
};
Truth truth_of(const Operand& z, const Operand& targets, const Operand& dloss, int64_t rows,
               int64_t classes, balora_reduction reduction) {
  Truth t;
  double total = 0, counted = 0;
  for (int64_t n = 0; n < rows; ++n) counted += targets.host(n) >= 0;
  for (int64_t n = 0; n < rows; ++n) {
    const auto target = static_cast<int64_t>(targets.host(n));
    double top = -INFINITY, sum = 0;
    for (int64_t v = 0; v < classes; ++v) top = std::max(top, z.host(n * classes + v));
    for (int64_t v = 0; v < classes; ++v) sum += std::exp(z.host(n * classes + v) - top);
    const double lse = target < 0 ? 0 : top + std::log(sum);
    t.lse.push_back(lse);
    t.loss.push_back(target < 0 ? 0 : lse - z.host(n * classes + target));
    total += t.loss.back();
    const double slope =
        dloss.host(reduction == kNone ? n : 0) / (reduction == kMean ? counted : 1);
    for (int64_t v = 0; v < classes; ++v) {
      const double p = std::exp(z.host(n * classes + v) - lse);
      t.dlogits.push_back(target < 0 ? 0 : slope * (p - (v == target)));
    }
  }
  if (reduction != kNone) t.loss.assign(1, reduction == kMean ? total / counted : total);
  return t;
}

struct Arrays {
  Array z, targets, loss, lse, dloss, dz;
};

// The two kernels as functions of a table, for DeviceTest.
auto forward_of(const Arrays& a, balora_reduction reduction) {
  return [a, reduction](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.cross_entropy_forward, ctx,
                {.logits = view(a.z),
                 .targets = view(a.targets),
                 .loss = view(a.loss),
                 .lse = view(a.lse),
                 .reduction = reduction});
  };
}
auto backward_of(const Arrays& a, balora_reduction reduction) {
  return [a, reduction](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.cross_entropy_backward, ctx,
                {.dloss = view(a.dloss),
                 .logits = view(a.z),
                 .targets = view(a.targets),
                 .lse = view(a.lse),
                 .dlogits = view(a.dz),
                 .reduction = reduction});
  };
}

template <typename T>
void check(int64_t rows, int64_t classes, balora_reduction reduction) {
  CAPTURE(rows);
  CAPTURE(classes);
  CAPTURE(static_cast<int>(reduction));
  DeviceTest t;
  const std::vector<int64_t> results =
      reduction == kNone ? std::vector<int64_t>{rows} : std::vector<int64_t>{};
  const Array z = t.random<T>({rows, classes}, 6), targets = t.empty<int32_t>({rows});
  for (int64_t n = 0; n < rows; ++n) {
    const auto target = t.generator()() % static_cast<uint32_t>(classes);
    targets->set(n, n % 3 == 1 ? -100 : static_cast<double>(target));
  }
  const Array loss = t.empty<Acc<T>>(results), lse = t.empty<Acc<T>>({rows});
  const Array dloss = t.random<Acc<T>>(results), dz = t.empty<T>({rows, classes});
  const Arrays arrays{z, targets, loss, lse, dloss, dz};
  t.both(forward_of(arrays, reduction));
  const Truth truth = truth_of(*z, *targets, *dloss, rows, classes, reduction);
  // On the CPU f64 has the truth's very bits: what two orders of addition differ by.
  const bool f64 = std::is_same_v<T, double>;
  const double wide = (f64 ? 8 : 2) * epsilon_of<Acc<T>>();
  t.check_truth(loss, truth.loss, wide, 0);
  t.check_truth(lse, truth.lse, wide, 0);
  t.both(backward_of(arrays, reduction));
  t.check_truth(dz, truth.dlogits, (f64 ? 16 : 1) * epsilon_of<T>());
}

template <typename T>
void check_all() {
  for (const balora_reduction reduction : {kNone, kSum, kMean}) {
    check<T>(1, 1, reduction);
    check<T>(5, 31, reduction);
    check<T>(4, 123, reduction);
    check<T>(9, 40, reduction);
    check<T>(3, 1025, reduction);
  }
}

TEST_CASE_TEMPLATE("cross_entropy forward and backward match f64", T, BALORA_FLOAT_TYPES) {
  check_all<T>();
}

TEST_CASE("cross_entropy over a vocabulary keeps f32's last bit") {
  check<float>(2, 49152, kMean);
  check<bf16>(2, 50257, kNone);
}

TEST_CASE("cross_entropy of more rows than the last sum has threads") {
  check<float>(600, 3, kMean);
  check<float>(600, 3, kSum);
}

TEST_CASE("cross_entropy with every row ignored gives the CPU's NaN and no gradient") {
  DeviceTest t;
  const Array z = t.random<float>({2, 5}), targets = t.values<int32_t>({2}, {-100, -100});
  const Array loss = t.empty<float>({}), lse = t.empty<float>({2});
  const Array dloss = t.random<float>({}), dz = t.empty<float>({2, 5});
  const Arrays arrays{z, targets, loss, lse, dloss, dz};
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return forward_of(arrays, kMean)(k, ctx, view) | backward_of(arrays, kMean)(k, ctx, view);
  });
  t.check_equal(loss);
  t.check_equal(lse);
  t.check_equal(dz);
}

TEST_CASE("a target that is no class is reported") {
  for (const double bad : {5.0, -1.0}) {
    DeviceTest t;
    const Array z = t.random<float>({2, 5}), targets = t.values<int32_t>({2}, {1, bad});
    const Array loss = t.empty<float>({}), lse = t.random<float>({2});
    const Array dloss = t.random<float>({}), dz = t.empty<float>({2, 5});
    const Arrays arrays{z, targets, loss, lse, dloss, dz};
    REQUIRE(t.on_device(forward_of(arrays, kSum)) == 0);
    CHECK(t.synchronize() != 0);
    CHECK(t.error().find("cross_entropy_forward: target ") != std::string::npos);
    REQUIRE(t.on_device(backward_of(arrays, kMean)) == 0);
    CHECK(t.synchronize() != 0);
    CHECK(t.error().find(" of row 1 is not a class id below 5") != std::string::npos);
  }
}

}  // namespace
