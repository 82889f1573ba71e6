// Ops under an abort's flag: those that have not begun are skipped, the kernel that runs may leave
// its loops early, and neither touches the ops of others.
#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/launch.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/stop.h"
#include "support/engine_test.h"
#include "support/kernel_test.h"

namespace {

using namespace balora;
using test::failure_of;
using test::ones;

using Flag = std::shared_ptr<std::atomic<bool>>;
Flag new_flag() {
  return std::make_shared<std::atomic<bool>>(false);
}

// Enqueues ops under a flag while it lives.
class Under {
 public:
  Under(Engine& engine, const Flag& flag) : engine_(engine), before_(engine.state().abort) {
    engine_.state().abort = flag;
  }
  Under(const Under&) = delete;
  Under& operator=(const Under&) = delete;
  ~Under() { engine_.state().abort = before_; }

 private:
  Engine& engine_;
  AbortFlag before_;
};

// An op that counts its runs.
Tensor counted(const Tensor& x, std::atomic<int>& runs) {
  const Tensor y = Tensor::empty(x.engine(), x.shape(), x.dtype());
  launch("counted", {x}, {y}, [&runs](Launch&) {
    ++runs;
    return 0;
  });
  return y;
}

// Holds the engine until it is opened, so that what is enqueued behind has not begun.
class Gate {
 public:
  explicit Gate(Engine& engine) {
    launch("gate", {}, {Tensor::empty(engine, {1}, DType::kF32)}, [this](Launch&) {
      while (!open_) std::this_thread::yield();
      return 0;
    });
  }
  void open() { open_ = true; }

 private:
  std::atomic<bool> open_{false};
};

}  // namespace

TEST_CASE("abort: queued ops that have not begun are skipped, with those that read their results") {
  Engine engine(cpu_kernel_table(), {});
  const Tensor x = ones(engine, {1000});
  engine.stream().sync();
  const int64_t before = engine.allocator().stats().live_bytes;
  const Flag flag = new_flag();
  std::atomic<int> mine{0}, readers{0}, others{0};
  Gate gate(engine);
  Tensor skipped = x;
  {
    const Under under(engine, flag);
    for (int i = 0; i < 10; ++i) skipped = counted(skipped, mine);
  }
  const Tensor reader = counted(skipped, readers);
  const Tensor other = counted(x, others);
  *flag = true;
  gate.open();
  CHECK(failure_of(engine) == "none");  // nobody has asked for what was skipped
  CHECK(mine == 0);
  CHECK(readers == 0);
  CHECK(others == 1);
  CHECK(engine.allocator().stats().live_bytes == before + 4000);  // the other's output alone
  std::vector<float> out(1000);
  download(reader, out.data());
  CHECK(failure_of(engine) == "ERR_ABORTED");
  download(other, out.data());
  CHECK(failure_of(engine) == "none");
}

TEST_CASE("abort: the flag of one caller does not touch the ops of another, on any engine") {
  Engine engine(cpu_kernel_table(), {}), second(cpu_kernel_table(), {});
  const Tensor x = ones(engine, {8}), elsewhere = ones(second, {8});
  const Flag aborted = new_flag(), kept = new_flag();
  std::atomic<int> mine{0}, kept_runs{0}, plain{0}, second_runs{0};
  *aborted = true;
  std::vector<Tensor> results;
  for (int i = 0; i < 5; ++i) {
    const Under under(engine, aborted);
    results.push_back(counted(x, mine));
    results.push_back(counted(elsewhere, second_runs));  // its engine has a state of its own
    {
      const Under within(engine, kept);
      results.push_back(counted(x, kept_runs));
    }
    const Under beyond(engine, nullptr);
    results.push_back(counted(x, plain));
  }
  CHECK(failure_of(engine) == "none");
  CHECK(failure_of(second) == "none");
  CHECK(mine == 0);
  CHECK(kept_runs == 5);
  CHECK(plain == 5);
  CHECK(second_runs == 5);
}

TEST_CASE(
    "abort: a parallel loop that looks at the flag leaves early, and its results are given up") {
  EngineOptions options;
  options.num_threads = 4;
  Engine engine(cpu_kernel_table(), options);
  const Flag flag = new_flag();
  constexpr int64_t kTurns = 100'000;
  std::atomic<int64_t> turns{0};
  std::atomic<bool> seen_before{false}, seen_after{false}, has_begun{false};
  const Tensor y = Tensor::empty(engine, {1}, DType::kF32);
  {
    const Under under(engine, flag);
    launch("loop", {}, {y}, [&](Launch& l) {
      seen_before = is_stopped(l.ctx);
      parallel_for(l.ctx, kTurns, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end && !is_stopped(l.ctx); ++i) {
          ++turns;
          has_begun = true;
          while (!*flag) std::this_thread::yield();  // each thread is in the middle of a turn
        }
      });
      seen_after = is_stopped(l.ctx);
      return 0;
    });
  }
  while (!has_begun) std::this_thread::yield();
  *flag = true;
  CHECK(failure_of(engine) == "none");
  CHECK_FALSE(seen_before);
  CHECK(seen_after);
  CHECK(turns >= 1);
  CHECK(turns <= 4);
  float value = 0;
  download(y, &value);
  CHECK(failure_of(engine) == "ERR_ABORTED");

  // The next op is another's: its kernel sees no flag, and runs to its end.
  std::atomic<int64_t> next{0};
  bool seen = true;
  const Tensor z = Tensor::empty(engine, {1}, DType::kF32);
  launch("loop", {}, {z}, [&](Launch& l) {
    seen = is_stopped(l.ctx);
    parallel_for(l.ctx, kTurns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end && !is_stopped(l.ctx); ++i) ++next;
    });
    return 0;
  });
  CHECK(failure_of(engine) == "none");
  CHECK_FALSE(seen);
  CHECK(next == kTurns);
}

TEST_CASE("abort: attention looks at the flag of its own state alone") {
  test::TestContext stopped(2), running(2);
  const std::atomic<bool> flag{true};
  set_stop_flag(static_cast<Context*>(stopped)->device_state, &flag);
  const auto attend = [](Context* ctx) {
    constexpr int64_t kRows = 300;
    std::mt19937 random(3);
    test::Array<float> q({kRows, 2, 16}, random), k({kRows, 2, 16}, random);
    test::Array<float> v({kRows, 2, 16}, random), out({kRows, 2, 16}), lse({kRows, 2});
    test::Array<int32_t> cu({2}, std::vector<double>{0, kRows});
    View vq = q.view(), vk = k.view(), vv = v.view(), vcu = cu.view();
    View vout = out.view(), vlse = lse.view();
    REQUIRE(attention_forward_kernel(ctx, {.q = &vq,
                                           .k = &vk,
                                           .v = &vv,
                                           .cu_seqlens = &vcu,
                                           .out = &vout,
                                           .lse = &vlse,
                                           .scale = 0.25f,
                                           .causal = 1}) == 0);
    int64_t written = 0;
    for (const double value : out.values()) written += std::isnan(value) ? 0 : 1;
    return written;
  };
  CHECK(attend(stopped) == 0);
  CHECK(attend(running) == 300 * 2 * 16);
  set_stop_flag(static_cast<Context*>(stopped)->device_state, nullptr);
  CHECK(attend(stopped) == 300 * 2 * 16);
}
