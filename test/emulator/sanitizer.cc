// The functions that g++ calls for every access of a file compiled with
// -fsanitize=thread,alignment. No sanitizer library is linked: these functions take its place, and
// outside of a kernel they do nothing.
#include "checks.h"

using emulator::Access;
using emulator::Running;
using emulator::running;

namespace {

// N bytes, aligned to N.
template <size_t N>
inline __attribute__((always_inline)) void access(const void* address, Access how,
                                                  const void* code) {
  Running* const self = running;
  if (!self) return;
  const auto* at = static_cast<const char*>(address);
  if (static_cast<size_t>(at - self->stack) < emulator::Fibre::kStackBytes) return;
  if (reinterpret_cast<uintptr_t>(at) % N != 0) emulator::fail_alignment(at, N, {}, code);
  emulator::check_memory(*self, at, N, how, code);
}

void range(const void* address, size_t bytes, Access how, const void* code) {
  Running* const self = running;
  if (self) emulator::check_range(*self, static_cast<const char*>(address), bytes, how, code);
}

}  // namespace

#define HERE __builtin_return_address(0)
#define ACCESSES(N)                          \
  void __tsan_read##N(void* at) {            \
    access<N>(at, Access::kRead, HERE);      \
  }                                          \
  void __tsan_write##N(void* at) {           \
    access<N>(at, Access::kWrite, HERE);     \
  }                                          \
  void __tsan_volatile_read##N(void* at) {   \
    access<N>(at, Access::kRead, HERE);      \
  }                                          \
  void __tsan_volatile_write##N(void* at) {  \
    access<N>(at, Access::kWrite, HERE);     \
  }                                          \
  void __tsan_unaligned_read##N(void* at) {  \
    range(at, N, Access::kRead, HERE);       \
  }                                          \
  void __tsan_unaligned_write##N(void* at) { \
    range(at, N, Access::kWrite, HERE);      \
  }

// In host code only: kernels have emulator::atomic.
#define ATOMICS(bits, type)                                                                       \
  type __tsan_atomic##bits##_load(const volatile type* at, int) {                                 \
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                                 \
  }                                                                                               \
  void __tsan_atomic##bits##_store(volatile type* at, type value, int) {                          \
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                                \
  }                                                                                               \
  type __tsan_atomic##bits##_exchange(volatile type* at, type value, int) {                       \
    return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                                      \
  }                                                                                               \
  type __tsan_atomic##bits##_fetch_add(volatile type* at, type value, int) {                      \
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                               \
  type __tsan_atomic##bits##_fetch_sub(volatile type* at, type value, int) {                      \
    return __atomic_fetch_sub(at, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                               \
  type __tsan_atomic##bits##_fetch_and(volatile type* at, type value, int) {                      \
    return __atomic_fetch_and(at, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                               \
  type __tsan_atomic##bits##_fetch_or(volatile type* at, type value, int) {                       \
    return __atomic_fetch_or(at, value, __ATOMIC_SEQ_CST);                                        \
  }                                                                                               \
  type __tsan_atomic##bits##_fetch_xor(volatile type* at, type value, int) {                      \
    return __atomic_fetch_xor(at, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                               \
  bool __tsan_atomic##bits##_compare_exchange_strong(volatile type* at, type* expected,           \
                                                     type value, int, int) {                      \
    return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST,              \
                                       __ATOMIC_SEQ_CST);                                         \
  }                                                                                               \
  bool __tsan_atomic##bits##_compare_exchange_weak(volatile type* at, type* expected, type value, \
                                                   int, int) {                                    \
    return __atomic_compare_exchange_n(at, expected, value, true, __ATOMIC_SEQ_CST,               \
                                       __ATOMIC_SEQ_CST);                                         \
  }

extern "C" {

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void* at, size_t bytes) {
  range(at, bytes, Access::kRead, HERE);
}
void __tsan_write_range(void* at, size_t bytes) {
  range(at, bytes, Access::kWrite, HERE);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
void __tsan_atomic_thread_fence(int) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
void __tsan_atomic_signal_fence(int) {
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

// The front of what -fsanitize=alignment passes: where, and the power of two that was expected.
struct TypeMismatch {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, void* at) {
  if (!running) return;
  emulator::fail_alignment(at, size_t{1} << data->log_alignment,
                           {data->file, static_cast<int>(data->line)}, nullptr);
}

// memcpy, memmove and memset of a size that the compiler does not know (the linker's --wrap).
void* __real_memcpy(void*, const void*, size_t);
void* __real_memmove(void*, const void*, size_t);
void* __real_memset(void*, int, size_t);
void* __wrap_memcpy(void* to, const void* from, size_t bytes) {
  range(from, bytes, Access::kRead, HERE);
  range(to, bytes, Access::kWrite, HERE);
  return __real_memcpy(to, from, bytes);
}
void* __wrap_memmove(void* to, const void* from, size_t bytes) {
  range(from, bytes, Access::kRead, HERE);
  range(to, bytes, Access::kWrite, HERE);
  return __real_memmove(to, from, bytes);
}
void* __wrap_memset(void* to, int value, size_t bytes) {
  range(to, bytes, Access::kWrite, HERE);
  return __real_memset(to, value, bytes);
}

}  // extern "C"
