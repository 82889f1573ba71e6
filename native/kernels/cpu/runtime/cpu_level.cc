#include "kernels/cpu/runtime/cpu_level.h"

#include "kernels/cpu/products/onednn.h"

namespace balora {
namespace {

// Intel's cores from Sapphire Rapids on (AVX512-FP16) multiply bf16 in AVX-512 at half the rate of
// f32, since AMX is there for it. Where a virtual machine hides AMX, widening is faster: a step of
// BA-LoRA took 7.1 s in place of 10.7. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 asks for bf16's own
// instructions all the same.
bool widens_faster() {
#if defined(__x86_64__)
  return onednn_allows(dnnl::cpu_isa::avx512_core_fp16) && __builtin_cpu_is("intel");
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

bool cpu_has_avx2() {
  static const bool has = cpu_level() >= CpuLevel::kAvx2 && machine_has_avx2();
  return has;
}

bool cpu_has_avx512() {
  static const bool has = cpu_level() >= CpuLevel::kAvx512 && machine_has_avx512();
  return has;
}

}  // namespace balora
