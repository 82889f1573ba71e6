#include "kernels/cpu/linear/low_rank_segment.h"

#include <algorithm>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

// A factor rank by rank: element i of rank r at data[r * rank_stride + i * stride].
struct Lines {
  const float* data;
  int64_t rank_stride, stride;

  // B's rows or A's columns, rank by rank.
  Lines(const View& factor, Side side)
      : data(data_of<float>(&factor)),
        rank_stride(side == Side::kA ? factor.shape[1] : 1),
        stride(side == Side::kA ? 1 : factor.shape[1]) {}
  const float* at(int64_t r) const { return data + r * rank_stride; }
};

// Contents of a line for a rank: halves of a part alone; of a pair, where it began or how far it is
// from there.
enum class Value { kHigh, kLow, kStart, kChange };

FactorLine line_of(const LowRankUpdate& update, Side side, Value value, int64_t r, float scale) {
  const Lines now(update.factor(side), side);
  const Half half = value == Value::kLow ? Half::kLow : Half::kHigh;
  if (value == Value::kHigh || value == Value::kLow) return {now.at(r), now.stride, scale, half};
  const Lines start(*update.start(side), side);
  if (value == Value::kStart) return {start.at(r), start.stride, scale};
  return {now.at(r), now.stride, scale, half, start.at(r)};
}

// The rows of B that meet FactorForm's columns of A, block by block of R.
std::span<const Value> row_values(const LowRankUpdate& update) {
  static constexpr Value kAlone[] = {Value::kHigh, Value::kHigh, Value::kLow};
  static constexpr Value kPair[] = {Value::kChange, Value::kStart};
  static constexpr Value kIsChange[] = {Value::kHigh};
  if (update.has_start()) return kPair;
  if (update.is_change()) return kIsChange;
  return kAlone;
}

}  // namespace

void KSegment::pack_rows(Context* ctx, bf16* to, int64_t n, Side side, bool scaled) const {
  std::vector<FactorLine> rows;
  for (const Place& place : places_) {
    const auto scale = scaled ? static_cast<float>(place.update.scale) : 1.0f;
    for (const Value value : row_values(place.update)) {
      for (int64_t r = 0; r < place.update.rank(); ++r) {
        rows.push_back(line_of(place.update, side, value, r, scale));
      }
    }
  }
  pack_factor_rows(ctx, rows, n, to);
}

void KSegment::use(Context* ctx, bf16* a, const bf16* b, int64_t m) {
  a_ = a, b_ = b;
  const int64_t used = used_, width = k();
  if (used == width) return;
  parallel_for(ctx, round_up(m, kPanelRows), 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::fill(a + i * width + used, a + (i + 1) * width, bf16{0});
  });
}

TileFactor KSegment::factor(const Place& place, float scale, float* u, const bf16* tiles) const {
  const FactorForm form = place.update.has_start()   ? FactorForm::kChange
                          : place.update.is_change() ? FactorForm::kOnce
                                                     : FactorForm::kHalves;
  return {.rank = place.update.rank(),
          .scale = scale,
          .form = form,
          .tiles = tiles,
          .u = u,
          .columns = a_ ? a_ + place.first : nullptr,
          .ld = k()};
}

void add_columns(const LowRankUpdate& update, Side side, std::vector<FactorLine>& columns) {
  const Value first = update.has_start() ? Value::kStart : Value::kHigh;
  const Value second = update.has_start() ? Value::kChange : Value::kLow;
  for (int64_t begin = 0; begin < update.rank(); begin += kRankTile) {
    for (const Value value : {first, second}) {
      for (int64_t r = begin; r < begin + kRankTile; ++r) {
        columns.push_back(r < update.rank() ? line_of(update, side, value, r, 1) : FactorLine{});
      }
    }
  }
}

}  // namespace balora
