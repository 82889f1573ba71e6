// A tensor: a counted reference to shape, strides and storage, with its place on the tape.
// Everything here belongs to the thread that enqueues ops; the engine thread sees storages and
// views only.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tensor/dtype.h"
#include "tensor/shape.h"
#include "tensor/storage.h"

namespace balora {

class Engine;
class Repeated;
struct Node;
struct TensorImpl;

// The bytes of a dense tensor. Throws for a shape that no tensor can have.
inline int64_t bytes_of(const Shape& shape, DType dtype) {
  return shape.numel() * dtype_size(dtype);
}

class Tensor {
 public:
  Tensor() = default;

  // A contiguous tensor whose memory is allocated when the op that writes it runs.
  static Tensor empty(Engine& engine, const Shape& shape, DType dtype);
  // Aliases memory owned by `owner`; read-only and frozen.
  static Tensor external(Engine& engine, const Shape& shape, DType dtype, const void* data,
                         std::shared_ptr<const ExternalMemory> owner);

  // A frozen tensor whose values stand in `bytes` bytes in another form and are decoded to `dtype` as
  // they are used. Ops that read values refuse it, but for those that take as_encoded() of it.
  static Tensor encoded(Engine& engine, const Shape& shape, DType dtype,
                        std::shared_ptr<const balora_encoding> encoding, int64_t bytes);
  // The same over memory that `owner` has.
  static Tensor encoded_external(Engine& engine, const Shape& shape, DType dtype,
                                 std::shared_ptr<const balora_encoding> encoding,
                                 std::span<const std::byte> data,
                                 std::shared_ptr<const ExternalMemory> owner);

  bool defined() const { return impl_ != nullptr; }
  const Shape& shape() const;
  const Shape& strides() const;
  int ndim() const { return shape().ndim(); }
  int64_t dim(int i) const;  // negative counts from the end
  int64_t numel() const { return shape().numel(); }
  int64_t bytes() const { return bytes_of(shape(), dtype()); }
  DType dtype() const;
  Engine& engine() const;
  bool is_contiguous() const;

  // The same storage seen with another shape; no gradient is recorded (ops/ has
  // the differentiable forms).
  Tensor view(const Shape& shape, const Shape& strides, int64_t offset_elements) const;
  Tensor view(const Shape& shape) const;  // contiguous tensors only
  Tensor detach() const;                  // the same view, off the tape
  // The same view for a launch that knows what to do with the encoding, where there is one.
  Tensor as_encoded() const;
  const balora_encoding* encoding() const;  // null: the bytes are the values

  bool requires_grad() const;  // a leaf that wants a gradient, or anything computed from one
  void set_requires_grad(bool value);
  bool is_leaf() const;
  Tensor grad() const;
  void set_grad(const Tensor& grad);

  // Promises that the values will not change, so that a device may keep packed layouts of them.
  void freeze();
  bool frozen() const;

  int64_t version() const;
  void bump_version();

  // True when this reference is the only tensor over its storage, so it may be overwritten in
  // stream order.
  bool exclusive() const;

  TensorImpl* impl() const { return impl_.get(); }
  const std::shared_ptr<TensorImpl>& shared_impl() const { return impl_; }
  explicit Tensor(std::shared_ptr<TensorImpl> impl) : impl_(std::move(impl)) {}

 private:
  std::shared_ptr<TensorImpl> impl_;
};

struct TensorImpl {
  TensorImpl(Engine* engine_, std::shared_ptr<Storage> storage_, const Shape& shape_,
             const Shape& strides_, int64_t offset_, DType dtype_)
      : engine(engine_),
        storage(std::move(storage_)),
        shape(shape_),
        strides(strides_),
        offset(offset_),
        dtype(dtype_) {
    ++storage->tensor_count;
  }
  ~TensorImpl() { --storage->tensor_count; }
  TensorImpl(const TensorImpl&) = delete;
  TensorImpl& operator=(const TensorImpl&) = delete;

  Engine* engine;
  std::shared_ptr<Storage> storage;
  Shape shape;
  Shape strides;
  int64_t offset;  // in elements
  DType dtype;

  // Tape: a leaf has no node; the output of a recorded op has one.
  bool requires_grad = false;
  std::shared_ptr<Node> node;
  int output_index = 0;
  Tensor grad;             // leaves only
  int64_t grad_count = 0;  // contributions that backward passes have added to it, or to one before
  // Makes the value anew, where the op that made it offered that (tape.h); null: nobody did.
  std::shared_ptr<const std::function<Tensor()>> recipe;
  int64_t recipe_version = 0;          // of the value that the recipe makes
  std::shared_ptr<Repeated> repeated;  // the same by a matrix product
  bool takes_encoded = false;          // made by as_encoded()
  bool grad_adopted =
      false;  // grad is a tensor that the backward pass made and that others may still see
};

inline Tensor empty_like(const Tensor& x) {
  return Tensor::empty(x.engine(), x.shape(), x.dtype());
}

// "rms_norm: weight must be (C)=(576), got (575)" and its kin. `symbols` names the dimensions.
void check_shape(const char* op, const char* name, const Tensor& t, const Shape& expected,
                 const char* symbols = nullptr);
void check_ndim(const char* op, const char* name, const Tensor& t, int ndim);
// Rows that a kernel counts in 32 bits, as the boundaries of segments are stored.
void check_rows_i32(const char* op, const char* name, const Tensor& t);
void check_defined(const char* op, const char* name, const Tensor& t);
void check_float(const char* op, const char* name, const Tensor& t);
void check_dtype(const char* op, const char* name, const Tensor& t, DType expected);
void check_same_engine(const char* op, const Tensor& a, const Tensor& b);
[[noreturn]] void refuse_devices(const char* op, const Engine& a, const Engine& b);

}  // namespace balora
