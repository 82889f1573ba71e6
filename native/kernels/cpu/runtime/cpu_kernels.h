// Declarations of the CPU device's kernels, one per row of kernels.def. They may throw: the table's
// guard turns an exception into a status and a message.
#pragma once
#include "kernels/kernel_table.h"

namespace balora {

#define KERNEL(name) int32_t name##_kernel(Context* ctx, const balora_##name& o);
#include "kernels/kernels.def"

// The CPU reference device: every row filled.
const KernelTable* cpu_kernel_table();

}  // namespace balora
