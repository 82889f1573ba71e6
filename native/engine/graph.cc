#include "engine/graph.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <string>
#include <utility>

#include "engine/kernel_failure.h"

namespace balora {
namespace {

constexpr const char* kTag = "graphs";

}  // namespace

GraphMemory::GraphMemory(std::shared_ptr<Allocator> parent, std::unique_ptr<Allocator> own)
    : parent_(std::move(parent)), own_(std::move(own)) {
  // A device must not be asked to take memory back while it records.
  own_->hold_everything(true);
}

GraphMemory::~GraphMemory() {
  parent_->account_reserved(-counted_, parent_->tag(kTag));
}

void GraphMemory::count() {
  const MemoryStats stats = own_->stats();
  const int64_t now = stats.cached_bytes + stats.live_bytes;
  parent_->account_reserved(now - counted_, parent_->tag(kTag));
  counted_ = now;
}

Graph::Graph(Engine& engine, const Graph* sharing)
    : engine_(&engine),
      kernels_(engine.kernels()),
      device_state_(engine.device_state()),
      memory_(sharing
                  ? sharing->memory_
                  : std::make_shared<GraphMemory>(
                        engine.shared_allocator(),
                        std::make_unique<Allocator>(kernels_, device_state_, engine.device()))) {
  if (!kernels_->capture_begin) ops_ = std::make_unique<RecordedOps>();
}

Graph::~Graph() {
  if (handle_) kernels_->graph_destroy(device_state_.get(), handle_);
}

std::shared_ptr<Graph> Graph::begin(Engine& engine, const Graph* sharing) {
  const KernelTable& kernels = *engine.kernels();
  const bool device_records =
      kernels.capture_begin && kernels.capture_end && kernels.graph_launch && kernels.graph_destroy;
  if (!device_records && !engine.host_memory()) {
    throw UnsupportedError(
        concat("captureGraph: the device ", engine.device(), " cannot record a graph"));
  }
  if (engine.recording) throw ArgumentError("captureGraph: a graph is being recorded already");
  if (sharing && sharing->engine_ != &engine) {
    throw ArgumentError(concat("captureGraph: the memory to be shared is of ",
                               sharing->engine_->device(), ", the graph of ", engine.device()));
  }
  const EnqueueState& state = engine.state();
  if (state.anomaly_mode || state.debug || state.profiling) {
    throw ArgumentError(
        "captureGraph: debug mode, anomaly mode and profiling wait for each op; switch them off");
  }
  engine.stream().sync();
  std::shared_ptr<Graph> graph(new Graph(engine, sharing));
  engine.stream().enqueue([graph] {
    Engine& engine = *graph->engine_;
    Context* ctx = engine.context();
    ctx->error[0] = '\0';
    if (!graph->ops_ && graph->kernels_->capture_begin(ctx) != 0) {
      throw behind("captureGraph: ", kernel_failure(ctx->error, "the device cannot record"));
    }
    graph->open_ = true;
    engine.enter_capture(graph->memory_, graph->ops_.get());
  });
  engine.recording = graph;
  return graph;
}

void Graph::note(const std::shared_ptr<Storage>& storage, bool written) {
  if (!own_.contains(storage.get())) kept_.insert(storage);
  if (written) written_[storage.get()] = storage;
}

// The device's recording ends whatever happened, so that it can run ops again.
std::optional<Failure> Graph::close(const Failure* failure) {
  std::optional<Failure> first = failure ? std::optional<Failure>(*failure) : std::nullopt;
  if (!open_) return first;
  open_ = false;
  engine_->leave_capture();
  if (ops_) {
    complete_ = !first;
    return first;
  }
  Context* ctx = engine_->context();
  ctx->error[0] = '\0';
  const int32_t status = kernels_->capture_end(ctx, &handle_);
  if (!first && status != 0) {
    const NativeError error =
        behind("captureGraph: ", kernel_failure(ctx->error, "nothing was recorded"));
    first = Failure{error.code(), error.what()};
  }
  complete_ = handle_ != nullptr;
  return first;
}

std::optional<Failure> Graph::finish() {
  engine_->recording = nullptr;
  std::promise<std::optional<Failure>> done;
  engine_->stream().enqueue_marker(
      [this, &done](const Failure* failure) { done.set_value(close(failure)); });
  std::optional<Failure> failure = done.get_future().get();
  own_.clear();
  memory_->count();
  return failure;
}

void Graph::end() {
  if (const std::optional<Failure> failure = finish()) throw StreamError(*failure);
}

void Graph::abandon() {
  finish();
}

void Graph::run() {
  if (std::exchange(ran_, true)) {
    for (const auto& [address, written] : written_) {
      if (const auto storage = written.lock()) ++storage->version;
    }
  }
  std::vector<int64_t> versions;
  if (ops_) versions = ops_->versions();
  engine_->stream().enqueue([self = shared_from_this(), phase = engine_->phase,
                             versions = std::move(versions), abort = engine_->state().abort] {
    if (!self->complete_) throw NativeError("graph: it was not recorded to its end");
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    Engine& engine = *self->engine_;
    if (is_set(abort) || self->reads_aborted()) return self->mark_written(true);
    const bool profiling = engine.state().profiling;
    const bool by_device = profiling && engine.times_by_device();
    if (by_device) engine.timer().begin(engine.context());
    const RunningUntil running(engine, abort);
    if (self->ops_) {
      self->ops_->run(engine, versions);
    } else {
      self->launch();
    }
    if (is_set(abort)) return self->mark_written(true);
    if (self->aborted_) self->mark_written(false);
    if (by_device) engine.timer().end(engine.context(), phase, "graph");
    if (profiling && (!by_device || engine.timer().full())) engine.wait_for_device();
    if (by_device) return;
    const std::chrono::duration<double> spent = Clock::now() - start;
    engine.op_times().add(phase, "graph", nullptr, spent.count());
  });
}

bool Graph::reads_aborted() const {
  return std::ranges::any_of(kept_, [](const auto& storage) { return storage->aborted(); });
}

void Graph::mark_written(bool aborted) {
  aborted_ = aborted;
  for (const auto& [address, written] : written_) {
    if (const auto storage = written.lock()) storage->set_aborted(aborted);
  }
}

void Graph::launch() {
  Context* ctx = engine_->context();
  ctx->error[0] = '\0';
  if (kernels_->graph_launch(ctx, handle_) != 0) {
    throw behind("graph: ", kernel_failure(ctx->error, "it cannot be launched"));
  }
}

void refuse_while_recording(const Engine& engine, const char* what) {
  if (!engine.recording) return;
  throw ArgumentError(concat("captureGraph: ", what,
                             " cannot be recorded; do it before, or write into a tensor that was "
                             "made before with copy_"));
}

}  // namespace balora
