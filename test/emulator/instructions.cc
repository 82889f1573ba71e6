// The emulated instructions: 16-bit conversions, cp.async, ldmatrix, mma.
#include "instructions.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "checks.h"
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

Lane& self() {
  return *current->lanes[current->running];
}

void require_shared(const void* at, const char* instruction) {
  if (shared_room.offset(at) < SharedRoom::kBytes) return;
  running = nullptr;
  fail(std::string("gives ") + instruction + " an address that is not in shared memory");
}

void require_whole_warp(const char* instruction, Site site) {
  if (self().present == kAll) return;
  running = nullptr;
  fail(std::string("calls ") + instruction + " in a warp that is not whole" + text_of(site));
}

void check(const void* at, size_t bytes, Access how, const void* code) {
  check_range(*running, static_cast<const char*>(at), bytes, how, code);
}

// ---- ldmatrix: each lane brings the row whose address it has, and takes its elements ------------

void read_matrices(uint32_t (&out)[4], const void* shared, bool transposed, Site site) {
  require_shared(shared, "ldmatrix");
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0) fail_alignment(shared, 16, site, nullptr);
  check(shared, 16, Access::kRead, __builtin_return_address(0));
  const Slots& rows = meet(Meeting::kLoadMatrix, kAll, shared, 16, site);
  require_whole_warp("ldmatrix", site);
  const int row = lane() / 4, column = 2 * (lane() % 4);
  for (int m = 0; m < 4; ++m) {
    uint32_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int r = transposed ? column + i : row, c = transposed ? row : column + i;
      uint16_t bits;
      std::memcpy(&bits, rows.of[8 * m + r] + 2 * c, sizeof bits);
      pair[i] = bits;
    }
    out[m] = pair[0] | pair[1] << 16;
  }
}

// ---- mma ----------------------------------------------------------------------------------------

struct Fragments {
  float d[4];
  uint32_t a[4], b[2];
};
static_assert(sizeof(Fragments) <= kExchangeBytes);

// The whole warp's product at once: A (16,K), B (K,8), D (16,8), decoded by the caller.
template <int K>
void multiply(const float (&a)[16][K], const float (&b)[K][8], Slots& slots) {
  for (int lane = 0; lane < 32; ++lane) {
    float d[4];
    std::memcpy(d, slots.of[lane], sizeof d);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = 2 * (lane % 4) + i % 2;
      double sum = d[i];
      for (int k = 0; k < K; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      d[i] = static_cast<float>(sum);
    }
    std::memcpy(slots.of[lane], d, sizeof d);
  }
}

template <typename Convert>
void multiply_16(Slots& slots, Convert convert) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    Fragments f;
    std::memcpy(&f, slots.of[lane], sizeof f);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const auto bits = [half](uint32_t pair) {
        return static_cast<uint16_t>(half ? pair >> 16 : pair);
      };
      for (int i = 0; i < 4; ++i) {
        a[g + i % 2 * 8][2 * t + half + i / 2 * 8] = convert(bits(f.a[i]));
      }
      for (int i = 0; i < 2; ++i) b[2 * t + half + i * 8][g] = convert(bits(f.b[i]));
    }
  }
  multiply<16>(a, b, slots);
}

void combine_bf16(Slots& slots) {
  multiply_16(slots, [](uint16_t bits) { return balora::to_float(balora::bf16{bits}); });
}
void combine_f16(Slots& slots) {
  multiply_16(slots, half_to_float);
}
void combine_tf32(Slots& slots) {
  float a[16][8], b[8][8];
  const auto value = [](uint32_t bits) { return std::bit_cast<float>(bits & ~0x1fffu); };
  for (int lane = 0; lane < 32; ++lane) {
    Fragments f;
    std::memcpy(&f, slots.of[lane], sizeof f);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = value(f.a[i]);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = value(f.b[i]);
  }
  multiply<8>(a, b, slots);
}

void exchange_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site,
                  Combine combine) {
  Fragments own;
  std::memcpy(own.d, d, sizeof own.d);
  std::memcpy(own.a, a, sizeof own.a);
  std::memcpy(own.b, b, sizeof own.b);
  const Slots& slots = meet(Meeting::kMultiply, kAll, &own, sizeof own, site, combine);
  require_whole_warp("mma", site);
  std::memcpy(d, slots.of[lane()], sizeof d);
}

}  // namespace

void cp_async16(void* shared, const void* global, int valid) {
  const void* code = __builtin_return_address(0);
  require_shared(shared, "cp_async");
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0) fail_alignment(shared, 16, {}, code);
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) fail_alignment(global, 16, {}, code);
  if (valid < 0 || valid > 16) {
    running = nullptr;
    fail("lets cp_async copy " + std::to_string(valid) + " bytes", code);
  }
  check(global, static_cast<size_t>(valid), Access::kRead, code);
  check(shared, 16, Access::kCopyBegin, code);
  Running* const caller = std::exchange(running, nullptr);
  self().copies.push_back({static_cast<char*>(shared), static_cast<const char*>(global), valid});
  running = caller;
}

void cp_async_commit() {
  Running* const caller = std::exchange(running, nullptr);
  Lane& lane = self();
  size_t committed = 0;
  for (const size_t copies : lane.groups) committed += copies;
  lane.groups.push_back(lane.copies.size() - committed);
  running = caller;
}

void cp_async_wait_until(int pending) {
  const void* code = __builtin_return_address(0);
  Lane& lane = self();
  while (lane.groups.size() > static_cast<size_t>(pending)) {
    const size_t copies = lane.groups.front();
    for (size_t i = 0; i < copies; ++i) {
      const Copy& copy = lane.copies[i];
      check(copy.to, 16, Access::kCopyEnd, code);
      Running* const caller = std::exchange(running, nullptr);
      std::memset(copy.to, 0, 16);
      if (copy.valid > 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.valid));
      running = caller;
    }
    Running* const caller = std::exchange(running, nullptr);
    lane.copies.erase(lane.copies.begin(), lane.copies.begin() + static_cast<ptrdiff_t>(copies));
    lane.groups.erase(lane.groups.begin());
    running = caller;
  }
}

void ldmatrix_x4(uint32_t (&out)[4], const void* shared, const char* file, int line) {
  read_matrices(out, shared, false, {file, line});
}
void ldmatrix_x4_trans(uint32_t (&out)[4], const void* shared, const char* file, int line) {
  read_matrices(out, shared, true, {file, line});
}

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file,
              int line) {
  exchange_mma(d, a, b, {file, line}, combine_bf16);
}
void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file,
             int line) {
  exchange_mma(d, a, b, {file, line}, combine_f16);
}
void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file,
              int line) {
  exchange_mma(d, a, b, {file, line}, combine_tf32);
}

}  // namespace emulator
