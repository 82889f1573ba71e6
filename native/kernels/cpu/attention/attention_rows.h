// Attention of bf16 whose scores lie as queries by keys (rows_bf16.h).
#pragma once
#include <vector>

#include "kernels/cpu/attention/attention_plan.h"

namespace balora::attention::rows {

// Whether this CPU and these operands, of bf16, have it.
bool has(const Geometry& g);

// Like the kernels of operands/attention.h.
void forward(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
             const balora_attention_forward& o);
void backward(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
              const balora_attention_backward& o);

}  // namespace balora::attention::rows
