// Copies between the host and the device through pinned memory: values of every size on every way,
// their order beside other ops, that nobody waits for anybody without need, and who keeps what
// alive. The emulated device runs a copy as late as it may, so that memory which is reused too
// early shows. Where there is one device only, a second engine on it takes the second one's part.
#include <future>
#include <numeric>

#include "engine/engine.h"
#include "engine/launch.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "ops/ops.h"
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr int64_t kFloat = sizeof(float);
// One element; a block's size and beside it; parts of the ring and beside them; more than the ring
// holds and than a block may have.
const int64_t kSizes[] = {1,
                          1024,
                          1025,
                          StagingRing::kChunkBytes / kFloat - 1,
                          PinnedPool::kLargestBytes / kFloat,
                          PinnedPool::kLargestBytes / kFloat + 1,
                          5 * StagingRing::kChunkBytes / kFloat + 3};

struct Engines {
  Engine host{cpu_kernel_table(), {}};
  Engine first{&device_table(), {}};
  Engine second{&device_table(), second_device()};

  static EngineOptions second_device() {
    static const int index = [] {
      char error[256] = "";
      void* state = device_table().create_state(1, error, sizeof error);
      if (!state) {
        MESSAGE("both engines are on cuda:0: ", error);
        return 0;
      }
      device_table().destroy_state(state);
      return 1;
    }();
    EngineOptions options;
    options.device_index = index;
    return options;
  }
};

std::vector<float> counted(int64_t n, float from) {
  std::vector<float> values(static_cast<size_t>(n));
  std::iota(values.begin(), values.end(), from);
  return values;
}

std::vector<float> values(const Tensor& t) {
  std::vector<float> host(static_cast<size_t>(t.numel()));
  download(t, host.data());
  t.engine().stream().sync();
  return host;
}

// A stream that stands still until open().
class Gate {
 public:
  explicit Gate(Engine& engine) {
    engine.stream().enqueue([opened = promise_.get_future().share()] { opened.wait(); });
  }
  void open() { promise_.set_value(); }

 private:
  std::promise<void> promise_;
};

}  // namespace

TEST_CASE("staging: values of every size arrive on every way") {
  Engines e;
  for (const int64_t n : kSizes) {
    CAPTURE(n);
    std::vector<float> source = counted(n, 3);
    const std::vector<float> expected = source;
    const Tensor there = upload(e.first, {n}, DType::kF32, source.data());
    std::fill(source.begin(), source.end(), -1.0f);  // taken at the call
    CHECK(values(there) == expected);
    const Tensor beside = transfer(there, e.second), home = transfer(beside, e.host),
                 again = transfer(home, e.first);
    CHECK(values(home) == expected);
    CHECK(values(again) == expected);
    CHECK(values(beside) == expected);
  }
}

TEST_CASE("staging: the order of a stream is kept, and a source may be written at once") {
  Engines e;
  Tensor x = full(e.first, {700}, 0, DType::kF32);
  const Tensor one = full(e.first, {700}, 1, DType::kF32);
  std::vector<Tensor> copies;
  for (int i = 0; i < 40; ++i) {
    add_in_place(x, one, 1);
    Tensor there = transfer(x, i % 2 ? e.host : e.second);
    scale_in_place(there, full(there.engine(), {}, 2, DType::kF64));
    copies.push_back(transfer(there, i % 3 ? e.first : e.host));
  }
  for (size_t i = 0; i < copies.size(); ++i) {
    const std::vector<float> got = values(copies[i]);
    CHECK(got.front() == 2 * static_cast<float>(i + 1));
    CHECK(got.back() == got.front());
  }
}

TEST_CASE("staging: nobody waits without need") {
  Engines e;
  const int64_t n = int64_t{1} << 20;
  const std::vector<float> source = counted(n, 0);
  SUBCASE("a device goes on while the host is behind") {
    const Tensor x = upload(e.first, {n}, DType::kF32, source.data());
    Gate gate(e.host);
    std::vector<Tensor> copies;  // more than the pool and the ring hold
    for (int i = 0; i < 24; ++i) copies.push_back(transfer(x, e.host));
    e.first.stream().sync();
    CHECK(e.first.pinned().held_bytes() <= PinnedPool::kMostBytes);
    gate.open();
    for (const Tensor& copy : copies) CHECK(values(copy) == source);
  }
  SUBCASE("the host goes on while a device is behind") {
    const Tensor x = upload(e.host, {n}, DType::kF32, source.data());
    Gate gate(e.first);
    std::vector<Tensor> copies;
    for (int i = 0; i < 24; ++i) copies.push_back(transfer(x, e.first));
    e.host.stream().sync();
    CHECK(e.first.pinned().held_bytes() <= PinnedPool::kMostBytes);
    gate.open();
    for (const Tensor& copy : copies) CHECK(values(copy) == source);
  }
}

TEST_CASE("staging: blocks are used again, and other sizes make room") {
  Engines e;
  const auto round = [&](int64_t n) {
    const std::vector<float> source = counted(n, 1);
    std::vector<Tensor> copies;
    for (int i = 0; i < 30; ++i) {
      copies.push_back(upload(e.first, {n}, DType::kF32, source.data()));
    }
    for (const Tensor& copy : copies) CHECK(values(copy) == source);
  };
  round(int64_t{1} << 20);
  const int64_t held = e.first.pinned().held_bytes();
  CHECK(held > 0);
  round(int64_t{1} << 20);
  CHECK(e.first.pinned().held_bytes() == held);
  round(int64_t{1} << 12);
  round(int64_t{1} << 21);
  CHECK(e.first.pinned().held_bytes() <= PinnedPool::kMostBytes);
}

TEST_CASE("staging: a source that failed is reported, and its blocks come back") {
  Engines e;
  e.first.allocator().set_limit(1000);
  const Tensor there = transfer(full(e.first, {1000}, 1, DType::kF32), e.host);
  CHECK_THROWS_WITH_AS(e.host.stream().sync(), doctest::Contains("no value came from cuda:0"),
                       StreamError);
  CHECK_THROWS_WITH_AS(e.first.stream().sync(), doctest::Contains("out of memory"), StreamError);
  e.first.allocator().set_limit(0);
  CHECK(values(transfer(full(e.first, {3}, 2, DType::kF32), e.host)) == std::vector<float>(3, 2));
}

TEST_CASE("staging: a copy outlives the engine that began it") {
  const std::vector<float> source = counted(5000, 7);
  Engine host(cpu_kernel_table(), {});
  Tensor there;
  Gate gate(host);
  {
    Engine device(&device_table(), {});
    there = transfer(upload(device, {5000}, DType::kF32, source.data()), host);
    device.stream().sync();
  }
  gate.open();
  CHECK(values(there) == source);
}
