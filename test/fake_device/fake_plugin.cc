// A device plug-in for the tests of everything above the table: "cuda" by name, the CPU's kernels
// by nature. Its memory is its own, and it checks what a real device would fault on: that a kernel
// gets addresses of its memory only, and a copy one address on either side. Like a GPU it may find
// out late that a kernel failed: BALORA_FAKE_FAULT names a row whose failure shows at the next
// synchronize(), or at once in debug mode. BALORA_FAKE_DEVICE picks a way to be no usable device.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_state.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "tensor/errors.h"

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

// ---- rows
enum RowIndex {
#define KERNEL(name) kRow_##name,
#include "kernels/kernels.def"
};
const char* const kRowNames[] = {
#define KERNEL(name) #name,
#include "kernels/kernels.def"
};

// The fields of a structure of operands, up to eighteen.
struct AnyField {
  template <typename T>
  operator T() const;
};
template <typename O, size_t... I>
constexpr bool has_fields(std::index_sequence<I...>) {
  return requires { O{(static_cast<void>(I), AnyField{})...}; };
}
template <typename O, size_t N = 18>
constexpr size_t field_count() {
  if constexpr (has_fields<O>(std::make_index_sequence<N>{})) {
    return N;
  } else {
    return field_count<O, N - 1>();
  }
}
template <typename O, typename F>
void for_each_field(O& structure, const F& body) {
  constexpr size_t kCount = field_count<std::remove_const_t<O>>();
  const auto each = [&](auto&... fields) { (body(fields), ...); };
#define BIND(n, ...)                 \
  if constexpr (kCount == n) {       \
    auto& [__VA_ARGS__] = structure; \
    each(__VA_ARGS__);               \
  }
  BIND(1, a)
  BIND(2, a, b)
  BIND(3, a, b, c)
  BIND(4, a, b, c, d)
  BIND(5, a, b, c, d, e)
  BIND(6, a, b, c, d, e, f)
  BIND(7, a, b, c, d, e, f, g)
  BIND(8, a, b, c, d, e, f, g, h)
  BIND(9, a, b, c, d, e, f, g, h, i)
  BIND(10, a, b, c, d, e, f, g, h, i, j)
  BIND(11, a, b, c, d, e, f, g, h, i, j, k)
  BIND(12, a, b, c, d, e, f, g, h, i, j, k, l)
  BIND(13, a, b, c, d, e, f, g, h, i, j, k, l, m)
  BIND(14, a, b, c, d, e, f, g, h, i, j, k, l, m, n)
  BIND(15, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o)
  BIND(16, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)
  BIND(17, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q)
  BIND(18, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r)
#undef BIND
}

template <typename T>
constexpr bool kIsView = std::is_same_v<T, const View*>;
template <typename T>
constexpr bool kIsNested = false;
template <typename T>
constexpr bool kIsNested<T*> = std::is_class_v<T> || kIsView<std::remove_const_t<T>>;

// Calls body(view) for each view of operands, in nested structures, too. A pointer to structures
// points to as many as the int32_t behind it says, to one where another field follows.
template <typename F>
void for_each_view(const View* view, const F& body) {
  body(view);
}
template <typename O, typename F>
  requires std::is_class_v<O>
void for_each_view(const O& operands, const F& body) {
  std::function<void(int32_t)> pending;  // a pointer whose count is not known yet
  const auto finish = [&](int32_t count) {
    if (pending) pending(count);
    pending = nullptr;
  };
  for_each_field(operands, [&]<typename T>(const T& field) {
    if constexpr (std::is_same_v<T, int32_t>) return finish(field);
    finish(1);
    if constexpr (kIsView<T>) {
      body(field);
    } else if constexpr (kIsNested<T>) {
      pending = [field, &body](int32_t count) {
        for (int32_t i = 0; field && i < count; ++i) for_each_view(field[i], body);
      };
    } else if constexpr (std::is_class_v<T>) {
      for_each_view(field, body);
    }
  });
  finish(1);
}

template <typename O>
bool on_device(State& state, const O& operands) {
  bool all = true;
  for_each_view(operands, [&](const View* view) {
    all = all && (!view || view_numel(*view) == 0 || state.owns(view->data, 1));
  });
  return all;
}

// Operands that outlive their call. Those with pointers to structures do not.
template <typename O>
class HeldOperands {
 public:
  explicit HeldOperands(const O& given) : operands_(given) { hold(operands_); }
  const O* get() const { return possible_ ? &operands_ : nullptr; }

 private:
  template <typename S>
  void hold(S& structure) {
    for_each_field(structure, [&]<typename T>(T& field) {
      if constexpr (kIsView<T>) {
        if (field) field = views_.emplace_back(std::make_shared<View>(*field)).get();
      } else if constexpr (std::is_pointer_v<T>) {
        possible_ = false;
      } else if constexpr (std::is_class_v<T>) {
        hold(field);
      }
    });
  }

  O operands_;
  bool possible_ = true;
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

// The reason why a row does not run now: an operand elsewhere, or the fault that is asked for.
enum class Obstacle { kNone, kError, kLateFault };
Obstacle obstacle(Context* ctx, const char* name, bool operands_on_device) {
  State& state = state_of(ctx);
  if (!operands_on_device) {
    fail(ctx, concat(name, ": an operand is not on the device"));
    return Obstacle::kError;
  }
  if (setting("BALORA_FAKE_FAULT") != name) return Obstacle::kNone;
  const std::string fault = concat(name, "_kernel: a pretended fault");
  if (ctx->debug) {
    fail(ctx, fault);
    return Obstacle::kError;
  }
  if (state.fault.empty()) state.fault = fault;
  return Obstacle::kLateFault;
}

template <auto Member, int Index>
struct Row;
template <typename O, int32_t (*KernelTable::*Member)(Context*, const O*), int Index>
struct Row<Member, Index> {
  static int32_t call(Context* ctx, const O* operands) {
    State& state = state_of(ctx);
    const char* name = kRowNames[Index];
    const Obstacle found = obstacle(ctx, name, on_device(state, *operands));
    if (found != Obstacle::kNone) return found == Obstacle::kError ? 1 : 0;
    if (!state.recording) return run(ctx, operands);
    HeldOperands<O> held(*operands);
    if (!held.get()) return fail(ctx, concat(name, " is not recorded"));
    state.recording->push_back([held](Context* at) { return run(at, held.get()); });
    return 0;
  }
  static int32_t run(Context* ctx, const O* operands) {
    return run_on_cpu(ctx, [&] { return (cpu_kernel_table()->*Member)(ctx, operands); });
  }
};

KernelTable make_table() {
  KernelTable table = {};
  table.abi = BALORA_ABI;
  table.size = sizeof(KernelTable);
  table.device = "cuda";
  table.codes = BALORA_KNOWN_CODES;
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
  if (variant == "older") table.abi -= 1;
  if (variant == "newer") table.abi += 1;
  if (variant == "shorter") table.size -= sizeof(void*);
  if (variant == "longer") table.size += sizeof(void*);
  if (variant == "other") table.device = "rocm";
  if (variant == "fewer codes") table.codes.unary_ops -= 1;
  if (variant == "missing row") table.rope = nullptr;
  if (variant == "missing function") table.upload = nullptr;
  if (variant == "part of a group") table.graph_launch = nullptr;
  return table;
}

// The first bytes of a table before a page that cannot be read: reading further ends the process.
const KernelTable* cut_off(const KernelTable& table, size_t bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* pages = mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED || bytes > page) std::abort();
  char* end = static_cast<char*>(pages) + page;
  if (mprotect(end, page, PROT_NONE) != 0) std::abort();
  std::memcpy(end - bytes, &table, bytes);
  return reinterpret_cast<const KernelTable*>(end - bytes);
}

// A table for each call: the variant may have changed, and engines keep the one they were given.
const KernelTable* new_table() {
  const std::string variant = setting("BALORA_FAKE_DEVICE");
  if (variant == "null") return nullptr;
  const KernelTable table = make_table();
  // A table of another ABI is known by its number and size alone.
  if (table.abi != BALORA_ABI) return cut_off(table, offsetof(KernelTable, device));
  if (table.size < sizeof table) return cut_off(table, table.size);
  return new KernelTable(table);
}

}  // namespace
}  // namespace balora

extern "C" __attribute__((visibility("default"))) const balora_kernel_table* balora_device_table(
    void) {
  return balora::new_table();
}
