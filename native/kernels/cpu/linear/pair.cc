// pair.h: what stands where in a packed matrix, and which ones are kept.
#include "kernels/cpu/linear/pair.h"

#include <algorithm>
#include <memory>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/rows.h"
#include "platform/platform.h"

namespace balora {
namespace {

// R columns or rows of a part: its factor, of which tiles have the upper or the lower half, or
// where that began, or how far it is from there.
enum class Value { kNow, kLow, kStart, kChange };

std::span<const Value> rows_of(const LowRankOperands& part, bool in_tiles) {
  static constexpr Value kExact[] = {Value::kNow, Value::kNow, Value::kLow};
  static constexpr Value kSinceStart[] = {Value::kChange, Value::kStart};
  static constexpr Value kOnce[] = {Value::kNow};
  if (part.start_a) return kSinceStart;
  return in_tiles && !is_change(part) ? std::span<const Value>(kExact) : kOnce;
}

// In tiles always two, whose sum is u.
std::span<const Value> columns_of(const LowRankOperands& part, bool in_tiles) {
  static constexpr Value kHalves[] = {Value::kNow, Value::kLow};
  static constexpr Value kSum[] = {Value::kStart, Value::kChange};
  static constexpr Value kSinceStart[] = {Value::kNow, Value::kChange};
  static constexpr Value kOnce[] = {Value::kNow};
  if (in_tiles) return part.start_a ? kSum : kHalves;
  return part.start_a ? std::span<const Value>(kSinceStart) : kOnce;
}

// A factor, less where it began if that is given.
struct Values {
  const View *factor, *minus;

  Values(const LowRankOperands& part, Side side, Value value) {
    const View* const start = side == Side::kA ? part.start_a : part.start_b;
    factor = value == Value::kStart ? start : &factor_of(part, side);
    minus = value == Value::kChange ? start : nullptr;
  }
};

FactorLine line_of(const LowRankOperands& part, Side side, Value value, int64_t r, float scale) {
  const Values values(part, side, value);
  const int64_t stride = side == Side::kA ? 1 : values.factor->shape[1];
  const int64_t first = side == Side::kA ? r * values.factor->shape[1] : r;
  return {data_of<float>(values.factor) + first, stride, scale,
          value == Value::kLow ? Half::kLow : Half::kHigh,
          values.minus ? data_of<float>(values.minus) + first : nullptr};
}

// `count` scaled values from the element `first` on.
template <typename E>
void copy_scaled(const Values& values, int64_t first, E scale, int64_t count, E* to) {
  const E* const from = data_of<E>(values.factor) + first;
  const E* const minus = values.minus ? data_of<E>(values.minus) + first : nullptr;
  for (int64_t j = 0; j < count; ++j) to[j] = scale * (minus ? from[j] - minus[j] : from[j]);
}

// R rows of A from a column on, or R columns of s B (extent,ld).
template <typename E>
void write_values(Context* ctx, const LowRankOperands& part, const KeptForm& form, Value value,
                  int64_t column, int64_t ld, E* to) {
  const Values values(part, form.side, value);
  const int64_t rank = rank_of(part), extent = form.extent;
  if (form.side == Side::kA) {
    parallel_for(ctx, rank, 16, [&](int64_t begin, int64_t end) {
      copy_scaled<E>(values, begin * extent, E(1), (end - begin) * extent,
                     to + (column + begin) * extent);
    });
    return;
  }
  parallel_for(ctx, extent, 512, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      copy_scaled<E>(values, o * rank, static_cast<E>(part.scale), rank, to + o * ld + column);
    }
  });
}

// The values of a factor: equal for equal values. `storage` belongs to one storage as long as
// anybody holds it.
struct FactorValues {
  std::shared_ptr<const char> storage;
  int64_t version = 0;

  bool operator==(const FactorValues&) const = default;
};

// Origin of a matrix: factors in their order, and what was made of them.
struct KeptKey {
  struct Part {
    FactorValues now, start;
    int64_t rank;  // views of one storage may have several
    double scale;
    int32_t form;

    bool operator==(const Part&) const = default;
  };
  std::vector<Part> parts;
  KeptForm form{};

  bool operator==(const KeptKey&) const = default;
};

// The content of a slot.
struct Kept {
  std::shared_ptr<const char> storage = std::make_shared<const char>();
  KeptKey key;
  platform::AlignedMemory matrix;
};

// The content of a factor's slot, made at the first call; null for a factor without a slot.
Kept* kept_of(const View& factor) {
  if (!factor.versioned || !view_contiguous(factor)) return nullptr;
  balora_slot& slot = *factor.versioned;
  if (!slot.data) {
    slot.data = new Kept;
    slot.destroy = [](void* data) { delete static_cast<Kept*>(data); };
  }
  return static_cast<Kept*>(slot.data);
}

FactorValues values_of(const View& factor) {
  const Kept* const kept = kept_of(factor);
  return kept ? FactorValues{kept->storage, factor.version} : FactorValues{};
}

void account(Context* ctx, balora_slot& slot, int64_t bytes) {
  if (ctx->account) ctx->account(ctx, bytes - slot.bytes);
  slot.bytes = bytes;
}

// Frees what a factor's storage keeps of values that it no longer has.
void drop_stale(Context* ctx, const View& factor) {
  if (!factor.versioned || !factor.versioned->data) return;
  Kept& kept = *static_cast<Kept*>(factor.versioned->data);
  if (!kept.matrix) return;
  for (const KeptKey::Part& part : kept.key.parts) {
    if (part.now.storage == kept.storage && part.now.version == factor.version) return;
    if (part.start.storage == kept.storage && part.start.version == factor.version) return;
  }
  kept.matrix.reset();
  kept.key = {};
  account(ctx, *factor.versioned, 0);
}

// The key of a matrix of places; without parts where the values of some factor are unknown.
KeptKey key_of(PackedPairs::Places places, const KeptForm& form) {
  KeptKey key{.parts = {}, .form = form};
  for (const PackedPairs::Place& place : places) {
    const LowRankOperands& part = *place.part;
    const View* const start = form.side == Side::kA ? part.start_a : part.start_b;
    const bool scaled = form.side == Side::kB;  // A serves all scales
    KeptKey::Part own{.now = values_of(factor_of(part, form.side)),
                      .start = start ? values_of(*start) : FactorValues{},
                      .rank = rank_of(part),
                      .scale = scaled ? part.scale : 1,
                      .form = part.form};
    if (!own.now.storage || (start && !own.start.storage)) return {};
    key.parts.push_back(std::move(own));
  }
  return key;
}

// The matrix with this key in the slot of `owner`, one of its factors, made there unless it is.
// Null where the slot has another one of the same values: a call may use both.
const void* kept_matrix(Context* ctx, const View& owner, KeptKey key, int64_t bytes,
                        const std::function<void(void*)>& make) {
  Kept& kept = *kept_of(owner);
  if (kept.matrix && kept.key == key) return kept.matrix.get();
  drop_stale(ctx, owner);
  if (kept.matrix) return nullptr;
  platform::AlignedMemory matrix = platform::allocate_aligned(static_cast<uint64_t>(bytes));
  make(matrix.get());
  kept.matrix = std::move(matrix);
  kept.key = std::move(key);
  account(ctx, *owner.versioned,
          static_cast<int64_t>(platform::aligned_bytes(static_cast<uint64_t>(bytes))));
  return kept.matrix.get();
}

}  // namespace

void PackedPairs::add(const LowRankOperands& part, int64_t linear, float* du) {
  if (rank_of(part) == 0) return;
  places_.push_back({&part, width(places_), linear, du});
}

PackedPairs::Places PackedPairs::of(int64_t linear) const {
  const auto [first, last] = std::ranges::equal_range(places_, linear, std::less{}, &Place::linear);
  return {first, last};
}

int64_t PackedPairs::width(Places places) const {
  if (places.empty()) return 0;
  const Place& last = places.back();
  const auto blocks = static_cast<int64_t>(rows_of(*last.part, in_tiles()).size());
  return last.first + blocks * rank_of(*last.part) - places.front().first;
}

const void* PackedPairs::kept_or_made(Places places, const KeptForm& form, int64_t bytes,
                                      const std::function<void(void*)>& make) {
  if (keeps_) {
    KeptKey key = key_of(places, form);
    const View& owner = factor_of(*places[0].part, form.side);
    const void* const kept =
        key.parts.empty() ? nullptr : kept_matrix(ctx_, owner, std::move(key), bytes, make);
    if (kept) return kept;
  } else {
    for (const Place& place : places) drop_stale(ctx_, factor_of(*place.part, form.side));
  }
  void* const made = take(bytes);
  make(made);
  return made;
}

const void* PackedPairs::matrix(Places places, const KeptForm& form) {
  const int64_t columns = width(places), first = places[0].first;
  const auto make = [&](void* to) {
    for (const Place& place : places) {
      int64_t column = place.first - first;
      const auto values = form.columns ? columns_of : rows_of;
      for (const Value value : values(*place.part, false)) {
        if (dtype_ == BALORA_F64) {
          write_values(ctx_, *place.part, form, value, column, columns, static_cast<double*>(to));
        } else {
          write_values(ctx_, *place.part, form, value, column, columns, static_cast<float*>(to));
        }
        column += rank_of(*place.part);
      }
    }
  };
  return kept_or_made(places, form, columns * form.extent * element_size(dtype_), make);
}

const void* PackedPairs::rows(Places places, Side side, int64_t extent) {
  const KeptForm form = {side, false, dtype_, extent};
  if (!in_tiles()) return matrix(places, form);
  const auto make = [&](void* to) {
    std::vector<FactorLine> lines;
    for (const Place& place : places) {
      const auto scale = side == Side::kB ? static_cast<float>(place.part->scale) : 1.0f;
      for (const Value value : rows_of(*place.part, true)) {
        for (int64_t r = 0; r < rank_of(*place.part); ++r) {
          lines.push_back(line_of(*place.part, side, value, r, scale));
        }
      }
    }
    pack_factor_rows(ctx_, lines, extent, static_cast<bf16*>(to));
  };
  const int64_t elements = tiles_size(width(places), extent);
  return kept_or_made(places, form, elements * element_size(dtype_), make);
}

const void* PackedPairs::columns(Places places, Side side, int64_t extent) {
  const KeptForm form = {side, true, dtype_, extent};
  if (!in_tiles()) return matrix(places, form);
  const auto make = [&](void* to) {
    std::vector<FactorLine> lines;
    for (const Place& place : places) {
      const LowRankOperands& part = *place.part;
      for (int64_t begin = 0; begin < rank_of(part); begin += kRankTile) {
        for (const Value value : columns_of(part, true)) {
          for (int64_t r = begin; r < begin + kRankTile; ++r) {
            lines.push_back(r < rank_of(part) ? line_of(part, side, value, r, 1) : FactorLine{});
          }
        }
      }
    }
    pack_factor_columns(ctx_, lines, extent, static_cast<bf16*>(to));
  };
  int64_t columns = 0;
  for (const Place& place : places) columns += 2 * round_up(rank_of(*place.part), kRankTile);
  return kept_or_made(places, form, tiles_size(extent, columns) * element_size(dtype_), make);
}

TileTerm PackedPairs::segment(int64_t m, const void* rows) {
  const int64_t used = width(places_), ld = k(), padded = round_up(m, kPanelRows);
  a_ = static_cast<bf16*>(take(padded * ld * element_size(dtype_)));
  // Columns that no part fills meet zeros, but must not be NaN.
  if (used < ld) {
    parallel_for(ctx_, padded, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        std::fill(a_ + i * ld + used, a_ + (i + 1) * ld, bf16{0});
    });
  }
  return {.a = a_,
          .lda = ld,
          .k = ld,
          .tiles = static_cast<const bf16*>(rows),
          .padded_rows = true,
          .used = used};
}

TileFactor PackedPairs::projection(const Place& place, float scale, float* u,
                                   const void* columns) const {
  const LowRankOperands& part = *place.part;
  const FactorForm form = part.start_a      ? FactorForm::kChange
                          : is_change(part) ? FactorForm::kOnce
                                            : FactorForm::kHalves;
  return {.rank = rank_of(part),
          .scale = scale,
          .form = form,
          .tiles = static_cast<const bf16*>(columns),
          .u = u,
          .columns = a_ ? a_ + place.first : nullptr,
          .ld = k()};
}

}  // namespace balora
