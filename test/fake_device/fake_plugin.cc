// A device plug-in for the tests of everything above the table: "cuda" by name, the CPU's kernels
// by nature. Its memory is its own, and it checks what a real device would fault on: that a kernel
// gets addresses of its memory only, and a copy one address on either side. Like a GPU it may find
// out late that a kernel failed: BALORA_FAKE_FAULT names a row whose failure shows at the next
// synchronize(), or at once in debug mode. BALORA_FAKE_DEVICE picks a way to be no usable device.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/cpu_state.h"

namespace balora {
namespace {

constexpr int32_t kDevices = 2;
constexpr size_t kAlignment = 64;
constexpr uint64_t kTotalBytes = uint64_t{1} << 30;

std::string setting(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

struct State {
  int32_t index = 0;
  void* cpu = nullptr;
  std::mutex mutex;
  std::map<const char*, uint64_t> blocks;  // by address
  uint64_t used = 0;
  std::string fault;  // waits for synchronize()
  std::vector<std::function<int32_t(Context*)>>* recording = nullptr;

  bool owns(const void* data, uint64_t bytes) {
    const auto* at = static_cast<const char*>(data);
    std::lock_guard lock(mutex);
    auto block = blocks.upper_bound(at);
    if (block == blocks.begin()) return false;
    --block;
    return at + bytes <= block->first + block->second;
  }
};

int32_t fail(Context* ctx, const std::string& message) {
  std::snprintf(ctx->error, sizeof ctx->error, "%s", message.c_str());
  return 1;
}

State& state_of(Context* ctx) {
  return *static_cast<State*>(ctx->device_state);
}

void* create_state(int32_t index, char* error, uint64_t error_size) {
  const std::string variant = setting("BALORA_FAKE_DEVICE");
  if (variant == "no driver" || index >= kDevices) {
    const std::string why =
        index >= kDevices ? "there are 2 devices, number " + std::to_string(index) + " is none"
                          : "no driver: libcuda.so.1 was looked for and is not there";
    std::snprintf(error, error_size, "%s", why.c_str());
    return nullptr;
  }
  if (variant == "no state") return nullptr;
  auto* state = new State;
  state->index = index;
  state->cpu = create_cpu_state(0, error, error_size);
  return state;
}

void destroy_state(void* data) {
  auto* state = static_cast<State*>(data);
  destroy_cpu_state(state->cpu);
  if (!state->blocks.empty()) {
    std::fprintf(stderr, "fake device: %zu blocks were not given back\n", state->blocks.size());
    std::abort();
  }
  delete state;
}

void* allocate(void* data, uint64_t bytes) {
  auto& state = *static_cast<State*>(data);
  std::lock_guard lock(state.mutex);
  if (state.used + bytes > kTotalBytes) return nullptr;
  void* block = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  if (!block) return nullptr;
  std::memset(block, 0xff, bytes);  // new memory holds NaN patterns
  state.blocks[static_cast<const char*>(block)] = bytes;
  state.used += bytes;
  return block;
}

void release(void* data, void* block, uint64_t bytes) {
  auto& state = *static_cast<State*>(data);
  {
    std::lock_guard lock(state.mutex);
    if (state.blocks.erase(static_cast<const char*>(block)) != 1) std::abort();
    state.used -= bytes;
  }
  std::free(block);
}

int32_t upload(Context* ctx, void* device, const void* host, uint64_t bytes) {
  State& state = state_of(ctx);
  if (state.recording) return fail(ctx, "upload: while a graph is recorded");
  if (!state.owns(device, bytes)) return fail(ctx, "upload: the target is not on the device");
  if (state.owns(host, 1)) return fail(ctx, "upload: the source is not on the host");
  std::memcpy(device, host, bytes);
  return 0;
}

int32_t download(Context* ctx, void* host, const void* device, uint64_t bytes) {
  State& state = state_of(ctx);
  if (!state.owns(device, bytes)) return fail(ctx, "download: the source is not on the device");
  if (state.owns(host, 1)) return fail(ctx, "download: the target is not on the host");
  std::memcpy(host, device, bytes);
  return 0;
}

int32_t synchronize(Context* ctx) {
  if (state_of(ctx).recording) return fail(ctx, "waited for while it recorded");
  std::string fault;
  fault.swap(state_of(ctx).fault);
  return fault.empty() ? 0 : fail(ctx, fault);
}

void describe(void* data, char* text, uint64_t text_size) {
  std::snprintf(text, text_size, "pretended device %d", static_cast<State*>(data)->index);
}

int32_t memory(void* data, uint64_t* free_bytes, uint64_t* total_bytes) {
  auto& state = *static_cast<State*>(data);
  std::lock_guard lock(state.mutex);
  *free_bytes = kTotalBytes - state.used;
  *total_bytes = kTotalBytes;
  return 0;
}

// ---- graphs: rows that were called between begin and end, to be called again
// ------------------------------------------------------------------------------------------
using Recording = std::vector<std::function<int32_t(Context*)>>;

int32_t capture_begin(Context* ctx) {
  state_of(ctx).recording = new Recording;
  return 0;
}

int32_t capture_end(Context* ctx, void** graph) {
  *graph = std::exchange(state_of(ctx).recording, nullptr);
  return 0;
}

int32_t graph_launch(Context* ctx, void* graph) {
  for (const auto& row : *static_cast<Recording*>(graph)) {
    if (const int32_t status = row(ctx)) return status;
  }
  return 0;
}

void graph_destroy(void*, void* graph) {
  delete static_cast<Recording*>(graph);
}

// An argument that outlives its call. Rows whose operands come in structures are not recorded.
template <typename T>
struct Held {
  static constexpr bool kPossible = !std::is_pointer_v<T>;
  T value;
  explicit Held(T given) : value(given) {}
  T get() const { return value; }
};
template <>
struct Held<const View*> {
  static constexpr bool kPossible = true;
  View view{};
  bool present;
  explicit Held(const View* given) : present(given != nullptr) {
    if (given) view = *given;
  }
  const View* get() const { return present ? &view : nullptr; }
};

// ---- rows
// ------------------------------------------------------------------------------------------
enum RowIndex {
#define KERNEL(name) kRow_##name,
#include "kernels/kernels.def"
};
const char* const kRowNames[] = {
#define KERNEL(name) #name,
#include "kernels/kernels.def"
};

template <typename T>
bool on_device(State&, const T&) {
  return true;
}
bool on_device(State& state, const View* view) {
  return !view || view_numel(*view) == 0 || state.owns(view->data, 1);
}
bool on_device(State& state, const ViewList* list) {
  return std::all_of(list->at, list->at + list->count,
                     [&](const View* view) { return on_device(state, view); });
}
bool on_device(State& state, const AdamwList* list) {
  return std::all_of(list->at, list->at + list->count, [&](const AdamwOperands& t) {
    return on_device(state, t.grad) && on_device(state, t.rate) && on_device(state, t.param) &&
           on_device(state, t.m) && on_device(state, t.v);
  });
}

// Structures of operands, field by field: up to twelve of them.
struct AnyField {
  template <typename T>
  operator T() const;
};
template <typename O, size_t... I>
constexpr bool has_fields(std::index_sequence<I...>) {
  return requires { O{(static_cast<void>(I), AnyField{})...}; };
}
template <typename O, size_t N = 12>
constexpr size_t field_count() {
  if constexpr (has_fields<O>(std::make_index_sequence<N>{})) {
    return N;
  } else {
    return field_count<O, N - 1>();
  }
}
template <typename O, typename F>
void for_each_field(O& o, F f) {
  constexpr size_t kCount = field_count<std::remove_const_t<O>>();
  const auto each = [&](auto&... fields) { (f(fields), ...); };
  if constexpr (kCount == 4) {
    auto& [a, b, c, d] = o;
    each(a, b, c, d);
  }
  if constexpr (kCount == 5) {
    auto& [a, b, c, d, e] = o;
    each(a, b, c, d, e);
  }
  if constexpr (kCount == 6) {
    auto& [a, b, c, d, e, f] = o;
    each(a, b, c, d, e, f);
  }
  if constexpr (kCount == 7) {
    auto& [a, b, c, d, e, f, g] = o;
    each(a, b, c, d, e, f, g);
  }
  if constexpr (kCount == 8) {
    auto& [a, b, c, d, e, f, g, h] = o;
    each(a, b, c, d, e, f, g, h);
  }
  if constexpr (kCount == 9) {
    auto& [a, b, c, d, e, f, g, h, i] = o;
    each(a, b, c, d, e, f, g, h, i);
  }
  if constexpr (kCount == 10) {
    auto& [a, b, c, d, e, f, g, h, i, j] = o;
    each(a, b, c, d, e, f, g, h, i, j);
  }
  if constexpr (kCount == 11) {
    auto& [a, b, c, d, e, f, g, h, i, j, k] = o;
    each(a, b, c, d, e, f, g, h, i, j, k);
  }
  if constexpr (kCount == 12) {
    auto& [a, b, c, d, e, f, g, h, i, j, k, l] = o;
    each(a, b, c, d, e, f, g, h, i, j, k, l);
  }
  static_assert(kCount >= 4);
}
bool fields_on_device(State& state, const auto& operands) {
  bool all = true;
  for_each_field(operands, [&](const auto& field) { all = all && on_device(state, field); });
  return all;
}
// Operands that outlive their call.
template <typename O>
class HeldOperands {
 public:
  explicit HeldOperands(const O& given) : operands_(given) {
    for_each_field(operands_, [&](auto& field) {
      if constexpr (std::is_same_v<decltype(field), const View*&>) {
        if (field) field = views_.emplace_back(std::make_shared<View>(*field)).get();
      }
    });
  }
  const O* get() const { return &operands_; }

 private:
  O operands_;
  std::vector<std::shared_ptr<const View>> views_;
};

// A kernel of the CPU on this device's memory.
template <typename Call>
int32_t run_on_cpu(Context* ctx, const Call& kernel) {
  State& state = state_of(ctx);
  ctx->device_state = state.cpu;
  const int32_t status = kernel();
  ctx->device_state = &state;
  return status;
}

// A row after its operands were looked at: the fault that is asked for, or a run now, or a
// recording of `held` for a graph (null: the row is not recorded).
int32_t run_row(Context* ctx, const char* name, bool operands_on_device,
                const std::function<int32_t(Context*)>& run,
                const std::function<std::function<int32_t(Context*)>()>& held) {
  State& state = state_of(ctx);
  if (!operands_on_device) return fail(ctx, concat(name, ": an operand is not on the device"));
  if (setting("BALORA_FAKE_FAULT") == name) {
    const std::string fault = concat(name, "_kernel: a pretended fault");
    if (ctx->debug) return fail(ctx, fault);
    if (state.fault.empty()) state.fault = fault;
    return 0;
  }
  if (!state.recording) return run(ctx);
  if (!held) return fail(ctx, concat(name, " is not recorded"));
  state.recording->push_back(held());
  return 0;
}

template <auto Member, int Index>
struct Row;
template <typename O, int32_t (*KernelTable::*Member)(Context*, const O*), int Index>
struct Row<Member, Index> {
  static int32_t call(Context* ctx, const O* operands) {
    const auto held = [&]() -> std::function<int32_t(Context*)> {
      return [held = HeldOperands<O>(*operands)](Context* at) { return run(at, held.get()); };
    };
    return run_row(
        ctx, kRowNames[Index], fields_on_device(state_of(ctx), *operands),
        [&](Context* at) { return run(at, operands); }, held);
  }
  static int32_t run(Context* ctx, const O* operands) {
    return run_on_cpu(ctx, [&] { return (cpu_kernel_table()->*Member)(ctx, operands); });
  }
};
template <typename... Args, int32_t (*KernelTable::*Member)(Context*, Args...), int Index>
struct Row<Member, Index> {
  static int32_t call(Context* ctx, Args... args) {
    std::function<std::function<int32_t(Context*)>()> held;
    if constexpr ((Held<Args>::kPossible && ...)) {
      held = [&]() -> std::function<int32_t(Context*)> {
        return [held = std::make_tuple(Held<Args>(args)...)](Context* at) {
          return std::apply([at](const auto&... each) { return run(at, each.get()...); }, held);
        };
      };
    }
    State& state = state_of(ctx);
    return run_row(
        ctx, kRowNames[Index], (on_device(state, args) && ...),
        [&](Context* at) { return run(at, args...); }, held);
  }
  static int32_t run(Context* ctx, Args... args) {
    return run_on_cpu(ctx, [&] { return (cpu_kernel_table()->*Member)(ctx, args...); });
  }
};

KernelTable make_table() {
  KernelTable table = {};
  table.abi = BALORA_ABI;
  table.size = sizeof(KernelTable);
  table.device = "cuda";
  table.create_state = create_state;
  table.destroy_state = destroy_state;
  table.allocate = allocate;
  table.release = release;
  table.upload = upload;
  table.download = download;
  table.synchronize = synchronize;
  table.describe = describe;
  table.memory = memory;
  table.capture_begin = capture_begin;
  table.capture_end = capture_end;
  table.graph_launch = graph_launch;
  table.graph_destroy = graph_destroy;
#define KERNEL(name) table.name = Row<&KernelTable::name, kRow_##name>::call;
#include "kernels/kernels.def"
  const std::string variant = setting("BALORA_FAKE_DEVICE");
  if (variant == "abi") table.abi = 2;
  if (variant == "size") table.size -= sizeof(void*);
  if (variant == "other") table.device = "rocm";
  if (variant == "missing row") table.rope = nullptr;
  if (variant == "missing function") table.upload = nullptr;
  return table;
}

}  // namespace
}  // namespace balora

// A table for each call: the variant may have changed, and engines keep the one they were given.
extern "C" __attribute__((visibility("default"))) const balora_kernel_table* balora_device_table(
    void) {
  if (balora::setting("BALORA_FAKE_DEVICE") == "null") return nullptr;
  return new balora::KernelTable(balora::make_table());
}
