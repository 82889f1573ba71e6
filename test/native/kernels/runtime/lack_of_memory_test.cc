// A kernel that finds no memory says so, in whichever thread and wherever in its work that happens:
// each allocation of a call fails once, in turn, and the same call then succeeds.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <span>
#include <string>

#include "kernels/cpu/head/head_by_token.h"
#include "kernels/cpu/products/tiles.h"
#include "support/kernel_test.h"

// The sanitizers have operators of their own.
#ifndef BALORA_SANITIZED

namespace {

// Allocations of all threads until one fails; negative: none does.
std::atomic<int64_t> until_failure{-1};

void* allocate(std::size_t bytes, std::size_t alignment) {
  if (until_failure.load() >= 0 && until_failure.fetch_sub(1) == 0) throw std::bad_alloc();
  const std::size_t rounded = (std::max<std::size_t>(bytes, 1) + alignment - 1) / alignment;
  void* const memory = std::aligned_alloc(alignment, rounded * alignment);
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) {
  return allocate(bytes, alignof(std::max_align_t));
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
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

// Calls the row with every allocation failing in turn, `most` of them at most, which must be named;
// returns how many failed before a call got through.
template <typename O>
int64_t failures_of(Context* ctx, KernelRow<O> row, const O& operands, int64_t most = 300) {
  const auto run = [&] {
    ctx->error[0] = '\0';
    return (cpu_kernel_table()->*row)(ctx, &operands);
  };
  REQUIRE(run() == 0);
  for (int64_t failing = 0; failing < most; ++failing) {
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
  return most;
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
          .ht = &vht,
          .w = &vw,
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
  CHECK(failures_of(ctx, &KernelTable::head_losses, head.o) > 3);
  CHECK(head.sums.values() == before);
}

TEST_CASE("out of memory in the head's losses is an error: by token") {
  TestContext ctx(3);
  Head<bf16> head(std::mt19937(2), 40, 40, 1100);
  if (HeadByToken::chunk_rows(head.o) == 0) {
    MESSAGE("not run: this process has no AMX");
    return;
  }
  REQUIRE(cpu_kernel_table()->head_losses(ctx, &head.o) == 0);
  const std::vector<double> before = head.sums.values(), dh = head.dh.values();
  CHECK(failures_of(ctx, &KernelTable::head_losses, head.o) > 10);
  CHECK(head.sums.values() == before);
  CHECK(head.dh.values() == dh);
}

TEST_CASE("out of memory in topk is an error") {
  std::mt19937 random(3);
  Array<float> x({64, 2000}, random);
  for (const int64_t k : {5, 100}) {
    TestContext ctx(3);
    Array<float> values({64, k});
    Array<int32_t> columns({64, k});
    const View vx = x.view(), vv = values.view(), vc = columns.view();
    failures_of(ctx, &KernelTable::topk, balora_topk{.x = &vx, .values = &vv, .columns = &vc});
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
