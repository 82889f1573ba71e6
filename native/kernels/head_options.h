// The scalars of the fused head losses (kernels.def, head_losses). Plain C: it crosses the device
// boundary.
#pragma once
#include <stdint.h>

typedef struct balora_head_options {
  double task_scale;  // factor of each row's term in the differentiated loss; the caller has
                      // divided by counts
  double consistency_scale;
  double diversity_scale;
  double temperature;          // T of the consistency term
  double entropy_temperature;  // of the distribution whose entropy is taken; 1 in the loss
  double softcap;              // logits = softcap * tanh(h w / softcap); 0: none
  int64_t entropy_top_k;  // K of the entropy; 0 or >= V: the whole vocabulary; negative: no entropy
  int64_t chunk_bytes;  // bound on the scratch for the logits of the rows in work; 0: the device's
                        // choice
} balora_head_options;

#ifdef __cplusplus
namespace balora {
using HeadOptions = balora_head_options;
}  // namespace balora
#endif
