// Helpers of tests of a device plug-in: the plug-in's table and the CPU's side by side, arrays
// that live on both, and values from a seeded generator. A test gives the same operands to a row of
// both tables and compares. Device memory around every array is filled with a pattern that is
// checked when the array goes; on the emulated device, which checks each access, there is none.
//
//   DeviceTest t;
//   auto x = t.random<bf16>({33, 123});
//   auto y = t.empty<bf16>({33, 123});
//   t.both([&](const KernelTable& k, Context* ctx, auto view) {
//     return call(k.unary, ctx, {.x = view(x), .y = view(y), .op = BALORA_EXP, .a = 0, .b = 0});
//   });
//   t.check_close(y, 2 * epsilon_of<bf16>());
#pragma once
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "support/elements.h"

namespace balora::test {

// The types of a test over all of them: TEST_CASE_TEMPLATE("a name", T, BALORA_FLOAT_TYPES).
#define BALORA_FLOAT_TYPES float, bf16, f16, double

// Calls body for each type, inside a test that has a T already: for_each_type<float, bf16>([&]
// <typename S>() { check<S, T>(); });
template <typename... Types, typename Body>
void for_each_type(const Body& body) {
  (body.template operator()<Types>(), ...);
}

// The table of the plug-in named by BALORA_CUDA_PLUGIN, opened once.
const KernelTable& device_table();

double element(int32_t dtype, const void* data, int64_t i);
void set_element(int32_t dtype, void* data, int64_t i, double value);

// A context on one table, with scratch full of NaN patterns that lives until the next row.
class TableContext {
 public:
  explicit TableContext(const KernelTable& table);
  ~TableContext();
  TableContext(const TableContext&) = delete;
  TableContext& operator=(const TableContext&) = delete;

  Context* get() { return &ctx_; }
  const KernelTable& table() const { return table_; }
  // Filled with 0xff. Exactly `bytes` long on the emulated device, which finds every access beyond.
  void* allocate(uint64_t bytes);
  void release(void* data, uint64_t bytes);
  bool emulated() const { return emulated_; }
  void upload(void* device, const void* host, uint64_t bytes);
  void download(void* host, const void* device, uint64_t bytes);
  void release_scratch();

 private:
  Context ctx_{};  // first member: workspace() finds the object from it
  uint64_t size_of_request(uint64_t bytes) const;

  const KernelTable& table_;
  bool emulated_ = false;
  std::vector<std::pair<void*, uint64_t>> scratch_;
};

// One operand, with memory on the host (what the CPU's row sees and writes) and on the device.
class Operand {
 public:
  Operand(TableContext& device, int32_t dtype, std::vector<int64_t> shape);
  ~Operand();
  Operand(const Operand&) = delete;
  Operand& operator=(const Operand&) = delete;

  int64_t size() const { return size_; }
  int32_t dtype() const { return dtype_; }
  void* host_data() { return host_.data(); }
  double host(int64_t i) const { return element(dtype_, host_.data(), i); }
  void set(int64_t i, double value) { set_element(dtype_, host_.data(), i, value); }
  void to_device();                   // host bytes, as they are
  std::vector<double> from_device();  // values
  std::vector<double> host_values() const;
  View host_view() const { return view_on(const_cast<char*>(host_.data())); }
  View device_view() const { return view_on(static_cast<char*>(device_data_) + guard_); }

 private:
  View view_on(void* data) const { return contiguous_view(data, dtype_, shape_); }

  TableContext& device_;
  uint64_t guard_;  // bytes of a pattern before and after the array
  int32_t dtype_;
  std::vector<int64_t> shape_;
  int64_t size_ = 1;
  std::vector<char> host_;
  void* device_data_ = nullptr;
};

using Array = std::shared_ptr<Operand>;

class DeviceTest {
 public:
  // Finds an array's view on the side that runs; null for a null array. The pointers live until the
  // row has returned.
  using ViewOf = std::function<const View*(const Array&)>;
  using Row = std::function<int32_t(const KernelTable&, Context*, const ViewOf&)>;

  explicit DeviceTest(uint32_t seed = 7);

  template <typename T>
  Array empty(std::vector<int64_t> shape) {
    return make(dtype_of<T>(), std::move(shape));
  }
  // Uniform in [-scale, scale], rounded to T.
  template <typename T>
  Array random(std::vector<int64_t> shape, double scale = 1) {
    return random(dtype_of<T>(), std::move(shape), scale);
  }
  template <typename T>
  Array values(std::vector<int64_t> shape, const std::vector<double>& values) {
    return of_values(dtype_of<T>(), std::move(shape), values);
  }
  Array make(int32_t dtype, std::vector<int64_t> shape);  // NaN patterns
  Array random(int32_t dtype, std::vector<int64_t> shape, double scale = 1);
  Array of_values(int32_t dtype, std::vector<int64_t> shape, const std::vector<double>& values);

  // Copies every array to the device, runs the row there and on the CPU; both must succeed.
  void both(const Row& row);
  // On one side only; returns the status. `error()` and `synchronize()` say more.
  int32_t on_device(const Row& row);
  int32_t on_cpu(const Row& row);
  int32_t synchronize();
  std::string error() { return device_.get()->error; }
  Context* device_context() { return device_.get(); }
  bool emulated() const { return device_.emulated(); }

  // |device - cpu| <= tolerance * (1 + |cpu|) everywhere; the first miss prints index and values.
  void check_close(const Array& array, double tolerance);
  void check_equal(const Array& array);
  // |device - truth| <= factor * largest |cpu - truth| + tolerance * (1 + |truth|) everywhere.
  void check_truth(const Array& array, const std::vector<double>& truth, double tolerance,
                   double factor = 2);
  std::mt19937& generator() { return random_; }

 private:
  int32_t run(TableContext& side, bool device, const Row& row);

  std::mt19937 random_;
  TableContext device_, cpu_;
  std::vector<std::weak_ptr<Operand>> arrays_;
};

}  // namespace balora::test
