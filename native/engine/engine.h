// An engine is one device in one environment: its stream, its memory and its kernel table. The
// engines of an environment share what the thread that enqueues has switched on. Two environments
// (worker threads) have engines of their own and share nothing.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/allocator.h"
#include "engine/device_timer.h"
#include "engine/op_times.h"
#include "engine/staging.h"
#include "engine/stream.h"
#include "kernels/kernel_table.h"
#include "tensor/tensor.h"

namespace balora {

// The same failure, its message behind `where`.
inline NativeError behind(const std::string& where, const NativeError& error) {
  return NativeError(where + error.what(), error.code());
}

// Products with frozen weights that linears compute in int8 (kernels/cpu/products/int8.h), and
// whether backward keeps activations so, as bits.
enum Int8Products {
  kInt8Forward = 1,        // x W^T, with rotated inputs
  kInt8InputGradient = 2,  // dY W
  kInt8Rotated = 4,        // the latter with the copy that the former uses
  kInt8Saved = 8,          // activations that backward reads (tape/int8_activation.h)
};

// Values that were not computed, because nobody wanted them any more.
class AbortedError : public Error {
 public:
  explicit AbortedError(const std::string& message) : Error("ERR_ABORTED", message) {}
};

// Set, once and for all, when nobody wants the results of the ops that were enqueued with it.
using AbortFlag = std::shared_ptr<const std::atomic<bool>>;
inline bool is_set(const AbortFlag& flag) {
  return flag && flag->load(std::memory_order_relaxed);
}

// State of the thread that enqueues, for all engines of its environment.
struct EnqueueState {
  bool grad_enabled = true;
  bool batch_invariant = false;  // rows of a product must not depend on each other
  int int8_products = 0;         // see Int8Products
  bool recompute = false;        // ops keep how to make cheap inputs again, not the inputs (tape.h)
  bool recompute_products = false;  // and matrix products, where an op asks for them
  bool anomaly_mode = false;        // every op's outputs are checked for NaN and infinity
  bool debug = false;               // as set by set_debug() on every engine
  bool profiling = false;  // op_times() has an op's kernels by the device's clock, not its launch
  AbortFlag abort;         // of the ops that are enqueued from now on; null: they run in any case
  std::shared_ptr<const std::string> call_site;  // of the op being enqueued, in debug mode
  uint64_t next_sequence = 0;                    // of tape nodes, across devices
};

class Graph;
class RecordedOps;

struct EngineOptions {
  int num_threads = 0;  // 0: one per core that this process may use
  int nice =
      10;  // added to the engine threads' niceness, so that an event loop beside them stays responsive
  int device_index = 0;
  std::shared_ptr<EnqueueState> state;  // null: the engine has one of its own
};

class Engine {
 public:
  Engine(const KernelTable* kernels, const EngineOptions& options);
  ~Engine();

  // "cpu", "cuda:0"
  const char* device() const { return device_.c_str(); }
  // Whether the CPU can read and write what the kernels do.
  bool host_memory() const { return host_memory_; }
  const KernelTable* kernels() const { return kernels_; }
  Context* context() { return &context_.base; }  // engine thread only
  Stream& stream() { return *stream_; }
  Allocator& allocator() { return *allocator_; }
  const std::shared_ptr<Allocator>& shared_allocator() const { return allocator_; }
  const std::shared_ptr<void>& device_state() const { return device_state_; }
  OpTimes& op_times() { return op_times_; }
  // Where copies between the host and the device pass through.
  PinnedPool& pinned() { return *pinned_; }
  StagingRing& ring() { return *ring_; }  // engine thread only

  std::shared_ptr<Storage> new_storage(int64_t bytes);
  // Over memory that `owner` keeps alive.
  std::shared_ptr<Storage> external_storage(const void* data, int64_t bytes,
                                            std::shared_ptr<const ExternalMemory> owner);

  // Takes effect in stream order.
  void set_num_threads(int threads);
  int num_threads() const { return num_threads_; }
  void set_deterministic(bool value);
  void set_allow_tf32(bool value);
  void set_debug(bool value);  // each kernel is waited for and checked

  // While profiling: whether ops are timed by marks in the stream. A device that has no clock is
  // waited for after each op instead. Engine thread only.
  bool times_by_device() const { return timer_.available() && !capture_memory_; }
  DeviceTimer& timer() { return timer_; }

  // Waits until the device has run what was enqueued to it; throws what failed on it.
  // Engine thread only.
  void wait_for_device();
  // Somebody else may change external memory while ops compute with it. An op that reads some says
  // so, and before results leave the engine (at a sync, to another device, into a file that gets
  // its name) refuse_changed() throws where the memory that they depend on has changed since. What
  // was read before the last sync was checked there. Engine thread only.
  void depend_on(const std::shared_ptr<const ExternalMemory>& memory);
  void refuse_changed() const;

  // A line about the device; free and total bytes as its driver sees them, 0 where nobody counts.
  std::string description() const;
  std::pair<uint64_t, uint64_t> device_memory() const;

  // While a graph is recorded scratch comes out of its memory, and nothing waits for the device.
  // Ops go into `ops` instead of running, unless that is null because the device records them.
  // Engine thread only.
  void enter_capture(std::shared_ptr<MemorySource> memory, RecordedOps* ops);
  void leave_capture();
  RecordedOps* recorded_ops() { return recorded_ops_; }

  bool is_capturing() const { return capture_memory_ != nullptr; }

  // Releases the scratch of the kernel that just returned. Engine thread only.
  void release_workspace();

  // State of the thread that enqueues: shared, and what counts for this device alone.
  EnqueueState& state() { return *state_; }
  int memory_tag = 0;                // tag of the storages made from now on
  int phase = 0;                     // of the ops enqueued from now on, a number of op_times()
  std::shared_ptr<Graph> recording;  // takes down what is enqueued; null: it runs

 private:
  struct EngineContext {
    Context base;
    Engine* engine;
  };
  static void* workspace(Context* ctx, uint64_t bytes);
  static void account(Context* ctx, int64_t bytes);

  void set_in_order(int32_t Context::*field, bool value);
  void finish();  // before a sync is answered: throws what went wrong beside the ops

  const KernelTable* kernels_;
  std::string device_;
  bool host_memory_;
  std::shared_ptr<void> device_state_;  // the allocator holds it too: memory may outlive the engine
  std::shared_ptr<EnqueueState> state_;
  int num_threads_ = 1;
  EngineContext context_{};
  std::vector<std::pair<void*, int64_t>> scratch_;
  std::shared_ptr<Allocator> allocator_;
  std::shared_ptr<MemorySource> capture_memory_;  // engine thread: set while a graph is recorded
  RecordedOps* recorded_ops_ = nullptr;           // engine thread
  std::vector<std::shared_ptr<const ExternalMemory>> external_;  // engine thread: read since a sync
  OpTimes op_times_;
  DeviceTimer timer_;                   // engine thread only
  std::shared_ptr<PinnedPool> pinned_;  // shared with blocks that another engine reads
  std::unique_ptr<StagingRing> ring_;
  std::unique_ptr<Stream> stream_;  // last: joined before the rest goes
};

// Shows the flag of an op to its kernel while this lives (kernels/cpu/runtime/stop.h). Engine
// thread only. Other devices run behind their rows, and what they were given runs to its end.
class RunningUntil {
 public:
  RunningUntil(Engine& engine, const AbortFlag& flag);
  RunningUntil(const RunningUntil&) = delete;
  RunningUntil& operator=(const RunningUntil&) = delete;
  ~RunningUntil();

 private:
  void* state_ = nullptr;  // null: nothing is shown
};

}  // namespace balora
