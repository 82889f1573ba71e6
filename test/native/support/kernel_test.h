// Helpers of kernel tests: a context, owned arrays that convert to views, and values from a seeded
// generator. Every array has guard bands on both sides, checked when it is destroyed, so a stray
// write fails the test that made it.
#pragma once
#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/cpu/cpu_state.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "support/elements.h"
#include "tensor/errors.h"

namespace balora::test {

// A context as the engine gives it: scratch memory that lives until the next kernel, and a device
// state. All scratch comes full of NaN patterns, as recycled memory may.
class TestContext {
 public:
  explicit TestContext(int threads = 2) {
    ctx_.workspace = [](Context* ctx, uint64_t bytes) -> void* {
      auto* self = reinterpret_cast<TestContext*>(ctx);
      const uint64_t rounded = (bytes + 127) / 64 * 64;
      void* memory = std::aligned_alloc(64, rounded);
      if (!memory) return nullptr;
      std::memset(memory, 0xff, rounded);
      self->scratch_.emplace_back(memory, &std::free);
      self->scratch_bytes_ += bytes;
      return memory;
    };
    ctx_.account = [](Context*, int64_t) {};
    ctx_.num_threads = threads;
    ctx_.deterministic = 1;
    ctx_.device_state = create_cpu_state(0, ctx_.error, sizeof ctx_.error);
    poison_cpu_scratch(ctx_.device_state);
  }
  ~TestContext() { destroy_cpu_state(ctx_.device_state); }
  TestContext(const TestContext&) = delete;
  TestContext& operator=(const TestContext&) = delete;
  operator Context*() { return &ctx_; }
  void set_threads(int threads) { ctx_.num_threads = threads; }
  // Scratch memory that kernels have asked for so far.
  uint64_t scratch_bytes() const { return scratch_bytes_; }

 private:
  Context ctx_{};  // first member: workspace() finds the object from it
  uint64_t scratch_bytes_ = 0;
  std::vector<std::unique_ptr<void, decltype(&std::free)>> scratch_;
};

template <typename T>
class Array {
 public:
  // Filled with a NaN pattern: what a kernel forgets to write is seen.
  explicit Array(std::vector<int64_t> shape) : shape_(std::move(shape)) {
    size_ = 1;
    for (const int64_t dim : shape_) size_ *= dim;
    bytes_.assign(static_cast<size_t>(size_) * sizeof(T) + 2 * kGuard, kFill);
  }
  // Uniform in [-scale, scale], rounded to T.
  Array(std::vector<int64_t> shape, std::mt19937& random, double scale = 1) : Array(shape) {
    std::uniform_real_distribution<double> uniform(-scale, scale);
    for (int64_t i = 0; i < size_; ++i) data()[i] = from_double<T>(uniform(random));
  }
  Array(std::vector<int64_t> shape, const std::vector<double>& values) : Array(shape) {
    for (int64_t i = 0; i < size_; ++i) data()[i] = from_double<T>(values[static_cast<size_t>(i)]);
  }
  Array(Array&&) = default;
  ~Array() {
    for (size_t i = 0; i < bytes_.size(); ++i) {
      if (i >= kGuard && i < bytes_.size() - kGuard) continue;
      if (bytes_[i] != kFill) {
        CHECK_MESSAGE(false, "a kernel wrote outside its array, at byte ", i);
        break;
      }
    }
  }

  T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuard); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data() + kGuard); }
  int64_t size() const { return size_; }
  double operator[](int64_t i) const { return to_double(data()[i]); }
  std::vector<double> values() const {
    std::vector<double> out;
    for (int64_t i = 0; i < size_; ++i) out.push_back((*this)[i]);
    return out;
  }

  View view() { return contiguous_view(data(), dtype_of<T>(), shape_); }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr unsigned char kFill = 0xff;
  std::vector<int64_t> shape_;
  int64_t size_;
  std::vector<unsigned char> bytes_;
};

// |actual - expected| <= tolerance * (1 + |expected|) everywhere; the first miss prints its index
// and both values.
template <typename T>
void check_close(const Array<T>& actual, const std::vector<double>& expected, double tolerance) {
  REQUIRE(actual.size() == static_cast<int64_t>(expected.size()));
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double want = expected[static_cast<size_t>(i)];
    const bool close = std::abs(actual[i] - want) <= tolerance * (1 + std::abs(want));
    if (!close) {
      CHECK_MESSAGE(close, "index ", i, ": got ", actual[i], ", expected ", want);
      return;
    }
  }
}

}  // namespace balora::test
