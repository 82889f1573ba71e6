// The emulated run-time library: device memory, streams, events, graphs.
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_runtime.h"

namespace emulator {

using Clock = std::chrono::steady_clock;

struct Work {
  const char* name;
  Body body;
};
struct Graph {
  std::vector<Work> work;
};
struct Stream {
  std::unique_ptr<Graph> capture;  // what is launched goes here
};
struct Event {
  Clock::time_point at;
};

void run_kernel(const char* name, dim3 grid, dim3 block, int64_t shared_bytes, const Body& body);

void enqueue(Stream* stream, const char* name, Body work) {
  if (stream && stream->capture) {
    stream->capture->work.push_back({name, std::move(work)});
  } else {
    work();
  }
}

void run(const char* name, dim3 grid, dim3 block, int64_t shared_bytes, Stream* stream, Body body) {
  enqueue(stream, name, [=] { run_kernel(name, grid, block, shared_bytes, body); });
}

// What cudaMalloc gave out: first byte and length.
struct Allocations {
  std::mutex mutex;
  std::map<const char*, size_t> sizes;
};
Allocations& allocations() {
  static Allocations all;
  return all;
}

bool is_device_memory(const void* data, size_t bytes) {
  Allocations& all = allocations();
  const std::lock_guard lock(all.mutex);
  const char* first = static_cast<const char*>(data);
  auto found = all.sizes.upper_bound(first);
  if (found == all.sizes.begin()) return false;
  --found;
  return first + bytes <= found->first + found->second;
}

void check_access(const void*, size_t, size_t, bool) {}
void note_atomic(const void*, size_t) {}

}  // namespace emulator

using emulator::Clock;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    default:
      return "unknown error";
  }
}
cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 2;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) {
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated device", size_t{8} << 30, 8, 0, 4};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 99 << 10;  // the smallest of the supported architectures (8.6, 8.9)
      break;
  }
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{8} << 30;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** data, size_t bytes) {
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*data) {
    std::memset(*data, 0xff, bytes);
    const std::lock_guard lock(emulator::allocations().mutex);
    emulator::allocations().sizes[static_cast<const char*>(*data)] = bytes;
  }
  return *data ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* data) {
  {
    const std::lock_guard lock(emulator::allocations().mutex);
    emulator::allocations().sizes.erase(static_cast<const char*>(data));
  }
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *data ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* data) {
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  emulator::enqueue(stream, "memcpy", [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  emulator::enqueue(stream, "memset", [=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new emulator::Stream();
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new emulator::Event();
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  emulator::enqueue(stream, "event", [event] { event->at = Clock::now(); });
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->at - begin->at).count();
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->capture = std::make_unique<emulator::Graph>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->capture.release();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new emulator::Graph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  for (const emulator::Work& work : exec->work) emulator::enqueue(stream, work.name, work.body);
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
