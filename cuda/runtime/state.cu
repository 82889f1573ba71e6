#include "runtime/state.cuh"

#include <cstring>
#include <memory>

#include "kernels/shared/messages.h"
#include "runtime/blas.cuh"

namespace balora::cuda {
namespace {

int32_t attribute(cudaDeviceAttr which, int32_t device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

// Names what was looked for and what is there.
void find_device(int32_t device) {
  int driver = 0, count = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) {
    throw std::runtime_error(
        "no NVIDIA driver was found (libcuda.so.1); install the driver, or use device \"cpu\"");
  }
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  if (driver / 1000 < runtime / 1000) {
    throw std::runtime_error("the NVIDIA driver is for CUDA " + std::to_string(driver / 1000) +
                             "." + std::to_string(driver % 1000 / 10) +
                             ", this plug-in needs CUDA " + std::to_string(runtime / 1000) +
                             "; install a newer driver");
  }
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    throw std::runtime_error(std::string("no CUDA device was found (") +
                             cudaGetErrorString(status) + ")");
  }
  if (device < 0 || device >= count) {
    throw std::runtime_error("there is no cuda:" + std::to_string(device) + "; this machine has " +
                             std::to_string(count) + " CUDA device(s), from cuda:0 on");
  }
}

void close_device(DeviceState* state) {
  cudaSetDevice(state->device);
  if (state->stream) cudaStreamSynchronize(state->stream);
  if (state->blas) close_blas(state->blas);
  if (state->fault) cudaFreeHost(state->fault);
  if (state->stream) cudaStreamDestroy(state->stream);
  cudaGetLastError();  // taken note of: a launch of this thread must not report it
  delete state;
}

DeviceState* open_device(int32_t device) {
  find_device(device);
  check(cudaSetDevice(device), "cudaSetDevice");
  // Everything that was made before a failure is freed.
  std::unique_ptr<DeviceState, void (*)(DeviceState*)> state(new DeviceState(), close_device);
  state->device = device;
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  state->name = properties.name;
  state->compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                              attribute(cudaDevAttrComputeCapabilityMinor, device);
  if (state->compute_capability < 80) {
    throw std::runtime_error(
        state->name + " has compute capability " + std::to_string(state->compute_capability / 10) +
        "." + std::to_string(state->compute_capability % 10) + "; the kernels need 8.0 or newer");
  }
  state->multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  state->shared_limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  check(cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking), "cudaStreamCreate");
  void* fault = nullptr;
  check(cudaHostAlloc(&fault, sizeof(Fault), cudaHostAllocMapped | cudaHostAllocPortable),
        "cudaHostAlloc");
  state->fault = new (fault) Fault{};
  state->blas = open_blas(*state);
  return state.release();
}

// For calls outside of the table's guard: a failure is cleared, so that this thread's next launch
// does not report it.
bool succeeded(cudaError_t status) {
  if (status != cudaSuccess) cudaGetLastError();
  return status == cudaSuccess;
}

// The caller sees null and takes it for a lack of memory; another failure (a kernel before broke
// the device) is reported by the next row.
void* memory_or_null(DeviceState& state, cudaError_t status, void* data) {
  if (succeeded(status)) return data;
  if (status != cudaErrorMemoryAllocation) state.failed = status;
  return nullptr;
}

struct Mark {
  int32_t device = 0;
  cudaEvent_t event = nullptr;
  const char* launched = nullptr;
};

// Any thread may ask for a mark; one that has chosen no device would make itself a context on GPU
// 0, which takes hundreds of megabytes there.
Mark& chosen_mark(void* mark) {
  auto& chosen = *static_cast<Mark*>(mark);
  succeeded(cudaSetDevice(chosen.device));
  return chosen;
}

Mark* recorded_mark(Context* ctx, unsigned flags, const char* what) {
  cudaEvent_t event = nullptr;
  check_stream(ctx, cudaEventCreateWithFlags(&event, flags), what);
  const cudaError_t status = cudaEventRecord(event, stream_of(ctx));
  if (status != cudaSuccess) cudaEventDestroy(event);
  check_stream(ctx, status, what);
  return new Mark{state_of(ctx).device, event, state_of(ctx).launched};
}

std::string fault_text(const Fault& fault) {
  const int64_t value = fault.value, limit = fault.limit, position = fault.position;
  const auto first = static_cast<int32_t>(value >> 32), second = static_cast<int32_t>(value);
  switch (fault.code) {
    case kIndexOutOfRange:
      return messages::index_out_of_range(value, position, limit);
    case kTargetOutOfRange:
      return messages::target_out_of_range(value, position, limit);
    case kSingularMatrix:
      return messages::singular_matrix();
    case kNotFinite:
      return messages::matrix_not_finite();
    case kNotConverged:
      return messages::not_converged();
    case kSegmentEnds:
      return messages::segment_ends(limit, first, second);
    case kQueryEnds:
      return messages::query_ends(limit, first, second);
    case kSegmentQueries:
      return messages::segment_queries(limit, first, second);
    case kSegmentFalls:
      return messages::segment_falls(first, second, limit);
    case kSegmentLength:
      return messages::segment_length(first, limit, second);
    case kSegmentReach:
      return messages::segment_reach(first, second, limit);
    case kPositionIndex:
      return messages::position_index(first, second, limit);
    case kOutsideTables:
      return messages::outside_tables(second, first, limit);
    case kCacheRows:
      return messages::cache_rows(first, limit, second);
    case kCacheBlocks:
      return messages::cache_blocks(first, second, limit);
    case kCacheBlock:
      return messages::cache_block(first, second, limit);
    case kCacheWindow:
      return messages::cache_window(first, second);
    case kCacheBias:
      return messages::cache_bias(first, second, limit);
    default:
      return "fault " + std::to_string(fault.code);
  }
}

}  // namespace

void* create_state(int32_t device_index, char* error, uint64_t error_size) {
  try {
    return open_device(device_index);
  } catch (const std::exception& failure) {
    std::snprintf(error, error_size, "%s", failure.what());
  }
  cudaGetLastError();  // taken note of: a launch of this thread must not report it
  return nullptr;
}

void destroy_state(void* state) {
  if (state) close_device(static_cast<DeviceState*>(state));
}

void* allocate(void* state, uint64_t bytes) {
  auto& of = *static_cast<DeviceState*>(state);
  cudaSetDevice(of.device);
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  return memory_or_null(of, status, data);
}

void release(void* state, void* data, uint64_t) {
  cudaSetDevice(static_cast<DeviceState*>(state)->device);
  succeeded(cudaFree(data));  // waits for the device: no kernel loses memory under its feet
}

// Pageable memory: the engine has its own way through pinned memory (engine/staging.h).
int32_t upload(Context* ctx, void* device, const void* host, uint64_t bytes) {
  const cudaStream_t stream = stream_of(ctx);
  check_stream(ctx, cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream), "upload");
  check_stream(ctx, cudaStreamSynchronize(stream), "upload");
  return 0;
}

int32_t download(Context* ctx, void* host, const void* device, uint64_t bytes) {
  const cudaStream_t stream = stream_of(ctx);
  check_stream(ctx, cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream),
               "download");
  check_stream(ctx, cudaStreamSynchronize(stream), "download");
  return 0;
}

// Portable: the stream of another GPU may copy from it.
void* pin(void* state, uint64_t bytes) {
  auto& of = *static_cast<DeviceState*>(state);
  cudaSetDevice(of.device);
  void* data = nullptr;
  const cudaError_t status = cudaHostAlloc(&data, bytes, cudaHostAllocPortable);
  return memory_or_null(of, status, data);
}

void unpin(void* state, void* data) {
  cudaSetDevice(static_cast<DeviceState*>(state)->device);
  succeeded(cudaFreeHost(data));
}

int32_t copy_in(Context* ctx, void* device, const void* pinned, uint64_t bytes) {
  check_stream(ctx, cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, stream_of(ctx)),
               "copy_in");
  return 0;
}

int32_t copy_out(Context* ctx, void* pinned, const void* device, uint64_t bytes) {
  check_stream(ctx, cudaMemcpyAsync(pinned, device, bytes, cudaMemcpyDeviceToHost, stream_of(ctx)),
               "copy_out");
  return 0;
}

// A thread that waits for one sleeps.
int32_t mark(Context* ctx, void** made) {
  *made = recorded_mark(ctx, cudaEventDisableTiming | cudaEventBlockingSync, "mark");
  return 0;
}

int32_t reached(void* mark) {
  const cudaError_t status = cudaEventQuery(chosen_mark(mark).event);
  return succeeded(status) || status != cudaErrorNotReady;
}

int32_t await_mark(void* mark, char* error, uint64_t error_size) {
  const Mark& at = chosen_mark(mark);
  const cudaError_t status = cudaEventSynchronize(at.event);
  if (succeeded(status)) return 0;
  std::snprintf(error, error_size, "%s", later_failure(status, at.launched).c_str());
  return 1;
}

void unmark(void* mark) {
  succeeded(cudaEventDestroy(chosen_mark(mark).event));
  delete static_cast<Mark*>(mark);
}

int32_t record(Context* ctx, void** made) {
  *made = recorded_mark(ctx, cudaEventBlockingSync, "record");
  return 0;
}

// Half a microsecond is what an event's time is good for.
int32_t elapsed(void* from, void* to, double* seconds) {
  float milliseconds = 0;
  const cudaError_t status =
      cudaEventElapsedTime(&milliseconds, chosen_mark(from).event, static_cast<Mark*>(to)->event);
  *seconds = static_cast<double>(milliseconds) * 1e-3;
  return !succeeded(status);
}

int32_t synchronize(Context* ctx) {
  DeviceState& state = state_of(ctx);
  check_stream(ctx, cudaStreamSynchronize(state.stream), "the device");
  if (state.fault->code != kNoFault) {
    const Fault fault = *state.fault;
    *state.fault = Fault{};
    throw std::runtime_error(row_name(fault.row) + std::string(": ") + fault_text(fault));
  }
  return 0;
}

void describe(void* state, char* text, uint64_t text_size) {
  const auto& device = *static_cast<DeviceState*>(state);
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  std::snprintf(text, text_size, "%s, sm_%d, %d multiprocessors, CUDA %d.%d, driver for %d.%d",
                device.name.c_str(), device.compute_capability, device.multiprocessors,
                runtime / 1000, runtime % 1000 / 10, driver / 1000, driver % 1000 / 10);
}

int32_t memory(void* state, uint64_t* free_bytes, uint64_t* total_bytes) {
  cudaSetDevice(static_cast<DeviceState*>(state)->device);
  size_t free_size = 0, total_size = 0;
  if (!succeeded(cudaMemGetInfo(&free_size, &total_size))) return 1;
  *free_bytes = free_size;
  *total_bytes = total_size;
  return 0;
}

int32_t capture_begin(Context* ctx) {
  check(cudaStreamBeginCapture(stream_of(ctx), cudaStreamCaptureModeRelaxed), "capture");
  return 0;
}

int32_t capture_end(Context* ctx, void** graph) {
  cudaGraph_t recorded = nullptr;
  check(cudaStreamEndCapture(stream_of(ctx), &recorded), "capture");
  cudaGraphExec_t ready = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&ready, recorded, 0);
  cudaGraphDestroy(recorded);
  check(status, "capture");
  *graph = ready;
  return 0;
}

int32_t graph_launch(Context* ctx, void* graph) {
  check_stream(ctx, cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(ctx)), "graph");
  state_of(ctx).launched = "of a graph";
  return 0;
}

void graph_destroy(void* state, void* graph) {
  cudaSetDevice(static_cast<DeviceState*>(state)->device);
  succeeded(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
}

}  // namespace balora::cuda
