// The product kernels' tests again, in child processes that hold products to older instruction
// sets: SSE41, AVX2 and AVX512_CORE have no bf16 products (weights stay bf16 and are widened),
// AVX512_CORE_BF16 has no AMX. Where the build emulates AMX (-DBALORA_EMULATED_AMX=ON), all of them
// on it, too.
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>

#include "kernels/cpu/products/int8_cores.h"
#include "kernels/cpu/products/onednn.h"
#include "kernels/cpu/products/tile_gemm.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/cpu_level.h"

namespace balora::test {
namespace {

constexpr const char* kChild = "BALORA_TEST_ISA_CHILD";
// Whatever multiplies: products, and the kernels that are made of them. A sanitizer's build takes
// ten times as long and leaves the second kind, under older instructions, to the uncapped run.
constexpr const char* kAllCases =
    "gemm:*,linear:*,int8:*,matmul:*,chebyshev_svd:*,attention*,tile_gemm*,head losses*,"
    "svd ratio*,isa:*";
constexpr const char* kCases =
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    "gemm:*,linear:*,int8:*,matmul:*,chebyshev_svd:*,isa:*";
#else
    kAllCases;
#endif

void run_child(const std::string& setting, const std::string& cases) {
  if (std::getenv(kChild)) return;
  // The shell's own /proc/self is the shell, so the path is resolved here.
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  const std::string command =
      setting + " " + kChild + "=1 '" + self + "' --test-case='" + cases + "' >&2";
  CHECK_MESSAGE(std::system(command.c_str()) == 0, "failed with ", setting);
}

void run_with(const std::string& isa) {
  run_child("ONEDNN_MAX_CPU_ISA=" + isa, kCases);
}

// The question for AVX512-FP16 is answered as by oneDNN, where that has a name for it.
template <class Isa>
void check_fp16() {
  if constexpr (requires { Isa::avx512_core_fp16; }) {
    CHECK(fp16_within_limit() == onednn_allows(Isa::avx512_core_fp16));
  } else {
    MESSAGE("not compared: this oneDNN does not know AVX512-FP16");
    if (!onednn_allows(Isa::avx512_core_bf16)) CHECK_FALSE(fp16_within_limit());
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
  const std::string held = cpu_multiplies_bf16() ? "" : "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 ";
  run_child(held + "BALORA_EMULATE_AMX=1", kAllCases);
}
TEST_CASE("isa: AMX is emulated where it is asked for") {
  const char* wanted = std::getenv("BALORA_EMULATE_AMX");
  const bool asked = wanted && std::string(wanted) == "1";
  CHECK(tiles_use_amx() == (asked && cpu_multiplies_bf16()));
}
#endif

TEST_CASE("isa: fp16 is within the limit where oneDNN says so") {
  check_fp16<dnnl::cpu_isa>();
}
TEST_CASE("AVX512-FP16 by limits above, below, in other letters and under the older name") {
  for (const char* limit :
       {"ONEDNN_MAX_CPU_ISA=AVX512_CORE_AMX", "ONEDNN_MAX_CPU_ISA=DEFAULT",
        "ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI", "ONEDNN_MAX_CPU_ISA=avx512_core_bf16",
        "ONEDNN_MAX_CPU_ISA= DNNL_MAX_CPU_ISA=AVX512_CORE_BF16",
        "ONEDNN_MAX_CPU_ISA=DEFAULT DNNL_MAX_CPU_ISA=AVX512_CORE_BF16"}) {
    run_child(limit, "isa: fp16*");
  }
}

TEST_CASE("isa: the limit is in force in the child") {
  const char* limit = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (!std::getenv(kChild) || !limit) return;
  const std::map<std::string, CpuLevel> levels = {{"SSE41", CpuLevel::kPlain},
                                                  {"AVX2", CpuLevel::kAvx2},
                                                  {"AVX2_VNNI", CpuLevel::kAvx2},
                                                  {"AVX512_CORE", CpuLevel::kAvx512},
                                                  {"AVX512_CORE_BF16", CpuLevel::kAvx512Bf16}};
  // An older processor stays below the limit.
  CHECK(cpu_level() <= levels.at(limit));
  // This limit asks for bf16's own instructions, also where widening is faster.
  if (std::string(limit) == "AVX512_CORE_BF16") {
    CHECK(cpu_multiplies_bf16() == onednn_allows(dnnl::cpu_isa::avx512_core_bf16));
  }
  CHECK(cpu_multiplies_bf16() == tile_gemm_has_bf16());
  const std::map<std::string, Int8Core> cores = {{"SSE41", Int8Core::kPlain},
                                                 {"AVX2", Int8Core::kPlain},
                                                 {"AVX2_VNNI", Int8Core::kAvxVnni},
                                                 {"AVX512_CORE", Int8Core::kPlain},
                                                 {"AVX512_CORE_BF16", Int8Core::kAvx512Vnni}};
  const Int8Core most = tiles_use_amx() ? Int8Core::kAmx : cores.at(limit);
  CHECK(int8_core() == (int8_core_runs(most) ? most : Int8Core::kPlain));
}

}  // namespace balora::test
