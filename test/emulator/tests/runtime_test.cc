// The emulated run-time library: when work runs, whose errors it raises, what there is of devices
// and memory, graphs, and two threads at once.
#include <doctest/doctest.h>

#include <cstdlib>
#include <thread>
#include <vector>

#include "cuda_runtime.h"

namespace {

class Setting {
 public:
  Setting(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Setting() { unsetenv(name_); }

 private:
  const char* name_;
};

struct Buffers {
  cudaStream_t stream = nullptr;
  int *device = nullptr, *pinned = nullptr;

  Buffers() {
    REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    REQUIRE(cudaMalloc(reinterpret_cast<void**>(&device), 4) == cudaSuccess);
    REQUIRE(cudaHostAlloc(reinterpret_cast<void**>(&pinned), 4, 0) == cudaSuccess);
  }
  ~Buffers() {
    cudaStreamDestroy(stream);
    cudaFree(device);
    cudaFreeHost(pinned);
  }
  cudaError_t up() { return cudaMemcpyAsync(device, pinned, 4, cudaMemcpyHostToDevice, stream); }
  cudaError_t down() { return cudaMemcpyAsync(pinned, device, 4, cudaMemcpyDeviceToHost, stream); }
};

size_t free_bytes() {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  return free;
}

TEST_CASE("a copy reads its pinned source when the stream gets there") {
  Buffers b;
  *b.pinned = 1;
  REQUIRE(b.up() == cudaSuccess);
  *b.pinned = 2;  // too early: nobody has waited
  REQUIRE(b.down() == cudaSuccess);
  REQUIRE(cudaStreamSynchronize(b.stream) == cudaSuccess);
  CHECK(*b.pinned == 2);
  const Setting eager("BALORA_EMULATOR_LAZY", "0");
  *b.pinned = 3;
  REQUIRE(b.up() == cudaSuccess);
  *b.pinned = 4;
  REQUIRE(b.down() == cudaSuccess);
  CHECK(*b.pinned == 3);
}

TEST_CASE("memory that is not pinned has been read when the call returns") {
  Buffers b;
  int value = 5;
  REQUIRE(cudaMemcpyAsync(b.device, &value, 4, cudaMemcpyHostToDevice, b.stream) == cudaSuccess);
  value = 6;
  int back = 0;
  REQUIRE(cudaMemcpyAsync(&back, b.device, 4, cudaMemcpyDeviceToHost, b.stream) == cudaSuccess);
  CHECK(back == 5);
}

TEST_CASE("an event is waited for up to its place in the stream") {
  Buffers b, later;
  cudaEvent_t event = nullptr;
  REQUIRE(cudaEventCreateWithFlags(&event, 0) == cudaSuccess);
  *b.pinned = 7;
  *later.pinned = 8;
  REQUIRE(b.up() == cudaSuccess);
  REQUIRE(cudaEventRecord(event, b.stream) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(later.device, later.pinned, 4, cudaMemcpyHostToDevice, b.stream) ==
          cudaSuccess);
  CHECK(cudaEventQuery(event) == cudaErrorNotReady);
  REQUIRE(cudaEventSynchronize(event) == cudaSuccess);
  CHECK(cudaEventQuery(event) == cudaSuccess);
  CHECK(cudaStreamQuery(b.stream) == cudaErrorNotReady);

  // Another stream waits for it inside of the device.
  REQUIRE(cudaEventRecord(event, b.stream) == cudaSuccess);
  REQUIRE(cudaStreamWaitEvent(later.stream, event) == cudaSuccess);
  REQUIRE(later.down() == cudaSuccess);
  cudaEventDestroy(event);  // what is queued keeps what it needs
  REQUIRE(cudaStreamSynchronize(later.stream) == cudaSuccess);
  CHECK(*later.pinned == 8);
}

TEST_CASE("freeing waits for the device; what was freed cannot be copied or freed again") {
  Buffers b;
  *b.pinned = 9;
  REQUIRE(b.up() == cudaSuccess);
  REQUIRE(b.down() == cudaSuccess);
  *b.pinned = 10;
  void* other = nullptr;
  REQUIRE(cudaMalloc(&other, 64) == cudaSuccess);
  REQUIRE(cudaFree(other) == cudaSuccess);
  CHECK(cudaStreamQuery(b.stream) == cudaSuccess);
  CHECK(cudaFree(other) == cudaErrorInvalidValue);
  CHECK(cudaMemsetAsync(other, 0, 4, b.stream) == cudaErrorInvalidValue);
  CHECK(cudaMemcpyAsync(b.device, b.pinned, 8, cudaMemcpyHostToDevice, b.stream) ==
        cudaErrorInvalidValue);
  CHECK(cudaMemcpyAsync(b.pinned, b.device, 4, cudaMemcpyHostToDevice, b.stream) ==
        cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_CASE("a pinned buffer that goes before its copy is an error of the stream") {
  Buffers b;
  void* pinned = nullptr;
  REQUIRE(cudaHostAlloc(&pinned, 4, 0) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(b.device, pinned, 4, cudaMemcpyHostToDevice, b.stream) == cudaSuccess);
  REQUIRE(cudaFreeHost(pinned) == cudaSuccess);
  const cudaError_t status = cudaStreamSynchronize(b.stream);
  CHECK(status == cudaErrorLaunchFailure);
  CHECK(std::string(cudaGetErrorString(status)).find("freed before it ran") != std::string::npos);
  CHECK(cudaStreamSynchronize(b.stream) == cudaSuccess);  // reported once
}

TEST_CASE("a device that broke refuses everything where its error is to stay") {
  Buffers b;
  void* pinned = nullptr;
  REQUIRE(cudaHostAlloc(&pinned, 4, 0) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(b.device, pinned, 4, cudaMemcpyHostToDevice, b.stream) == cudaSuccess);
  REQUIRE(cudaFreeHost(pinned) == cudaSuccess);
  {
    const Setting sticky("BALORA_EMULATOR_STICKY", "1");
    size_t free = 0, total = 0;
    CHECK(cudaStreamSynchronize(b.stream) == cudaErrorLaunchFailure);
    CHECK(cudaStreamSynchronize(b.stream) == cudaErrorLaunchFailure);
    CHECK(cudaMalloc(&pinned, 4) == cudaErrorLaunchFailure);
    CHECK(cudaHostAlloc(&pinned, 4, 0) == cudaErrorLaunchFailure);
    CHECK(cudaMemGetInfo(&free, &total) == cudaErrorLaunchFailure);
    CHECK(b.up() == cudaErrorLaunchFailure);
  }
  CHECK(cudaStreamSynchronize(b.stream) == cudaErrorLaunchFailure);
  CHECK(cudaStreamSynchronize(b.stream) == cudaSuccess);
  cudaGetLastError();
}

TEST_CASE("an event is asked for on its own device") {
  Buffers b;
  cudaEvent_t event = nullptr;
  float milliseconds = 0;
  REQUIRE(cudaEventCreateWithFlags(&event, 0) == cudaSuccess);
  REQUIRE(cudaEventRecord(event, b.stream) == cudaSuccess);
  REQUIRE(cudaSetDevice(1) == cudaSuccess);
  CHECK(cudaEventQuery(event) == cudaErrorInvalidDevice);
  CHECK(cudaEventSynchronize(event) == cudaErrorInvalidDevice);
  CHECK(cudaEventElapsedTime(&milliseconds, event, event) == cudaErrorInvalidDevice);
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  CHECK(cudaEventSynchronize(event) == cudaSuccess);
  cudaEventDestroy(event);
  cudaGetLastError();
}

TEST_CASE("no device, another number of devices, a limit of memory") {
  int count = -1;
  {
    const Setting none("BALORA_EMULATOR_DEVICES", "0");
    CHECK(cudaGetDeviceCount(&count) == cudaErrorNoDevice);
    CHECK(count == 0);
    CHECK(cudaSetDevice(0) == cudaErrorInvalidDevice);
  }
  {
    const Setting three("BALORA_EMULATOR_DEVICES", "3");
    CHECK(cudaGetDeviceCount(&count) == cudaSuccess);
    CHECK(count == 3);
  }
  const Setting small("BALORA_EMULATOR_MEMORY", "1048576");
  void *half = nullptr, *rest = nullptr;
  CHECK(cudaMalloc(&half, 600000) == cudaSuccess);
  CHECK(cudaMalloc(&rest, 600000) == cudaErrorMemoryAllocation);
  CHECK(rest == nullptr);
  CHECK(free_bytes() == 1048576 - 600000);
  cudaFree(half);
  CHECK(free_bytes() == 1048576);
  cudaGetLastError();
}

TEST_CASE("a graph repeats what was captured; what waits spoils a capture") {
  Buffers b;
  *b.pinned = 11;
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeRelaxed) == cudaSuccess);
  REQUIRE(b.up() == cudaSuccess);
  REQUIRE(cudaStreamEndCapture(b.stream, &graph) == cudaSuccess);
  cudaGraphExec_t exec = nullptr;
  REQUIRE(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
  cudaGraphDestroy(graph);
  for (int value = 12; value < 14; ++value) {
    *b.pinned = value;
    REQUIRE(cudaGraphLaunch(exec, b.stream) == cudaSuccess);
    REQUIRE(cudaStreamSynchronize(b.stream) == cudaSuccess);
    *b.pinned = 0;
    REQUIRE(b.down() == cudaSuccess);
    REQUIRE(cudaStreamSynchronize(b.stream) == cudaSuccess);
    CHECK(*b.pinned == value);
  }
  cudaGraphExecDestroy(exec);

  REQUIRE(cudaStreamBeginCapture(b.stream, cudaStreamCaptureModeRelaxed) == cudaSuccess);
  CHECK(cudaStreamSynchronize(b.stream) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaStreamEndCapture(b.stream, &graph) == cudaErrorStreamCaptureInvalidated);
  CHECK(graph == nullptr);
  CHECK(b.up() == cudaSuccess);  // and the stream is usable again
  cudaGetLastError();
}

TEST_CASE("threads with streams of their own, and nothing is left behind") {
  const size_t before = free_bytes();
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t, &wrong] {
      cudaSetDevice(t % 2);
      for (int i = 0; i < 200; ++i) {
        Buffers b;
        *b.pinned = 1000 * t + i;
        b.up();
        b.down();
        cudaStreamSynchronize(b.stream);
        wrong[static_cast<size_t>(t)] += *b.pinned != 1000 * t + i;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4, 0));
  CHECK(free_bytes() == before);
}

}  // namespace
