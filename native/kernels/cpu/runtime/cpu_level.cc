#include "kernels/cpu/runtime/cpu_level.h"

#include <strings.h>

#include "kernels/cpu/products/onednn.h"
#include "tensor/environment.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace balora {
namespace {

bool machine_has_fp16() {
#if defined(__x86_64__)
  constexpr unsigned kFp16 = 1u << 23;  // of EDX, leaf 7
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return machine_has_avx512() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
         (edx & kFp16) != 0;
#else
  return false;
#endif
}

// Whether oneDNN allows AVX512-FP16. Where it has neither the name nor the level (as 2.6 of Debian
// 12), the CPU and the limit are asked without it.
template <class Isa>
bool onednn_allows_fp16() {
  if constexpr (requires { Isa::avx512_core_fp16; }) {
    return onednn_allows(Isa::avx512_core_fp16);
  } else {
    return fp16_within_limit();
  }
}

// Intel's cores from Sapphire Rapids on (AVX512-FP16) multiply bf16 in AVX-512 at half the rate of
// f32, since AMX is there for it. Where a virtual machine hides AMX, widening is faster: a step of
// BA-LoRA took 7.1 s in place of 10.7. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 asks for bf16's own
// instructions all the same.
bool widens_faster() {
#if defined(__x86_64__)
  return onednn_allows_fp16<dnnl::cpu_isa>() && __builtin_cpu_is("intel");
#else
  return false;
#endif
}

CpuLevel best_level() {
  if (onednn_allows(dnnl::cpu_isa::avx512_core_amx)) return CpuLevel::kAmx;
  if (onednn_allows(dnnl::cpu_isa::avx512_core_bf16) && !widens_faster()) {
    return CpuLevel::kAvx512Bf16;
  }
  if (onednn_allows(dnnl::cpu_isa::avx512_core)) return CpuLevel::kAvx512;
  return onednn_allows(dnnl::cpu_isa::avx2) ? CpuLevel::kAvx2 : CpuLevel::kPlain;
}

}  // namespace

CpuLevel cpu_level() {
  static const CpuLevel level = best_level();
  return level;
}

const char* cpu_level_name() {
  constexpr const char* kNames[] = {"plain", "avx2", "avx512", "avx512_bf16", "amx"};
  return kNames[static_cast<int>(cpu_level())];
}

// Features rather than levels of x86-64: clang 16's __builtin_cpu_supports knows no level.
bool machine_has_avx2() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("bmi2");
  return has;
#else
  return false;
#endif
}

bool machine_has_avx512() {
#if defined(__x86_64__)
  static const bool has = machine_has_avx2() && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has;
#else
  return false;
#endif
}

bool fp16_within_limit() {
  if (!machine_has_fp16() || !onednn_allows(dnnl::cpu_isa::avx512_core_bf16)) return false;
  const auto unless_empty = [](const char* text) { return text && *text ? text : nullptr; };
  // oneDNN reads the older name where the other is not set.
  const char* limit = unless_empty(variable("ONEDNN_MAX_CPU_ISA"));
  if (!limit) limit = unless_empty(variable("DNNL_MAX_CPU_ISA"));
  return !limit || strcasecmp(limit, "AVX512_CORE_BF16") != 0;
}

bool cpu_has_avx2() {
  static const bool has = cpu_level() >= CpuLevel::kAvx2 && machine_has_avx2();
  return has;
}

bool cpu_has_avx512() {
  static const bool has = cpu_level() >= CpuLevel::kAvx512 && machine_has_avx512();
  return has;
}

}  // namespace balora
