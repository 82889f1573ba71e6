// Ops that have several implementations, and loops that have one for each kind of processor. Each
// has one list, in the order of preference; the first entry that accepts runs.
//
// An op's list stands behind the functions that it names, and its kernel runs it:
//
//   constexpr Implementation<balora_linear_forward> kForward[] = {
//       {"tiles", platform::kBf16, takes_tiles, forward_tiles},
//       {"wide", 0, nullptr, forward_wide},
//   };
//   BALORA_IMPLEMENTATIONS(linear_forward, kForward)
//
// A list of cores stands behind the driver that calls them; what it chooses is the processor's
// alone, so a driver asks once:
//
//   constexpr Core<Bf16Tile> kTiles[] = {
//       BALORA_X86("amx", platform::kAmx, x86::amx_tile),
//       {"plain", 0, plain_tile},
//   };
//
// implementations.def has the name of every list, for deviceInfo('cpu').implementations and for a
// test that each entry is chosen on some processor.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernel_table.h"
#include "platform/cpu.h"
#include "tensor/errors.h"

// An entry for x86, whose sources lie in folders of that name that are compiled for it alone
// (docs/how-to-add-a-processor.md); elsewhere one without a name, which nobody gets.
#define BALORA_X86(...) {BALORA_ON_X86(__VA_ARGS__)}

namespace balora {

template <typename O>
struct Implementation {
  const char* name;  // as opTimes() has it
  uint32_t needs;    // of platform/cpu.h's features
  // Null: takes all. By dtypes, shapes, strides, encodings, options and what is absent: never by
  // values in memory, threads, the environment or time, on which no bit may depend.
  bool (*takes)(const O& o);
  void (*run)(Context* ctx, const O& o);
};

// A function, or a structure of functions and sizes of blocks.
template <typename F>
struct Core {
  const char* name;
  uint32_t needs;
  F run;
};

// For tests: called with the list and the index of each entry that is chosen, where it is set.
extern void (*on_choice)(const void* list, size_t index);

// Runs the first that accepts, and leaves its name in the context.
template <typename O, size_t N>
int32_t run_first(const Implementation<O> (&list)[N], Context* ctx, const O& o) {
  for (const Implementation<O>& entry : list) {
    if (!entry.name || !platform::cpu().uses(entry.needs)) continue;
    if (entry.takes && !entry.takes(o)) continue;
    if (on_choice) on_choice(list, static_cast<size_t>(&entry - list));
    entry.run(ctx, o);
    ctx->implementation = entry.name;  // behind those of what it has called
    return 0;
  }
  throw UnsupportedError("no implementation takes these operands on this processor");
}

// Asked for by what runs it, so that a core counts as chosen only there. The last needs nothing.
template <typename F, size_t N>
const Core<F>& first_core(const Core<F> (&list)[N]) {
  const Core<F>* core = list;
  while (!core->name || !platform::cpu().uses(core->needs)) ++core;
  if (on_choice) on_choice(list, static_cast<size_t>(core - list));
  return *core;
}

// A list as others see it.
struct ImplementationList {
  struct Entry {
    const char* name;
    uint32_t needs;
  };
  const char* name;
  const void* list;
  std::vector<Entry> entries;
};

template <typename L, size_t N>
ImplementationList named_list(const char* name, const L (&list)[N]) {
  ImplementationList named{name, list, {}};
  for (const L& entry : list) {
    if (entry.name) named.entries.push_back({entry.name, entry.needs});
  }
  return named;
}

// In namespace balora, behind the list.
#define BALORA_IMPLEMENTATIONS(name, list)      \
  ImplementationList name##_implementations() { \
    return named_list(#name, list);             \
  }

// All of implementations.def.
std::vector<ImplementationList> cpu_implementations();

}  // namespace balora
