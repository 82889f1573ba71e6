// Plain C operands of the low-rank decompositions, of which one call takes any number. Crosses the
// device plug-in boundary; see kernel_table.h for the ABI number.
#pragma once
#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// a ~ u diag(s) vt. The seed is of the random start.
typedef struct balora_svd {
  const balora_view* a;   // (M,N)
  const balora_view* u;   // (M,R)
  const balora_view* s;   // (R)
  const balora_view* vt;  // (R,N)
  uint64_t seed;
} balora_svd;

#ifdef __cplusplus
}  // extern "C"

namespace balora {
using SvdOperands = balora_svd;
}  // namespace balora
#endif
