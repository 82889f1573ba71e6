// The K-quants that mixtures around Q4_K_M consist of: super-blocks of 256 elements with quantised
// scales. Layouts: ggml-common.h; the search for scales: ggml-quants.c (make_qkx2_quants for Q4_K
// and Q5_K, make_qx_quants for Q6_K), without an importance matrix.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "io/quantize.h"
#include "tensor/dtype.h"

namespace balora::io {
namespace {

constexpr int kSuper = 256;
constexpr float kNoScale = 1e-15f;  // GROUP_MAX_EPS: a group of smaller values is all zeros

void store(std::byte* p, f16 value) {
  std::memcpy(p, &value, sizeof value);
}
void store_byte(std::byte* p, int value) {
  *p = static_cast<std::byte>(value);
}
// To the nearest, ties to even.
int nearest(float x) {
  return static_cast<int>(std::lrint(x));
}

// ---- Q4_K, Q5_K: x = scale q - offset -----------------------------------------------------------

constexpr int kGroup = 32;
constexpr int kGroups = kSuper / kGroup;

// The levels 0 to `most` of a group, and the grid of scales that is searched:
// (first + step i + most) / (max - min) for i in [0, steps].
struct Grid {
  int most;
  float first;
  float step;
  int steps;
};

struct Affine {
  float scale;
  float min;  // at most 0
};

// The sum of w (scale q + min - x)^2 with each x at its level.
float weighted_error(const float* x, const float* w, const int* q, Affine fit) {
  float sum = 0;
  for (int i = 0; i < kGroup; ++i) {
    const float difference = fit.scale * static_cast<float>(q[i]) + fit.min - x[i];
    sum += w[i] * (difference * difference);
  }
  return sum;
}

void levels(const float* x, float inverse_scale, float min, int most, int* q) {
  for (int i = 0; i < kGroup; ++i) {
    q[i] = std::clamp(nearest(inverse_scale * (x[i] - min)), 0, most);
  }
}

// The scale and minimum of the least squares of w (x - scale q - min); the minimum is at most 0.
// False: the levels are all the same.
bool least_squares(const float* x, const float* w, const int* q, float sum_w, float sum_x,
                   Affine& fit) {
  float sum_q = 0, sum_qq = 0, sum_xq = 0;
  for (int i = 0; i < kGroup; ++i) {
    const auto level = static_cast<float>(q[i]);
    sum_q += w[i] * level;
    sum_qq += w[i] * level * level;
    sum_xq += w[i] * level * x[i];
  }
  const float determinant = sum_w * sum_qq - sum_q * sum_q;
  if (!(determinant > 0)) return false;
  fit = {(sum_w * sum_xq - sum_x * sum_q) / determinant,
         (sum_qq * sum_x - sum_q * sum_xq) / determinant};
  if (fit.min > 0) fit = {sum_xq / sum_qq, 0};
  return true;
}

// The best scale and minimum of a group under weights sqrt(mean x^2) + |x|.
Affine fit_group(const float* x, const Grid& grid) {
  float squares = 0;
  for (int i = 0; i < kGroup; ++i) squares += x[i] * x[i];
  const float spread = std::sqrt(squares / kGroup);
  float w[kGroup];
  float min = x[0], max = x[0], sum_w = 0, sum_x = 0;
  for (int i = 0; i < kGroup; ++i) {
    w[i] = spread + std::fabs(x[i]);
    min = std::min(min, x[i]);
    max = std::max(max, x[i]);
    sum_w += w[i];
    sum_x += w[i] * x[i];
  }
  min = std::min(min, 0.0f);
  if (max == min) return {0, min};
  const auto most = static_cast<float>(grid.most);
  int q[kGroup];
  const float first = most / (max - min);
  Affine best{1 / first, min};
  levels(x, first, min, grid.most, q);
  float least = weighted_error(x, w, q, best);
  for (int i = 0; i <= grid.steps; ++i) {
    // The minimum is the best so far, as in ggml.
    if (!(max > best.min)) break;
    const float inverse_scale =
        (grid.first + grid.step * static_cast<float>(i) + most) / (max - best.min);
    levels(x, inverse_scale, best.min, grid.most, q);
    Affine fit{};
    if (!least_squares(x, w, q, sum_w, sum_x, fit)) continue;
    const float error = weighted_error(x, w, q, fit);
    if (error >= least) continue;
    least = error;
    best = fit;
  }
  return best;
}

// Eight pairs of six bits in 12 bytes, which scaled_part() of kernels/shared/blocks.h reads.
void store_scale_min(int group, int scale, int min, uint8_t* packed) {
  if (group < 4) {
    packed[group] = static_cast<uint8_t>(scale);
    packed[group + 4] = static_cast<uint8_t>(min);
    return;
  }
  packed[group + 4] = static_cast<uint8_t>((scale & 15) | ((min & 15) << 4));
  packed[group - 4] = static_cast<uint8_t>(packed[group - 4] | ((scale >> 4) << 6));
  packed[group] = static_cast<uint8_t>(packed[group] | ((min >> 4) << 6));
}

// Writes d, dmin and the packed scales of a super-block, 16 bytes, and finds its levels.
void encode_affine(const float* x, const Grid& grid, std::byte* out, int (&q)[kSuper]) {
  Affine fits[kGroups];
  float largest_scale = 0, largest_min = 0;
  for (int group = 0; group < kGroups; ++group) {
    fits[group] = fit_group(x + kGroup * group, grid);
    largest_scale = std::max(largest_scale, fits[group].scale);
    largest_min = std::max(largest_min, -fits[group].min);
  }
  const float inverse_scale = largest_scale > 0 ? 63.0f / largest_scale : 0;
  const float inverse_min = largest_min > 0 ? 63.0f / largest_min : 0;
  const f16 d = to_f16(largest_scale / 63.0f), dmin = to_f16(largest_min / 63.0f);
  store(out, d);
  store(out + 2, dmin);
  uint8_t packed[12] = {};
  for (int group = 0; group < kGroups; ++group) {
    // The least squares may have a scale below 0, which has no bits.
    const int scale = std::clamp(nearest(inverse_scale * fits[group].scale), 0, 63);
    const int min = std::clamp(nearest(inverse_min * -fits[group].min), 0, 63);
    store_scale_min(group, scale, min, packed);
    const float step = to_float(d) * static_cast<float>(scale);
    const float offset = to_float(dmin) * static_cast<float>(min);
    for (int i = kGroup * group; i < kGroup * (group + 1); ++i) {
      q[i] = step == 0 ? 0 : std::clamp(nearest((x[i] + offset) / step), 0, grid.most);
    }
  }
  std::memcpy(out + 4, packed, sizeof packed);
}

// d, dmin, scales[12], qs[128]: 64 elements share 32 bytes, low nibbles first
void encode_q4_k(const float* x, int64_t blocks, std::byte* out) {
  constexpr Grid kGrid{15, -1.0f, 0.1f, 20};
  for (; blocks-- > 0; x += kSuper, out += 144) {
    int q[kSuper];
    encode_affine(x, kGrid, out, q);
    for (int i = 0; i < kSuper / 2; ++i) {
      const int at = i / 32 * 64 + i % 32;
      store_byte(out + 16 + i, q[at] | (q[at + 32] << 4));
    }
  }
}

// d, dmin, scales[12], qh[32] (the fifth bits, bit j of byte i that of element 32 j + i), qs[128]
void encode_q5_k(const float* x, int64_t blocks, std::byte* out) {
  constexpr Grid kGrid{31, -0.5f, 0.1f, 15};
  for (; blocks-- > 0; x += kSuper, out += 176) {
    int q[kSuper];
    encode_affine(x, kGrid, out, q);
    for (int i = 0; i < 32; ++i) {
      int high = 0;
      for (int j = 0; j < 8; ++j) high |= (q[32 * j + i] >> 4) << j;
      store_byte(out + 16 + i, high);
    }
    for (int i = 0; i < kSuper / 2; ++i) {
      const int at = i / 32 * 64 + i % 32;
      store_byte(out + 48 + i, (q[at] & 15) | ((q[at + 32] & 15) << 4));
    }
  }
}

// ---- Q6_K: x = scale q --------------------------------------------------------------------------

constexpr int kSmallGroup = 16;
constexpr int kSmallGroups = kSuper / kSmallGroup;
constexpr int kHalfLevels = 32;  // levels are -32 to 31

// The sums of x^2 x q and x^2 q^2 with each x at its level.
struct Sums {
  float xq = 0;
  float qq = 0;
};
Sums sums_at(const float* x, float inverse_scale) {
  Sums sums;
  for (int i = 0; i < kSmallGroup; ++i) {
    const auto level = static_cast<float>(
        std::clamp(nearest(inverse_scale * x[i]), -kHalfLevels, kHalfLevels - 1));
    const float w = x[i] * x[i];
    sums.xq += w * x[i] * level;
    sums.qq += w * level * level;
  }
  return sums;
}

// The scale with the least sum of x^2 (x - scale q)^2, among 19 around that of the extreme value.
float symmetric_scale(const float* x) {
  float extreme = 0;
  for (int i = 0; i < kSmallGroup; ++i) {
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  }
  if (std::fabs(extreme) < kNoScale) return 0;
  const Sums first = sums_at(x, -static_cast<float>(kHalfLevels) / extreme);
  float scale = first.qq != 0 ? first.xq / first.qq : 0;
  float best = scale * first.xq;
  for (int i = -9; i <= 9; ++i) {
    if (i == 0) continue;
    const Sums sums =
        sums_at(x, -(static_cast<float>(kHalfLevels) + 0.1f * static_cast<float>(i)) / extreme);
    if (!(sums.qq > 0) || sums.xq * sums.xq <= best * sums.qq) continue;
    scale = sums.xq / sums.qq;
    best = scale * sums.xq;
  }
  return scale;
}

// ql[128] (low nibbles), qh[64] (two high bits), scales[16] (i8), d; 128 elements share 64 bytes of
// ql and 32 of qh
void encode_q6_k(const float* x, int64_t blocks, std::byte* out) {
  for (; blocks-- > 0; x += kSuper, out += 210) {
    float scales[kSmallGroups];
    float extreme = 0;
    for (int group = 0; group < kSmallGroups; ++group) {
      scales[group] = symmetric_scale(x + kSmallGroup * group);
      if (std::fabs(scales[group]) > std::fabs(extreme)) extreme = scales[group];
    }
    std::memset(out, 0, 210);
    if (std::fabs(extreme) < kNoScale) continue;
    const float inverse_scale = -128.0f / extreme;
    const f16 d = to_f16(1 / inverse_scale);
    store(out + 208, d);
    int q[kSuper];
    for (int group = 0; group < kSmallGroups; ++group) {
      const int scale = std::clamp(nearest(inverse_scale * scales[group]), -128, 127);
      store_byte(out + 192 + group, scale);
      const float step = to_float(d) * static_cast<float>(scale);
      for (int i = kSmallGroup * group; i < kSmallGroup * (group + 1); ++i) {
        const int level =
            step == 0 ? 0 : std::clamp(nearest(x[i] / step), -kHalfLevels, kHalfLevels - 1);
        q[i] = level + kHalfLevels;
      }
    }
    for (int half = 0; half < 2; ++half) {
      const int* part = q + 128 * half;
      for (int i = 0; i < 32; ++i) {
        store_byte(out + 64 * half + i, (part[i] & 15) | ((part[i + 64] & 15) << 4));
        store_byte(out + 64 * half + 32 + i, (part[i + 32] & 15) | ((part[i + 96] & 15) << 4));
        store_byte(out + 128 + 32 * half + i, (part[i] >> 4) | ((part[i + 32] >> 4) << 2) |
                                                  ((part[i + 64] >> 4) << 4) |
                                                  ((part[i + 96] >> 4) << 6));
      }
    }
  }
}

}  // namespace

BlockEncoder find_k_quant_encoder(GgmlType type) {
  switch (type) {
    case GgmlType::kQ4_K:
      return encode_q4_k;
    case GgmlType::kQ5_K:
      return encode_q5_k;
    case GgmlType::kQ6_K:
      return encode_q6_k;
    default:
      return nullptr;
  }
}

}  // namespace balora::io
