// The cache of keys and values and attention to it, against their definition in double loops: every
// float type, grouped heads, odd sizes, windows with blocks that are not kept, soft-caps, a bias,
// sinks, rows that are not causal, lists of blocks in any order over several chunks; the same bits
// alone, in a batch and for any number of threads; and lists that do not fit.
#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "support/kernel_test.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr int64_t kBlock = BALORA_CACHE_BLOCK;

struct Case {
  std::vector<int32_t> lengths;  // of the sequences
  std::vector<int32_t> rows;     // of the call, the last of each sequence
  int64_t heads, kv_heads, size;
  int64_t window = 0;
  double softcap = 0;
  bool bias = false;
  bool causal = true;
  bool sinks = false;
};

int64_t blocks_of(int64_t positions) {
  return (positions + kBlock - 1) / kBlock;
}

// The first block that a row of a sequence sees.
int64_t first_block(const Case& c, size_t b) {
  if (c.window == 0) return 0;
  return std::max<int64_t>(0, c.lengths[b] - c.rows[b] + 1 - c.window) / kBlock;
}

Array<int32_t> integers(const std::vector<int32_t>& values) {
  return Array<int32_t>({static_cast<int64_t>(values.size())},
                        std::vector<double>(values.begin(), values.end()));
}

std::vector<int32_t> bounds(const std::vector<int32_t>& counts) {
  std::vector<int32_t> all(1, 0);
  for (const int32_t count : counts) all.push_back(all.back() + count);
  return all;
}

// Every key and value of a case's sequences, its queries, and a cache that holds the keys.
template <typename T>
class Setup {
 public:
  static constexpr int64_t kLayers = 2, kLayer = 1;

  explicit Setup(const Case& c, uint32_t seed = 5)
      : c_(c),
        random_(seed),
        padded_((c.size + 31) / 32 * 32),
        bias_({300, c.heads}, random_),
        sinks_({c.heads}) {
    for (int64_t h = 0; h < c.heads; ++h) sinks_.data()[h] = Acc<T>(2.5) - Acc<T>(h);
    for (size_t b = 0; b < c.lengths.size(); ++b) {
      width_ = std::max(width_, blocks_of(c.lengths[b]) - first_block(c, b));
      std::mt19937 own(static_cast<uint32_t>(100 + c.lengths[b]));
      keys_.emplace_back(std::vector<int64_t>{c.lengths[b] + 1, c.kv_heads, c.size + 3}, own, 2);
      values_.emplace_back(std::vector<int64_t>{c.lengths[b] + 1, c.kv_heads, c.size}, own);
      queries_.emplace_back(std::vector<int64_t>{c.rows[b] + 1, c.heads, c.size}, own, 2);
    }
    const auto all = static_cast<int64_t>(c.lengths.size()) * width_ + 2;
    for (const int64_t blocks : {all / 3 + 1, all - all / 3}) {
      chunks_.emplace_back(std::vector<int64_t>{blocks, kLayers, 2, c.kv_heads, kBlock, padded_});
    }
    std::vector<int32_t> ids(static_cast<size_t>(all));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), random_);
    ids.resize(c.lengths.size() * static_cast<size_t>(width_));
    tables_ = ids;
  }

  // Appends all positions, in two calls, and attends from the rows.
  Array<T> run(int threads = 2) {
    TestContext ctx(threads);
    std::vector<int32_t> before, added;
    for (size_t b = 0; b < c_.lengths.size(); ++b) {
      before.push_back(c_.lengths[b] / 3);
      added.push_back(c_.lengths[b] - before.back());
    }
    append(ctx, before, before);
    append(ctx, c_.lengths, added);
    const std::vector<int32_t> cu = bounds(c_.rows);
    Array<T> q({cu.back() + 1, c_.heads, c_.size}), out({cu.back(), c_.heads, c_.size});
    for (size_t b = 0; b < c_.rows.size(); ++b) {
      std::copy_n(queries_[b].data(), c_.rows[b] * c_.heads * c_.size,
                  q.data() + cu[b] * c_.heads * c_.size);
    }
    View vq = q.view(), vout = out.view(), vbias = bias_.view(), vsinks = sinks_.view();
    vq.shape[0] = cu.back();
    with_cache(c_.lengths, c_.rows, [&](const balora_kv_cache& cache, const View& cu_rows) {
      REQUIRE(cached_attention_kernel(ctx, {.q = &vq,
                                            .cu_rows = &cu_rows,
                                            .cache = &cache,
                                            .bias = c_.bias ? &vbias : nullptr,
                                            .sinks = c_.sinks ? &vsinks : nullptr,
                                            .out = &vout,
                                            .scale = scale(),
                                            .softcap = c_.softcap,
                                            .window = c_.window,
                                            .causal = c_.causal}) == 0);
    });
    return out;
  }

  std::vector<double> definition() const {
    std::vector<double> out;
    for (size_t b = 0; b < c_.lengths.size(); ++b) {
      for (int64_t row = 0; row < c_.rows[b]; ++row) {
        for (int64_t h = 0; h < c_.heads; ++h) define_row(b, row, h, out);
      }
    }
    return out;
  }

  // Runs body(cache, cu_rows) with the lists as views.
  template <typename Body>
  void with_cache(const std::vector<int32_t>& lengths, const std::vector<int32_t>& rows,
                  const Body& body) {
    std::vector<View> views;
    for (Array<T>& chunk : chunks_) views.push_back(chunk.view());
    std::vector<const View*> pointers;
    for (const View& view : views) pointers.push_back(&view);
    std::vector<int32_t> first;
    for (size_t b = 0; b < c_.lengths.size(); ++b) {
      first.push_back(static_cast<int32_t>(first_block(c_, b)));
    }
    Array<int32_t> lengths_array = integers(lengths), first_array = integers(first),
                   cu_array = integers(bounds(rows)), table_array = integers(tables_);
    View vlengths = lengths_array.view(), vfirst = first_array.view(), vcu = cu_array.view();
    View vtables = table_array.view();
    vtables.ndim = 2, vtables.shape[0] = static_cast<int64_t>(lengths.size());
    vtables.shape[1] = vtables.stride[0] = width_, vtables.stride[1] = 1;
    body(balora_kv_cache{.chunks = pointers.data(),
                         .chunk_count = static_cast<int32_t>(pointers.size()),
                         .layer = kLayer,
                         .lengths = &vlengths,
                         .tables = &vtables,
                         .first_blocks = c_.window ? &vfirst : nullptr},
         vcu);
  }

  std::vector<int32_t>& tables() { return tables_; }
  std::vector<Array<T>>& chunks() { return chunks_; }

 private:
  double scale() const { return 1 / std::sqrt(static_cast<double>(c_.size)); }

  // The last `rows` positions of sequences that are `lengths` long now.
  void append(Context* ctx, const std::vector<int32_t>& lengths, const std::vector<int32_t>& rows) {
    const std::vector<int32_t> cu = bounds(rows);
    const int64_t pitch = c_.size + 3;
    Array<T> k({cu.back() + 1, c_.kv_heads * c_.size + 5});
    Array<T> v({cu.back() + 1, c_.kv_heads, c_.size});
    for (size_t b = 0; b < rows.size(); ++b) {
      for (int64_t i = 0; i < rows[b]; ++i) {
        const int64_t position = lengths[b] - rows[b] + i;
        for (int64_t h = 0; h < c_.kv_heads; ++h) {
          std::copy_n(keys_[b].data() + (position * c_.kv_heads + h) * pitch, c_.size,
                      k.data() + (cu[b] + i) * (c_.kv_heads * c_.size + 5) + h * c_.size);
        }
        std::copy_n(values_[b].data() + position * c_.kv_heads * c_.size, c_.kv_heads * c_.size,
                    v.data() + (cu[b] + i) * c_.kv_heads * c_.size);
      }
    }
    View vk = v.view(), vv = v.view();
    vk.data = k.data(), vk.stride[0] = c_.kv_heads * c_.size + 5;
    vk.shape[0] = vv.shape[0] = cu.back();
    with_cache(lengths, rows, [&](const balora_kv_cache& cache, const View& cu_rows) {
      REQUIRE(cache_append_kernel(ctx,
                                  {.k = &vk, .v = &vv, .cu_rows = &cu_rows, .cache = &cache}) == 0);
    });
  }

  void define_row(size_t b, int64_t row, int64_t h, std::vector<double>& out) const {
    const int64_t length = c_.lengths[b], t = length - c_.rows[b] + row;
    const int64_t last = c_.causal ? t + 1 : length;
    const int64_t first = c_.window ? std::max<int64_t>(0, last - c_.window) : 0;
    const int64_t kv = h / (c_.heads / c_.kv_heads);
    std::vector<double> p(static_cast<size_t>(length), 0);
    double highest = c_.sinks ? sinks_[h] : -INFINITY, total = 0;
    for (int64_t j = first; j < last; ++j) {
      double score = 0;
      for (int64_t d = 0; d < c_.size; ++d) {
        score += queries_[b][(row * c_.heads + h) * c_.size + d] *
                 keys_[b][(j * c_.kv_heads + kv) * (c_.size + 3) + d];
      }
      score *= scale();
      if (c_.softcap > 0) score = c_.softcap * std::tanh(score / c_.softcap);
      if (c_.bias) score += bias_[(t - j) * c_.heads + h];
      highest = std::max(highest, p[static_cast<size_t>(j)] = score);
    }
    for (int64_t j = first; j < last; ++j) {
      double& weight = p[static_cast<size_t>(j)];
      total += weight = std::exp(weight - highest);
    }
    if (c_.sinks) total += std::exp(sinks_[h] - highest);
    for (int64_t d = 0; d < c_.size; ++d) {
      double sum = 0;
      for (int64_t j = first; j < last; ++j) {
        sum += p[static_cast<size_t>(j)] * values_[b][(j * c_.kv_heads + kv) * c_.size + d];
      }
      out.push_back(last > first ? sum / total : 0);
    }
  }

  Case c_;
  std::mt19937 random_;
  int64_t padded_, width_ = 1;
  Array<T> bias_;
  Array<Acc<T>> sinks_;
  std::vector<Array<T>> keys_, values_, queries_, chunks_;
  std::vector<int32_t> tables_;
};

std::vector<Case> cases() {
  return {
      {{1}, {1}, 1, 1, 1},
      {{7}, {3}, 3, 1, 5},
      {{31, 32, 33}, {1, 1, 1}, 6, 2, 16},
      {{64, 100, 200}, {1, 1, 4}, 9, 3, 64},
      {{256, 257, 300}, {1, 1, 1}, 4, 1, 33},
      {{700}, {1}, 7, 1, 8},
      {{1000, 30}, {2, 1}, 10, 2, 31},
      {{200, 40}, {1, 3}, 2, 2, 96},
      {{40, 300, 20}, {1, 2, 0}, 3, 1, 24, 10},
      {{600, 90}, {1, 1}, 4, 2, 40, 257},
      {{300}, {40}, 2, 1, 12, 33},
      {{90, 290}, {2, 1}, 4, 2, 32, 0, 3.0},
      {{270, 5}, {3, 5}, 3, 3, 17, 0, 0, true},
      {{120, 300, 0}, {2, 5, 1}, 4, 4, 20, 0, 0, false, false},
      {{31, 700, 257}, {1, 2, 4}, 10, 2, 33, 0, 0, false, true, true},
      {{600, 90}, {1, 1}, 4, 2, 40, 257, 3.0, false, true, true},
      {{120, 300, 0}, {2, 5, 1}, 3, 1, 20, 0, 0, false, false, true},
      {{270, 5}, {3, 5}, 3, 3, 17, 0, 0, true, true, true},
  };
}

TEST_CASE_TEMPLATE("attention to a cache agrees with its definition", T, float, bf16, f16, double) {
  for (const Case& c : cases()) {
    CAPTURE(c.size);
    CAPTURE(c.lengths[0]);
    Setup<T> setup(c);
    const double tolerance = std::is_same_v<T, double>  ? 1e-13
                             : std::is_same_v<T, float> ? 2e-6
                                                        : 1.1 * epsilon_of<T>();
    check_close(setup.run(), setup.definition(), tolerance);
  }
}

template <typename T>
bool same_bits(const Array<T>& a, int64_t from, const Array<T>& b, int64_t at, int64_t count) {
  return std::memcmp(a.data() + from, b.data() + at, static_cast<size_t>(count) * sizeof(T)) == 0;
}

TEST_CASE_TEMPLATE(
    "attention to a cache: a row gets the same bits alone, in a batch, for any number of threads",
    T, float, bf16) {
  for (const Case& c : cases()) {
    if (!c.causal || c.bias) continue;
    CAPTURE(c.size);
    Setup<T> setup(c);
    const Array<T> together = setup.run();
    for (const int threads : {1, 3, 7}) {
      const Array<T> again = setup.run(threads);
      CHECK(same_bits(again, 0, together, 0, together.size()));
    }
    int64_t at = 0;
    for (size_t b = 0; b < c.lengths.size(); ++b) {
      Case one = c;
      one.lengths.assign(1, c.lengths[b]), one.rows.assign(1, c.rows[b]);
      Setup<T> alone(one, 77);
      const Array<T> out = alone.run();
      CHECK(same_bits(out, 0, together, at, out.size()));
      at += out.size();
    }
  }
}

TEST_CASE("what does not fit together is refused by what it is") {
  const Case c{{40, 70}, {1, 2}, 2, 1, 8};
  TestContext ctx;
  std::mt19937 random(1);
  Array<float> q({3, 2, 8}, random), k({3, 1, 8}, random), out({3, 2, 8});
  View vq = q.view(), vk = k.view(), vout = out.view();
  const auto attend = [&](const std::vector<int32_t>& lengths, const std::vector<int32_t>& rows,
                          Setup<float>& setup, int64_t window = 0) {
    setup.with_cache(lengths, rows, [&](const balora_kv_cache& cache, const View& cu_rows) {
      cached_attention_kernel(ctx, {.q = &vq,
                                    .cu_rows = &cu_rows,
                                    .cache = &cache,
                                    .out = &vout,
                                    .scale = 1,
                                    .window = window,
                                    .causal = 1});
    });
  };
  Setup<float> setup(c);
  CHECK_THROWS_WITH_AS(attend({40, 70}, {1, 1}, setup),
                       "cu_seqlens must rise from 0 to the 3 rows, got 0 to 2", ArgumentError);
  CHECK_THROWS_WITH_AS(attend({40, 1}, {1, 2}, setup),
                       "2 rows of sequence 1 are more than its 1 positions", ArgumentError);
  CHECK_THROWS_WITH_AS(attend({40, 97}, {1, 2}, setup),
                       "sequence 1 of 97 positions needs more than its 3 blocks", ArgumentError);
  setup.tables()[1] = 9;
  CHECK_THROWS_WITH_AS(attend({40, 70}, {1, 2}, setup),
                       "block 9 of sequence 0 is not one of the cache's 9", ArgumentError);
  setup.tables()[1] = -1;
  CHECK_THROWS_WITH_AS(
      setup.with_cache({40, 70}, {1, 2},
                       [&](const balora_kv_cache& cache, const View& cu_rows) {
                         cache_append_kernel(
                             ctx, {.k = &vk, .v = &vk, .cu_rows = &cu_rows, .cache = &cache});
                       }),
      "block -1 of sequence 0 is not one of the cache's 9", ArgumentError);
  const Case windowed{{100}, {3}, 2, 1, 8, 10};
  Setup<float> narrow(windowed);
  CHECK_THROWS_WITH_AS(attend({100}, {3}, narrow, 90),
                       "position 8 of sequence 0 is seen, but no longer kept", ArgumentError);
}

}  // namespace
