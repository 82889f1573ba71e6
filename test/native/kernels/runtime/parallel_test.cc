// Work shared out in pieces: each item once, in ranges that do not depend on who gets them, and
// nobody waits for a thread that is late while there is work.
#include "kernels/cpu/runtime/parallel.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/kernel_test.h"

namespace balora::test {
namespace {

using Ranges = std::set<std::pair<int64_t, int64_t>>;

Ranges ranges_of(int64_t n, int64_t grain, int threads) {
  TestContext ctx(threads);
  Ranges ranges;
  std::mutex mutex;
  std::vector<std::atomic<int>> visits(static_cast<size_t>(n));
  share_out(ctx, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
    const std::lock_guard lock(mutex);
    ranges.emplace(begin, end);
  });
  for (int64_t i = 0; i < n; ++i) REQUIRE(visits[static_cast<size_t>(i)] == 1);
  return ranges;
}

}  // namespace

TEST_CASE("work shared out: each item once, in the same ranges each time") {
  for (const int64_t n : {1, 2, 3, 7, 31, 64, 100, 1003}) {
    for (const int64_t grain : {1, 8, 64}) {
      for (const int threads : {1, 2, 3, 5}) {
        CAPTURE(n);
        CAPTURE(grain);
        CAPTURE(threads);
        CHECK(ranges_of(n, grain, threads) == ranges_of(n, grain, threads));
      }
    }
  }
}

TEST_CASE("work shared out: others take what a late thread has left") {
  constexpr int kThreads = 2;
  constexpr int64_t kPieces = 40;
  Shares shares(kPieces, 1, kThreads);
  std::atomic<int64_t> done{0};
  std::atomic<bool> in_time{true};
  std::vector<std::thread> threads;
  for (int self = 0; self < kThreads; ++self) {
    threads.emplace_back([&, self] {
      const auto piece = [&](int64_t begin, int64_t) {
        // The first piece of thread 0 takes until all others have been done.
        const auto last = std::chrono::steady_clock::now() + std::chrono::seconds(30);
        while (begin == 0 && done < kPieces - 1 && in_time) {
          if (std::chrono::steady_clock::now() > last) in_time = false;
          std::this_thread::yield();
        }
        ++done;
      };
      shares.take_own(self, piece);
      shares.take_others(self, piece);
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(in_time);
  CHECK(done == kPieces);
}

TEST_CASE("work shared out: a thread takes its own before the others'") {
  constexpr int64_t kItems = 10;
  Shares shares(kItems, 2, 2);
  std::vector<int64_t> mine;
  const auto take = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) mine.push_back(i);
  };
  shares.take_own(1, take);
  CHECK(mine == std::vector<int64_t>{4, 5, 6, 7, 8, 9});
  shares.take_others(1, take);
  CHECK(mine == std::vector<int64_t>{4, 5, 6, 7, 8, 9, 0, 1, 2, 3});
  shares.take_own(0, take);
  CHECK(mine.size() == kItems);
}

TEST_CASE("work shared out: what a part throws reaches the caller, of several the first") {
  for (const int threads : {1, 2, 5}) {
    CAPTURE(threads);
    TestContext ctx(threads);
    std::atomic<int64_t> done{0};
    const auto fails_from = [&](int64_t first) {
      done = 0;
      try {
        parallel_for(ctx, 5, 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            if (i >= first) throw ArgumentError("item " + std::to_string(i));
            ++done;
          }
        });
      } catch (const ArgumentError& error) {
        return std::string(error.what());
      }
      return std::string();
    };
    CHECK(fails_from(5) == "");
    CHECK(done == 5);
    CHECK(fails_from(2) == "item 2");
    CHECK(done == 2);
    CHECK_THROWS_AS(share_out(ctx, 64, 1, [](int64_t, int64_t) { throw std::bad_alloc(); }),
                    std::bad_alloc);
    CHECK(fails_from(5) == "");
  }
}

}  // namespace balora::test
