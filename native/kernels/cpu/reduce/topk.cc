// The K largest of each row in descending order, with their columns; equal values in the order of
// their columns, a NaN above every number. Small K keeps a sorted list and looks at a candidate
// only when it beats the list's last; large K sorts.
#include <algorithm>
#include <numeric>
#include <span>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {
namespace {

constexpr int64_t kInsertionLimit = 64;

template <typename A>
bool above(A a, A b) {
  return a > b || (a != a && b == b);
}

template <typename A>
struct Entry {
  A value;
  int32_t column;
};

template <typename T>
void small_k(const T* row, int64_t columns, std::span<Entry<Acc<T>>> best) {
  using A = Acc<T>;
  size_t held = 0;
  for (int64_t c = 0; c < columns; ++c) {
    const A value = load(row[c]);
    if (held == best.size() && !above(value, best[held - 1].value)) continue;
    size_t at = held < best.size() ? held++ : held - 1;
    for (; at > 0 && above(value, best[at - 1].value); --at) best[at] = best[at - 1];
    best[at] = {value, static_cast<int32_t>(c)};
  }
}

// `order`: room for a number of each column.
template <typename T>
void large_k(const T* row, std::span<int32_t> order, std::span<Entry<Acc<T>>> best) {
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(best.size()), order.end(),
                    [row](int32_t i, int32_t j) {
                      const Acc<T> a = load(row[i]), b = load(row[j]);
                      return above(a, b) || (!above(b, a) && i < j);
                    });
  for (size_t k = 0; k < best.size(); ++k) best[k] = {load(row[order[k]]), order[k]};
}

}  // namespace

int32_t topk_kernel(Context* ctx, const balora_topk& o) {
  const int64_t rows = o.x->shape[0], width = o.x->shape[1], count = o.values->shape[1];
  if (count == 0) return 0;
  dispatch_float(o.x->dtype, [&]<typename T>() {
    const int64_t grain = grain_of(1 << 14, width);
    const int64_t threads = parallel_width(ctx, rows, grain);
    const bool small = count <= kInsertionLimit;
    auto* const all_best = workspace<Entry<Acc<T>>>(ctx, threads * count);
    auto* const all_orders = small ? nullptr : workspace<int32_t>(ctx, threads * width);
    share_out(ctx, rows, grain, [&](int64_t begin, int64_t end, int self) {
      const std::span best(all_best + self * count, static_cast<size_t>(count));
      for (int64_t n = begin; n < end; ++n) {
        const T* row = data_of<T>(o.x) + n * width;
        if (small) {
          small_k<T>(row, width, best);
        } else {
          large_k<T>(row, {all_orders + self * width, static_cast<size_t>(width)}, best);
        }
        for (int64_t k = 0; k < count; ++k) {
          const Entry<Acc<T>>& entry = best[static_cast<size_t>(k)];
          data_of<T>(o.values)[n * count + k] = store<T>(entry.value);
          data_of<int32_t>(o.columns)[n * count + k] = entry.column;
        }
      }
    });
  });
  return 0;
}

}  // namespace balora
