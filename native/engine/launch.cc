#include "engine/launch.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <exception>
#include <future>
#include <memory>
#include <string>

#include "engine/graph.h"
#include "engine/kernel_failure.h"
#include "engine/recorded_ops.h"

namespace balora {
namespace {

constexpr size_t kInlineOperands = 12;

struct Operand {
  std::shared_ptr<Storage> storage;  // null: absent
  View view;                         // data is the offset until the storage has memory
  int64_t offset = 0;
  bool frozen = false;
  bool whole = false;              // begins where its storage does
  bool outside = false;            // while recording: made before
  std::unique_ptr<MemoryUse> use;  // of offloaded memory, until the op has run
};

Operand capture(const char* op, const Tensor& t) {
  if (!t.defined()) return {};
  const TensorImpl& impl = *t.impl();
  if (impl.storage->encoding && !impl.takes_encoded) {
    throw UnsupportedError(concat(op, ": it reads values, and a weight ", impl.shape.to_string(),
                                  " is in blocks (", impl.storage->encoding->name,
                                  "); to() makes its values"));
  }
  Operand operand;
  operand.storage = impl.storage;
  operand.offset = impl.offset;
  operand.whole = impl.offset == 0;
  operand.frozen = impl.storage->frozen && operand.whole;
  operand.view.version = impl.storage->version;
  operand.view.encoding = impl.storage->encoding.get();
  operand.view.ndim = impl.shape.ndim();
  operand.view.dtype = static_cast<int32_t>(impl.dtype);
  for (int i = 0; i < impl.shape.ndim(); ++i) {
    operand.view.shape[i] = impl.shape[i];
    operand.view.stride[i] = impl.strides[i];
  }
  if (impl.storage->offloaded) operand.use = impl.storage->offloaded->announce();
  return operand;
}

View resolve(Operand& operand) {
  View view = operand.view;
  char* data = static_cast<char*>(operand.storage->data());
  view.data = data ? data + operand.offset * dtype_size(static_cast<DType>(view.dtype)) : nullptr;
  view.slots = operand.frozen ? operand.storage->slots() : nullptr;
  view.versioned = operand.whole ? operand.storage->versioned() : nullptr;
  return view;
}

// Anomaly mode: the first output with a NaN or an infinity fails the op that made it. Values that
// the caller brought (ops without inputs) are the caller's business. Strided outputs are those of
// copies, which make no values: they are passed over, and so are those that stand in blocks, which
// are checked when they are read.
void check_outputs(Launch& launch) {
  for (size_t i = launch.num_inputs; i < launch.views.size(); ++i) {
    const View& view = launch.views[i];
    if (!launch.present[i] || !is_float(static_cast<DType>(view.dtype))) continue;
    if (view.encoding || !view_contiguous(view)) continue;
    int32_t finite = 1;
    if (call(launch.kernels->check_finite, launch.ctx, {.x = &view, .finite = &finite}) != 0) {
      throw kernel_failure(launch.ctx->error, "check_finite failed");
    }
    if (!finite) throw NotFiniteError("made a value that is not finite (NaN or infinity)");
  }
}

// Bytes on their way: in pinned memory where the engine's device has some to give, so that copies
// run while their threads go on, else in ordinary memory.
class HostBuffer {
 public:
  static std::shared_ptr<HostBuffer> take(Engine& engine, int64_t bytes) {
    auto buffer = std::make_shared<HostBuffer>();
    buffer->block_ = engine.pinned().take(bytes);
    if (!buffer->block_) {
      buffer->bytes_ = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(bytes));
    }
    return buffer;
  }
  void* data() const { return block_ ? block_->data() : bytes_.get(); }

  // From the device of the op. Begun on return where the memory is pinned for it, else complete.
  void fetch(Launch& l, const void* from, int64_t bytes) {
    if (!pinned_for(l)) return l.engine->ring().fetch(l.ctx, data(), from, bytes);
    checked(l, block_->copy_out(l.ctx, from, bytes, l.engine->device_state()));
  }
  // To the device of the op; the buffer may be given up on return.
  void send(Launch& l, void* to, int64_t bytes) {
    if (!pinned_for(l)) return l.engine->ring().send(l.ctx, to, data(), bytes);
    checked(l, block_->copy_in(l.ctx, to, bytes, l.engine->device_state()));
  }
  // The same with what another thread fetched.
  void pass_on(Launch& l, void* to, int64_t bytes) {
    if (block_) block_->await();
    send(l, to, bytes);
  }

 private:
  bool pinned_for(const Launch& l) const { return block_ && block_->kernels() == l.kernels; }
  static void checked(const Launch& l, int32_t status) {
    if (status != 0) throw kernel_failure(l.ctx->error, "a copy failed");
  }

  std::unique_ptr<PinnedBlock> block_;
  std::unique_ptr<std::byte[]> bytes_;
};

struct LaunchTask {
  const char* op;
  Engine* engine;
  std::vector<Operand> operands;
  size_t num_inputs;
  bool in_place;
  std::function<void(const AbortedError&)> on_abort;  // see EnqueueOptions
  AbortFlag abort;
  std::vector<Storage*> fresh;  // outputs that had no value before
  LaunchFn fn;
  bool check_finite;
  bool profiling;
  int phase;
  std::shared_ptr<const std::string> call_site;

  void run() {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    try {
      const bool by_device = execute();
      end_uses();
      if (by_device) return;
      const std::chrono::duration<double> spent = Clock::now() - start;
      engine->op_times().add(phase, op, engine->context()->implementation, spent.count());
    } catch (const std::exception& error) {
      engine->release_workspace();
      end_uses();
      for (Storage* storage : fresh) storage->drop_data();
      if (const auto* aborted = dynamic_cast<const AbortedError*>(&error)) {
        for (size_t i = num_inputs; i < operands.size(); ++i) {
          if (operands[i].storage) operands[i].storage->set_aborted(true);
        }
        if (on_abort) on_abort(*aborted);
        // A graph must not be recorded with a gap.
        const bool is_silent = on_abort || num_inputs < operands.size();
        if (is_silent && !engine->is_capturing()) return;
      }
      std::string message = std::string(op) + ": " + message_of(error) + " [" + describe() + "]";
      if (call_site) message += "\n  enqueued " + *call_site;
      if (dynamic_cast<const ConsequenceError*>(&error)) throw ConsequenceError(message);
      throw Error(code_of(error), message);
    }
  }

  void await_uses() {
    for (Operand& operand : operands) {
      if (operand.use) operand.use->begin();
    }
    for (Operand& operand : operands) {
      if (operand.use) operand.use->await();
    }
  }

  // A packed copy of offloaded memory would keep what is to be dropped.
  void end_uses() {
    for (Operand& operand : operands) {
      if (!operand.use) continue;
      operand.storage->drop_derived();
      operand.use.reset();
    }
  }

  // Whether the op's time is taken by the device's clock.
  bool execute() {
    std::vector<View> views(operands.size());
    std::array<bool, kInlineOperands> inline_present{};
    std::unique_ptr<bool[]> many;
    bool* present = inline_present.data();
    if (operands.size() > kInlineOperands) {
      many = std::make_unique<bool[]>(operands.size());
      present = many.get();
    }
    if (is_set(abort)) throw AbortedError("it was aborted before it began");
    // Beside memory that is read for the op and dropped, nothing that is derived from its other
    // operands is kept: it would take the room of a part of the base, which is worth more.
    const bool reads_offloaded = std::any_of(operands.begin(), operands.end(),
                                             [](const Operand& o) { return o.use != nullptr; });
    for (size_t i = 0; i < operands.size(); ++i) {
      Operand& operand = operands[i];
      present[i] = operand.storage != nullptr;
      if (!present[i]) continue;
      if (operand.storage->aborted() && (in_place || i < num_inputs)) {
        throw AbortedError(
            concat("operand ", i, " has no value, the work that makes it was aborted"));
      }
      if (!operand.storage->has_data()) {
        if (in_place || i < num_inputs) {
          throw ConsequenceError(
              concat("operand ", i, " has no value, the op that makes it failed"));
        }
        fresh.push_back(operand.storage.get());
        operand.storage->ensure_allocated();
      }
      views[i] = resolve(operand);
      if (reads_offloaded) views[i].versioned = nullptr;
      if (operand.storage->external()) engine->depend_on(operand.storage->owner());
    }
    if (engine->recorded_ops()) {
      record(std::move(views), present);
      return true;
    }
    await_uses();
    const RunningUntil running(*engine, abort);
    Context* ctx = engine->context();
    ctx->error[0] = '\0';
    ctx->implementation = nullptr;
    Launch launch{.kernels = engine->kernels(),
                  .ctx = ctx,
                  .engine = engine,
                  .views = views,
                  .present = {present, operands.size()},
                  .num_inputs = num_inputs};
    const bool by_device = profiling && engine->times_by_device();
    if (by_device) engine->timer().begin(ctx);
    const int32_t status = fn(launch);
    // It may have left before its end.
    if (is_set(abort)) throw AbortedError("it was aborted");
    if (status != 0) throw kernel_failure(ctx->error, "the kernel failed");
    if (by_device) engine->timer().end(ctx, phase, op);
    if (check_finite) check_outputs(launch);
    if (profiling && (!by_device || engine->timer().full())) engine->wait_for_device();
    engine->release_workspace();
    if (!in_place) renew_outputs();
    return by_device;
  }

  // Values in the place of those that an abort left behind.
  void renew_outputs() {
    for (size_t i = num_inputs; i < operands.size(); ++i) {
      const Operand& operand = operands[i];
      if (!operand.storage || !operand.storage->aborted()) continue;
      const View& view = operand.view;
      int64_t bytes = dtype_size(static_cast<DType>(view.dtype));
      for (int32_t axis = 0; axis < view.ndim; ++axis) bytes *= view.shape[axis];
      const bool is_whole = operand.whole && view_contiguous(view);
      if (is_whole && bytes == operand.storage->bytes()) operand.storage->set_aborted(false);
    }
  }

  // The operands' memory is that of the graph, or of tensors that it keeps.
  void record(std::vector<View> views, const bool* present) {
    std::vector<const Storage*> outside;
    for (const Operand& operand : operands) {
      outside.push_back(operand.outside ? operand.storage.get() : nullptr);
    }
    auto kept = std::make_unique<bool[]>(operands.size());
    std::copy_n(present, operands.size(), kept.get());
    engine->recorded_ops()->add({op, std::move(fn), std::move(views), std::move(kept), num_inputs},
                                outside);
  }

  std::string describe() const {
    std::vector<View> views;
    auto present = std::make_unique<bool[]>(operands.size());
    for (const Operand& operand : operands) {
      present[views.size()] = operand.storage != nullptr;
      views.push_back(operand.view);
    }
    return describe_operands(views, {present.get(), views.size()}, num_inputs);
  }
};

struct EnqueueOptions {
  bool in_place = false;
  // Called on the engine's thread where an op without outputs, whose values another one waits for,
  // was aborted: that one is told, so that the abort is no failure here.
  std::function<void(const AbortedError&)> on_abort = {};
};

void enqueue(const char* op, std::span<const Tensor> inputs, std::span<const Tensor> outputs,
             LaunchFn fn, EnqueueOptions options = {}) {
  auto task = std::make_shared<LaunchTask>();
  task->op = op;
  task->engine = nullptr;
  task->in_place = options.in_place;
  task->on_abort = std::move(options.on_abort);
  task->num_inputs = inputs.size();
  task->operands.reserve(inputs.size() + outputs.size());
  for (const auto& list : {inputs, outputs}) {
    for (const Tensor& t : list) {
      task->operands.push_back(capture(op, t));
      if (!t.defined()) continue;
      if (!task->engine) task->engine = &t.engine();
      if (task->engine != &t.engine()) refuse_devices(op, *task->engine, t.engine());
    }
  }
  if (!task->engine) throw ArgumentError(concat(op, ": no tensor given"));
  if (Graph* graph = task->engine->recording.get()) {
    for (size_t i = 0; i < task->operands.size(); ++i) {
      Operand& operand = task->operands[i];
      if (!operand.storage) continue;
      if (operand.use) {
        throw UnsupportedError(concat(op, ": a graph cannot repeat ops with an offloaded weight ",
                                      "(baseOffload, --base-offload)"));
      }
      operand.outside = !graph->is_own(*operand.storage);
      graph->note(operand.storage, i >= task->num_inputs);
    }
  }
  task->fn = std::move(fn);
  const EnqueueState& state = task->engine->state();
  task->abort = state.abort;
  task->check_finite = state.anomaly_mode && !inputs.empty();
  task->profiling = state.profiling;
  task->phase = task->engine->phase;
  task->call_site = state.call_site;
  Stream& stream = task->engine->stream();
  stream.enqueue([task = std::move(task)] { task->run(); });
}

}  // namespace

void launch(const char* op, std::span<const Tensor> inputs, std::span<const Tensor> outputs,
            LaunchFn fn) {
  enqueue(op, inputs, outputs, std::move(fn));
}

void launch_in_place(const char* op, std::span<const Tensor> inputs,
                     std::span<const Tensor> outputs, LaunchFn fn) {
  enqueue(op, inputs, outputs, std::move(fn), {.in_place = true});
}

Tensor upload(Engine& engine, const Shape& shape, DType dtype, const void* data) {
  refuse_while_recording(engine, "a tensor of the host's values");
  Tensor t = Tensor::empty(engine, shape, dtype);
  const int64_t bytes = t.bytes();
  if (bytes == 0) return t;
  const std::shared_ptr<HostBuffer> buffer = HostBuffer::take(engine, bytes);
  std::memcpy(buffer->data(), data, static_cast<size_t>(bytes));
  launch("upload", {}, {t}, [buffer, bytes](Launch& l) {
    buffer->send(l, l.out(0)->data, bytes);
    return 0;
  });
  return t;
}

void download(const Tensor& source, void* host) {
  if (!source.is_contiguous()) throw ArgumentError("download: the tensor must be contiguous");
  refuse_while_recording(source.engine(), "reading a value");
  const int64_t bytes = source.bytes();
  launch("download", {source}, {}, [host, bytes](Launch& l) {
    if (bytes) l.engine->ring().fetch(l.ctx, host, l.in(0)->data, bytes);
    return 0;
  });
}

// The source's thread begins the copy into a buffer on the host, the target's waits for that copy
// and goes on from there: it was enqueued before, so no two engines can wait for one another. The
// source op says itself that it was aborted: by the time that the target asked, somebody may have
// written the source anew. One that is skipped after a failure destroys its promise, which wakes
// the target.
Tensor transfer(const Tensor& source, Engine& engine) {
  if (!source.is_contiguous()) throw ArgumentError("to: the tensor must be contiguous");
  refuse_while_recording(source.engine(), "a copy to another device");
  refuse_while_recording(engine, "a copy from another device");
  const std::shared_ptr<Storage>& storage = source.impl()->storage;
  const int64_t bytes = storage->encoding ? storage->bytes() : source.bytes();
  Tensor t = storage->encoding
                 ? Tensor::encoded(engine, source.shape(), source.dtype(), storage->encoding, bytes)
                 : Tensor::empty(engine, source.shape(), source.dtype());
  if (bytes == 0) return t;
  using Filled = std::shared_ptr<HostBuffer>;
  auto promise = std::make_shared<std::promise<Filled>>();
  const auto ready = std::make_shared<std::future<Filled>>(promise->get_future());
  // Pinned for whichever of the two has memory of its own.
  Engine* const pins = source.engine().host_memory() ? &engine : &source.engine();
  const Tensor from_source = source.as_encoded();
  LaunchFn fetch = [promise, pins, bytes](Launch& l) {
    const Filled buffer = HostBuffer::take(*pins, bytes);
    buffer->fetch(l, l.in(0)->data, bytes);
    l.engine->refuse_changed();  // the target's sync does not wait for this stream
    promise->set_value(buffer);
    return 0;
  };
  const std::string from = source.engine().device();
  auto on_abort = [promise = std::move(promise), from](const AbortedError& error) {
    const AbortedError passed("no value came from " + from + ": " + error.what());
    try {
      promise->set_exception(std::make_exception_ptr(passed));
    } catch (const std::future_error&) {
      // The values were copied before the abort.
    }
  };
  enqueue("to", {&from_source, 1}, {}, std::move(fetch), {.on_abort = std::move(on_abort)});
  launch("to", {}, {t.as_encoded()}, [ready, bytes, from](Launch& l) {
    Filled buffer;
    try {
      buffer = ready->get();
    } catch (const std::future_error&) {
      throw ConsequenceError("no value came from " + from + ", where an op before it failed");
    }
    buffer->pass_on(l, l.out(0)->data, bytes);
    return 0;
  });
  return t;
}

}  // namespace balora
