// The backward of attention of bf16 on AMX.
#pragma once
#include <vector>

#include "kernels/cpu/attention/attention_plan.h"

namespace balora::attention::amx {

// Like attention_backward_kernel, but for padding rows, where tiles_use_amx().
void backward(Context* ctx, const Geometry& g, const std::vector<Segment>& segments,
              const balora_attention_backward& o);

}  // namespace balora::attention::amx
