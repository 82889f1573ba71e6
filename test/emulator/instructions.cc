// The emulated instructions: 16-bit conversions, ldmatrix, mma.
#include "instructions.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "tensor/dtype.h"

namespace emulator {

float half_to_float(uint16_t bits) {
  return balora::to_float(balora::f16{bits});
}
uint16_t float_to_half(float value) {
  return balora::to_f16(value).bits;
}
uint16_t float_to_bf16(float value) {
  return balora::to_bf16(value).bits;
}
uint32_t pack_bf16(float low, float high) {
  return float_to_bf16(low) | static_cast<uint32_t>(float_to_bf16(high)) << 16;
}
uint32_t pack_f16(float low, float high) {
  return float_to_half(low) | static_cast<uint32_t>(float_to_half(high)) << 16;
}
float exp2_approx(float x) {
  const float power = std::exp2(x);
  return power < std::numeric_limits<float>::min() ? 0.0f : power;
}

namespace {

constexpr unsigned kAll = 0xffffffffu;

uint16_t element(const void* row, int column) {
  uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(row) + 2 * column, sizeof bits);
  return bits;
}

void read_matrices(uint32_t (&out)[4], const void* shared, bool transposed) {
  check_access(shared, 16, 16, false);
  const unsigned char* rows = exchange_bytes(kAll, &shared, sizeof shared);
  const int row = lane() / 4, column = 2 * (lane() % 4);
  for (int m = 0; m < 4; ++m) {
    uint32_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int r = transposed ? column + i : row, c = transposed ? row : column + i;
      const void* from;
      std::memcpy(&from, rows + (8 * m + r) * kExchangeBytes, sizeof from);
      pair[i] = element(from, c);
    }
    out[m] = pair[0] | pair[1] << 16;
  }
}

struct Fragments {
  uint32_t a[4], b[2];
};

template <typename Convert>
void multiply_16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Convert convert) {
  Fragments own;
  std::memcpy(own.a, a, sizeof own.a);
  std::memcpy(own.b, b, sizeof own.b);
  const unsigned char* slots = exchange_bytes(kAll, &own, sizeof own);
  const auto fragments = [&](int of) {
    Fragments f;
    std::memcpy(&f, slots + of * kExchangeBytes, sizeof f);
    return f;
  };
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * t + i % 2;
    double sum = d[i];
    for (int k = 0; k < 16; ++k) {
      const uint32_t x = fragments(4 * g + k % 8 / 2).a[i / 2 + (k >= 8 ? 2 : 0)];
      const uint32_t y = fragments(4 * column + k % 8 / 2).b[k / 8];
      sum += static_cast<double>(convert(static_cast<uint16_t>(k % 2 ? x >> 16 : x))) *
             convert(static_cast<uint16_t>(k % 2 ? y >> 16 : y));
    }
    d[i] = static_cast<float>(sum);
  }
}

}  // namespace

void ldmatrix_x4(uint32_t (&out)[4], const void* shared) {
  read_matrices(out, shared, false);
}
void ldmatrix_x4_trans(uint32_t (&out)[4], const void* shared) {
  read_matrices(out, shared, true);
}

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_16(d, a, b, [](uint16_t bits) { return balora::to_float(balora::bf16{bits}); });
}
void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_16(d, a, b, half_to_float);
}

void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments own;
  std::memcpy(own.a, a, sizeof own.a);
  std::memcpy(own.b, b, sizeof own.b);
  const unsigned char* slots = exchange_bytes(kAll, &own, sizeof own);
  const auto value = [&](int of, int slot) {
    uint32_t bits;
    std::memcpy(&bits, slots + of * kExchangeBytes + 4 * slot, sizeof bits);
    return static_cast<double>(std::bit_cast<float>(bits & ~0x1fffu));
  };
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * t + i % 2;
    double sum = d[i];
    for (int k = 0; k < 8; ++k) {
      sum += value(4 * g + k % 4, i / 2 + (k >= 4 ? 2 : 0)) * value(4 * column + k % 4, 4 + k / 4);
    }
    d[i] = static_cast<float>(sum);
  }
}

}  // namespace emulator
