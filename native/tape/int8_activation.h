// An activation that backward reads, kept in int8: rows of codes with a scale each, rotated, in the
// format of balora_quantize_rows, where EnqueueState::int8_products has kInt8Saved. A gradient then
// is that of the values which the codes stand for. The codes of one value are made once, whoever
// keeps them: a linear multiplies by those that attention has kept of its result.
#pragma once
#include <cstdint>
#include <memory>

#include "tensor/tensor.h"

namespace balora {

class Int8Activation {
 public:
  // Returns the codes of the N rows of x (N,...), made now unless somebody keeps them already. Null
  // where x is kept as it is: the setting says so, nothing is recorded, the codes would not be
  // smaller, or x is a part of a larger tensor, which is kept whole anyhow.
  // @throws UnsupportedError for f64
  static std::shared_ptr<const Int8Activation> of(const Tensor& x);
  // Returns the codes that somebody keeps of x as it is now; null: nobody does.
  static std::shared_ptr<const Int8Activation> kept(const Tensor& x);

  explicit Int8Activation(const Tensor& x);

  // Returns the values (N,I) that the codes stand for, in the type of x. They are decoded once, and
  // stay as long as this, which the backward pass drops node by node.
  Tensor values() const;
  const Tensor& codes() const { return codes_; }
  const Tensor& scales() const { return scales_; }

 private:
  bool is_of(const Tensor& x) const;

  Tensor codes_, scales_;
  mutable Tensor values_;
  Shape rows_;  // (N,I)
  DType dtype_;
  int64_t offset_, version_;
};

}  // namespace balora
