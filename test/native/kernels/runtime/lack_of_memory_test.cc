// A kernel that finds no memory says so, in whichever thread and wherever in its work that happens:
// each allocation of a call (of many, every third) fails once, and the same call then succeeds.
// These are operator new, and aligned_alloc, by which kernels take what they keep (scratch, packed
// weights) and tests the workspace. Each call has a new context, in which nothing is kept yet.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <new>
#include <span>
#include <string>

#include "kernels/cpu/products/tiles.h"
#include "platform/cpu.h"
#include "support/kernel_test.h"

// The sanitizers have operators of their own.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {

// Allocations of all threads until one fails; negative: none does.
std::atomic<int64_t> until_failure{-1};
// Whether those of operator new count. In oneDNN's own loops a throw of one ends the process.
std::atomic<bool> counts_new{true};

bool fails_now() {
  return until_failure.load() >= 0 && until_failure.fetch_sub(1) == 0;
}

// Null where it fails.
void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
  void* memory = nullptr;
  const std::size_t least = std::max(alignment, sizeof(void*));
  return posix_memalign(&memory, least, std::max<std::size_t>(bytes, 1)) == 0 ? memory : nullptr;
}

void* allocated(std::size_t bytes, std::size_t alignment) {
  void* const memory = counts_new && fails_now() ? nullptr : allocate(bytes, alignment);
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) {
  return allocated(bytes, alignof(std::max_align_t));
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocated(bytes, static_cast<std::size_t>(alignment));
}
// This one is the program's, and so stands in the place of the C library's.
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  return fails_now() ? nullptr : allocate(bytes, alignment);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace balora::test {
namespace {

// Calls the row with one allocation after the other failing, which must be named; returns the
// number of allocations of a call that got through. `forget` drops what a call keeps elsewhere than
// in its context.
template <typename O>
int64_t failures_of(
    KernelRow<O> row, const O& operands, const std::function<void()>& forget = [] {}) {
  constexpr int64_t kEach = 100, kStride = 3, kMost = 10'000;
  for (int64_t failing = 0; failing < kMost; failing += failing < kEach ? 1 : kStride) {
    forget();
    TestContext context(3);
    Context* const ctx = context;
    const auto run = [&] {
      ctx->error[0] = '\0';
      return (cpu_kernel_table()->*row)(ctx, &operands);
    };
    until_failure = failing;
    const int32_t status = run();
    const bool all_passed = until_failure >= 0;
    until_failure = -1;
    if (all_passed) {
      CHECK(status == 0);
      return failing;
    }
    CHECK_MESSAGE(status != 0, "allocation ", failing);
    CHECK(std::string(ctx->error).starts_with("out of memory"));
    REQUIRE(run() == 0);
  }
  FAIL("every call failed");
  return kMost;
}

// Operands of a head's losses in T.
template <typename T>
struct Head {
  Array<T> h, ht, w, dh;
  Array<int32_t> targets;
  Array<double> sums;
  View vh, vht, vw, vdh, vt, vs;
  balora_head_losses o;

  Head(std::mt19937 random, int64_t rows, int64_t channels, int64_t vocabulary)
      : h({rows, channels}, random),
        ht({rows, channels}, random),
        w({vocabulary, channels}, random),
        dh({rows, channels}),
        targets(std::vector<int64_t>{rows}),
        sums(std::vector<int64_t>{4}),
        vh(h.view()),
        vht(ht.view()),
        vw(w.view()),
        vdh(dh.view()),
        vt(targets.view()),
        vs(sums.view()),
        o{.h = &vh,
          .w = &vw,
          .teacher = {.kind = BALORA_TEACHER_LIVE, .hidden = &vht},
          .targets = &vt,
          .sums = &vs,
          .dh = &vdh,
          .options = {.task_scale = 1,
                      .consistency_scale = 0.2,
                      .diversity_scale = 0.1,
                      .temperature = 2,
                      .entropy_temperature = 1,
                      .entropy_top_k = 5}} {
    for (int64_t i = 0; i < rows; ++i) targets.data()[i] = static_cast<int32_t>(i % vocabulary);
  }
};

}  // namespace

TEST_CASE("out of memory in the head's losses is an error: by row") {
  TestContext ctx(3);
  Head<float> head(std::mt19937(1), 12, 8, 400);
  const std::vector<double> before = [&] {
    REQUIRE(cpu_kernel_table()->head_losses(ctx, &head.o) == 0);
    return head.sums.values();
  }();
  counts_new = platform::cpu().uses(platform::kAvx2);  // without it products are oneDNN's
  const int64_t failing = failures_of(&KernelTable::head_losses, head.o);
  counts_new = true;
  CHECK(failing > 0);
  CHECK(head.sums.values() == before);
}

TEST_CASE("out of memory in the head's losses is an error: by token") {
  TestContext ctx(3);
  Head<bf16> head(std::mt19937(2), 40, 40, 1100);
  REQUIRE(cpu_kernel_table()->head_losses(ctx, &head.o) == 0);
  if (static_cast<Context*>(ctx)->implementation != std::string("by_token")) {
    MESSAGE("not run: this process has no AMX");
    return;
  }
  const std::vector<double> before = head.sums.values(), dh = head.dh.values();
  CHECK(failures_of(&KernelTable::head_losses, head.o) > 10);
  CHECK(head.sums.values() == before);
  CHECK(head.dh.values() == dh);
}

TEST_CASE("out of memory in linears is an error: in the copy of a frozen weight") {
  std::mt19937 random(5);
  Array<float> x({6, 40}, random), w({24, 40}, random), y({6, 24});
  balora_slot slots[BALORA_SLOTS] = {};
  const auto forget = [&] {
    for (balora_slot& slot : slots) {
      if (slot.data) slot.destroy(slot.data);
      slot = {};
    }
  };
  const View vx = x.view(), vy = y.view();
  View vw = w.view();
  vw.slots = slots;
  const balora_linear linear{.weight = {.dense = &vw}, .y = &vy};
  const balora_linear_forward o{.x = &vx, .linears = &linear, .count = 1};
  counts_new = false;
  const int64_t failing = failures_of(&KernelTable::linear_forward, o, forget);
  counts_new = true;
  CHECK(failing > 0);
  CHECK(slots[0].bytes > 0);
  forget();
}

TEST_CASE("out of memory in linears is an error: in the scratch of low-rank parts") {
  std::mt19937 random(6);
  Array<bf16> x({6, 40}, random), w({24, 40}, random), y({6, 24});
  Array<bf16> a({4, 40}, random), b({24, 4}, random);
  Array<float> u({6, 4});
  const View vx = x.view(), vw = w.view(), vy = y.view(), va = a.view(), vb = b.view();
  const View vu = u.view();
  const balora_low_rank part{.a = &va, .b = &vb, .u = &vu, .scale = 1};
  const balora_linear linear{.weight = {.dense = &vw}, .y = &vy, .parts = &part, .part_count = 1};
  const balora_linear_forward o{.x = &vx, .linears = &linear, .count = 1};
  CHECK(failures_of(&KernelTable::linear_forward, o) > 0);
}

TEST_CASE("out of memory in topk is an error") {
  std::mt19937 random(3);
  Array<float> x({64, 2000}, random);
  for (const int64_t k : {5, 100}) {
    Array<float> values({64, k});
    Array<int32_t> columns({64, k});
    const View vx = x.view(), vv = values.view(), vc = columns.view();
    const balora_topk o{.x = &vx, .values = &vv, .columns = &vc};
    CHECK(failures_of(&KernelTable::topk, o) > 0);
    for (int64_t row = 0; row < 64; ++row) {
      const float* const of_row = x.data() + row * 2000;
      CHECK(values.data()[row * k] == *std::max_element(of_row, of_row + 2000));
    }
  }
}

TEST_CASE("out of memory in products in tiles is an error") {
  if (!tiles_ready()) {
    MESSAGE("not run: this process has no instructions for products of bf16");
    return;
  }
  std::mt19937 random(4);
  Array<bf16> a({96, 130}, random), b({72, 130}, random);
  std::vector<float> c(96 * 72);
  TestContext ctx(3);
  struct alignas(64) Line {
    bf16 values[32];
  };
  std::vector<Line> lines(static_cast<size_t>(tiles_size(130, 72)) / 32 + 1);
  bf16* const tiles = lines[0].values;
  pack_tiles(ctx, {.data = b.data(), .k_stride = 1, .n_stride = 130}, 130, 72, tiles);
  const TileSum sum = {72, {{a.data(), 130, 130, tiles}}, {c.data(), BALORA_F32, 72}};
  const auto multiply = [&] { run_tiles(ctx, 96, {}, {&sum, 1}); };
  multiply();
  const std::vector<float> before = c;
  int64_t failing = 0;
  for (; failing < 100; ++failing) {
    until_failure = failing;
    bool failed = false;
    try {
      multiply();
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    const bool all_passed = until_failure >= 0;
    until_failure = -1;
    CHECK(failed == !all_passed);
    multiply();
    CHECK(c == before);
    if (all_passed) break;
  }
  CHECK(failing > 3);
}

}  // namespace balora::test

#endif
