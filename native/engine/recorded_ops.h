// The calls of kernels that a graph of the CPU consists of: a function each, and its operands by
// address. Tensors that were made while recording may be gone; their memory is the graph's.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/launch.h"

namespace balora {

// One op's call, on the engine thread.
struct RecordedOp {
  const char* op;
  LaunchFn fn;
  std::vector<View> views;
  std::unique_ptr<bool[]> present;
  size_t num_inputs;

  std::span<const bool> presence() const { return {present.get(), views.size()}; }
};

class RecordedOps {
 public:
  // Adds a call whose operands have the given storages: null for one that is absent, and for one
  // that was made while recording. Engine thread.
  void add(RecordedOp op, std::span<const Storage* const> outside);

  // The versions, now, of the storages from outside. Enqueueing thread, once all is recorded.
  std::vector<int64_t> versions() const;

  // Runs all calls, with what versions() said. Throws the first failure, which names the op.
  // Engine thread.
  void run(Engine& engine, std::span<const int64_t> versions);

 private:
  // A storage from outside, whose values may be others in each run. The graph keeps it alive.
  struct Outside {
    const Storage* storage;
    std::vector<std::pair<size_t, size_t>> operands;  // indices of calls and of views
  };

  std::vector<RecordedOp> ops_;
  std::vector<Outside> outside_;
  std::unordered_map<const Storage*, size_t> indices_;  // in outside_
  std::vector<std::shared_ptr<const ExternalMemory>> files_;
};

// The operands of an op as text, for its failure: "bf16[2, 3], none -> f32[2]".
std::string describe_operands(std::span<const View> views, std::span<const bool> present,
                              size_t num_inputs);

}  // namespace balora
