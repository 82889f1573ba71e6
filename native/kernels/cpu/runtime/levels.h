// Row loops for each level of x86-64: compiled for all of them, one of which runs as the processor
// and its limit allow (platform/cpu.h). A compiler finds the instructions; no intrinsics.
//
//   template <typename T>
//   BALORA_INLINE void add_rows(const Add<T>& o, int64_t begin, int64_t end) { ... }
//   parallel_for(ctx, rows, grain, [&](int64_t begin, int64_t end) {
//     at_level<&add_rows<T>>(o, begin, end);
//   });
//
// All that a loop calls must be inlined into it. Lambdas of a parallel loop are compiled for the
// lowest level, so the loop takes a range and is called in them.
#pragma once
#include <utility>

#include "kernels/cpu/runtime/inline.h"
#include "platform/cpu.h"

namespace balora {

template <auto kBody>
struct Levels;

template <typename R, typename... P, R (*kBody)(P...)>
struct Levels<kBody> {
  static R lowest(P... p) { return kBody(p...); }
  BALORA_ON_X86(
      __attribute__((target("arch=x86-64-v3"))) static R avx2(P... p) { return kBody(p...); }
      __attribute__((target("arch=x86-64-v4"))) static R avx512(P... p) { return kBody(p...); })

  static auto chosen() {
    BALORA_ON_X86(if (platform::cpu().uses(platform::kAvx512)) return &avx512;
                  if (platform::cpu().uses(platform::kAvx2)) return &avx2;)
    return &lowest;
  }
};

// Calls a BALORA_INLINE function.
template <auto kBody, typename... P>
auto at_level(P&&... p) {
  static const auto run = Levels<kBody>::chosen();
  return run(std::forward<P>(p)...);
}

// The same of a function that is written for vectors of 16, 32 or 64 bytes (runtime/wide.h): the
// lowest level, AVX2 and AVX-512 have these.
template <auto k16, auto k32, auto k64, typename... P>
auto at_width(P&&... p) {
  static const auto run = [] {
    BALORA_ON_X86(if (platform::cpu().uses(platform::kAvx512)) return &Levels<k64>::avx512;
                  if (platform::cpu().uses(platform::kAvx2)) return &Levels<k32>::avx2;)
    return &Levels<k16>::lowest;
  }();
  return run(std::forward<P>(p)...);
}

}  // namespace balora
