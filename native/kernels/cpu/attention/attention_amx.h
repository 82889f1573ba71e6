// Attention of bf16 on AMX: products of a block of 32 keys by 32 queries run while the vectors make
// the exponentials of the block before.
#pragma once
#include <vector>

#include "kernels/cpu/attention/attention_plan.h"

namespace balora::attention::amx {

// Whether this CPU and these operands, of bf16, have it.
bool has(const Geometry& g);

// Like the kernels of operands/attention.h.
void forward(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
             const balora_attention_forward& o);

}  // namespace balora::attention::amx
