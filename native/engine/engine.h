// An engine is one device in one environment: its stream, its memory, its kernel table, and the
// tape's switches. Two environments (worker threads) have engines of their own and share nothing.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/allocator.h"
#include "engine/op_times.h"
#include "engine/stream.h"
#include "kernels/kernel_table.h"
#include "tensor/tensor.h"

namespace balora {

struct EngineOptions {
  int num_threads = 0;  // 0: one per core that this process may use
  int nice =
      10;  // added to the engine threads' niceness, so that an event loop beside them stays quick
};

class Engine {
 public:
  Engine(const KernelTable* kernels, const EngineOptions& options);
  ~Engine();

  const char* device() const { return kernels_->device; }
  const KernelTable* kernels() const { return kernels_; }
  Context* context() { return &context_.base; }  // engine thread only
  Stream& stream() { return *stream_; }
  Allocator& allocator() { return *allocator_; }
  OpTimes& op_times() { return op_times_; }

  std::shared_ptr<Storage> new_storage(int64_t bytes);
  // Over memory that `owner` keeps alive.
  std::shared_ptr<Storage> external_storage(void* data, int64_t bytes, std::shared_ptr<void> owner);

  // Takes effect in stream order.
  void set_num_threads(int threads);
  int num_threads() const { return num_threads_; }
  void set_deterministic(bool value);

  // Releases the scratch of the kernel that just returned. Engine thread only.
  void release_workspace();

  // State of the thread that enqueues.
  bool grad_enabled = true;
  bool anomaly_mode = false;  // every op's outputs are checked for NaN and infinity
  bool debug = false;         // ops remember the JS call site
  int memory_tag = 0;         // tag of the storages made from now on
  int phase = 0;              // of the ops enqueued from now on, a number of op_times()
  std::shared_ptr<const std::string> call_site;  // of the op being enqueued, in debug mode
  uint64_t next_sequence = 0;                    // of tape nodes

 private:
  struct EngineContext {
    Context base;
    Engine* engine;
  };
  static void* workspace(Context* ctx, uint64_t bytes);
  static void account(Context* ctx, int64_t bytes);

  const KernelTable* kernels_;
  void* device_state_ = nullptr;
  int num_threads_ = 1;
  EngineContext context_{};
  std::vector<std::pair<void*, int64_t>> scratch_;
  std::shared_ptr<Allocator> allocator_;
  OpTimes op_times_;
  std::unique_ptr<Stream> stream_;  // last: joined before the rest goes
};

}  // namespace balora
