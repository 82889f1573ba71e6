// Philox on the device: words, uniforms and dropout's mask are the CPU's bits, normals within 4
// units in the last place; whatever seed, stream and size.
#include "support/device_test.h"
#include "support/strided_views.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr int64_t kSizes[] = {0, 1, 2, 3, 31, 33, 5003};
constexpr uint64_t kSeed = 0x123456789abcdef0u, kStream = 0xfedcba9876543210u;

TEST_CASE("words are the CPU's") {
  for (const int64_t n : kSizes) {
    DeviceTest t;
    const Array y = t.empty<int64_t>({n});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.random_words, ctx, {.y = view(y), .seed = kSeed, .stream = kStream});
    });
    t.check_equal(y);
  }
}

// The last range holds so few numbers that rounding reaches its end.
TEST_CASE_TEMPLATE("uniforms are the CPU's", T, BALORA_FLOAT_TYPES) {
  for (const int64_t n : kSizes) {
    for (const auto& [low, high] : std::vector<std::pair<double, double>>{
             {0, 1}, {-0.1, 0.3}, {-1e-3, 1e3}, {1e15, 1e15 + 1}}) {
      DeviceTest t;
      const Array y = t.empty<T>({n});
      t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
        return call(k.random_uniform, ctx,
                    {.y = view(y), .seed = kSeed, .stream = 3, .low = low, .high = high});
      });
      t.check_equal(y);
    }
  }
}

TEST_CASE_TEMPLATE("normals are within 4 units in the last place", T, BALORA_FLOAT_TYPES) {
  for (const int64_t n : kSizes) {
    DeviceTest t;
    const Array y = t.empty<T>({n}), z = t.empty<T>({n});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.random_normal, ctx,
                  {.y = view(y), .seed = kSeed, .stream = kStream, .mean = 0, .deviation = 1}) |
             call(k.random_normal, ctx,
                  {.y = view(z), .seed = 5, .stream = 6, .mean = -0.5, .deviation = 0.02});
    });
    const std::vector<double> got = y->from_device();
    for (int64_t i = 0; i < n; ++i) {
      const double have = got[static_cast<size_t>(i)], want = y->host(i);
      if (std::abs(have - want) > 8 * epsilon_of<T>() * std::abs(want)) {
        FAIL_CHECK("index ", i, ": ", have, " for ", want);
        break;
      }
    }
    t.check_close(z, 8 * epsilon_of<T>());
  }
}

TEST_CASE_TEMPLATE("dropout is the CPU's", T, BALORA_FLOAT_TYPES) {
  for (const int64_t n : kSizes) {
    for (const double p : {0.0, 0.1, 0.5, 1.0}) {
      for (const int64_t skip : {int64_t{0}, std::min<int64_t>(n, 1)}) {
        DeviceTest t;
        const Array x = t.random<T>({n}, 3), y = t.empty<T>({n});
        t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
          const View in = from(*view(x), skip), out = from(*view(y), skip);
          return call(k.dropout, ctx, {.x = &in, .y = &out, .seed = kSeed, .stream = 9, .p = p});
        });
        t.check_equal(y);
      }
    }
  }
}

TEST_CASE("dropout keeps the word that equals its threshold") {
  DeviceTest t;
  const Array words = t.empty<int64_t>({8}), x = t.values<float>({8}, std::vector<double>(8, 1.0)),
              y = t.empty<float>({8});
  REQUIRE(t.on_cpu([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.random_words, ctx, {.y = view(words), .seed = kSeed, .stream = 9});
  }) == 0);
  const double p = std::floor(words->host(5) / 256) * 0x1p-24;
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.dropout, ctx, {.x = view(x), .y = view(y), .seed = kSeed, .stream = 9, .p = p});
  });
  t.check_equal(y);
  CHECK(y->from_device()[5] > 0);
}

}  // namespace
