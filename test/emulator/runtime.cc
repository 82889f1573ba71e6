// The emulated run-time library: device memory, streams, events, graphs. Work that is put into a
// stream waits there until somebody waits for it, as late as CUDA allows, so that host code which
// forgets to wait is found; BALORA_EMULATOR_LAZY=0 runs it at once. One lock guards all of it, and
// is held while work runs: threads that use the device take turns.
//
// BALORA_EMULATOR_DEVICES (default 2, at most 4; 0: none), BALORA_EMULATOR_MEMORY (bytes a device,
// default 8 GiB), BALORA_EMULATOR_DRIVER (the CUDA version it is for, as cudaDriverGetVersion has
// it; default 13000, 0: there is none) and BALORA_EMULATOR_CAPABILITY (default 80) say what there
// is. What goes wrong in a kernel is the error of the next call that waits for it, once, and
// cudaGetErrorString gives its words; with BALORA_EMULATOR_WORDS=0 only those that CUDA has. With
// BALORA_EMULATOR_STICKY=1 it is the error of every later call until the stream goes, as a GPU has
// it until the process ends.
#include "runtime.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "arena.h"
#include "block.h"
#include "cuda_runtime.h"

namespace emulator {
namespace {

constexpr int kRuntimeVersion = CUDART_VERSION;

int64_t setting(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::atoll(text) : otherwise;
}

}  // namespace

Runtime& runtime() {
  static auto* all = new Runtime();  // outlives every thread that still has a stream
  return *all;
}

HostThread& host_thread() {
  thread_local HostThread thread;
  return thread;
}

cudaError_t report(cudaError_t code, std::string words) {
  HostThread& thread = host_thread();
  thread.last = code;
  if (!words.empty()) thread.words = std::move(words);
  return code;
}

int device_count() {
  return static_cast<int>(
      std::clamp<int64_t>(setting("BALORA_EMULATOR_DEVICES", 2), 0, Arena::kDevices));
}
size_t memory_limit() {
  return static_cast<size_t>(setting("BALORA_EMULATOR_MEMORY", int64_t{8} << 30));
}
int driver_version() {
  return static_cast<int>(setting("BALORA_EMULATOR_DRIVER", kRuntimeVersion));
}
int capability() {
  return static_cast<int>(setting("BALORA_EMULATOR_CAPABILITY", 80));
}
bool lazy() {
  return setting("BALORA_EMULATOR_LAZY", 1) != 0;
}
bool sticky() {
  return setting("BALORA_EMULATOR_STICKY", 0) != 0;
}

void drain(Stream& stream, const EventState* until) {
  while (!stream.queue.empty() && !(until && until->done)) {
    const Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    std::string error = work();
    if (error.empty()) continue;
    stream.error = std::move(error);  // nothing behind it runs
    stream.queue.clear();
  }
}

void drain_all() {
  for (Stream* stream : runtime().streams) drain(*stream);
}

cudaError_t take_error(Stream& stream) {
  if (stream.error.empty()) return cudaSuccess;
  return report(cudaErrorLaunchFailure, sticky() ? stream.error : std::exchange(stream.error, ""));
}

// The status of any call to a device that a kernel broke.
cudaError_t refuse_when_broken(int device) {
  if (!sticky()) return cudaSuccess;
  for (Stream* stream : runtime().streams) {
    if (stream->device == device && !stream->error.empty()) return take_error(*stream);
  }
  return cudaSuccess;
}

bool capturing() {
  return host_thread().capturing != nullptr;
}

// A call that is not allowed while a stream is captured spoils the capture. In the relaxed mode
// memory may be asked for meanwhile.
cudaError_t refuse_in_capture(Stream& stream) {
  stream.capture_broken = true;
  return report(cudaErrorStreamCaptureUnsupported, "");
}

cudaError_t put(Stream* stream, Work work) {
  Runtime& all = runtime();
  const std::lock_guard lock(all.mutex);
  const int device = stream ? stream->device : host_thread().device;
  if (const cudaError_t status = refuse_when_broken(device)) return status;
  if (!stream) {  // the default stream waits for all others
    drain_all();
    std::string error = work();
    return error.empty() ? cudaSuccess : report(cudaErrorLaunchFailure, std::move(error));
  }
  if (stream->capture) {
    stream->capture->work.push_back(std::move(work));
    return cudaSuccess;
  }
  stream->queue.push_back(std::move(work));
  if (lazy()) return cudaSuccess;
  drain(*stream);
  return sticky() ? cudaSuccess
                  : take_error(*stream);  // a GPU reports it at the next call, not at this one
}

void enqueue(Stream* stream, const char*, std::function<void()> work) {
  put(stream, [work = std::move(work)] {
    work();
    return std::string();
  });
}

bool is_device_memory(const void* data, size_t bytes) {
  const std::lock_guard lock(runtime().mutex);
  const Arena& arena = Arena::get();
  return arena.holds(data) && data < arena.part(Arena::kPinned) && arena.valid(data, bytes);
}

namespace {

// Whether the device would accept a launch; it refuses one at once.
bool allowed(const Launch& launch) {
  const auto product = [](dim3 d) { return uint64_t{d.x} * d.y * d.z; };
  const dim3 grid = launch.grid, dims = launch.dims;
  return product(dims) >= 1 && product(dims) <= kMaxThreads && dims.z <= 64 && product(grid) >= 1 &&
         grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535 && launch.shared_bytes >= 0 &&
         launch.shared_bytes <= kSharedLimit;
}

}  // namespace

void enqueue_launch(Stream* stream, Launch launch) {
  if (!allowed(launch)) {
    report(cudaErrorInvalidConfiguration, "");
    return;
  }
  const int device = stream ? stream->device : host_thread().device;
  put(stream, [launch = std::move(launch), device] { return run_kernel(launch, device); });
}

}  // namespace emulator

using namespace emulator;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorLaunchFailure:
      return setting("BALORA_EMULATOR_WORDS", 1) != 0 ? host_thread().words.c_str()
                                                      : "unspecified launch failure";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    default:
      return "unknown error";
  }
}
cudaError_t cudaGetLastError() {
  return std::exchange(host_thread().last, cudaSuccess);
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return *count > 0 ? cudaSuccess : report(cudaErrorNoDevice, "");
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return report(cudaErrorInvalidDevice, "");
  host_thread().device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated device", memory_limit(), capability() / 10, capability() % 10, 4};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = capability() / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = capability() % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kSharedLimit;
      break;
  }
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = driver_version();
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kRuntimeVersion;
  return cudaSuccess;
}

// ---- Memory -------------------------------------------------------------------------------------

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard lock(runtime().mutex);
  if (const cudaError_t status = refuse_when_broken(host_thread().device)) return status;
  const size_t used = Arena::get().used(host_thread().device);
  *total = memory_limit();
  *free = *total - std::min(used, *total);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  const std::lock_guard lock(runtime().mutex);
  *data = nullptr;
  if (capturing()) return refuse_in_capture(*host_thread().capturing);
  if (bytes == 0) return cudaSuccess;
  Arena& arena = Arena::get();
  const int device = host_thread().device;
  if (const cudaError_t status = refuse_when_broken(device)) return status;
  if (arena.used(device) + bytes <= memory_limit()) *data = arena.allocate(device, bytes);
  return *data ? cudaSuccess : report(cudaErrorMemoryAllocation, "");
}

cudaError_t cudaFree(void* data) {
  const std::lock_guard lock(runtime().mutex);
  if (capturing()) return refuse_in_capture(*host_thread().capturing);
  if (!data) return cudaSuccess;
  drain_all();
  Arena& arena = Arena::get();
  if (!arena.holds(data)) return report(cudaErrorInvalidValue, "");
  const auto device = static_cast<int>(
      static_cast<size_t>(static_cast<char*>(data) - arena.part(0)) / Arena::kPart);
  const bool known = device < Arena::kPinned && arena.release(device, data);
  return known ? cudaSuccess : report(cudaErrorInvalidValue, "");
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  const std::lock_guard lock(runtime().mutex);
  if (const cudaError_t status = refuse_when_broken(host_thread().device)) return status;
  *data = bytes == 0 ? nullptr : Arena::get().allocate(Arena::kPinned, bytes);
  return *data || bytes == 0 ? cudaSuccess : report(cudaErrorMemoryAllocation, "");
}

cudaError_t cudaFreeHost(void* data) {
  const std::lock_guard lock(runtime().mutex);
  if (!data) return cudaSuccess;
  const bool known = Arena::get().holds(data) && Arena::get().release(Arena::kPinned, data);
  return known ? cudaSuccess : report(cudaErrorInvalidValue, "");
}

namespace {

// One side of a copy: device memory where the kind says so, pinned or other memory of the host.
bool allowed_side(const void* data, size_t bytes, bool device) {
  const Arena& arena = Arena::get();
  if (device) return is_device_memory(data, bytes);
  return !arena.holds(data) || (data >= arena.part(Arena::kPinned) && arena.valid(data, bytes));
}

Work copy_work(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return [=]() -> std::string {
    // Again: a pinned buffer may have been freed since.
    if (!allowed_side(to, bytes, kind != cudaMemcpyDeviceToHost) ||
        !allowed_side(from, bytes, kind != cudaMemcpyHostToDevice)) {
      return "a copy of " + std::to_string(bytes) + " bytes whose memory was freed before it ran";
    }
    std::memmove(to, from, bytes);
    return "";
  };
}

}  // namespace

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const std::lock_guard lock(runtime().mutex);
  if (bytes == 0) return cudaSuccess;
  const bool to_device = kind != cudaMemcpyDeviceToHost,
             from_device = kind != cudaMemcpyHostToDevice;
  if (kind == cudaMemcpyHostToHost || kind == cudaMemcpyDefault ||
      !allowed_side(to, bytes, to_device) || !allowed_side(from, bytes, from_device)) {
    return report(cudaErrorInvalidValue, "");
  }
  const bool pageable = !Arena::get().holds(to) || !Arena::get().holds(from);
  if (!pageable || !stream) return put(stream, copy_work(to, from, bytes, kind));
  // Memory that is not pinned is read before the call returns, and written by then.
  if (stream->capture) return refuse_in_capture(*stream);
  if (to_device) {
    const auto* first = static_cast<const char*>(from);
    auto staged = std::make_shared<std::vector<char>>(first, first + bytes);
    return put(stream, [=]() -> std::string {
      std::memcpy(to, staged->data(), bytes);
      return "";
    });
  }
  put(stream, copy_work(to, from, bytes, kind));
  drain(*stream);
  return take_error(*stream);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (!is_device_memory(to, bytes)) return report(cudaErrorInvalidValue, "");
  return put(stream, [=]() -> std::string {
    std::memset(to, value, bytes);
    return "";
  });
}

// ---- Streams and events -------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const std::lock_guard lock(runtime().mutex);
  *stream = new Stream();
  (*stream)->device = host_thread().device;
  runtime().streams.push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(runtime().mutex);
  drain(*stream);
  std::erase(runtime().streams, stream);
  if (host_thread().capturing == stream) host_thread().capturing = nullptr;
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard lock(runtime().mutex);
  if (stream && stream->capture) return refuse_in_capture(*stream);
  if (!stream) {
    drain_all();
    return cudaSuccess;
  }
  drain(*stream);
  return take_error(*stream);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const std::lock_guard lock(runtime().mutex);
  if (!stream->error.empty()) return take_error(*stream);
  return stream->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}

namespace {

// A thread that asks for an event while it is on another device makes itself a context there, on a
// GPU: it takes hundreds of megabytes that nobody wanted. Here it is refused.
bool elsewhere(const Event& event) {
  return event.device != host_thread().device;
}

}  // namespace

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new Event();
  (*event)->device = host_thread().device;
  (*event)->timed = (flags & cudaEventDisableTiming) == 0;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(runtime().mutex);
  auto state = std::make_shared<EventState>();
  event->state = state;
  event->stream = stream;
  return put(stream, [state]() -> std::string {
    state->at = Clock::now();
    state->done = true;
    return "";
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard lock(runtime().mutex);
  if (elsewhere(*event)) return report(cudaErrorInvalidDevice, "");
  if (!event->state || event->state->done) return cudaSuccess;
  if (event->stream->capture) return refuse_in_capture(*event->stream);
  drain(*event->stream, event->state.get());
  return take_error(*event->stream);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard lock(runtime().mutex);
  if (elsewhere(*event)) return report(cudaErrorInvalidDevice, "");
  return !event->state || event->state->done ? cudaSuccess : report(cudaErrorNotReady, "");
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(runtime().mutex);
  if (!event->state || event->stream == stream) return cudaSuccess;
  return put(stream, [state = event->state, of = event->stream]() -> std::string {
    const auto& streams = runtime().streams;
    if (std::find(streams.begin(), streams.end(), of) != streams.end()) drain(*of, state.get());
    return "";
  });
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  const std::lock_guard lock(runtime().mutex);
  if (elsewhere(*begin)) return report(cudaErrorInvalidDevice, "");
  if (!begin->timed || !end->timed || !begin->state || !end->state) {
    return report(cudaErrorInvalidValue, "");
  }
  if (!begin->state->done || !end->state->done) return report(cudaErrorNotReady, "");
  *milliseconds =
      std::chrono::duration<float, std::milli>(end->state->at - begin->state->at).count();
  return cudaSuccess;
}

// ---- Graphs -------------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const std::lock_guard lock(runtime().mutex);
  if (!stream || stream->capture || capturing()) return report(cudaErrorInvalidValue, "");
  stream->capture = std::make_unique<Graph>();
  stream->capture_broken = false;
  if (mode != cudaStreamCaptureModeRelaxed) host_thread().capturing = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(runtime().mutex);
  *graph = nullptr;
  if (!stream->capture) return report(cudaErrorInvalidValue, "");
  if (host_thread().capturing == stream) host_thread().capturing = nullptr;
  const auto captured = std::move(stream->capture);
  if (stream->capture_broken) return report(cudaErrorStreamCaptureInvalidated, "");
  *graph = new Graph(*captured);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (!graph) return report(cudaErrorInvalidValue, "");
  *exec = new Graph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const std::lock_guard lock(runtime().mutex);
  for (const Work& work : exec->work) {
    const cudaError_t status = put(stream, work);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
