// Kernels around one emulated instruction each; host values in and out.
#pragma once
#include <cstdint>
#include <vector>

namespace instructions {

enum class Format { kBf16, kF16, kTf32 };

// d (16,8) + a (16,K) b (K,8) through mma, K = 16 (8 for tf32), fragments put together by hand.
std::vector<float> multiply(Format format, const std::vector<float>& a, const std::vector<float>& b,
                            const std::vector<float>& d);
// The same for bf16, with both operands loaded by ldmatrix (b transposed on the way).
std::vector<float> multiply_from_shared(const std::vector<float>& a, const std::vector<float>& b);
// 32 threads copy 4 floats each through shared memory by cp_async, thread i with
// i % 5 of them valid.
std::vector<float> copy_some(const std::vector<float>& x);
// Two groups under way, waited for one by one.
std::vector<float> copy_in_groups(const std::vector<float>& x);
// Each lane's value through every shuffle and vote: (9, 32).
std::vector<float> shuffles();
// Sums inside groups of lanes that shuffle by themselves, masks and numbers of turns apart.
std::vector<float> partial_warps();

}  // namespace instructions
