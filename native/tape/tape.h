// The autograd tape. An op that ran on something that wants a gradient leaves a node: its inputs
// and a backward function that enqueues the gradient ops. backward() walks the nodes newest first
// over an explicit vector (deep models do not recurse), moves each gradient out as it is used, and
// frees nodes as it passes them.
#pragma once
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "tape/int8_activation.h"
#include "tensor/tensor.h"

namespace balora {

// A value that backward computes again by a matrix product when it first needs it, and has from
// then until its last use.
class Repeated {
 public:
  Repeated(std::function<Tensor()> make, int64_t version)
      : make_(std::move(make)), version_(version) {}
  const Tensor& get();
  void drop() { made_ = Tensor(); }
  int64_t version() const { return version_; }  // of the value that it makes

 private:
  std::function<Tensor()> make_;
  int64_t version_;
  Tensor made_;
};

// A tensor kept for backward: off the tape, with the version it had. get() refuses values
// overwritten since.
class Saved {
 public:
  Saved() = default;
  explicit Saved(const Tensor& t);
  Tensor get() const;
  bool defined() const { return tensor_.defined() || recipe_ || repeated_ || int8_; }

  // An activation (N,...), which is kept in int8 where that is set; `recorded` says whether the op
  // that keeps it is recorded.
  static Saved activation(const Tensor& x, bool recorded);
  // The activation `value`, which is `x` in another shape, or how to make it again, where x's op
  // offered a recipe.
  static Saved remade(const Tensor& value, const Tensor& x);

  // The activation `value`, which is `x` in another shape, or the product that makes it again, where
  // x's op offered one; done() after the last get() of a backward function frees what that made.
  static Saved repeated(const Tensor& value, const Tensor& x, bool recorded);
  void done() const;

 private:
  Tensor tensor_;
  int64_t version_ = 0;
  std::shared_ptr<const std::function<Tensor()>> recipe_;
  std::shared_ptr<Repeated> repeated_;
  std::shared_ptr<const Int8Activation> int8_;
  Shape shape_;  // with recipe_, repeated_ or int8_
};

// Whether the op that made y offered a recipe for the value that it has now.
bool has_recipe(const Tensor& y);

// Offers to make y's value anew from what its op keeps for its own backward anyway: the ops that
// read y then need not keep it. Only where the engine recomputes and y is on the tape; the value
// must be the same bit for bit, but for what int8 leaves of what is kept; and making it cheap next
// to a matrix product.
void offer_recipe(const Tensor& y, std::function<Tensor()> recipe);

// Offers to make y's value anew by a matrix product to an op that would keep it by
// Saved::repeated(). Only where the engine recomputes products, too, and y is on the tape; the
// value must be the same bit for bit.
void offer_product(const Tensor& y, std::function<Tensor()> product);

class GradSink {
 public:
  virtual ~GradSink() = default;
  virtual bool wants(size_t input) const = 0;
  // Adds a contribution to the gradient of an input; its shape must be the input's. It may come in
  // another float type (a weight's sums are f32): a leaf takes it as it is, see Gradient for what
  // else does. Undefined: nothing.
  virtual void add(size_t input, const Tensor& grad) = 0;
};

// The float type in which a backward function takes dy.
enum class Gradient {
  kOfOutput,  // that of its output: kernels take it from there
  kAnyFloat,  // any: it only moves, converts or scales it, and a weight behind keeps its f32 sums
};

// dy[i] is undefined where output i was not used. Runs on the enqueueing thread,
// with no_grad in force.
using BackwardFn = std::function<void(std::span<const Tensor> dy, GradSink& sink)>;

struct Edge {
  std::shared_ptr<Node> node;  // producer of this input, or
  int output_index = 0;
  std::shared_ptr<TensorImpl> leaf;  // the leaf itself; both null: no gradient wanted
};

struct Node {
  const char* op;
  uint64_t sequence;
  std::vector<Edge> inputs;
  std::vector<Shape> input_shapes;
  std::vector<DType> input_dtypes;
  std::vector<Engine*> input_engines;  // null where the input was undefined
  size_t num_outputs;
  BackwardFn backward;
  Gradient gradient;
  bool released = false;
  ~Node();  // iterative: a chain of a million nodes must not overflow the stack
};

// Whether an op on these inputs will be recorded.
bool grad_wanted(std::span<const Tensor> inputs);
inline bool grad_wanted(std::initializer_list<Tensor> inputs) {
  return grad_wanted(std::span(inputs.begin(), inputs.size()));
}

// No-op under NoGrad or when no input wants a gradient. `op` must be a string literal.
void record(const char* op, std::span<const Tensor> inputs, std::span<const Tensor> outputs,
            BackwardFn backward, Gradient gradient = Gradient::kOfOutput);
inline void record(const char* op, std::initializer_list<Tensor> inputs,
                   std::initializer_list<Tensor> outputs, BackwardFn backward,
                   Gradient gradient = Gradient::kOfOutput) {
  record(op, std::span(inputs.begin(), inputs.size()), std::span(outputs.begin(), outputs.size()),
         std::move(backward), gradient);
}

// Gradients of the leaves below `roots` are added to their grad, in f32 (f64 for f64). `grads`
// matches roots; an undefined one means 1, for a root with one element.
void backward(std::span<const Tensor> roots, std::span<const Tensor> grads, bool retain_graph);

// Switches recording off for its lifetime, on every device of the engine's environment.
class NoGrad {
 public:
  explicit NoGrad(Engine& engine);
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  Engine& engine_;
  bool before_;
};

// For ops that write in place: a leaf that wants a gradient, or a recorded value, must not be
// overwritten while recording. Bumps the version.
void prepare_in_place(const char* op, Tensor& t);

}  // namespace balora
