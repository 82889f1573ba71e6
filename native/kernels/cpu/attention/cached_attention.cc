// Attention of a few rows to the cached keys and values of their sequences. An item of work is one
// row, one kv head with up to four of the heads that share it, and one part of the keys: kPart
// positions from a multiple of it on. Its scores stand in scratch, so the softmax of a part needs
// no running maximum; what the parts of a row have found is joined in their order. Every sum thus
// has an order that depends on the row's own sequence alone: not on the batch, nor on the threads.
//
// 2 D (H / Hkv) multiplications a key and kv head for 4 D bytes of bf16: two loads for as many
// products as heads share them, all in registers.
#include <cmath>
#include <limits>

#include "kernels/cpu/attention/kv_cache.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/stop.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/cpu/runtime/wide.h"
#include "kernels/cpu/runtime/workspace.h"
#include "kernels/shared/activations.h"

namespace balora::kv_cache {
namespace {

constexpr int64_t kPart = 8 * kBlock;
constexpr int64_t kShared = 4;  // heads of an item, at most

template <typename A>
constexpr int64_t kVectors = kBlock / kWide<A>;  // of a block's positions, or of 32 channels

// One item of work.
template <typename T>
struct Item {
  using A = Acc<T>;
  const T* q;           // of the first of the heads, which lie side by side
  char* const* blocks;  // of the sequence, from block first_block on
  int64_t first_block;
  int64_t first, last;  // keys, of the sequence
  int64_t heads, size, padded;
  int64_t keys_at, values_at;  // of the kv head in a block
  int64_t position;            // of the row
  const T* bias;               // of the first of the heads, by distance; null: none
  int64_t bias_stride;
  A scale, softcap;
  A* scores;   // (kShared,kPart) scratch
  A* widened;  // (kShared,size) scratch
  A* sums;     // (heads,padded)
  A* highest;  // (heads)
  A* totals;   // (heads)

  const T* block(int64_t index) const { return reinterpret_cast<const T*>(blocks[index]); }
};

// Scores of the keys of one block, by head.
template <typename T, int G>
BALORA_INLINE void block_scores(const Item<T>& o, const T* keys, Acc<T>* scores) {
  using A = Acc<T>;
  Wide<A> sums[G][kVectors<A>];
  for (int g = 0; g < G; ++g) {
    for (int64_t i = 0; i < kVectors<A>; ++i) sums[g][i] = Wide<A>{};
  }
  for (int64_t d = 0; d < o.size; ++d) {
    Wide<A> key[kVectors<A>];
    for (int64_t i = 0; i < kVectors<A>; ++i) load_wide(keys + d * kBlock + i * kWide<A>, key[i]);
    for (int g = 0; g < G; ++g) {
      const A q = o.widened[g * o.size + d];
      for (int64_t i = 0; i < kVectors<A>; ++i) sums[g][i] += q * key[i];
    }
  }
  for (int g = 0; g < G; ++g) {
    for (int64_t i = 0; i < kVectors<A>; ++i) {
      store_wide(sums[g][i], scores + g * kPart + i * kWide<A>);
    }
  }
}

// Probabilities, up to their sum, of keys [low, high) of the scores of one head.
template <typename T>
BALORA_INLINE void softmax_part(const Item<T>& o, int64_t g, int64_t low, int64_t high,
                                Acc<T>* scores) {
  using A = Acc<T>;
  const A scale = o.scale, cap = o.softcap;
  if (cap == A(0)) {
#pragma omp simd
    for (int64_t j = low; j < high; ++j) scores[j] *= scale;
  } else {
#pragma omp simd
    for (int64_t j = low; j < high; ++j) {
      scores[j] = soft_capped<VectorMath>(scores[j] * scale, cap);
    }
  }
  if (o.bias) {
    const T* nearest = o.bias + g;
    const int64_t distance = o.position - (o.first / kPart * kPart);
    for (int64_t j = low; j < high; ++j) {
      scores[j] += load(nearest[(distance - j) * o.bias_stride]);
    }
  }
  A highest = -std::numeric_limits<A>::infinity();
#pragma omp simd reduction(max : highest)
  for (int64_t j = low; j < high; ++j) highest = scores[j] > highest ? scores[j] : highest;
  A total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t j = low; j < high; ++j) {
    scores[j] = vexp_or_zero(scores[j] - highest);
    total += scores[j];
  }
  o.highest[g] = highest;
  o.totals[g] = total;  // a NaN among the scores is one here
}

// sums (G,padded) = probabilities of keys [low, high) of a part times their values.
template <typename T, int G>
BALORA_INLINE void sum_values(const Item<T>& o, int64_t first_block, int64_t low, int64_t high) {
  using A = Acc<T>;
  for (int64_t c = 0; c < o.padded; c += kBlock) {
    Wide<A> sums[G][kVectors<A>];
    for (int g = 0; g < G; ++g) {
      for (int64_t i = 0; i < kVectors<A>; ++i) sums[g][i] = Wide<A>{};
    }
    for (int64_t j = low; j < high; ++j) {
      const T* values = o.block(first_block + j / kBlock) + o.values_at + j % kBlock * o.padded + c;
      Wide<A> value[kVectors<A>];
      for (int64_t i = 0; i < kVectors<A>; ++i) load_wide(values + i * kWide<A>, value[i]);
      for (int g = 0; g < G; ++g) {
        const A p = o.scores[g * kPart + j];
        for (int64_t i = 0; i < kVectors<A>; ++i) sums[g][i] += p * value[i];
      }
    }
    for (int g = 0; g < G; ++g) {
      for (int64_t i = 0; i < kVectors<A>; ++i) {
        store_wide(sums[g][i], o.sums + g * o.padded + c + i * kWide<A>);
      }
    }
  }
}

template <typename T, int G>
BALORA_INLINE void run_heads(const Item<T>& o) {
  const int64_t origin = o.first / kPart * kPart, low = o.first - origin, high = o.last - origin;
  const int64_t first_block = origin / kBlock - o.first_block;
  for (int64_t i = 0; i < G * o.size; ++i) o.widened[i] = load(o.q[i]);
  for (int64_t b = low / kBlock; b * kBlock < high; ++b) {
    block_scores<T, G>(o, o.block(first_block + b) + o.keys_at, o.scores + b * kBlock);
  }
  for (int g = 0; g < G; ++g) softmax_part<T>(o, g, low, high, o.scores + g * kPart);
  sum_values<T, G>(o, first_block, low, high);
}

template <typename T>
BALORA_INLINE void run_item(const Item<T>& o) {
  switch (o.heads) {
    case 1:
      return run_heads<T, 1>(o);
    case 2:
      return run_heads<T, 2>(o);
    case 3:
      return run_heads<T, 3>(o);
    default:
      return run_heads<T, kShared>(o);
  }
}

// Where the work of a call lies.
struct Work {
  const Sequence* sequence;
  int64_t row, kv_head;
  int64_t head, heads;  // of the kv head's group
  int64_t first, last;  // keys
  int64_t parts;        // of the row's keys
  int64_t slot;         // of the first of the heads among all partial results
};

struct Plan {
  std::vector<Work> work;
  std::vector<Work> rows;  // the first part of each row and heads, where there are several
  int64_t slots = 0;
};

Plan make_plan(const Layer& layer, const balora_cached_attention& o) {
  Plan plan;
  const int64_t group = o.q->shape[1] / layer.heads();
  for (const Sequence& sequence : layer.sequences()) {
    for (int64_t row = sequence.begin; row < sequence.end; ++row) {
      const int64_t position = sequence.length - sequence.end + row;
      const int64_t last = o.causal ? position + 1 : sequence.length;
      const int64_t first = o.window > 0 ? std::max<int64_t>(0, last - o.window) : 0;
      const int64_t from = first / kPart, parts = (last + kPart - 1) / kPart - from;
      for (int64_t kv_head = 0; kv_head < layer.heads(); ++kv_head) {
        for (int64_t head = 0; head < group; head += kShared) {
          const int64_t heads = std::min(kShared, group - head);
          for (int64_t part = 0; part < std::max<int64_t>(parts, 1); ++part) {
            const Work work{.sequence = &sequence,
                            .row = row,
                            .kv_head = kv_head,
                            .head = head,
                            .heads = heads,
                            .first = std::max(first, (from + part) * kPart),
                            .last = std::min(last, (from + part + 1) * kPart),
                            .parts = parts,
                            .slot = plan.slots};
            if (parts > 1) plan.slots += heads;
            plan.work.push_back(work);
            if (parts > 1 && part == 0) plan.rows.push_back(work);
          }
        }
      }
    }
  }
  return plan;
}

// Every key that a row sees must be kept, and have a bias where there are some.
void check_seen(const Layer& layer, const balora_cached_attention& o) {
  for (size_t b = 0; b < layer.sequences().size(); ++b) {
    const Sequence& sequence = layer.sequences()[b];
    const auto number = static_cast<int64_t>(b);
    if (sequence.rows() == 0) continue;
    const int64_t last = o.causal ? sequence.length - sequence.rows() + 1 : sequence.length;
    const int64_t first = o.window > 0 ? std::max<int64_t>(0, last - o.window) : 0;
    if (first < sequence.first * kBlock) {
      throw ArgumentError(messages::cache_window(number, first));
    }
    if (o.bias && sequence.length > o.bias->shape[0]) {
      throw ArgumentError(messages::cache_bias(number, sequence.length, o.bias->shape[0]));
    }
  }
}

template <typename T>
class Attention {
 public:
  using A = Acc<T>;

  Attention(Context* ctx, const Layer& layer, const balora_cached_attention& o, const Plan& plan)
      : layer_(layer), o_(o), plan_(plan), size_(o.q->shape[2]), padded_(layer.padded()) {
    // Whole cache lines, so that every thread's has the same alignment.
    scratch_elements_ =
        kShared * (kPart + (size_ + kWide<A>) / kWide<A> * kWide<A> + padded_) + 2 * kWide<A>;
    const int64_t width = std::max(ctx->num_threads, 1);
    scratch_ = workspace<A>(ctx, width * scratch_elements_);
    partial_ = workspace<A>(ctx, plan.slots * (padded_ + 2));
  }

  void run(Context* ctx) {
    const auto count = static_cast<int64_t>(plan_.work.size());
    // Products of an item; an OpenMP region costs as much as some ten thousand.
    const int64_t products = 2 * size_ * kPart;
    share_out(ctx, count, grain_of(1 << 16, products), [&](int64_t begin, int64_t end, int self) {
      for (int64_t i = begin; i < end && !is_stopped(ctx); ++i) {
        run_work(plan_.work[static_cast<size_t>(i)], scratch_ + self * scratch_elements_);
      }
    });
    const auto rows = static_cast<int64_t>(plan_.rows.size());
    parallel_for(ctx, rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) join_parts(plan_.rows[static_cast<size_t>(i)]);
    });
  }

 private:
  int64_t head_of(const Work& work) const {
    return work.kv_head * (o_.q->shape[1] / layer_.heads()) + work.head;
  }
  T* out_of(const Work& work, int64_t g) const {
    return data_of<T>(o_.out) + (work.row * o_.q->shape[1] + head_of(work) + g) * size_;
  }

  void run_work(const Work& work, A* scratch) const {
    if (work.first >= work.last) {  // no key at all
      std::fill_n(out_of(work, 0), work.heads * size_, T{});
      return;
    }
    const Sequence& sequence = *work.sequence;
    const bool whole = work.parts == 1;
    A* const sums = scratch + kShared * kPart;
    A* const ends = sums + kShared * padded_;
    A* const partial = partial_ + work.slot * (padded_ + 2);
    const int64_t head = head_of(work);
    const int64_t keys_at = work.kv_head * layer_.head_elements();
    const Item<T> item = {.q = data_of<T>(o_.q) + work.row * o_.q->stride[0] + head * size_,
                          .blocks = sequence.blocks,
                          .first_block = sequence.first,
                          .first = work.first,
                          .last = work.last,
                          .heads = work.heads,
                          .size = size_,
                          .padded = padded_,
                          .keys_at = keys_at,
                          .values_at = keys_at + layer_.values_at(),
                          .position = sequence.length - sequence.end + work.row,
                          .bias = o_.bias ? data_of<T>(o_.bias) + head : nullptr,
                          .bias_stride = o_.bias ? o_.bias->shape[1] : 0,
                          .scale = static_cast<A>(o_.scale),
                          .softcap = static_cast<A>(o_.softcap),
                          .scores = scratch,
                          .widened = ends + 2 * kWide<A>,
                          .sums = whole ? sums : partial + 2 * work.heads,
                          .highest = whole ? ends : partial,
                          .totals = whole ? ends + kWide<A> : partial + work.heads};
    at_level<&run_item<T>>(item);
    if (!whole) return;
    for (int64_t g = 0; g < work.heads; ++g) {
      const A total = ends[kWide<A> + g] + sink_share(work, g, ends[g]);
      write(sums + g * padded_, A(1) / total, out_of(work, g));
    }
  }

  // The parts of a row's heads, each relative to its own maximum; summed up in the first.
  void join_parts(const Work& work) const {
    const int64_t step = work.heads * (padded_ + 2);
    A* const parts = partial_ + work.slot * (padded_ + 2);
    for (int64_t g = 0; g < work.heads; ++g) {
      A highest = parts[g];
      for (int64_t part = 1; part < work.parts; ++part) {
        highest = std::max(highest, parts[part * step + g]);
      }
      A total = 0;
      A* const sums = parts + 2 * work.heads + g * padded_;
      for (int64_t part = 0; part < work.parts; ++part) {
        const A* const own = parts + part * step;
        const A factor = std::exp(own[g] - highest);
        total += factor * own[work.heads + g];
        const A* const from = own + 2 * work.heads + g * padded_;
        for (int64_t d = 0; d < size_; ++d) {
          sums[d] = part == 0 ? factor * sums[d] : sums[d] + factor * from[d];
        }
      }
      write(sums, A(1) / (total + sink_share(work, g, highest)), out_of(work, g));
    }
  }

  // The share of a head's sink in its sum of exponentials.
  A sink_share(const Work& work, int64_t g, A highest) const {
    return o_.sinks ? std::exp(data_of<A>(o_.sinks)[head_of(work) + g] - highest) : A(0);
  }

  void write(const A* sums, A factor, T* out) const {
    for (int64_t d = 0; d < size_; ++d) out[d] = store<T>(sums[d] * factor);
  }

  const Layer& layer_;
  const balora_cached_attention& o_;
  const Plan& plan_;
  int64_t size_, padded_, scratch_elements_;
  A *scratch_, *partial_;
};

}  // namespace
}  // namespace balora::kv_cache

namespace balora {

int32_t cached_attention_kernel(Context* ctx, const balora_cached_attention& o) {
  using namespace kv_cache;
  const Layer layer(*o.cache, o.cu_rows, o.q->shape[0], o.causal != 0);
  check_seen(layer, o);
  const Plan plan = make_plan(layer, o);
  dispatch_float(o.q->dtype, [&]<typename T>() { Attention<T>(ctx, layer, o, plan).run(ctx); });
  return 0;
}

}  // namespace balora
