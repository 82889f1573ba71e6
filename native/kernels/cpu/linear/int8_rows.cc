// Rows of activations in int8 (kernels/operands/linear.h), as products have them on the left.
#include "kernels/shared/int8_rows.h"

#include "kernels/cpu/products/int8.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/shared/messages.h"

namespace balora {

int32_t quantize_rows_kernel(Context* ctx, const balora_quantize_rows& o) {
  const View& x = *o.x;
  if (x.dtype == BALORA_F64) throw UnsupportedError(messages::rows_of_f64());
  quantise_rows_to(ctx, x.data, x.dtype, x.shape[0], x.shape[1], nullptr, int8_rotation(x.shape[1]),
                   data_of<uint8_t>(o.codes), data_of<float>(o.scales));
  return 0;
}

int32_t dequantize_rows_kernel(Context* ctx, const balora_dequantize_rows& o) {
  const View& x = *o.x;
  if (x.dtype == BALORA_F64) throw UnsupportedError(messages::values_in_f64());
  const Int8Rows rows = {data_of<uint8_t>(o.codes), o.codes->shape[1], data_of<float>(o.scales)};
  dequantise_rows(ctx, rows, x.shape[0], x.shape[1], int8_rotation(x.shape[1]), x.data, x.dtype);
  return 0;
}

}  // namespace balora
