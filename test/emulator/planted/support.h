// A bare device for the planted kernels: arrays of its own, and what a launch ended with.
#pragma once
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/common.cuh"

namespace planted {

using namespace balora;
using namespace balora::cuda;

class Device {
 public:
  explicit Device(int number = 0) {
    cudaSetDevice(number);
    check(cudaStreamCreateWithFlags(&state_.stream, cudaStreamNonBlocking), "stream");
    state_.shared_limit = 99 << 10;
    ctx_.device_state = &state_;
  }
  ~Device() {
    for (void* data : arrays_) cudaFree(data);
    cudaStreamDestroy(state_.stream);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  template <typename T>
  T* array(int64_t count) {
    void* data = nullptr;
    check(cudaMalloc(&data, static_cast<size_t>(count) * sizeof(T)), "cudaMalloc");
    arrays_.push_back(data);
    return static_cast<T*>(data);
  }
  void free(void* data) {
    cudaFree(data);
    std::erase(arrays_, data);
  }
  template <typename T>
  T* upload(const std::vector<T>& values) {
    T* data = array<T>(static_cast<int64_t>(values.size()));
    check(cudaMemcpyAsync(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice,
                          state_.stream),
          "upload");
    return data;
  }
  template <typename T>
  std::vector<T> download(const T* data, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    check(cudaMemcpyAsync(values.data(), data, values.size() * sizeof(T), cudaMemcpyDeviceToHost,
                          state_.stream),
          "download");
    check(cudaStreamSynchronize(state_.stream), "download");
    return values;
  }

  // "" or the error.
  template <typename... Params, typename... Args>
  std::string run(const Grid& grid, void (*kernel)(Params...), Args... args) {
    try {
      launch(&ctx_, "planted", grid, kernel, args...);
      check(cudaStreamSynchronize(state_.stream), "synchronize");
    } catch (const std::runtime_error& error) {
      cudaGetLastError();  // taken note of: the next launch must not report it
      return error.what();
    }
    return "";
  }
  cudaStream_t stream() { return state_.stream; }

 private:
  DeviceState state_;
  Context ctx_{};
  std::vector<void*> arrays_;
};

// Each of these has one fault where `broken`, and is right otherwise; it returns the error.
using Planted = std::string (*)(bool broken);
std::string global_past_the_end(bool broken);
std::string global_before_the_start(bool broken);
std::string use_after_free(bool broken);
std::string memory_of_another_device(bool broken);
std::string host_pointer(bool broken);
std::string local_of_another_thread(bool broken);
std::string misaligned_load(bool broken);
std::string copy_past_the_end(bool broken);
std::string two_blocks_write(bool broken);
std::string block_reads_what_another_writes(bool broken);
std::string plain_beside_atomic(bool broken);
std::string halves_of_a_word(bool broken);

std::string shared_past_the_end(bool broken);
std::string dynamic_past_the_end(bool broken);
std::string more_shared_than_launched(bool broken);
std::string unwritten_shared(bool broken);
std::string missing_syncthreads(bool broken);
std::string missing_syncthreads_in_loop(bool broken);
std::string missing_syncwarp(bool broken);
std::string bytes_of_a_word(bool broken);

std::string barrier_not_for_all(bool broken);
std::string barrier_and_shuffle(bool broken);
std::string shuffle_lanes_missing(bool broken);
std::string shuffle_mask_without_self(bool broken);
std::string shuffle_in_a_small_block(bool broken);

std::string missing_copy_wait(bool broken);
std::string copy_over_what_is_read(bool broken);
std::string misaligned_copy(bool broken);
std::string matrix_from_global(bool broken);

}  // namespace planted
