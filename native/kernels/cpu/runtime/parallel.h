// Work sharing over OpenMP: the same thread count always gives the same split, so a kernel whose
// blocks are independent (or summed in block order) is bitwise repeatable.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <type_traits>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels/kernel_table.h"

namespace balora {

// Threads that parallel_for will use for n items of which at least `grain` should go to one thread.
inline int parallel_width(const Context* ctx, int64_t n, int64_t grain) {
  const int64_t wanted = (n + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1);
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max(ctx->num_threads, 1)));
}

// The grain of items of `size` elements, where a thread should get at least `elements`.
inline int64_t grain_of(int64_t elements, int64_t size) {
  return elements / std::max<int64_t>(size, 1);
}

// How evenly n items share out among threads: 1 if each has as many.
inline double evenness(int64_t n, int64_t threads) {
  const int64_t most = (n + threads - 1) / threads;  // items of one thread
  return static_cast<double>(n) / static_cast<double>(most * threads);
}

// Keeper of an exception that parts of a loop threw: that of the lowest part, so that a failure is
// the same in each run. An exception that left OpenMP's region would end the process.
class PartFailures {
 public:
  // Takes the exception that is being handled.
  void keep(int part) noexcept {
    const std::lock_guard lock(mutex_);
    if (!kept_ || part < part_) kept_ = std::current_exception(), part_ = part;
  }
  void rethrow() const {
    if (kept_) std::rethrow_exception(kept_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr kept_;
  int part_ = 0;
};

// Calls body(begin, end) on disjoint ranges that cover [0, n). The ranges depend on n, grain and
// the number of threads only. Where body throws, the rest of its own range is left out; the
// exception of the first such range is thrown here when all threads have ended.
template <typename Body>
void parallel_for(const Context* ctx, int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  const int width = parallel_width(ctx, n, grain);
  if (width == 1) {
    body(int64_t{0}, n);
    return;
  }
  PartFailures failures;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(width) schedule(static, 1)
#endif
  for (int part = 0; part < width; ++part) {
    try {
      body(n * part / width, n * (part + 1) / width);
    } catch (...) {
      failures.keep(part);
    }
  }
  failures.rethrow();
}

// Items [0, n) in pieces of `piece`, a range of them for each of `threads`. Whoever has finished
// its own takes what is left of another's: cores are not equally fast while other processes use
// them, and items not equally dear. Threads ask for pieces at the same time; the pieces do not
// depend on who gets them.
class Shares {
 public:
  Shares(int64_t n, int64_t piece, int threads) : piece_(piece), ranges_(threads) {
    const int64_t pieces = (n + piece - 1) / piece;
    for (int64_t t = 0; t < threads; ++t) {
      Range& range = ranges_[static_cast<size_t>(t)];
      range.next.store(pieces * t / threads * piece, std::memory_order_relaxed);
      range.end = std::min(n, pieces * (t + 1) / threads * piece);
    }
  }

  // Calls body(begin, end) for what is left of the range of thread `self`, piece by piece.
  template <typename Body>
  void take_own(int self, const Body& body) {
    Range& range = ranges_[static_cast<size_t>(self)];
    for (;;) {
      const int64_t begin = range.next.fetch_add(piece_, std::memory_order_relaxed);
      if (begin >= range.end) break;
      body(begin, std::min(begin + piece_, range.end));
    }
  }

  // The same for what is left of the others'.
  template <typename Body>
  void take_others(int self, const Body& body) {
    const int threads = static_cast<int>(ranges_.size());
    for (int i = 1; i < threads; ++i) take_own((self + i) % threads, body);
  }

 private:
  struct alignas(64) Range {  // a cache line for each
    std::atomic<int64_t> next;
    int64_t end;
  };

  int64_t piece_;
  std::vector<Range> ranges_;
};

// parallel_for() by pieces (Shares): of one item each, or so large that a thread has kPieces of
// them or somewhat more. body's results must not depend on which thread calls it.
// It sets things up for each piece, or in what belongs to thread number `self` of parallel_width(),
// which it may ask for: body(begin, end, self).
template <typename Body>
void share_out(const Context* ctx, int64_t n, int64_t grain, const Body& body) {
  constexpr int64_t kPieces = 64;
  if (n <= 0) return;
  const int width = parallel_width(ctx, n, grain);
  const auto run = [&body](int64_t begin, int64_t end, int self) {
    if constexpr (std::is_invocable_v<Body, int64_t, int64_t, int>) {
      body(begin, end, self);
    } else {
      body(begin, end);
    }
  };
  if (width == 1) {
    run(0, n, 0);
    return;
  }
  Shares shares(n, std::max<int64_t>(1, n / (width * kPieces)), width);
  parallel_for(ctx, width, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      const int self = static_cast<int>(thread);
      const auto piece = [&run, self](int64_t first, int64_t last) { run(first, last, self); };
      shares.take_own(self, piece);
      shares.take_others(self, piece);
    }
  });
}

}  // namespace balora
