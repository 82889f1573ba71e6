#include "engine/stream.h"

#include <doctest/doctest.h>

#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace balora;

TEST_CASE("stream: runs in order on a thread of its own") {
  std::vector<int> seen;
  std::thread::id where;
  Stream stream([&] { where = std::this_thread::get_id(); });
  for (int i = 0; i < 1000; ++i) stream.enqueue([&seen, i] { seen.push_back(i); });
  stream.sync();
  CHECK(where != std::this_thread::get_id());
  REQUIRE(seen.size() == 1000);
  for (int i = 0; i < 1000; ++i) CHECK(seen[static_cast<size_t>(i)] == i);
}

TEST_CASE("stream: the first failure skips what follows, surfaces once, then all is well again") {
  Stream stream;
  std::atomic<int> ran{0};
  stream.enqueue([] { throw ArgumentError("first"); });
  stream.enqueue([&] { ++ran; });
  stream.enqueue([] { throw NativeError("second"); });
  try {
    stream.sync();
    FAIL("sync must throw");
  } catch (const StreamError& error) {
    CHECK(std::string(error.what()) == "first");
    CHECK(error.failure_code() == "ERR_ARGUMENT");
  }
  CHECK(ran == 0);
  stream.enqueue([&] { ++ran; });
  stream.sync();
  CHECK(ran == 1);
}

TEST_CASE("stream: a producer that runs far ahead waits for room") {
  Stream stream;
  std::atomic<int64_t> ran{0};
  constexpr int64_t kOps = 200'000;  // more than the queue holds
  for (int64_t i = 0; i < kOps; ++i) stream.enqueue([&ran] { ++ran; });
  stream.sync();
  CHECK(ran == kOps);
}

TEST_CASE("stream: what finishing finds surfaces at the next marker, behind an op's own failure") {
  std::string fault;
  Stream stream({}, [&fault] {
    if (!fault.empty()) throw NativeError(std::exchange(fault, {}));
  });
  const auto failure = [&stream]() -> std::string {
    try {
      stream.sync();
    } catch (const StreamError& error) {
      return error.what();
    }
    return "none";
  };
  CHECK(failure() == "none");
  stream.enqueue([&fault] { fault = "late"; });
  CHECK(failure() == "late");
  CHECK(failure() == "none");
  stream.enqueue([&fault] { fault = "late"; });
  stream.enqueue([] { throw ArgumentError("at once"); });
  CHECK(failure() == "at once\n  after late");
  stream.enqueue([&fault] { fault = "late"; });
  stream.enqueue([] { throw ConsequenceError("no value"); });
  CHECK(failure() == "late");
}

TEST_CASE("stream: an abandoned one drops its ops and still answers its markers") {
  std::atomic<int> ran{0}, failed{0};
  {
    Stream stream;
    stream.enqueue([&stream] { stream.abandon(); });
    for (int i = 0; i < 10; ++i) stream.enqueue([&] { ++ran; });
    stream.enqueue_marker([&](const Failure* failure) { failed += failure != nullptr; });
  }
  CHECK(ran == 0);
  CHECK(failed == 1);
}

TEST_CASE("stream: what must always run does, and leaves the failure to the next marker") {
  std::atomic<int> ran{0};
  {
    Stream stream;
    stream.enqueue([] { throw ArgumentError("first"); });
    stream.enqueue_always([&] { ++ran; });
    CHECK_THROWS_WITH(stream.sync(), "first");
    stream.sync();
    CHECK(ran == 1);
    stream.enqueue([&stream] { stream.abandon(); });
    stream.enqueue_always([&] { ++ran; });
  }
  CHECK(ran == 2);
}

TEST_CASE("stream: a full queue does not outlive its stream") {
  std::atomic<int> ran{0};
  {
    Stream stream;
    for (int i = 0; i < 100; ++i) stream.enqueue([&] { ++ran; });
  }
  CHECK(ran == 100);
}
