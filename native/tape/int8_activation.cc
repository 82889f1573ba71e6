#include "tape/int8_activation.h"

#include "engine/launch.h"
#include "kernels/shared/int8_rows.h"
#include "tensor/errors.h"

namespace balora {
namespace {

// x as its rows.
Shape rows_of(const Shape& shape) {
  const int64_t rows = shape[0];
  return {rows, rows == 0 ? 0 : shape.numel() / rows};
}

int64_t bytes_in_int8(const Shape& rows) {
  constexpr int64_t kScale = 4;
  return int8_padded_rows(rows[0]) * (int8_padded_columns(rows[1]) + kScale);
}

}  // namespace

std::shared_ptr<const Int8Activation> Int8Activation::kept(const Tensor& x) {
  if (!x.defined() || x.ndim() < 2) return nullptr;
  auto made = x.impl()->storage->int8_activation.lock();
  return made && made->is_of(x) ? made : nullptr;
}

std::shared_ptr<const Int8Activation> Int8Activation::of(const Tensor& x) {
  if (!x.defined() || x.ndim() < 2 || !x.is_contiguous()) return nullptr;
  const EnqueueState& state = x.engine().state();
  if (!state.grad_enabled || !(state.int8_products & kInt8Saved)) return nullptr;
  if (x.dtype() == DType::kF64) {
    throw UnsupportedError("activations in f64 are not kept in int8 for backward");
  }
  if (bytes_in_int8(rows_of(x.shape())) >= x.bytes()) return nullptr;
  if (auto made = kept(x)) return made;
  auto made = std::make_shared<const Int8Activation>(x);
  x.impl()->storage->int8_activation = made;
  return made;
}

Int8Activation::Int8Activation(const Tensor& x)
    : rows_(rows_of(x.shape())),
      dtype_(x.dtype()),
      offset_(x.impl()->offset),
      version_(x.version()) {
  const int64_t height = int8_padded_rows(rows_[0]);
  codes_ = Tensor::empty(x.engine(), {height, int8_padded_columns(rows_[1])}, DType::kU8);
  scales_ = Tensor::empty(x.engine(), {height}, DType::kF32);
  using O = balora_quantize_rows;
  launch<O>("quantize_rows", &KernelTable::quantize_rows, {{&O::x, x.detach().view(rows_)}},
            {{&O::codes, codes_}, {&O::scales, scales_}});
}

bool Int8Activation::is_of(const Tensor& x) const {
  return x.impl()->offset == offset_ && x.version() == version_ && x.dtype() == dtype_ &&
         x.is_contiguous() && rows_of(x.shape()) == rows_;
}

Tensor Int8Activation::values() const {
  if (values_.defined()) return values_;
  values_ = Tensor::empty(codes_.engine(), rows_, dtype_);
  using O = balora_dequantize_rows;
  launch<O>("dequantize_rows", &KernelTable::dequantize_rows,
            {{&O::codes, codes_}, {&O::scales, scales_}}, {{&O::x, values_}});
  return values_;
}

}  // namespace balora
