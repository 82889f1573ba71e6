// Inside of the emulated run-time library: what streams, events and graphs are, and whose errors.
#pragma once
#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda_runtime.h"

namespace emulator {

using Clock = std::chrono::steady_clock;
using Work = std::function<std::string()>;  // returns what went wrong, or ""

struct Graph {
  std::vector<Work> work;
};
struct EventState {  // of one record; outlives the event while it is in a queue
  bool done = false;
  Clock::time_point at;
};
struct Event {
  int device = 0;
  bool timed = true;
  std::shared_ptr<EventState> state;
  Stream* stream = nullptr;
};
struct Stream {
  int device = 0;
  std::deque<Work> queue;
  std::unique_ptr<Graph> capture;  // what is put in goes here
  bool capture_broken = false;
  std::string error;  // until somebody waits
};

struct Runtime {
  std::recursive_mutex mutex;
  std::vector<Stream*> streams;
};
Runtime& runtime();

struct HostThread {
  int device = 0;
  cudaError_t last = cudaSuccess;
  std::string words;  // of cudaErrorLaunchFailure
  Stream* capturing = nullptr;
};
HostThread& host_thread();

cudaError_t report(cudaError_t code, std::string words);
cudaError_t put(Stream* stream, Work work);
// Runs what waits, up to an event of the stream where one is given.
void drain(Stream& stream, const EventState* until = nullptr);

}  // namespace emulator
