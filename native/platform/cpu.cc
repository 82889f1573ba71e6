#include "platform/cpu.h"

#include <strings.h>

#include "platform/environment.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace balora::platform {
namespace {

constexpr uint32_t kAll = ~0u;
constexpr uint32_t kUpToAvx512 = kAvx2 | kAvx512;
constexpr uint32_t kUpToBf16 = kUpToAvx512 | kVnni | kBf16;

// oneDNN's names, and what its masks of instructions leave under each.
constexpr struct {
  const char* name;
  uint32_t features;
} kLimits[] = {
    {"SSE41", 0},
    {"AVX", 0},
    {"AVX2", kAvx2},
    {"AVX2_VNNI", kAvx2 | kAvxVnni},
    {"AVX2_VNNI_2", kAvx2 | kAvxVnni},
    {"AVX512_CORE", kUpToAvx512},
    {"AVX512_CORE_VNNI", kUpToAvx512 | kVnni},
    {"AVX512_CORE_BF16", kUpToBf16},
    {"AVX512_CORE_FP16", kUpToBf16 | kAvxVnni | kFp16},
    {"AVX10_1_512", kUpToBf16 | kAvxVnni | kFp16},
};

#if defined(__x86_64__)

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// Zeros for a leaf that the processor does not have.
Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
  return r;
}

// Intel's cores from Sapphire Rapids on (AVX512-FP16) multiply bf16 in AVX-512 at half the rate of
// f32, since AMX is there for it. Where a virtual machine hides AMX, widening is faster: a step of
// BA-LoRA took 7.1 s in place of 10.7.
bool widens_faster(uint32_t has) {
  constexpr unsigned kIntel = 0x756e6547;  // "Genu" of "GenuineIntel"
  return (has & kFp16) && !(has & kAmx) && cpuid(0, 0).ebx == kIntel;
}

// The registers that the system saves for a program, as bits of XCR0.
uint64_t saved_registers() {
  constexpr unsigned kOsxsave = 1u << 27;
  if (!(cpuid(1, 0).ecx & kOsxsave)) return 0;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Asks the system for the registers of tiles, which a program has only then.
bool allow_amx() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Whether this is the build for tests, whose tiles are plain loops
// (kernels/cpu/products/x86/amx_emulated.h).
#if defined(BALORA_EMULATED_AMX)
constexpr bool kEmulatedTiles = true;
#else
constexpr bool kEmulatedTiles = false;
#endif

bool emulates_amx() {
  const char* wanted = kEmulatedTiles ? variable("BALORA_EMULATE_AMX") : nullptr;
  return wanted && wanted[0] == '1' && wanted[1] == '\0';
}

uint32_t features_of_machine() {
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
  const uint64_t saved = saved_registers();
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), more = cpuid(7, 1);
  // FMA, MOVBE, F16C; BMI1, AVX2, BMI2; LZCNT
  constexpr unsigned kOneOfV3 = 1u << 12 | 1u << 22 | 1u << 29;
  constexpr unsigned kSevenOfV3 = 1u << 3 | 1u << 5 | 1u << 8, kExtendedOfV3 = 1u << 5;
  // AVX512 F, DQ, CD, BW, VL
  constexpr unsigned kSevenOfV4 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
  const auto all = [](unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; };
  uint32_t features = 0;
  if ((saved & kYmm) != kYmm || !all(one.ecx, kOneOfV3) || !all(seven.ebx, kSevenOfV3) ||
      !all(cpuid(0x80000001, 0).ecx, kExtendedOfV3)) {
    return features;
  }
  features |= kAvx2;
  if (all(more.eax, 1u << 4)) features |= kAvxVnni;
  if ((saved & kZmm) != kZmm || !all(seven.ebx, kSevenOfV4)) return features;
  features |= kAvx512;
  if (all(seven.ecx, 1u << 11)) features |= kVnni;
  if (all(more.eax, 1u << 5)) features |= kBf16;
  if (all(seven.edx, 1u << 23)) features |= kFp16;
  const bool has_tiles =
      (saved & kTiles) == kTiles && all(seven.edx, 1u << 22 | 1u << 24 | 1u << 25);
  if (has_tiles && (features & kBf16)) features |= kAmx;
  return features;
}

#endif

Cpu read_cpu() {
  Cpu cpu;
#if defined(__x86_64__)
  const auto unless_empty = [](const char* text) { return text && *text ? text : nullptr; };
  // oneDNN reads the older name where the other is not set.
  const char* limit = unless_empty(variable("ONEDNN_MAX_CPU_ISA"));
  if (!limit) limit = unless_empty(variable("DNNL_MAX_CPU_ISA"));
  cpu.has = features_of_machine() & features_within(limit);
  if ((cpu.has & kAmx) && (kEmulatedTiles || !allow_amx())) cpu.has &= ~uint32_t{kAmx};
  cpu.pays = cpu.has;
  // The limit that names AVX512-BF16 asks for its instructions all the same: it leaves no FP16.
  if (widens_faster(cpu.has)) cpu.pays &= ~uint32_t{kBf16};
  if (emulates_amx() && (cpu.pays & kBf16)) cpu.has |= kAmx, cpu.pays |= kAmx;
#endif
  cpu.level = cpu.uses(kAmx)      ? "amx"
              : cpu.uses(kBf16)   ? "avx512_bf16"
              : cpu.uses(kAvx512) ? "avx512"
              : cpu.uses(kAvx2)   ? "avx2"
                                  : "plain";
  return cpu;
}

}  // namespace

uint32_t features_within(const char* limit) {
  if (!limit) return kAll;
  for (const auto& [name, features] : kLimits) {
    if (strcasecmp(limit, name) == 0) return features;
  }
  return kAll;
}

const Cpu& cpu() {
  static const Cpu found = read_cpu();
  return found;
}

void flush_subnormals() {
#if defined(__x86_64__)
  constexpr unsigned kFlushResults = 0x8000, kOperandsAreZero = 0x0040;
  _mm_setcsr(_mm_getcsr() | kFlushResults | kOperandsAreZero);
#elif defined(__aarch64__) && defined(__GNUC__)
  uint64_t control = 0;
  constexpr uint64_t kFlush = uint64_t{1} << 24;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  asm volatile("msr fpcr, %0" ::"r"(control | kFlush));
#endif
}

}  // namespace balora::platform
