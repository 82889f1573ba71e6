#include "kernels/cpu/products/int8.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/products/encoded.h"
#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/inline.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/scratch.h"
#include "kernels/cpu/runtime/workspace.h"
#include "kernels/shared/messages.h"

namespace balora {
namespace {

constexpr int kInt8Slot = 2;  // of a weight; packed_weight.h has those before
constexpr auto kZeroPoint = static_cast<uint8_t>(kInt8ZeroPoint);

int64_t whole(int64_t count, int64_t unit) {
  return (count + unit - 1) / unit * unit;
}

// ---- the format ---------------------------------------------------------------------------------

typedef float Vector16 __attribute__((vector_size(64)));

// v[i] = v[i] + v[i ^ kStep] where i has no bit kStep, v[i ^ kStep] - v[i] where it has.
template <int kStep, int... kLane>
BALORA_INLINE void cross(Vector16& v, std::integer_sequence<int, kLane...>) {
  const Vector16 sign = {(kLane & kStep ? -1.0F : 1.0F)...};
  v = __builtin_shufflevector(v, v, (kLane ^ kStep)...) + v * sign;
}

template <int kVectors>
BALORA_INLINE void rotate_all(float* v, int64_t count) {
  constexpr std::make_integer_sequence<int, 16> kLanes;
  const float factor = 1 / std::sqrt(16.0F * kVectors);
  for (float* const end = v + count; v < end; v += 16 * kVectors) {
    Vector16 x[kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      std::memcpy(&x[i], v + 16 * i, sizeof x[i]);
      cross<1>(x[i], kLanes);
      cross<2>(x[i], kLanes);
      cross<4>(x[i], kLanes);
      cross<8>(x[i], kLanes);
    }
#pragma GCC unroll 2
    for (int step = 1; step < kVectors; step *= 2) {
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        if (i & step) continue;
        const Vector16 a = x[i], b = x[i + step];
        x[i] = a + b, x[i + step] = a - b;
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      x[i] *= factor;
      std::memcpy(v + 16 * i, &x[i], sizeof x[i]);
    }
  }
}

BALORA_INLINE void multiply_by(float* v, const float* scale, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) v[i] *= scale[i];
}

// The largest magnitude; NaN if there is one.
BALORA_INLINE float largest_of(const float* v, int64_t count) {
  uint32_t largest = 0;  // the bits of magnitudes are in their order, NaNs above infinity
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(v[i]) & 0x7fffffffU;
    largest = bits > largest ? bits : largest;
  }
  return std::bit_cast<float>(largest);
}

BALORA_INLINE void write_codes(const float* v, float factor, int64_t count, uint8_t* codes) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) codes[i] = int8_code(v[i] * factor);
}

BALORA_INLINE void read_codes(const uint8_t* codes, float scale, int64_t count, float* v) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    v[i] = scale * static_cast<float>(static_cast<int32_t>(codes[i]) - kInt8ZeroPoint);
  }
}

// Quantises a vector; returns its scale.
float write_row(const float* v, int64_t count, uint8_t* codes) {
  const float largest = at_level<&largest_of>(v, count);
  if (largest >= kInt8LeastScaled && std::isfinite(largest)) {
    at_level<&write_codes>(v, kInt8LargestCode / largest, count, codes);
    return largest / kInt8LargestCode;
  }
  std::memset(codes, kZeroPoint, static_cast<size_t>(count));
  return std::isfinite(largest) ? 0 : NAN;
}

// Elements [first, first + count) of a contiguous or encoded view in f32.
void read_values(const View& view, int64_t first, int64_t count, float* to) {
  if (view.encoding) return decode_values(view, first, count, to);
  dispatch_float(view.dtype, [&]<typename T>() {
    convert_row(static_cast<const T*>(view.data) + first, to, count);
  });
}

// Calls body(row, scratch of `width` floats) for rows [0, count), by all threads.
template <typename Body>
void for_rows(Context* ctx, int64_t count, int64_t width, const Body& body) {
  const int64_t threads = std::max(ctx->num_threads, 1);
  const Scratch<float> values(ctx, threads * width);
  float* const scratch = values.data();
  parallel_for(ctx, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = count * t / threads; i < count * (t + 1) / threads; ++i) {
        body(i, scratch + t * width);
      }
    }
  });
}

// ---- packing ------------------------------------------------------------------------------------

constexpr int64_t kPackedTile = kInt8StepBytes / 2;

// A step at the edge, or of any strides, zeros around.
void pack_edge_step(const Int8Matrix& b, int64_t row, int64_t column, int8_t* to) {
  std::memset(to, 0, kInt8StepBytes);
  const int64_t rows = std::min(kInt8K, b.k - row), columns = std::min(kInt8Columns, b.n - column);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      to[j / 16 * kPackedTile + i / 4 * 64 + j % 16 * 4 + i % 4] =
          b.q[(row + i) * b.k_stride + (column + j) * b.n_stride];
    }
  }
}

typedef int8_t Codes16 __attribute__((vector_size(16), may_alias, aligned(1)));

// Two vectors of 16, one value of each after the other: the first half of that, or the second.
template <int kSize, int kFirst, typename V, int... kLane>
BALORA_INLINE V interleaved(V a, V b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (kFirst + kLane / 2 + kLane % 2 * kSize)...);
}

// A whole step whose rows are contiguous: four of them are interleaved.
void pack_step_of_rows(const int8_t* from, int64_t stride, int8_t* to) {
  typedef int16_t Pairs __attribute__((vector_size(16), may_alias, aligned(1)));
  constexpr std::make_integer_sequence<int, 16> kCodes;
  constexpr std::make_integer_sequence<int, 8> kPairs;
  for (int64_t word = 0; word < kInt8K / 4; ++word, from += 4 * stride) {
    for (int64_t tile = 0; tile < 2; ++tile) {
      Codes16 row[4];
      for (int64_t i = 0; i < 4; ++i) {
        row[i] = *reinterpret_cast<const Codes16*>(from + i * stride + tile * 16);
      }
      const auto low01 = (Pairs)interleaved<16, 0>(row[0], row[1], kCodes);
      const auto low23 = (Pairs)interleaved<16, 0>(row[2], row[3], kCodes);
      const auto high01 = (Pairs)interleaved<16, 8>(row[0], row[1], kCodes);
      const auto high23 = (Pairs)interleaved<16, 8>(row[2], row[3], kCodes);
      auto* const words = reinterpret_cast<Pairs*>(to + tile * kPackedTile + word * 64);
      words[0] = interleaved<8, 0>(low01, low23, kPairs);
      words[1] = interleaved<8, 4>(low01, low23, kPairs);
      words[2] = interleaved<8, 0>(high01, high23, kPairs);
      words[3] = interleaved<8, 4>(high01, high23, kPairs);
    }
  }
}

// The same where its columns are: four values of a column are a word already.
void pack_step_of_columns(const int8_t* from, int64_t stride, int8_t* to) {
  for (int64_t tile = 0; tile < 2; ++tile) {
    transpose16(reinterpret_cast<const uint32_t*>(from + tile * 16 * stride), stride / 4,
                reinterpret_cast<uint32_t*>(to + tile * kPackedTile), 16);
  }
}

// ---- blocks of a product ------------------------------------------------------------------------

constexpr int64_t kWord = 4;  // values of k in one

// The definition.
BALORA_INLINE void multiply_plain_loop(const Int8Block& t, int64_t rows, float* c, int64_t ldc,
                                       bool accumulate) {
  for (int64_t r = 0; r < rows; ++r) {
    uint32_t sums[kInt8Columns];
    for (int64_t j = 0; j < kInt8Columns; ++j) sums[j] = static_cast<uint32_t>(t.offset[j]);
    for (int64_t step = 0; step < t.steps; ++step) {
      const uint8_t* const a = t.a + r * t.lda + step * kInt8K;
      const int8_t* const b = t.b + step * kInt8StepBytes;
      for (int64_t k = 0; k < kInt8K; ++k) {
        for (int64_t j = 0; j < kInt8Columns; ++j) {
          const int8_t value =
              b[j / 16 * kPackedTile + k / kWord * 64 + j % 16 * kWord + k % kWord];
          sums[j] += static_cast<uint32_t>(a[k] * value);
        }
      }
    }
    for (int64_t j = 0; j < kInt8Columns; ++j) {
      const float scale = t.scale ? t.row_scale[r] * t.scale[j] : t.row_scale[r];
      const auto sum = static_cast<float>(static_cast<int32_t>(sums[j]));
      float& to = c[r * ldc + j];
      to = accumulate ? std::fma(scale, sum, to) : scale * sum;
    }
  }
}
void multiply_plain(const Int8Block& t, int64_t rows, float* c, int64_t ldc, bool accumulate) {
  at_level<&multiply_plain_loop>(t, rows, c, ldc, accumulate);
}

constexpr Core<Int8Multiply> kCores[] = {
    BALORA_X86("avx512_vnni", platform::kVnni, x86::multiply_avx512_vnni),
    BALORA_X86("avx_vnni", platform::kAvxVnni, x86::multiply_avx_vnni),
    {"plain", 0, multiply_plain},
};

}  // namespace

BALORA_IMPLEMENTATIONS(int8_product, kCores)

std::span<const Core<Int8Multiply>> int8_cores() {
  return kCores;
}
const Core<Int8Multiply>& int8_core() {
  return first_core(kCores);
}

void rotate_blocks(float* v, int64_t count, int64_t rotation) {
  if (rotation == 64) at_level<&rotate_all<4>>(v, count);
  if (rotation == 32) at_level<&rotate_all<2>>(v, count);
}

// ---- the weight's copy --------------------------------------------------------------------------

// Those of the views of one storage.
struct Int8Weight::Copies {
  struct Entry {
    int64_t outs, ins;
    bool rotated;
    std::unique_ptr<const Int8Weight> weight;
  };
  std::vector<Entry> entries;
};

const Int8Weight* Int8Weight::of(Context* ctx, const View& weight, bool rotated) {
  if (!weight.slots || view_numel(weight) == 0) return nullptr;
  if (weight.dtype == BALORA_F64) throw UnsupportedError("no product of f64 is computed in int8");
  if (std::max(weight.shape[0], weight.shape[1]) > kInt8MostTerms) {
    throw UnsupportedError(messages::int8_terms(weight.shape[0], weight.shape[1]));
  }
  balora_slot& slot = weight.slots[kInt8Slot];
  if (!slot.data) {
    slot.data = new Copies;
    slot.destroy = [](void* data) { delete static_cast<Copies*>(data); };
  }
  auto& entries = static_cast<Copies*>(slot.data)->entries;
  const int64_t outs = weight.shape[0], ins = weight.shape[1];
  for (const Copies::Entry& entry : entries) {
    if (entry.outs == outs && entry.ins == ins && entry.rotated == rotated) {
      return entry.weight.get();
    }
  }
  auto made = std::unique_ptr<const Int8Weight>(new Int8Weight(ctx, weight, rotated));
  const Int8Weight& kept =
      *entries.emplace_back(Copies::Entry{outs, ins, rotated, std::move(made)}).weight;
  slot.bytes += kept.bytes_;
  if (ctx->account) ctx->account(ctx, kept.bytes_);
  return &kept;
}

Int8Weight::Int8Weight(Context* ctx, const View& weight, bool rotated)
    : outs_(weight.shape[0]), ins_(weight.shape[1]), rotation_(rotated ? int8_rotation(ins_) : 0) {
  const int64_t outs = whole(outs_, kInt8Columns), ins = whole(ins_, kInt8Columns);
  constexpr int64_t kNumber = 4;  // bytes
  const int64_t code_bytes = whole(outs_ * ins_, 64);
  bytes_ = whole(code_bytes + (2 * outs + ins) * kNumber, 64);
  memory_ = platform::allocate_aligned(static_cast<uint64_t>(bytes_));
  char* const begin = static_cast<char*>(memory_.get());
  std::memset(begin + code_bytes, 0, static_cast<size_t>(bytes_ - code_bytes));
  q_ = reinterpret_cast<int8_t*>(begin);
  scale_ = reinterpret_cast<float*>(begin + code_bytes);
  forward_offset_ = reinterpret_cast<int32_t*>(scale_ + outs);
  backward_offset_ = forward_offset_ + outs;
  quantise(ctx, weight);
  sum_columns(ctx);
}

void Int8Weight::quantise(Context* ctx, const View& weight) {
  for_rows(ctx, outs_, ins_, [&](int64_t row, float* values) {
    read_values(weight, row * ins_, ins_, values);
    rotate_blocks(values, ins_, rotation_);
    auto* const codes = reinterpret_cast<uint8_t*>(q_ + row * ins_);
    scale_[row] = write_row(values, ins_, codes);
    int32_t sum = 0;
    for (int64_t i = 0; i < ins_; ++i) {
      sum += codes[i] - kZeroPoint;
      codes[i] ^= kZeroPoint;  // signed
    }
    forward_offset_[row] = -kZeroPoint * sum;
  });
}

void Int8Weight::sum_columns(Context* ctx) {
  parallel_for(ctx, ins_, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < outs_; ++row) {
      const int8_t* const q = q_ + row * ins_;
      for (int64_t i = begin; i < end; ++i) backward_offset_[i] -= kZeroPoint * q[i];
    }
  });
}

Int8Matrix Int8Weight::forward() const {
  return {.q = q_,
          .k = ins_,
          .n = outs_,
          .k_stride = 1,
          .n_stride = ins_,
          .offset = forward_offset_,
          .scale = scale_};
}

Int8Matrix Int8Weight::backward() const {
  return {.q = q_,
          .k = outs_,
          .n = ins_,
          .k_stride = ins_,
          .n_stride = 1,
          .offset = backward_offset_,
          .rotation = rotation_};
}

// ---- products -----------------------------------------------------------------------------------

Int8Rows quantise_rows(Context* ctx, const void* x, int32_t dtype, int64_t m, int64_t k,
                       const float* scale, int64_t rotation) {
  const int64_t rows = int8_padded_rows(m), width = int8_padded_columns(k);
  auto* const codes = workspace<uint8_t>(ctx, rows * width);
  auto* const scales = workspace<float>(ctx, rows);
  quantise_rows_to(ctx, x, dtype, m, k, scale, rotation, codes, scales);
  return {codes, width, scales};
}

void quantise_rows_to(Context* ctx, const void* x, int32_t dtype, int64_t m, int64_t k,
                      const float* scale, int64_t rotation, uint8_t* codes, float* scales) {
  const int64_t width = int8_padded_columns(k);
  View view{};
  view.data = const_cast<void*>(x), view.dtype = dtype;
  for_rows(ctx, int8_padded_rows(m), k, [&](int64_t row, float* values) {
    uint8_t* const to = codes + row * width;
    const int64_t there = row < m ? k : 0;
    std::memset(to + there, kZeroPoint, static_cast<size_t>(width - there));
    scales[row] = 0;
    if (there == 0) return;
    read_values(view, row * k, k, values);
    if (scale) at_level<&multiply_by>(values, scale, k);
    rotate_blocks(values, k, rotation);
    scales[row] = write_row(values, k, to);
  });
}

void dequantise_rows(Context* ctx, const Int8Rows& rows, int64_t m, int64_t k, int64_t rotation,
                     void* x, int32_t dtype) {
  for_rows(ctx, m, k, [&](int64_t row, float* values) {
    at_level<&read_codes>(rows.q + row * rows.ld, rows.scale[row], k, values);
    rotate_blocks(values, k, rotation);
    dispatch_float(dtype,
                   [&]<typename T>() { convert_row(values, static_cast<T*>(x) + row * k, k); });
  });
}

void pack_int8_panels(const Int8Matrix& b, int64_t begin, int64_t end, int8_t* to) {
  const bool words = b.k_stride == 1 && b.n_stride % 4 == 0;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t column = panel * kInt8Columns;
    for (int64_t row = 0; row < b.k; row += kInt8K, to += kInt8StepBytes) {
      const int8_t* const from = b.q + row * b.k_stride + column * b.n_stride;
      const bool is_whole = b.k - row >= kInt8K && b.n - column >= kInt8Columns;
      if (is_whole && words) {
        pack_step_of_columns(from, b.n_stride, to);
      } else if (is_whole && b.n_stride == 1) {
        pack_step_of_rows(from, b.k_stride, to);
      } else {
        pack_edge_step(b, row, column, to);
      }
    }
  }
}

void int8_product(Context* ctx, int64_t m, const Int8Rows& a, const Int8Matrix& b, float* c,
                  int64_t ldc, bool accumulate) {
  constexpr int64_t kWidest = 2 * kInt8Columns;
  const int64_t panels = whole(b.n, kInt8Columns) / kInt8Columns, width = b.panels_at_once();
  const int64_t groups = panels / width, threads = std::max(ctx->num_threads, 1);
  const int64_t panel_bytes = b.steps() * kInt8StepBytes;
  const Scratch<int8_t> all_packed(ctx, threads * width * panel_bytes);
  int8_t* const scratch = all_packed.data();
  const Int8Multiply multiply = int8_core().run;
  parallel_for(ctx, threads, 1, [&](int64_t first, int64_t last) {
    alignas(64) float block[kInt8Rows * kWidest];
    for (int64_t group = groups * first / threads; group < groups * last / threads; ++group) {
      int8_t* const packed = scratch + first * width * panel_bytes;
      pack_int8_panels(b, group * width, (group + 1) * width, packed);
      const int64_t column = group * width * kInt8Columns;
      const int64_t columns = std::min(width * kInt8Columns, b.n - column);
      for (int64_t row = 0; row < m; row += kInt8Rows) {
        const int64_t rows = std::min(kInt8Rows, m - row);
        for (int64_t i = 0; i < width; ++i) {
          const int64_t j = column + i * kInt8Columns;
          multiply({.a = a.q + row * a.ld,
                    .lda = a.ld,
                    .b = packed + i * panel_bytes,
                    .steps = b.steps(),
                    .offset = b.offset + j,
                    .row_scale = a.scale + row,
                    .scale = b.scale ? b.scale + j : nullptr},
                   rows, block + i * kInt8Columns, width * kInt8Columns, false);
        }
        rotate_blocks(block, rows * width * kInt8Columns, b.rotation);
        for (int64_t r = 0; r < rows; ++r) {
          const float* const from = block + r * width * kInt8Columns;
          float* const to = c + (row + r) * ldc + column;
          for (int64_t j = 0; j < columns; ++j) to[j] = accumulate ? to[j] + from[j] : from[j];
        }
      }
    }
  });
}

}  // namespace balora
