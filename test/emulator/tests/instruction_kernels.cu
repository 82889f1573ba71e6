#include "instruction_kernels.h"

#include "support.h"

namespace instructions {

using namespace planted;

namespace {

__device__ uint32_t pair_of(Format format, float low, float high) {
  if (format == Format::kBf16) {
    return store<bf16>(low).bits | static_cast<uint32_t>(store<bf16>(high).bits) << 16;
  }
  return store<f16>(low).bits | static_cast<uint32_t>(store<f16>(high).bits) << 16;
}

// Operands in the layout of mma.m16n8k16 (PTX ISA; instructions.cuh).
__global__ void multiply_halves(Format format, const float* a, const float* b, float* d) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto of_a = [&](int row, int col) {
    return pair_of(format, a[row * 16 + col], a[row * 16 + col + 1]);
  };
  const auto of_b = [&](int row, int col) {
    return pair_of(format, b[row * 8 + col], b[(row + 1) * 8 + col]);
  };
  const uint32_t left[4] = {of_a(g, 2 * t), of_a(g + 8, 2 * t), of_a(g, 2 * t + 8),
                            of_a(g + 8, 2 * t + 8)};
  const uint32_t right[2] = {of_b(2 * t, g), of_b(2 * t + 8, g)};
  float sum[4] = {d[g * 8 + 2 * t], d[g * 8 + 2 * t + 1], d[(g + 8) * 8 + 2 * t],
                  d[(g + 8) * 8 + 2 * t + 1]};
  if (format == Format::kBf16) {
    mma_bf16(sum, left, right);
  } else {
    mma_f16(sum, left, right);
  }
  d[g * 8 + 2 * t] = sum[0];
  d[g * 8 + 2 * t + 1] = sum[1];
  d[(g + 8) * 8 + 2 * t] = sum[2];
  d[(g + 8) * 8 + 2 * t + 1] = sum[3];
}

__global__ void multiply_tf32(const float* a, const float* b, float* d) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto of_a = [&](int row, int col) { return float_to_bits(a[row * 8 + col]); };
  const uint32_t left[4] = {of_a(g, t), of_a(g + 8, t), of_a(g, t + 4), of_a(g + 8, t + 4)};
  const uint32_t right[2] = {float_to_bits(b[t * 8 + g]), float_to_bits(b[(t + 4) * 8 + g])};
  float sum[4] = {d[g * 8 + 2 * t], d[g * 8 + 2 * t + 1], d[(g + 8) * 8 + 2 * t],
                  d[(g + 8) * 8 + 2 * t + 1]};
  mma_tf32(sum, left, right);
  d[g * 8 + 2 * t] = sum[0];
  d[g * 8 + 2 * t + 1] = sum[1];
  d[(g + 8) * 8 + 2 * t] = sum[2];
  d[(g + 8) * 8 + 2 * t + 1] = sum[3];
}

__global__ void multiply_loaded(const float* a, const float* b, float* d) {
  BALORA_SHARED(bf16, left, 16 * 16);
  BALORA_SHARED(bf16, right, 16 * 16);  // columns 8 to 15 hold zeros
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += kWarp) {
    left[i] = store<bf16>(a[i]);
    right[i] = store<bf16>(i % 16 < 8 ? b[i / 16 * 8 + i % 16] : 0.0f);
  }
  __syncwarp();
  // Matrix m of four: rows 8 * (m % 2), columns 8 * (m / 2), which is the order of mma's a.
  const int row = lane % 8 + lane / 8 % 2 * 8, col = lane / 16 * 8;
  uint32_t of_a[4], of_b[4];
  ldmatrix_x4(of_a, left + row * 16 + col);
  ldmatrix_x4_trans(of_b, right + row * 16 + col);
  float sum[4] = {0, 0, 0, 0};
  mma_bf16(sum, of_a, {of_b[0], of_b[1]});
  const int g = lane / 4, t = lane % 4;
  d[g * 8 + 2 * t] = sum[0];
  d[g * 8 + 2 * t + 1] = sum[1];
  d[(g + 8) * 8 + 2 * t] = sum[2];
  d[(g + 8) * 8 + 2 * t + 1] = sum[3];
}

__global__ void copy_valid(const float* x, float* y) {
  BALORA_SHARED(float, values, 4 * kWarp);
  const int i = static_cast<int>(threadIdx.x);
  cp_async16(values + 4 * i, x + 4 * i, i % 5 * 4);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int k = 0; k < 4; ++k) y[4 * i + k] = values[4 * i + k];
}

__global__ void copy_groups(const float* x, float* y) {
  BALORA_SHARED(float, values, 8 * kWarp);
  const int i = static_cast<int>(threadIdx.x);
  for (int step = 0; step < 2; ++step) {
    cp_async16(values + 4 * (step * kWarp + i), x + 4 * (step * kWarp + i));
    cp_async_commit();
  }
  cp_async_wait<1>();
  __syncwarp();
  y[i] = values[4 * (kWarp - 1 - i)];
  cp_async_wait<0>();
  __syncwarp();
  y[kWarp + i] = values[4 * (kWarp + kWarp - 1 - i)];
}

__global__ void shuffle_all(float* y) {
  const int lane = static_cast<int>(threadIdx.x);
  const auto value = static_cast<float>(lane);
  y[lane] = __shfl_sync(kAllLanes, value, 3);
  y[32 + lane] = __shfl_sync(kAllLanes, value, 3, 8);
  y[64 + lane] = __shfl_xor_sync(kAllLanes, value, 5);
  y[96 + lane] = __shfl_down_sync(kAllLanes, value, 4);
  y[128 + lane] = __shfl_up_sync(kAllLanes, value, 4, 16);
  y[160 + lane] = static_cast<float>(__popc(__ballot_sync(kAllLanes, lane % 3 == 0)));
  y[192 + lane] = static_cast<float>(__any_sync(kAllLanes, lane == 9));
  y[224 + lane] = static_cast<float>(__all_sync(kAllLanes, lane != 9));
  y[256 + lane] = static_cast<float>(__syncthreads_count(lane < 7));
}

__global__ void sum_in_parts(float* y) {
  const int lane = static_cast<int>(threadIdx.x);
  auto value = static_cast<float>(lane);
  // Lanes 0 to 7 shuffle three times, 8 to 31 not at all, and then all of them together.
  if (lane < 8) {
    for (int offset = 4; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffu, value, offset);
  }
  y[lane] = value;
  y[32 + lane] = __shfl_xor_sync(kAllLanes, value, 16);
}

template <typename... Params, typename... Args>
std::vector<float> result(Device& device, void (*kernel)(Params...), float* y, int64_t count,
                          Args... args) {
  const std::string error = device.run({dim3(1), dim3(32)}, kernel, args...);
  if (!error.empty()) throw std::runtime_error(error);
  return device.download(y, count);
}

}  // namespace

std::vector<float> multiply(Format format, const std::vector<float>& a, const std::vector<float>& b,
                            const std::vector<float>& d) {
  Device device;
  float* sums = device.upload(d);
  const float *left = device.upload(a), *right = device.upload(b);
  if (format == Format::kTf32) {
    return result(device, multiply_tf32, sums, 128, left, right, sums);
  }
  return result(device, multiply_halves, sums, 128, format, left, right, sums);
}

std::vector<float> multiply_from_shared(const std::vector<float>& a, const std::vector<float>& b) {
  Device device;
  float* sums = device.array<float>(128);
  return result(device, multiply_loaded, sums, 128, device.upload(a), device.upload(b), sums);
}

std::vector<float> copy_some(const std::vector<float>& x) {
  Device device;
  float* y = device.array<float>(128);
  return result(device, copy_valid, y, 128, device.upload(x), y);
}

std::vector<float> copy_in_groups(const std::vector<float>& x) {
  Device device;
  float* y = device.array<float>(64);
  return result(device, copy_groups, y, 64, device.upload(x), y);
}

std::vector<float> shuffles() {
  Device device;
  float* y = device.array<float>(9 * 32);
  return result(device, shuffle_all, y, 9 * 32, y);
}

std::vector<float> partial_warps() {
  Device device;
  float* y = device.array<float>(64);
  return result(device, sum_in_parts, y, 64, y);
}

}  // namespace instructions
