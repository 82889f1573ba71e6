// The processor, asked once: what it has, and what of that is worth using. All of native/ goes by
// this alone, so that a limit (below) reaches each choice and tests reach each implementation.
#pragma once
#include <cstdint>

// Its arguments where the sources in x86 folders are compiled, and nothing elsewhere: the one place
// that asks the compiler for the processor.
#if defined(__x86_64__) && defined(__GNUC__)
#define BALORA_ON_X86(...) __VA_ARGS__
#else
#define BALORA_ON_X86(...)
#endif

namespace balora::platform {

// Sets of instructions, each of which implementations are written for.
enum Feature : uint32_t {
  kAvx2 = 1u << 0,  // and all else of x86-64-v3
  kAvxVnni = 1u << 1,
  kAvx512 = 1u << 2,  // and all else of x86-64-v4
  kVnni = 1u << 3,    // AVX512-VNNI
  kBf16 = 1u << 4,    // AVX512-BF16
  kFp16 = 1u << 5,    // AVX512-FP16
  kAmx = 1u << 6,     // tiles of bf16 and int8, with their registers granted by the system
};

struct Cpu {
  // All that the processor has, or less where ONEDNN_MAX_CPU_ISA (or DNNL_MAX_CPU_ISA) says so, in
  // oneDNN's names.
  uint32_t has = 0;
  // The same without what is slower than what it replaces.
  uint32_t pays = 0;
  // The level of `pays`: "plain", "avx2", "avx512", "avx512_bf16", "amx".
  const char* level = "plain";

  bool uses(uint32_t features) const { return (pays & features) == features; }
};

// Read at the first question, which the addon asks when it is loaded.
const Cpu& cpu();

// The features that a limit leaves, by its name in any letters. Null, "" and names that are not
// known leave all.
uint32_t features_within(const char* limit);

// Numbers too small for a full mantissa (below 2^-126 in f32) count as zero: some processors take
// tens of times longer to multiply them, and a gradient through sharp attention is full of them.
// The OpenMP workers that this thread starts later inherit the setting. See
// docs/decisions/subnormal-numbers.md.
void flush_subnormals();

}  // namespace balora::platform
