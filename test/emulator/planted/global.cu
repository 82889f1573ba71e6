// Planted faults in device memory: bounds, lifetime, alignment, races between blocks.
#include "support.h"

namespace planted {
namespace {

__global__ void copy(float* y, const float* x, int64_t n, int64_t shift) {
  const int64_t i = thread_index();
  if (i < n) y[i] = x[i + shift];
}

}  // namespace

std::string global_past_the_end(bool broken) {
  Device device;
  const float* x = device.array<float>(100);
  return device.run(elements(100), copy, device.array<float>(100), x, 100, broken ? 1 : 0);
}

std::string global_before_the_start(bool broken) {
  Device device;
  const float* x = device.array<float>(100);
  return device.run(elements(100), copy, device.array<float>(100), x, 100, broken ? -1 : 0);
}

std::string use_after_free(bool broken) {
  Device device;
  float* x = device.array<float>(100);
  float* y = device.array<float>(100);
  if (broken) device.free(x);
  return device.run(elements(100), copy, y, x, 100, 0);
}

std::string memory_of_another_device(bool broken) {
  Device other(1);
  const float* x = other.array<float>(100);
  Device device(0);
  float* y = device.array<float>(100);
  return device.run(elements(100), copy, y, broken ? x : device.array<float>(100), 100, 0);
}

std::string host_pointer(bool broken) {
  Device device;
  const std::vector<float> x(100);
  float* y = device.array<float>(100);
  return device.run(elements(100), copy, y, broken ? x.data() : device.upload(x), 100, 0);
}

namespace {

__global__ void read_of_neighbour(float* y, bool broken) {
  float own = static_cast<float>(threadIdx.x);
  uint64_t address = reinterpret_cast<uint64_t>(&own);
  const uint64_t other = __shfl_xor_sync(kAllLanes, address, 1);
  y[threadIdx.x] = *reinterpret_cast<const float*>(broken ? other : address);
}

}  // namespace

std::string local_of_another_thread(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(32)}, read_of_neighbour, device.array<float>(32), broken);
}

namespace {

template <typename P>
__global__ void copy_packs(char* y, const char* x, int64_t n) {
  const int64_t i = thread_index();
  if (i < n) reinterpret_cast<P*>(y)[i] = reinterpret_cast<const P*>(x)[i];
}

// The elements of the pack are all that is used: the load must still be one of 16 bytes.
__global__ void sum_packs(float* y, const float* x, int64_t n) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const Pack<float, 4> pack = reinterpret_cast<const Pack<float, 4>*>(x)[i];
  y[i] = pack.at[0] + pack.at[3];
}

}  // namespace

std::string misaligned_load(bool broken) {
  Device device;
  const float* x = device.array<float>(100);
  std::string error =
      device.run(elements(8), sum_packs, device.array<float>(8), x + (broken ? 1 : 4), 8);
  if (!error.empty() || broken) return error;
  return device.run(elements(8), copy_packs<Pack<bf16, 8>>, device.array<char>(128),
                    device.array<char>(128), 8);
}

std::string copy_past_the_end(bool broken) {
  Device device;
  return device.run(elements(8), copy_packs<Pack<bf16, 8>>, device.array<char>(128),
                    device.array<char>(broken ? 126 : 128), 8);
}

namespace {

__global__ void write_one(float* y, bool same) {
  if (threadIdx.x == 0) y[same ? 0 : blockIdx.x] = 1;
}

__global__ void hand_on(float* y, int blocks, bool broken) {
  if (threadIdx.x != 0) return;
  const auto block = static_cast<int>(blockIdx.x);
  const float before = broken && block + 1 < blocks ? y[block + 1] : 0;
  y[block] = before + 1;
}

__global__ void count(int32_t* total, bool broken) {
  if (broken && threadIdx.x == 40) {
    *total += 1;
  } else {
    atomicAdd(total, 1);
  }
}

// Neighbouring threads write the halves of a word.
__global__ void write_halves(bf16* y, bool broken) {
  const unsigned i = threadIdx.x;
  y[broken && i == 7 ? 6 : i] = store<bf16>(1.0f);
}

}  // namespace

std::string two_blocks_write(bool broken) {
  Device device;
  return device.run({dim3(4), dim3(32)}, write_one, device.array<float>(4), broken);
}

std::string block_reads_what_another_writes(bool broken) {
  Device device;
  return device.run({dim3(4), dim3(32)}, hand_on, device.array<float>(4), 4, broken);
}

std::string plain_beside_atomic(bool broken) {
  Device device;
  int32_t* total = device.upload(std::vector<int32_t>{0});
  std::string error = device.run({dim3(3), dim3(64)}, count, total, broken);
  if (error.empty() && device.download(total, 1)[0] != 3 * 64) return "the count is wrong";
  return error;
}

std::string halves_of_a_word(bool broken) {
  Device device;
  return device.run({dim3(1), dim3(64)}, write_halves, device.array<bf16>(64), broken);
}

}  // namespace planted
