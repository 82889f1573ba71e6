// The product kernels' tests again, in child processes that hold products to older instruction
// sets: SSE41, AVX2 and AVX512_CORE have no bf16 products (weights stay bf16 and are widened),
// AVX512_CORE_BF16 has no AMX. Where the build emulates AMX (-DBALORA_EMULATED_AMX=ON), all of them
// on it, too.
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>

#include "kernels/cpu/products/int8_block.h"
#include "kernels/cpu/products/onednn.h"
#include "kernels/cpu/products/tile_gemm.h"
#include "kernels/cpu/products/tiles.h"
#include "platform/cpu.h"

namespace balora::test {
namespace {

constexpr const char* kChild = "BALORA_TEST_ISA_CHILD";
// Whatever multiplies: products, and the kernels that are made of them; and what else has
// implementations of its own for some processors. A sanitizer's build takes ten times as long and
// leaves all but products, under older instructions, to the uncapped run.
constexpr const char* kAllCases =
    "gemm:*,linear:*,int8:*,matmul:*,chebyshev_svd:*,attention*,relative*,tile_gemm*,head losses*,"
    "svd ratio*,random:*,gated*,rms_norm*,isa:*";
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr const char* kCases = "gemm:*,linear:*,int8:*,matmul:*,chebyshev_svd:*,isa:*";
// It finds at small sizes what it would find at these, which take it minutes.
constexpr const char* kExcept = " --test-case-exclude='*at sizes where it takes over'";
#else
constexpr const char* kCases = kAllCases;
constexpr const char* kExcept = "";
#endif

void run_child(const std::string& setting, const std::string& cases) {
  if (std::getenv(kChild)) return;
  // The shell's own /proc/self is the shell, so the path is resolved here.
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  const std::string command =
      setting + " " + kChild + "=1 '" + self + "' --test-case='" + cases + "'" + kExcept + " >&2";
  CHECK_MESSAGE(std::system(command.c_str()) == 0, "failed with ", setting);
}

void run_with(const std::string& isa) {
  run_child("ONEDNN_MAX_CPU_ISA=" + isa, kCases);
}

using platform::cpu;

// Whether the CPU has these instructions and the limit allows them, by oneDNN, whose levels are
// sets of bits.
bool onednn_allows(dnnl::cpu_isa level) {
  const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  return (isa & static_cast<unsigned>(level)) == static_cast<unsigned>(level);
}

// Our own reading of the CPU and of the limit is oneDNN's, feature by feature.
template <class Isa>
void check_features() {
  const auto same = [](const char* name, uint32_t feature, Isa level) {
    CHECK_MESSAGE(((cpu().has & feature) == feature) == onednn_allows(level), name);
  };
  same("avx2", platform::kAvx2, Isa::avx2);
  same("avx512_core", platform::kAvx512, Isa::avx512_core);
  same("avx512_core_vnni", platform::kVnni, Isa::avx512_core_vnni);
  same("avx512_core_bf16", platform::kBf16, Isa::avx512_core_bf16);
#ifndef BALORA_EMULATED_AMX
  same("avx512_core_amx", platform::kAmx, Isa::avx512_core_amx);
#endif
  // oneDNN asks for this one only where there is no AVX-512.
  if (!(cpu().has & platform::kAvx512)) same("avx2_vnni", platform::kAvxVnni, Isa::avx2_vnni);
  if constexpr (requires { Isa::avx512_core_fp16; }) {
    same("avx512_core_fp16", platform::kFp16, Isa::avx512_core_fp16);
  } else {
    MESSAGE("not compared: this oneDNN does not know AVX512-FP16");
  }
}

}  // namespace

TEST_CASE("products held to AVX2") {
  run_with("AVX2");
}
TEST_CASE("products in int8 held to AVX2_VNNI") {
  run_child("ONEDNN_MAX_CPU_ISA=AVX2_VNNI", "int8:*,isa:*");
}
TEST_CASE("products held to AVX512_CORE_BF16") {
  if (cpu().uses(platform::kBf16) && !cpu().uses(platform::kAmx)) {
    MESSAGE("not run again: this processor has no higher level");
    return;
  }
  run_with("AVX512_CORE_BF16");
}

// A sanitizer's build leaves out what runs under AVX2 in other widths.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("products held to SSE41") {
  run_with("SSE41");
}
TEST_CASE("products held to AVX512_CORE") {
  run_with("AVX512_CORE");
}
#endif

#ifdef BALORA_EMULATED_AMX
TEST_CASE("products on an emulated AMX") {
  if (!__builtin_cpu_supports("avx512bf16")) {
    MESSAGE("not run: the kernels for AMX take AVX512-BF16's row functions, which this CPU lacks");
    return;
  }
  // An Intel whose AMX is hidden widens bf16 unless it is held to AVX512-BF16.
  const std::string held =
      cpu().uses(platform::kBf16) ? "" : "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 ";
  run_child(held + "BALORA_EMULATE_AMX=1", kAllCases);
}
TEST_CASE("isa: AMX is emulated where it is asked for") {
  const char* wanted = std::getenv("BALORA_EMULATE_AMX");
  const bool asked = wanted && std::string(wanted) == "1";
  CHECK(tiles_use_amx() == (asked && cpu().uses(platform::kBf16)));
}
#endif

TEST_CASE("isa: features are those of oneDNN") {
  check_features<dnnl::cpu_isa>();
}
TEST_CASE("features by limits above, below, in other letters and under the older name") {
  for (const char* limit :
       {"ONEDNN_MAX_CPU_ISA=AVX512_CORE_AMX", "ONEDNN_MAX_CPU_ISA=DEFAULT",
        "ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI", "ONEDNN_MAX_CPU_ISA=avx512_core_bf16",
        "ONEDNN_MAX_CPU_ISA= DNNL_MAX_CPU_ISA=AVX512_CORE_BF16",
        "ONEDNN_MAX_CPU_ISA=DEFAULT DNNL_MAX_CPU_ISA=AVX512_CORE_BF16"}) {
    run_child(limit, "isa: features*");
  }
}

TEST_CASE("isa: the limit is in force in the child") {
  const char* limit = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (!std::getenv(kChild) || !limit) return;
  // An older processor stays below the limit.
  const uint32_t emulated = tiles_use_amx() ? uint32_t{platform::kAmx} : 0u;
  CHECK((cpu().has & ~platform::features_within(limit) & ~emulated) == 0);
  // This limit asks for bf16's own instructions, also where widening is faster.
  if (std::string(limit) == "AVX512_CORE_BF16") CHECK(cpu().pays == cpu().has);
  CHECK(cpu().uses(platform::kBf16) == tile_gemm_has_bf16());
  // The first that the limit leaves and the processor has.
  const std::map<std::string, std::string> cores = {{"SSE41", "plain"},
                                                    {"AVX2", "plain"},
                                                    {"AVX2_VNNI", "avx_vnni"},
                                                    {"AVX512_CORE", "plain"},
                                                    {"AVX512_CORE_BF16", "avx512_vnni"}};
  for (const Core<Int8Multiply>& core : int8_cores()) {
    if (!core.name || core.name != cores.at(limit)) continue;
    CHECK(int8_core().name == std::string(cpu().uses(core.needs) ? core.name : "plain"));
  }
}

}  // namespace balora::test
