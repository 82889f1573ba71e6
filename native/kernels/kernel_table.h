// A device is a table of functions with plain C signatures, declared once in kernels.def. A plug-in
// fills every row: one with a null row is refused when it is loaded, by an error that names the
// kernel (check_device_table), so nothing ever falls back silently.
#pragma once
#include <stdint.h>

#include "kernels/operands/attention.h"
#include "kernels/operands/elementwise.h"
#include "kernels/operands/head.h"
#include "kernels/operands/index.h"
#include "kernels/operands/linalg.h"
#include "kernels/operands/linear.h"
#include "kernels/operands/norm.h"
#include "kernels/operands/optimizer.h"
#include "kernels/operands/products.h"
#include "kernels/operands/random.h"
#include "kernels/operands/reduce.h"
#include "kernels/shared/op_codes.h"
#include "tensor/view.h"

#ifdef __cplusplus
#include <type_traits>

extern "C" {
#endif

#define BALORA_ABI 18

// The services that a kernel may use. One per device stream, used by the
// engine thread only.
typedef struct balora_context balora_context;
struct balora_context {
  // Scratch memory, aligned to 64 bytes, released by the engine when the kernel returns. Null: out
  // of memory.
  void* (*workspace)(balora_context* ctx, uint64_t bytes);
  // Adds to (or, negative, takes from) the accounted memory of frozen weights' derived layouts.
  void (*account)(balora_context* ctx, int64_t bytes);
  void* device_state;     // owned by the device table (primitive caches, cuBLAS handles)
  int32_t num_threads;    // threads a kernel may use
  int32_t deterministic;  // non-zero: results must be bitwise repeatable
  int32_t allow_tf32;     // non-zero: f32 products may round their factors to TF32
  int32_t debug;     // non-zero: a device that runs behind its kernels waits for each and checks it
  char error[1024];  // why a row failed; a lack of memory: a text that begins "out of memory"
  // A variable of the process's environment that platform/environment.h lists; null: it is not set.
  // A kernel must not call getenv(): other threads may write to the environment.
  const char* (*variable)(const char* name);
  // Which of a row's implementations ran, set by the row: a literal. Null where it has but one.
  const char* implementation;
};

typedef struct balora_kernel_table {
  // These two come first in every ABI, and nothing else is read of a table that they do not fit.
  uint32_t abi;        // BALORA_ABI
  uint32_t size;       // sizeof(balora_kernel_table)
  const char* device;  // "cpu", "cuda"
  // BALORA_KNOWN_CODES, as the device was compiled: one that knows fewer is refused.
  balora_known_codes codes;
  void* (*create_state)(int32_t device_index, char* error, uint64_t error_size);
  void (*destroy_state)(void* state);
  // Device memory, aligned to 64 bytes; null when there is none. Both are thread safe.
  void* (*allocate)(void* state, uint64_t bytes);
  void (*release)(void* state, void* data, uint64_t bytes);
  // Takes back the pages of a part of an allocation, whose addresses stay valid: the next write
  // finds others. `data` and `bytes` are multiples of 64 KiB. Null: the device cannot; where it
  // can, allocate() only reserves addresses until they are written.
  void (*discard)(void* state, void* data, uint64_t bytes);
  // Copies in stream order; upload returns when it has read the host's bytes, download when they
  // are there.
  int32_t (*upload)(balora_context* ctx, void* device, const void* host, uint64_t bytes);
  int32_t (*download)(balora_context* ctx, void* host, const void* device, uint64_t bytes);
  // Memory of the host that the device copies from and to while its caller goes on (pinned), of
  // which there may be none: null. Thread safe. All from here to unmark are null where the device
  // has no use for it (the CPU).
  void* (*pin)(void* state, uint64_t bytes);
  void (*unpin)(void* state, void* data);
  // Copies between the device and pinned memory, in stream order; they return before that.
  int32_t (*copy_in)(balora_context* ctx, void* device, const void* pinned, uint64_t bytes);
  int32_t (*copy_out)(balora_context* ctx, void* pinned, const void* device, uint64_t bytes);
  // A mark behind what the stream was given so far. Any thread may ask whether it has been reached
  // (non-zero; also where the device failed), wait for it, and give it back.
  int32_t (*mark)(balora_context* ctx, void** mark);
  int32_t (*reached)(void* mark);
  int32_t (*await_mark)(void* mark, char* error, uint64_t error_size);
  void (*unmark)(void* mark);
  // Marks that know the time, given back with unmark: `record` puts one behind what the stream was
  // given so far, `elapsed` gives the seconds between two that were reached (non-zero: it cannot).
  // Null where a kernel has run when its row returns, so that the host's clock will do (the CPU).
  int32_t (*record)(balora_context* ctx, void** mark);
  int32_t (*elapsed)(void* from, void* to, double* seconds);
  // Waits until the device has run everything, and reports what failed since the last call. Null: a
  // kernel has run when its row returns (the CPU).
  int32_t (*synchronize)(balora_context* ctx);
  // A line about the device (null for the CPU), and its memory: free and total bytes as the driver
  // sees them, for the CPU those that the process may use.
  void (*describe)(void* state, char* text, uint64_t text_size);
  int32_t (*memory)(void* state, uint64_t* free_bytes, uint64_t* total_bytes);
  // Kernels launched between begin and end are recorded, not run; a graph is launched any number of
  // times on the same addresses. All null where the device cannot.
  int32_t (*capture_begin)(balora_context* ctx);
  int32_t (*capture_end)(balora_context* ctx, void** graph);
  int32_t (*graph_launch)(balora_context* ctx, void* graph);
  void (*graph_destroy)(void* state, void* graph);
#define KERNEL(name) int32_t (*name)(balora_context * ctx, const balora_##name* operands);
#include "kernels/kernels.def"
} balora_kernel_table;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using Context = balora_context;
using KernelTable = balora_kernel_table;

// A row of the table whose operands are the fields of O.
template <typename O>
using KernelRow = int32_t (*KernelTable::*)(Context*, const O*);

// Calls a row with named operands:
//   call(kernels.rms_norm_forward, ctx, {.x = &x, .weight = &weight});
template <typename O>
int32_t call(int32_t (*row)(Context*, const O*), Context* ctx,
             const std::type_identity_t<O>& operands) {
  return row(ctx, &operands);
}
}  // namespace balora
#endif
