#include "tensor/tensor.h"

#include <limits>

#include "engine/engine.h"
#include "tape/tape.h"

namespace balora {
namespace {

TensorImpl& deref(const std::shared_ptr<TensorImpl>& impl) {
  if (!impl) throw ArgumentError("an undefined tensor was used");
  return *impl;
}

// Whether the elements lie one after the other; the stride of an extent of 1 does not matter.
bool is_dense(const Shape& shape, const Shape& strides) {
  if (shape.numel() == 0) return true;
  int64_t expected = 1;
  for (int i = shape.ndim() - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

}  // namespace

Tensor Tensor::empty(Engine& engine, const Shape& shape, DType dtype) {
  auto storage = engine.new_storage(bytes_of(shape, dtype));
  return Tensor(std::make_shared<TensorImpl>(&engine, std::move(storage), shape,
                                             contiguous_strides(shape), 0, dtype));
}

Tensor Tensor::external(Engine& engine, const Shape& shape, DType dtype, const void* data,
                        std::shared_ptr<const ExternalMemory> owner) {
  auto storage = engine.external_storage(data, bytes_of(shape, dtype), std::move(owner));
  storage->frozen = true;
  return Tensor(std::make_shared<TensorImpl>(&engine, std::move(storage), shape,
                                             contiguous_strides(shape), 0, dtype));
}

namespace {

Tensor with_encoding(Engine& engine, const Shape& shape, DType dtype,
                     std::shared_ptr<const balora_encoding> encoding,
                     std::shared_ptr<Storage> storage) {
  storage->frozen = true;
  storage->encoding = std::move(encoding);
  return Tensor(std::make_shared<TensorImpl>(&engine, std::move(storage), shape,
                                             contiguous_strides(shape), 0, dtype));
}

}  // namespace

Tensor Tensor::encoded(Engine& engine, const Shape& shape, DType dtype,
                       std::shared_ptr<const balora_encoding> encoding, int64_t bytes) {
  return with_encoding(engine, shape, dtype, std::move(encoding), engine.new_storage(bytes));
}

Tensor Tensor::encoded_external(Engine& engine, const Shape& shape, DType dtype,
                                std::shared_ptr<const balora_encoding> encoding,
                                std::span<const std::byte> data,
                                std::shared_ptr<const ExternalMemory> owner) {
  return with_encoding(
      engine, shape, dtype, std::move(encoding),
      engine.external_storage(data.data(), static_cast<int64_t>(data.size()), std::move(owner)));
}

const Shape& Tensor::shape() const {
  return deref(impl_).shape;
}
const Shape& Tensor::strides() const {
  return deref(impl_).strides;
}
DType Tensor::dtype() const {
  return deref(impl_).dtype;
}
Engine& Tensor::engine() const {
  return *deref(impl_).engine;
}
bool Tensor::frozen() const {
  return deref(impl_).storage->frozen;
}
int64_t Tensor::version() const {
  return deref(impl_).storage->version;
}
Tensor Tensor::grad() const {
  return deref(impl_).grad;
}
bool Tensor::is_leaf() const {
  return deref(impl_).node == nullptr;
}

int64_t Tensor::dim(int i) const {
  const int n = ndim(), index = i < 0 ? i + n : i;
  if (index < 0 || index >= n) {
    throw ArgumentError(concat("dimension ", i, " does not exist in ", shape().to_string()));
  }
  return shape()[index];
}

bool Tensor::is_contiguous() const {
  const TensorImpl& t = deref(impl_);
  return is_dense(t.shape, t.strides);
}

Tensor Tensor::view(const Shape& shape, const Shape& strides, int64_t offset_elements) const {
  const TensorImpl& t = deref(impl_);
  if (t.storage->encoding && !(shape == t.shape && offset_elements == 0)) {
    throw UnsupportedError(concat("a weight in blocks (", t.storage->encoding->name,
                                  ") is used whole; to() makes its values"));
  }
  // is_dense() refuses a shape that no tensor can have.
  // Kernels take the stride of a dense matrix's rows for its leading dimension. That of a single
  // row may be anything (1, where (C,1) was permuted), and a product would refuse it.
  const bool dense = is_dense(shape, strides);
  return Tensor(std::make_shared<TensorImpl>(t.engine, t.storage, shape,
                                             dense ? contiguous_strides(shape) : strides,
                                             t.offset + offset_elements, t.dtype));
}

Tensor Tensor::view(const Shape& shape) const {
  if (!is_contiguous() || shape.numel() != numel()) {
    throw ArgumentError("view: cannot see " + this->shape().to_string() + " as " +
                        shape.to_string());
  }
  return view(shape, contiguous_strides(shape), 0);
}

Tensor Tensor::detach() const {
  return view(shape(), strides(), 0);
}

Tensor Tensor::as_encoded() const {
  Tensor t = detach();
  t.impl_->takes_encoded = true;
  return t;
}

const balora_encoding* Tensor::encoding() const {
  return deref(impl_).storage->encoding.get();
}

bool Tensor::requires_grad() const {
  const TensorImpl& t = deref(impl_);
  return t.requires_grad || t.node != nullptr;
}

void Tensor::set_requires_grad(bool value) {
  TensorImpl& t = deref(impl_);
  if (t.node) throw ArgumentError("requiresGrad can be set on a leaf only; detach() first");
  if (value && t.storage->encoding) {
    throw UnsupportedError(concat("a weight in blocks (", t.storage->encoding->name,
                                  ") is not trained; to() makes its values"));
  }
  if (value && !is_float(t.dtype)) {
    throw ArgumentError(
        concat("only float tensors have gradients, this one is ", dtype_name(t.dtype)));
  }
  t.requires_grad = value;
}

void Tensor::set_grad(const Tensor& grad) {
  TensorImpl& t = deref(impl_);
  if (grad.defined() && !(grad.shape() == t.shape)) {
    throw ArgumentError("the gradient of a tensor " + t.shape.to_string() + " cannot be " +
                        grad.shape().to_string());
  }
  if (grad.defined()) {
    check_same_engine("the gradient of a tensor", *this, grad);
    // It is written to in place, as one block.
    check_dtype("set_grad", "the gradient", grad, accumulator_dtype(t.dtype));
    if (!grad.is_contiguous()) {
      throw ArgumentError("set_grad: the gradient must be contiguous, as it is added to in place");
    }
    if (grad.frozen()) {
      throw ArgumentError("set_grad: a frozen tensor cannot be the gradient, as it is added to");
    }
  }
  t.grad = grad;
  t.grad_adopted = false;
}

void Tensor::freeze() {
  deref(impl_).storage->frozen = true;
}

void Tensor::bump_version() {
  Storage& storage = *deref(impl_).storage;
  if (storage.frozen) {
    throw ArgumentError("a frozen tensor (a loaded base weight) cannot be written in place");
  }
  ++storage.version;
}

bool Tensor::exclusive() const {
  return impl_.use_count() == 1 && impl_->storage->tensor_count == 1 && !impl_->storage->external();
}

void check_defined(const char* op, const char* name, const Tensor& t) {
  if (!t.defined()) throw ArgumentError(concat(op, ": ", name, " is missing"));
}

void check_shape(const char* op, const char* name, const Tensor& t, const Shape& expected,
                 const char* symbols) {
  check_defined(op, name, t);
  if (t.shape() == expected) return;
  throw ArgumentError(concat(op, ": ", name, " must be ", symbols ? symbols : "",
                             symbols ? "=" : "", expected.to_string(), ", got ",
                             t.shape().to_string()));
}

void check_rows_i32(const char* op, const char* name, const Tensor& t) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (t.dim(0) <= kMost) return;
  throw ArgumentError(concat(op, ": ", name, " has ", t.dim(0), " rows, at most ", kMost,
                             " can be counted in i32"));
}

void check_ndim(const char* op, const char* name, const Tensor& t, int ndim) {
  check_defined(op, name, t);
  if (t.ndim() == ndim) return;
  throw ArgumentError(
      concat(op, ": ", name, " must have ", ndim, " dimensions, got ", t.shape().to_string()));
}

void check_float(const char* op, const char* name, const Tensor& t) {
  check_defined(op, name, t);
  if (is_float(t.dtype())) return;
  throw ArgumentError(
      concat(op, ": ", name, " must be a float tensor, got ", dtype_name(t.dtype())));
}

void check_dtype(const char* op, const char* name, const Tensor& t, DType expected) {
  check_defined(op, name, t);
  if (t.dtype() == expected) return;
  throw ArgumentError(
      concat(op, ": ", name, " must be ", dtype_name(expected), ", got ", dtype_name(t.dtype())));
}

void check_same_engine(const char* op, const Tensor& a, const Tensor& b) {
  if (&a.engine() != &b.engine()) refuse_devices(op, a.engine(), b.engine());
}

void refuse_devices(const char* op, const Engine& a, const Engine& b) {
  throw ArgumentError(concat(op, ": the operands are on different devices (", a.device(), " and ",
                             b.device(), "); to() copies a tensor to another device"));
}

}  // namespace balora
