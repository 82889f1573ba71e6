// The execution stream: one native thread that runs queued work in order. Enqueueing returns at
// once. The first failure makes the stream skip ops until the next marker, which reports it and
// clears it: so an error surfaces at the next sync, once, with the name of the op that failed.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "tensor/errors.h"

namespace balora {

struct Failure {
  std::string code;
  std::string message;
  bool consequence = false;  // something else failed first, and says more
};

// Thrown by an op that could not run because another failed.
class ConsequenceError : public Error {
 public:
  explicit ConsequenceError(const std::string& message) : Error("ERR_NATIVE", message) {}
};

class Stream {
 public:
  using Op = std::function<void()>;                    // throws to fail
  using Marker = std::function<void(const Failure*)>;  // runs always; null: all went well

  // `start` runs first on the new thread (thread priority, thread counts); `finish` before each
  // marker: it waits for what the ops left running and throws what failed there.
  explicit Stream(std::function<void()> start = {}, std::function<void()> finish = {});
  ~Stream();  // runs what is queued, unless abandon() was called, then joins

  void enqueue(Op op);
  void enqueue_marker(Marker marker);
  void enqueue_always(Op op);  // runs whatever failed before, and leaves that to the next marker
  void sync();  // blocks the caller until everything before it has run; throws the failure
  // Drops queued ops; markers still run, with a failure, and so does what must always run.
  void abandon();

  // Adds where and with what an op failed; called on the stream's thread.
  static Failure describe(const std::exception& error, const std::string& context);

 private:
  struct Task {
    Op op = {};
    Marker marker = {};
    bool always = false;
  };
  void push(Task task);
  void run();
  std::optional<Failure> settle(bool abandoned);  // the failure that the next marker gets

  static constexpr size_t kMaxQueued = 1 << 16;  // ops; a producer that is further ahead waits

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable room_;
  std::deque<Task> queue_;
  bool stopping_ = false;
  bool abandoned_ = false;
  std::function<void()> finish_;
  std::optional<Failure> failure_;  // stream thread only
  std::thread thread_;
};

// A failure with its own code and message, thrown where a stream failure surfaces.
class StreamError : public Error {
 public:
  explicit StreamError(const Failure& failure)
      : Error("ERR_NATIVE", failure.message), code_(failure.code) {}
  const std::string& failure_code() const { return code_; }

 private:
  std::string code_;
};

}  // namespace balora
