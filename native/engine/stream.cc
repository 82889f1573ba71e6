#include "engine/stream.h"

#include <future>
#include <utility>

namespace balora {

Stream::Stream(std::function<void()> start, std::function<void()> finish)
    : finish_(std::move(finish)) {
  thread_ = std::thread([this, start = std::move(start)] {
    if (start) start();
    run();
  });
}

Stream::~Stream() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void Stream::push(Task task) {
  std::unique_lock lock(mutex_);
  room_.wait(lock, [this] { return queue_.size() < kMaxQueued; });
  queue_.push_back(std::move(task));
  if (queue_.size() == 1) wake_.notify_one();
}

void Stream::enqueue(Op op) {
  push({.op = std::move(op)});
}
void Stream::enqueue_marker(Marker marker) {
  push({.marker = std::move(marker)});
}
void Stream::enqueue_always(Op op) {
  push({.op = std::move(op), .always = true});
}

void Stream::abandon() {
  std::lock_guard lock(mutex_);
  abandoned_ = true;
}

void Stream::sync() {
  std::promise<std::optional<Failure>> done;
  enqueue_marker([&done](const Failure* failure) {
    done.set_value(failure ? std::optional<Failure>(*failure) : std::nullopt);
  });
  if (const auto failure = done.get_future().get()) throw StreamError(*failure);
}

Failure Stream::describe(const std::exception& error, const std::string& context) {
  return {code_of(error), context + message_of(error),
          dynamic_cast<const ConsequenceError*>(&error) != nullptr};
}

// The failure is cleared before the marker runs, so that whoever it wakes starts afresh.
std::optional<Failure> Stream::settle(bool abandoned) {
  if (finish_) {
    try {
      finish_();
    } catch (const std::exception& error) {
      const Failure late = describe(error, "");
      // On changed bytes an op may fail in any way.
      if (!failure_ || failure_->consequence || late.code == FileChangedError::kCode) {
        failure_ = late;
      } else {
        failure_->message += "\n  after " + late.message;  // what ran before the op that failed
      }
    }
  }
  if (abandoned && !failure_) failure_ = Failure{"ERR_NATIVE", "the engine is shutting down"};
  return std::exchange(failure_, std::nullopt);
}

void Stream::run() {
  for (;;) {
    Task task;
    bool abandoned = false;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
      abandoned = abandoned_;
      if (queue_.size() == kMaxQueued - 1) room_.notify_all();
    }
    if (task.marker) {
      const std::optional<Failure> failure = settle(abandoned);
      task.marker(failure ? &*failure : nullptr);
    } else if (task.always || (!abandoned && !failure_)) {
      try {
        task.op();
      } catch (const std::exception& error) {
        if (!failure_) failure_ = describe(error, "");
      }
    }
  }
}

}  // namespace balora
