#include "engine/engine.h"

#include "engine/graph.h"
#include "engine/kernel_failure.h"
#include "kernels/cpu/runtime/stop.h"
#include "platform/cpu.h"
#include "platform/environment.h"
#include "platform/platform.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>
#include <cstdio>
#include <latch>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace balora {
namespace {

constexpr int kMaxThreads = 1024;

// Whether so many threads can be there at once beside those that are.
bool can_start(int count) {
  std::vector<std::thread> threads;
  std::latch all_asked(1);
  bool started = true;
  try {
    for (int i = 0; i < count; ++i) threads.emplace_back([&all_asked] { all_asked.wait(); });
  } catch (const std::system_error&) {
    started = false;
  }
  all_asked.count_down();
  for (std::thread& thread : threads) thread.join();
  return started;
}

void set_openmp_threads(int threads) {
#if defined(_OPENMP)
  omp_set_num_threads(threads);
#else
  (void)threads;
#endif
}

}  // namespace

Engine::Engine(const KernelTable* kernels, const EngineOptions& options)
    : kernels_(kernels),
      device_(kernels->device),
      // By name, since the table has no word for whose memory it hands out: the fake device of the
      // tests takes the process's own and must be treated as if it were another's.
      host_memory_(device_ == "cpu"),
      state_(options.state ? options.state : std::make_shared<EnqueueState>()),
      timer_(kernels) {
  if (kernels->abi != BALORA_ABI || kernels->size != sizeof(KernelTable)) {
    throw UnsupportedError(concat("the device table \"", kernels->device, "\" has ABI ",
                                  kernels->abi, ", this build needs ", BALORA_ABI));
  }
  if (!host_memory_) device_ += concat(":", options.device_index);
  num_threads_ = options.num_threads > 0 ? options.num_threads : platform::usable_cores();
  char error[512] = "";
  void* state = kernels->create_state(options.device_index, error, sizeof error);
  error[sizeof error - 1] = '\0';
  if (error[0] || !state) {
    if (state) kernels->destroy_state(state);
    const NativeError failure =
        behind(device_ + ": ", kernel_failure(error, "the device gave no reason"));
    if (failure.code() == std::string_view("ERR_OUT_OF_MEMORY")) throw failure;
    throw UnsupportedError(failure.what());
  }
  device_state_ = std::shared_ptr<void>(state, kernels->destroy_state);
  allocator_ = std::make_shared<Allocator>(kernels, device_state_, device_);
  pinned_ = std::make_shared<PinnedPool>(kernels, device_state_);
  ring_ = std::make_unique<StagingRing>(kernels, device_state_);
  context_.engine = this;
  context_.base.workspace = &Engine::workspace;
  context_.base.account = &Engine::account;
  context_.base.variable = &variable;
  context_.base.device_state = state;
  context_.base.num_threads = num_threads_;
  stream_ = std::make_unique<Stream>(
      [nice = options.nice, threads = num_threads_] {
        platform::lower_priority(nice);
        platform::flush_subnormals();
        set_openmp_threads(threads);
      },
      [this] { finish(); });
}

Engine::~Engine() {
  stream_->abandon();
  stream_.reset();
  allocator_->trim();
}

std::shared_ptr<Storage> Engine::new_storage(int64_t bytes) {
  if (!recording) return std::make_shared<Storage>(allocator_, bytes, memory_tag);
  auto storage = std::make_shared<Storage>(recording->memory(), bytes, 0);
  recording->own(*storage);
  return storage;
}

std::shared_ptr<Storage> Engine::external_storage(const void* data, int64_t bytes,
                                                  std::shared_ptr<const ExternalMemory> owner) {
  return std::make_shared<Storage>(allocator_, const_cast<void*>(data), bytes, std::move(owner));
}

void Engine::set_num_threads(int threads) {
  if (threads < 1) throw ArgumentError(concat("setNumThreads: need at least 1, got ", threads));
  if (threads > kMaxThreads) {
    throw ArgumentError(concat("setNumThreads: at most ", kMaxThreads, ", got ", threads));
  }
  // OpenMP ends the process where the system gives it no further thread.
  if (threads > num_threads_ && !can_start(threads - num_threads_)) {
    throw UnsupportedError(concat("setNumThreads: the system gives this process no ", threads,
                                  " threads (ulimit -u, or the container's limit of processes)"));
  }
  num_threads_ = threads;
  stream_->enqueue([this, threads] {
    context_.base.num_threads = threads;
    set_openmp_threads(threads);
  });
}

void Engine::set_in_order(int32_t Context::*field, bool value) {
  stream_->enqueue([this, field, value] { context_.base.*field = value ? 1 : 0; });
}

void Engine::set_deterministic(bool value) {
  set_in_order(&Context::deterministic, value);
}
void Engine::set_allow_tf32(bool value) {
  set_in_order(&Context::allow_tf32, value);
}
void Engine::set_debug(bool value) {
  set_in_order(&Context::debug, value);
}

void Engine::enter_capture(std::shared_ptr<MemorySource> memory, RecordedOps* ops) {
  capture_memory_ = std::move(memory);
  recorded_ops_ = ops;
  allocator_->hold_everything(true);
}

void Engine::leave_capture() {
  capture_memory_ = nullptr;
  recorded_ops_ = nullptr;
  allocator_->hold_everything(false);
}

void Engine::wait_for_device() {
  if (!kernels_->synchronize || capture_memory_) return;
  Context& ctx = context_.base;
  ctx.error[0] = '\0';
  if (kernels_->synchronize(&ctx) == 0) return timer_.settle(op_times_);
  timer_.drop();
  throw behind(device_ + ": ", kernel_failure(ctx.error, "the device failed"));
}

void Engine::depend_on(const std::shared_ptr<const ExternalMemory>& memory) {
  if (std::ranges::find(external_, memory) == external_.end()) external_.push_back(memory);
}

void Engine::refuse_changed() const {
  for (const auto& memory : external_) memory->refuse_changed();
}

void Engine::finish() {
  wait_for_device();
  const auto external = std::exchange(external_, {});  // reported once
  for (const auto& memory : external) memory->refuse_changed();
}

std::string Engine::description() const {
  char text[256] = "";
  if (kernels_->describe) kernels_->describe(device_state_.get(), text, sizeof text);
  text[sizeof text - 1] = '\0';
  return text;
}

std::pair<uint64_t, uint64_t> Engine::device_memory() const {
  uint64_t free_bytes = 0, total_bytes = 0;
  if (!kernels_->memory) return {0, 0};
  if (kernels_->memory(device_state_.get(), &free_bytes, &total_bytes) != 0) return {0, 0};
  return {free_bytes, total_bytes};
}

void* Engine::workspace(Context* ctx, uint64_t bytes) {
  Engine& engine = *reinterpret_cast<EngineContext*>(ctx)->engine;
  try {
    static constexpr int kScratchTag = 0;
    MemorySource& source = engine.capture_memory_ ? *engine.capture_memory_
                                                  : static_cast<MemorySource&>(*engine.allocator_);
    void* data = source.allocate(static_cast<int64_t>(bytes), kScratchTag);
    engine.scratch_.emplace_back(data, static_cast<int64_t>(bytes));
    return data;
  } catch (const std::bad_alloc&) {
    std::snprintf(ctx->error, sizeof ctx->error, "out of memory on the host");
    return nullptr;
  } catch (const std::exception& error) {
    // The sizes, for the kernel that then gives up.
    std::snprintf(ctx->error, sizeof ctx->error, "%s", error.what());
    return nullptr;
  }
}

void Engine::account(Context* ctx, int64_t bytes) {
  reinterpret_cast<EngineContext*>(ctx)->engine->allocator_->account_derived(bytes);
}

void Engine::release_workspace() {
  MemorySource& source =
      capture_memory_ ? *capture_memory_ : static_cast<MemorySource&>(*allocator_);
  for (const auto& [data, bytes] : scratch_) source.release(data, bytes, 0);
  scratch_.clear();
}

RunningUntil::RunningUntil(Engine& engine, const AbortFlag& flag) {
  if (!flag || !engine.host_memory()) return;
  state_ = engine.device_state().get();
  set_stop_flag(state_, flag.get());
}

RunningUntil::~RunningUntil() {
  if (state_) set_stop_flag(state_, nullptr);
}

}  // namespace balora
