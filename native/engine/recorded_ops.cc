#include "engine/recorded_ops.h"

#include <algorithm>

#include "engine/kernel_failure.h"
#include "kernels/cpu/runtime/stop.h"

namespace balora {
namespace {

constexpr size_t kNamedOperands = 24;  // of a failed op; some take a thousand

}  // namespace

std::string describe_operands(std::span<const View> views, std::span<const bool> present,
                              size_t num_inputs) {
  std::string text;
  for (size_t i = 0; i < views.size(); ++i) {
    if (i == num_inputs)
      text += " -> ";
    else if (i)
      text += ", ";
    if (i == kNamedOperands) return text + concat("and ", views.size() - i, " more");
    const View& view = views[i];
    if (!present[i]) {
      text += "none";
      continue;
    }
    text += dtype_name(static_cast<DType>(view.dtype));
    text += Shape(std::span(view.shape, static_cast<size_t>(view.ndim))).to_string();
  }
  return text;
}

void RecordedOps::add(RecordedOp op, std::span<const Storage* const> outside) {
  for (size_t i = 0; i < outside.size(); ++i) {
    const Storage* storage = outside[i];
    if (!storage) {
      op.views[i].slots = nullptr;
      op.views[i].versioned = nullptr;
      continue;
    }
    const auto [found, is_new] = indices_.try_emplace(storage, outside_.size());
    if (is_new) {
      outside_.push_back({storage, {}});
      const auto& file = storage->owner();
      if (file && std::ranges::find(files_, file) == files_.end()) files_.push_back(file);
    }
    outside_[found->second].operands.emplace_back(ops_.size(), i);
  }
  ops_.push_back(std::move(op));
}

std::vector<int64_t> RecordedOps::versions() const {
  std::vector<int64_t> versions;
  versions.reserve(outside_.size());
  for (const Outside& each : outside_) versions.push_back(each.storage->version);
  return versions;
}

void RecordedOps::run(Engine& engine, std::span<const int64_t> versions) {
  for (const auto& file : files_) engine.depend_on(file);
  for (size_t i = 0; i < outside_.size(); ++i) {
    for (const auto& [call, view] : outside_[i].operands) {
      ops_[call].views[view].version = versions[i];
    }
  }
  Context* ctx = engine.context();
  for (const RecordedOp& op : ops_) {
    ctx->error[0] = '\0';
    Launch launch{engine.kernels(), ctx, &engine, op.views, op.presence(), op.num_inputs};
    const int32_t status = op.fn(launch);
    engine.release_workspace();
    // It may have left before its end, and whoever asked for the run finds out as well.
    if (is_stopped(ctx)) return;
    if (status != 0) {
      const NativeError error = kernel_failure(ctx->error, "the kernel failed");
      throw NativeError(concat("graph: ", op.op, ": ", error.what(), " [",
                               describe_operands(op.views, op.presence(), op.num_inputs), "]"),
                        error.code());
    }
  }
}

}  // namespace balora
