// The cache of keys and values, and attention to it, on the device against the CPU: every type,
// grouped heads, odd sizes, windows with blocks that are not kept, soft-caps, a bias, rows that are
// not causal, several chunks; the same bits alone and in a batch; and lists that do not fit.
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr int64_t kBlock = BALORA_CACHE_BLOCK;

struct Case {
  std::vector<int32_t> lengths, rows;
  int64_t heads, kv_heads, size;
  int64_t window = 0;
  double softcap = 0;
  bool bias = false;
  bool causal = true;
};

std::vector<double> bounds(const std::vector<int32_t>& counts) {
  std::vector<double> all(1, 0);
  for (const int32_t count : counts) all.push_back(all.back() + count);
  return all;
}

// A cache of random keys and values, and new rows.
template <typename T>
struct Setup {
  DeviceTest t;
  Case c;
  int64_t width = 1;
  Array first_chunk, second_chunk, q, k, v, out, bias, cu, lengths, tables, first;

  explicit Setup(const Case& given) : c(given) {
    const auto count = static_cast<int64_t>(c.lengths.size());
    std::vector<double> firsts, ids;
    for (size_t b = 0; b < c.lengths.size(); ++b) {
      const int64_t oldest = c.lengths[b] - c.rows[b] + 1 - c.window;
      const int64_t kept = c.window ? std::max<int64_t>(0, oldest) / kBlock : 0;
      firsts.push_back(static_cast<double>(kept));
      width = std::max(width, (c.lengths[b] + kBlock - 1) / kBlock - kept);
    }
    const int64_t blocks = count * width, channels = (c.size + 31) / 32 * 32;
    for (int64_t i = 0; i < blocks; ++i) ids.push_back(static_cast<double>(blocks - 1 - i));
    const int64_t few = blocks / 3 + 1;
    first_chunk = t.random<T>({few, 2, 2, c.kv_heads, kBlock, channels});
    second_chunk = t.random<T>({blocks, 2, 2, c.kv_heads, kBlock, channels});
    const std::vector<double> all = bounds(c.rows);
    const auto rows = static_cast<int64_t>(all.back());
    q = t.random<T>({rows, c.heads, c.size}, 2);
    k = t.random<T>({rows, c.kv_heads * c.size + 3}), v = t.random<T>({rows, c.kv_heads, c.size});
    out = t.empty<T>({rows, c.heads, c.size}), bias = t.random<T>({400, c.heads});
    cu = t.values<int32_t>({count + 1}, all), first = t.values<int32_t>({count}, firsts);
    lengths = t.values<int32_t>({count}, {c.lengths.begin(), c.lengths.end()});
    tables = t.values<int32_t>({count, width}, ids);
  }

  // `instead`: in the place of the first chunk.
  int32_t run(const KernelTable& table, Context* ctx, const DeviceTest::ViewOf& view,
              const View* instead = nullptr) const {
    const View* const chunks[] = {instead ? instead : view(first_chunk), view(second_chunk)};
    const balora_kv_cache cache{.chunks = chunks,
                                .chunk_count = 2,
                                .layer = 1,
                                .lengths = view(lengths),
                                .tables = view(tables),
                                .first_blocks = view(first)};
    View keys = *view(v);
    keys.data = view(k)->data, keys.stride[0] = c.kv_heads * c.size + 3;
    int32_t status = 0;
    if (c.causal) {
      status = call(table.cache_append, ctx,
                    {.k = &keys, .v = view(v), .cu_rows = view(cu), .cache = &cache});
    }
    return status | call(table.cached_attention, ctx,
                         {.q = view(q),
                          .cu_rows = view(cu),
                          .cache = &cache,
                          .bias = c.bias ? view(bias) : nullptr,
                          .out = view(out),
                          .scale = 0.3,
                          .softcap = c.softcap,
                          .window = c.window,
                          .causal = c.causal});
  }
};

TEST_CASE_TEMPLATE("a cache and attention to it agree with the CPU", T, BALORA_FLOAT_TYPES) {
  const std::vector<Case> cases = {
      {{1}, {1}, 1, 1, 1},
      {{31, 33, 130}, {1, 2, 1}, 6, 2, 16},
      {{300}, {2}, 4, 1, 40},
      {{200, 40}, {1, 3}, 3, 1, 33, 10},
      {{290}, {40}, 2, 2, 8, 70},
      {{90, 129}, {2, 1}, 4, 2, 32, 0, 3.0},
      {{140, 5}, {3, 5}, 3, 3, 17, 0, 0, true},
      {{120, 300, 0}, {2, 5, 1}, 2, 2, 20, 0, 0, false, false},
      {{600, 260}, {1, 1}, 2, 1, 16, 0, 2.0, false},
      {{700}, {1}, 2, 2, 24, 290},
  };
  for (const Case& c : cases) {
    CAPTURE(c.size);
    CAPTURE(c.lengths[0]);
    Setup<T> setup(c);
    setup.t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return setup.run(k, ctx, view);
    });
    setup.t.check_close(setup.first_chunk, 0);
    setup.t.check_close(setup.second_chunk, 0);
    setup.t.check_close(setup.out, std::is_same_v<T, double>  ? 1e-14
                                   : std::is_same_v<T, float> ? 2e-6
                                                              : 2 * epsilon_of<T>());
  }
}

// Together, the rows fill the device, so that a block walks all parts of one; alone, each part has
// a block of its own.
TEST_CASE_TEMPLATE("a row gets the same bits alone and in a batch", T, BALORA_FLOAT_TYPES) {
  for (const int64_t window : {0, 300}) {
    const Case c{{700, 90, 257, 30, 512, 513, 256, 5}, {1, 1, 1, 1, 1, 1, 1, 1}, 2, 1, 40, window};
    Setup<T> s(c);
    // Sequences [b, b + count), of one row each.
    const auto run = [&](int64_t b, int64_t count) {
      REQUIRE(s.t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
        const auto part = [&](const Array& array, int64_t first, int64_t rows) {
          View v = *view(array);
          const int64_t bytes = v.stride[0] * dtype_size(static_cast<DType>(v.dtype));
          v.data = static_cast<char*>(v.data) + first * bytes, v.shape[0] = rows;
          return v;
        };
        const View q = part(s.q, b, count), out = part(s.out, b, count);
        const View lengths = part(s.lengths, b, count), tables = part(s.tables, b, count);
        const View first = part(s.first, b, count), cu = part(s.cu, 0, count + 1);
        const View* const chunks[] = {view(s.first_chunk), view(s.second_chunk)};
        const balora_kv_cache cache{.chunks = chunks,
                                    .chunk_count = 2,
                                    .layer = 1,
                                    .lengths = &lengths,
                                    .tables = &tables,
                                    .first_blocks = &first};
        return call(k.cached_attention, ctx,
                    {.q = &q,
                     .cu_rows = &cu,
                     .cache = &cache,
                     .out = &out,
                     .scale = 0.3,
                     .window = window,
                     .causal = 1});
      }) == 0);
      return s.out->from_device();
    };
    const std::vector<double> together = run(0, 8);
    for (int64_t b = 0; b < 8; ++b) {
      const std::vector<double> alone = run(b, 1);
      CAPTURE(b);
      const int64_t width = c.heads * c.size;
      CHECK(std::equal(alone.begin() + b * width, alone.begin() + (b + 1) * width,
                       together.begin() + b * width));
    }
  }
}

TEST_CASE("blocks of a cache that 32 bits do not number are refused, also where they are below 0") {
  Setup<float> setup(Case{{40, 70}, {1, 2}, 2, 1, 8});
  for (const int64_t blocks : {int64_t{1} << 31, int64_t{-1}}) {
    REQUIRE(setup.t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
      View chunk = *view(setup.first_chunk);
      chunk.shape[0] = blocks;
      return setup.run(k, ctx, view, &chunk);
    }) != 0);
    CHECK(setup.t.error() == "a number of blocks of " + std::to_string(blocks) +
                                 " is not from 0 to 2147483647, the sizes that this kernel takes");
  }
}

TEST_CASE("lists of a cache that do not fit are reported") {
  const auto error_of = [](const Case& c, const std::function<void(Setup<float>&)>& change) {
    Setup<float> setup(c);
    change(setup);
    REQUIRE(setup.t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
      return setup.run(k, ctx, view);
    }) == 0);
    CHECK(setup.t.synchronize() != 0);
    return setup.t.error();
  };
  const auto error = [&](const std::function<void(Setup<float>&)>& change) {
    return error_of({{40, 70}, {1, 2}, 2, 1, 8}, change);
  };
  CHECK(error([](auto& s) { s.cu->set(2, 2); }) ==
        "cache_append: cu_seqlens must rise from 0 to the 3 rows, got 0 to 2");
  CHECK(error([](auto& s) { s.lengths->set(1, 1); }) ==
        "cache_append: 2 rows of sequence 1 are more than its 1 positions");
  CHECK(error([](auto& s) { s.lengths->set(1, 98); }) ==
        "cache_append: sequence 1 of 98 positions needs more than its 3 blocks");
  CHECK(error([](auto& s) { s.tables->set(1, 99); }) ==
        "cache_append: block 99 of sequence 0 is not one of the cache's 9");
  CHECK(error([](auto& s) { s.first->set(0, 1); }) ==
        "cached_attention: position 0 of sequence 0 is seen, but no longer kept");
  const Case whole{{40, 70}, {1, 2}, 2, 1, 8, 40, 0, false, false};
  CHECK(error_of(whole, [](auto& s) { s.lengths->set(1, INT32_MAX); }) ==
        "cached_attention: sequence 1 of 2147483647 positions needs more than its 3 blocks");
}

}  // namespace
