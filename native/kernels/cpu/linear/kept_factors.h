// Data that kernels derive from the factors of low-rank parts (packed tiles, wide matrices), kept
// in text generation for products of few rows: each token asks for the same factors, and to make it
// takes as long as such a product. It stays in a slot of the factor's storage and is used while
// every factor that it was made of has the same values.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/cpu/linear/low_rank_updates.h"

namespace balora {

// Rows up to which it is worth its memory.
constexpr int64_t kFewRows = 64;

// Whether a product of m rows keeps it. by_rows: no row depends on the others, as in text
// generation. In training factors have new values in each step, and what is made of them may take
// more memory than the adapter: tiles have 32 columns for a rank of 2.
inline bool keeps_factors(bool by_rows, int64_t m) {
  return by_rows && m <= kFewRows;
}

// The values of a factor: equal for equal values. `storage` belongs to one storage as long as
// anybody holds it.
struct FactorValues {
  std::shared_ptr<const char> storage;
  int64_t version = 0;

  bool operator==(const FactorValues&) const = default;
};

// Origin of a matrix: factors in their order, how, and to which size.
struct KeptKey {
  struct Part {
    FactorValues now, start;
    double scale = 1;  // of B, which alone is scaled, and takes fewer columns for a change
    bool is_change = false;
    int64_t linear = 0;  // of a matrix of several linears, the index of the part's

    bool operator==(const Part&) const = default;
  };
  enum class Form { kTileRows, kTileColumns, kWideRows, kWideColumns };

  std::vector<Part> parts;
  Form form = Form::kTileRows;
  int64_t extent = 0;    // of the factors' other side
  bool is_known = true;  // else the version of some factor is unknown, and nothing is kept

  void add(const LowRankUpdate& update, Side side, int64_t linear = 0);
  bool operator==(const KeptKey&) const = default;
};

// The matrix with this key, made by `make` in `bytes` of memory aligned to 64 unless the storage of
// `owner`, one of its factors, keeps it. Null where it cannot be kept, or the storage keeps another
// one of the same values: a call may use both.
const void* kept_matrix(Context* ctx, const View& owner, const KeptKey& key, int64_t bytes,
                        const std::function<void(void*)>& make);

// Frees what a factor's storage keeps of values that it no longer has.
void drop_stale(Context* ctx, const View& factor);

}  // namespace balora
