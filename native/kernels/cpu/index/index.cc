// Reads and writes through an index: rows of a table (embedding, selected rows) and gather along
// the middle of (A,R,C). Indices are i32 or i64 and are checked here, because only the device sees
// them. Scatters add in a fixed order: threads own columns, never positions, so repeated indices
// need no atomics and repeat bit for bit.
#include <cstring>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/products/encoded.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/workspace.h"
#include "kernels/shared/messages.h"
#include "kernels/shared/rows.h"

namespace balora {
namespace {

constexpr int64_t kCopyGrain = 1 << 14;  // elements
constexpr int64_t kColumnGrain = 64;     // a few cache lines, so that threads do not share one

// The indices widened to i64, each within [0, limit).
std::vector<int64_t> checked_indices(const View* ids, int64_t limit) {
  const int64_t n = view_numel(*ids);
  std::vector<int64_t> out(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t id =
        ids->dtype == BALORA_I32 ? data_of<int32_t>(ids)[i] : data_of<int64_t>(ids)[i];
    if (id < 0 || id >= limit) {
      throw ArgumentError(messages::index_out_of_range(id, i, limit));
    }
    out[static_cast<size_t>(i)] = id;
  }
  return out;
}

// dx[ids[n]] += dy[n], for columns [first, last) of every row.
template <typename T>
BALORA_INLINE void scatter_columns(const T* dy, Acc<T>* dx, const std::vector<int64_t>& ids,
                                   int64_t columns, int64_t first, int64_t last) {
  for (const int64_t id : ids) {
    Acc<T>* to = dx + id * columns;
#pragma omp simd
    for (int64_t c = first; c < last; ++c) to[c] += load(dy[c]);
    dy += columns;
  }
}

// Runs scatter(accumulator array of x's size) straight into x where x is as wide as the
// accumulator, otherwise into scratch that is then rounded to x. Either is zeroed first.
template <typename T, typename Scatter>
void accumulate_wide(Context* ctx, const View* x, const Scatter& scatter) {
  using A = Acc<T>;
  const int64_t n = view_numel(*x);
  A* wide = nullptr;
  if constexpr (std::is_same_v<T, A>) {
    wide = data_of<T>(x);
  } else {
    wide = workspace<A>(ctx, n);
  }
  parallel_for(ctx, n, kCopyGrain, [&](int64_t begin, int64_t end) {
    std::memset(wide + begin, 0, static_cast<size_t>(end - begin) * sizeof(A));
  });
  scatter(wide);
  if constexpr (!std::is_same_v<T, A>) {
    parallel_for(ctx, n, kCopyGrain, [&](int64_t begin, int64_t end) {
      convert_row(wide + begin, data_of<T>(x) + begin, end - begin);
    });
  }
}

}  // namespace

int32_t select_rows_kernel(Context* ctx, const balora_select_rows& o) {
  const int64_t columns = o.table->shape[1];
  const std::vector<int64_t> rows = checked_indices(o.ids, o.table->shape[0]);
  const auto row_bytes = static_cast<size_t>(columns * element_size(o.table->dtype));
  const char* source = data_of<char>(o.table);
  char* out = data_of<char>(o.y);
  if (row_bytes == 0) return 0;
  const int64_t grain = grain_of(kCopyGrain, columns);
  parallel_for(ctx, static_cast<int64_t>(rows.size()), grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      if (o.table->encoding) {
        dispatch_float(o.table->dtype, [&]<typename T>() {
          decode_values(*o.table, rows[static_cast<size_t>(n)] * columns, columns,
                        data_of<T>(o.y) + n * columns);
        });
        continue;
      }
      std::memcpy(out + static_cast<size_t>(n) * row_bytes,
                  source + static_cast<size_t>(rows[static_cast<size_t>(n)]) * row_bytes,
                  row_bytes);
    }
  });
  return 0;
}

int32_t select_rows_backward_kernel(Context* ctx, const balora_select_rows_backward& o) {
  const int64_t columns = o.dx->shape[1];
  const std::vector<int64_t> rows = checked_indices(o.ids, o.dx->shape[0]);
  dispatch_float(o.dy->dtype, [&]<typename S>() {
    using A = Acc<S>;
    const auto scatter = [&](A* wide) {
      parallel_for(ctx, columns, kColumnGrain, [&](int64_t first, int64_t last) {
        at_level<&scatter_columns<S>>(data_of<S>(o.dy), wide, rows, columns, first, last);
      });
    };
    if (o.dx->dtype == o.dy->dtype) {
      accumulate_wide<S>(ctx, o.dx, scatter);
    } else {
      accumulate_wide<A>(ctx, o.dx, scatter);
    }
  });
  return 0;
}

// Position (a, k, c) of an (A,K,C) index names position (a, index, c) of (A,R,C).
int32_t gather_kernel(Context* ctx, const balora_gather& o) {
  const int64_t outer = o.x->shape[0], length = o.index->shape[1];
  const int64_t rows = o.x->shape[1], inner = o.x->shape[2];
  const std::vector<int64_t> ids = checked_indices(o.index, rows);
  dispatch_any(o.x->dtype, [&]<typename T>() {
    const T* source = data_of<T>(o.x);
    T* out = data_of<T>(o.y);
    const int64_t grain = grain_of(kCopyGrain, inner);
    parallel_for(ctx, outer * length, grain, [&](int64_t begin, int64_t end) {
      for (int64_t ak = begin; ak < end; ++ak) {
        const T* slab = source + ak / length * rows * inner;
        for (int64_t c = 0; c < inner; ++c) {
          out[ak * inner + c] = slab[ids[static_cast<size_t>(ak * inner + c)] * inner + c];
        }
      }
    });
  });
  return 0;
}

int32_t scatter_add_kernel(Context* ctx, const balora_scatter_add& o) {
  const int64_t outer = o.y->shape[0], length = o.index->shape[1];
  const int64_t rows = o.y->shape[1], inner = o.y->shape[2];
  const std::vector<int64_t> ids = checked_indices(o.index, rows);
  dispatch_float(o.y->dtype, [&]<typename T>() {
    const T* from = data_of<T>(o.source);
    accumulate_wide<T>(ctx, o.y, [&](Acc<T>* wide) {
      parallel_for(ctx, outer * inner, kColumnGrain, [&](int64_t begin, int64_t end) {
        for (int64_t ac = begin; ac < end; ++ac) {
          const int64_t a = ac / inner, c = ac % inner;
          Acc<T>* column = wide + a * rows * inner + c;
          if (o.base) {
            const T* start = data_of<T>(o.base) + a * rows * inner + c;
            for (int64_t r = 0; r < rows; ++r) column[r * inner] = load(start[r * inner]);
          }
          for (int64_t k = 0; k < length; ++k) {
            const int64_t at = (a * length + k) * inner + c;
            column[ids[static_cast<size_t>(at)] * inner] += load(from[at]);
          }
        }
      });
    });
  });
  return 0;
}

}  // namespace balora
