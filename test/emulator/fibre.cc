#include "fibre.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#error "The emulated device switches its fibres on x86-64 only"
#endif

// Saves what the System V ABI asks a callee to keep, swaps stack pointers, restores.
extern "C" void balora_fibre_switch(void** save, void* to);
asm(R"(
.text
.type balora_fibre_switch, @function
balora_fibre_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size balora_fibre_switch, .-balora_fibre_switch
.type balora_fibre_entry, @function
balora_fibre_entry:
  callq *%rbx
  ud2
.size balora_fibre_entry, .-balora_fibre_entry
)");
extern "C" void balora_fibre_entry();

namespace emulator {

Fibre::Fibre() {
  void* mapped = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(mapped);
  mprotect(stack_, 4096, PROT_NONE);  // an overflow stops here
}

Fibre::~Fibre() {
  munmap(stack_, kStackBytes);
}

void Fibre::start(void (*entry)(), size_t skew) {
  auto* top = reinterpret_cast<void**>(stack_ + kStackBytes - 64 - skew);
  *--top = nullptr;  // these two keep the stack aligned where the entry is called
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&balora_fibre_entry);
  *--top = nullptr;                         // rbp
  *--top = reinterpret_cast<void*>(entry);  // rbx
  *--top = nullptr;                         // r12
  *--top = nullptr;                         // r13
  *--top = nullptr;                         // r14
  *--top = nullptr;                         // r15
  inside_ = top;
}

void Fibre::resume() {
  balora_fibre_switch(&outside_, inside_);
}

void Fibre::leave() {
  balora_fibre_switch(&inside_, outside_);
}

}  // namespace emulator
