// A recording of ops: what is enqueued between begin() and end() is recorded, not run; run() runs
// all of it, each time on the same addresses as before. A device that can launch many kernels as
// one records them itself. For the CPU the engine keeps the calls of the kernels
// (recorded_ops.h), so that a run costs the enqueueing thread one call instead of one for each op.
//
// The recorded ops allocate from memory of the graph's own, which nobody else is given while the
// graph or one of its results lives (but for graphs that share it). Tensors from outside are kept
// alive. Nothing may pass between host and device while a graph is recorded.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "engine/engine.h"
#include "engine/recorded_ops.h"

namespace balora {

// A graph's memory, counted in its engine's statistics under the tag "graphs" once it is recorded.
class GraphMemory : public MemorySource {
 public:
  GraphMemory(std::shared_ptr<Allocator> parent, std::unique_ptr<Allocator> own);
  ~GraphMemory() override;
  void* allocate(int64_t bytes, int) override { return own_->allocate(bytes, 0); }
  void release(void* data, int64_t bytes, int) override { own_->release(data, bytes, 0); }
  void account_derived(int64_t bytes) override { parent_->account_derived(bytes); }
  void count();  // brings the statistics up to date

 private:
  std::shared_ptr<Allocator> parent_;
  std::unique_ptr<Allocator> own_;
  int64_t counted_ = 0;
};

// On the enqueueing thread, but for what says otherwise.
class Graph : public std::enable_shared_from_this<Graph> {
 public:
  // Waits for what was enqueued before. A graph that is `sharing` the memory of another one of the
  // same device allocates from that, so that several take no more than the largest needs; then none
  // of their results outlives the next run of another. Throws UnsupportedError where the device
  // can neither record nor is the CPU, ArgumentError where it must not.
  static std::shared_ptr<Graph> begin(Engine& engine, const Graph* sharing = nullptr);
  ~Graph();

  // Waits until all is recorded; throws the first failure.
  void end();
  void abandon();  // ends a recording that is not wanted

  // Enqueues a run. Counts as a write to every tensor that the recorded ops wrote; the first one
  // does not, as recording them has counted already.
  void run();

  // The memory of an engine that records.
  const std::shared_ptr<GraphMemory>& memory() const { return memory_; }
  void own(const Storage& storage) { own_.insert(&storage); }
  bool is_own(const Storage& storage) const { return own_.contains(&storage); }
  void note(const std::shared_ptr<Storage>& storage, bool written);

 private:
  Graph(Engine& engine, const Graph* sharing);
  std::optional<Failure> finish();
  std::optional<Failure> close(const Failure* failure);  // engine thread
  void launch();                                         // engine thread
  // Whether a tensor from outside has no value, because its work was aborted. Engine thread.
  bool reads_aborted() const;
  void mark_written(bool aborted);  // all that the ops write; engine thread

  Engine* engine_;
  const KernelTable* kernels_;
  std::shared_ptr<void> device_state_;
  std::shared_ptr<GraphMemory> memory_;
  void* handle_ = nullptr;            // of the device's own recording
  std::unique_ptr<RecordedOps> ops_;  // null where the device records
  bool open_ = false;                 // engine thread: the device, or the engine, records
  bool complete_ = false;             // engine thread: it was recorded to its end
  bool aborted_ = false;              // engine thread: the last run was
  bool ran_ = false;
  std::unordered_set<const Storage*> own_;  // made while recording
  std::unordered_set<std::shared_ptr<Storage>> kept_;
  std::unordered_map<const Storage*, std::weak_ptr<Storage>> written_;
};

// Throws ArgumentError while `engine` records: `what` would not be repeated by the graph.
void refuse_while_recording(const Engine& engine, const char* what);

}  // namespace balora
