#include "tape/tape.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "engine/launch.h"
#include "ops/ops.h"

namespace balora {

Saved::Saved(const Tensor& t) {
  if (!t.defined()) return;
  tensor_ = t.detach();
  version_ = t.version();
}

Saved Saved::activation(const Tensor& x, bool recorded) {
  Saved saved;
  if (recorded) saved.int8_ = Int8Activation::of(x);
  if (!saved.int8_) return Saved(x);
  saved.shape_ = x.shape();
  return saved;
}

bool has_recipe(const Tensor& y) {
  // A value that was overwritten since is not the one that the recipe makes.
  return y.defined() && y.impl()->recipe && y.impl()->recipe_version == y.version();
}

Saved Saved::remade(const Tensor& value, const Tensor& x) {
  if (!has_recipe(x)) return activation(value, true);
  Saved saved;
  saved.recipe_ = x.impl()->recipe;
  saved.shape_ = value.shape();
  return saved;
}

void offer_recipe(const Tensor& y, std::function<Tensor()> recipe) {
  if (!y.engine().state().recompute || !grad_wanted({y})) return;
  y.impl()->recipe = std::make_shared<const std::function<Tensor()>>(std::move(recipe));
  y.impl()->recipe_version = y.version();
}

Saved Saved::repeated(const Tensor& value, const Tensor& x, bool recorded) {
  const std::shared_ptr<Repeated>& product = x.impl()->repeated;
  if (!product || product->version() != x.version()) return activation(value, recorded);
  Saved saved;
  saved.repeated_ = product;
  saved.shape_ = value.shape();
  return saved;
}

void Saved::done() const {
  if (repeated_) repeated_->drop();
}

const Tensor& Repeated::get() {
  if (!made_.defined()) made_ = make_();
  return made_;
}

void offer_product(const Tensor& y, std::function<Tensor()> product) {
  if (!y.engine().state().recompute_products || !grad_wanted({y})) return;
  y.impl()->repeated = std::make_shared<Repeated>(std::move(product), y.version());
}

Tensor Saved::get() const {
  if (recipe_) return (*recipe_)().view(shape_);
  if (int8_) return int8_->values().view(shape_);
  if (repeated_) return repeated_->get().view(shape_);
  if (tensor_.defined() && tensor_.version() != version_) {
    throw ArgumentError(concat("backward: a tensor ", tensor_.shape().to_string(),
                               " that the forward pass saved was overwritten in place since"));
  }
  return tensor_;
}

Node::~Node() {
  std::vector<std::shared_ptr<Node>> pending;
  const auto take = [&pending](std::vector<Edge>& edges) {
    for (Edge& edge : edges) {
      if (edge.node && edge.node.use_count() == 1) pending.push_back(std::move(edge.node));
    }
  };
  backward = nullptr;
  take(inputs);
  while (!pending.empty()) {
    const std::shared_ptr<Node> node = std::move(pending.back());
    pending.pop_back();
    node->backward = nullptr;
    take(node->inputs);
  }
}

bool grad_wanted(std::span<const Tensor> inputs) {
  return std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) {
    return t.defined() && t.engine().state().grad_enabled && t.requires_grad();
  });
}

void record(const char* op, std::span<const Tensor> inputs, std::span<const Tensor> outputs,
            BackwardFn backward, Gradient gradient) {
  if (!grad_wanted(inputs)) return;
  auto node = std::make_shared<Node>();
  node->op = op;
  node->num_outputs = outputs.size();
  node->backward = std::move(backward);
  node->gradient = gradient;
  for (const Tensor& t : inputs) {
    Edge edge;
    if (t.defined() && t.requires_grad()) {
      if (t.is_leaf()) {
        edge.leaf = t.shared_impl();
      } else {
        edge.node = t.impl()->node;
        edge.output_index = t.impl()->output_index;
      }
      node->sequence = t.engine().state().next_sequence++;
    }
    node->inputs.push_back(std::move(edge));
    node->input_shapes.push_back(t.defined() ? t.shape() : Shape{});
    node->input_dtypes.push_back(t.defined() ? t.dtype() : DType::kF32);
    node->input_engines.push_back(t.defined() ? &t.engine() : nullptr);
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].defined()) continue;
    outputs[i].impl()->node = node;
    outputs[i].impl()->output_index = static_cast<int>(i);
  }
}

NoGrad::NoGrad(Engine& engine) : engine_(engine), before_(engine.state().grad_enabled) {
  engine.state().grad_enabled = false;
}
NoGrad::~NoGrad() {
  engine_.state().grad_enabled = before_;
}

void prepare_in_place(const char* op, Tensor& t) {
  check_defined(op, "the tensor written to", t);
  if (t.engine().state().grad_enabled && t.requires_grad()) {
    throw ArgumentError(concat(op,
                               ": a tensor that wants a gradient cannot be overwritten while "
                               "ops are recorded; use noGrad"));
  }
  t.bump_version();
}

namespace {

// dst = beta * dst + src, where dst may be wider than src.
void accumulate_into(const Tensor& destination, const Tensor& source, double beta) {
  if (destination.frozen()) {
    throw ArgumentError("backward: a gradient that was frozen since cannot be added to");
  }
  const LaunchFn add = [beta](Launch& l) {
    return call(l.kernels->accumulate, l.ctx,
                {.source = l.in(0), .destination = l.out(0), .beta = beta});
  };
  if (beta == 0) return launch("accumulate", {contiguous(source)}, {destination}, add);
  launch_in_place("accumulate", {contiguous(source)}, {destination}, add);
}

// Adds to a sum, which becomes one of `type`. It is overwritten when nobody else can see it.
void accumulate(Tensor& sum, const Tensor& grad, DType type) {
  if (!sum.exclusive() || !sum.is_contiguous() || sum.dtype() != type) {
    Tensor copy = Tensor::empty(sum.engine(), sum.shape(), type);
    accumulate_into(copy, sum, 0);
    sum = copy;
  }
  accumulate_into(sum, grad, 1);
}

// Sums what comes to a node. Contributions of a weight behind a cast may differ in width, and come
// in any order.
void contribute(Tensor& sum, const Tensor& grad) {
  if (sum.defined()) return accumulate(sum, grad, common_float(sum.dtype(), grad.dtype()));
  sum = grad;
}

// A gradient of the right type is adopted as it is and copied only when a second contribution comes
// while others can still see it. A gradient that the caller set (a view into a flat buffer) is
// always added to in place.
void accumulate_leaf(TensorImpl& leaf, const Tensor& grad) {
  const DType wide = accumulator_dtype(leaf.dtype);
  ++leaf.grad_count;
  if (!leaf.grad.defined() && grad.dtype() == wide && grad.is_contiguous()) {
    leaf.grad = grad;
    leaf.grad_adopted = true;
  } else if (!leaf.grad.defined()) {
    leaf.grad = Tensor::empty(*leaf.engine, leaf.shape, wide);
    leaf.grad_adopted = false;
    accumulate_into(leaf.grad, grad, 0);
  } else if (leaf.grad_adopted) {
    accumulate(leaf.grad, grad, wide);
  } else {
    accumulate_into(leaf.grad, grad, 1);
  }
}

class Walk {
 public:
  void seed(const Tensor& root, Tensor grad) {
    if (!root.requires_grad()) {
      throw ArgumentError("backward: nothing below this tensor wants a gradient");
    }
    if (!grad.defined()) {
      if (root.numel() != 1) {
        throw ArgumentError("backward: a tensor " + root.shape().to_string() +
                            " needs an explicit gradient; only a single number defaults to 1");
      }
      grad = full(root.engine(), root.shape(), 1.0, root.dtype());
    }
    if (!(grad.shape() == root.shape())) {
      throw ArgumentError("backward: the gradient is " + grad.shape().to_string() +
                          ", the tensor " + root.shape().to_string());
    }
    check_same_engine("backward", root, grad);
    const Tensor cast_grad = cast(grad, root.dtype());
    if (root.is_leaf()) return accumulate_leaf(*root.impl(), cast_grad);
    contribute(slot(root.impl()->node, root.impl()->output_index), cast_grad);
    roots_.push_back(root.impl()->node);
  }

  void run(bool retain_graph) {
    for (const std::shared_ptr<Node>& node : ordered()) {
      auto found = grads_.find(node.get());
      if (found == grads_.end()) continue;
      const std::vector<Tensor> dy = std::move(found->second);
      grads_.erase(found);
      if (node->released) {
        throw ArgumentError(concat("backward: the graph of \"", node->op,
                                   "\" was already used; pass retainGraph to walk it twice"));
      }
      Sink sink(*this, *node);
      node->backward(dy, sink);
      if (!retain_graph) {
        node->released = true;
        node->backward = nullptr;
      }
    }
  }

 private:
  class Sink : public GradSink {
   public:
    Sink(Walk& walk, Node& node) : walk_(walk), node_(node) {}
    bool wants(size_t input) const override {
      const Edge& edge = node_.inputs.at(input);
      return edge.node || edge.leaf;
    }
    void add(size_t input, const Tensor& grad) override {
      if (!grad.defined() || !wants(input)) return;
      check(input, grad);
      const Edge& edge = node_.inputs[input];
      if (edge.leaf) return accumulate_leaf(*edge.leaf, grad);
      const bool any = edge.node->gradient == Gradient::kAnyFloat;
      contribute(walk_.slot(edge.node, edge.output_index),
                 any ? grad : cast(grad, node_.input_dtypes[input]));
    }

   private:
    void check(size_t input, const Tensor& grad) const {
      const Engine* engine = node_.input_engines[input];
      if (engine != &grad.engine()) refuse_devices(node_.op, *engine, grad.engine());
      if (grad.shape() == node_.input_shapes[input]) return;
      throw NativeError(concat(node_.op, ": the gradient of input ", input, " is ",
                               grad.shape().to_string(), ", the input was ",
                               node_.input_shapes[input].to_string()));
    }
    Walk& walk_;
    Node& node_;
  };

  Tensor& slot(const std::shared_ptr<Node>& node, int output) {
    auto& grads = grads_[node.get()];
    if (grads.empty()) grads.resize(node->num_outputs);
    return grads[static_cast<size_t>(output)];
  }

  // Every node below the roots, newest first: a node's users all come before it.
  std::vector<std::shared_ptr<Node>> ordered() const {
    std::vector<std::shared_ptr<Node>> nodes;
    std::vector<std::shared_ptr<Node>> pending = roots_;
    std::unordered_set<const Node*> seen;
    while (!pending.empty()) {
      std::shared_ptr<Node> node = std::move(pending.back());
      pending.pop_back();
      if (!seen.insert(node.get()).second) continue;
      for (const Edge& edge : node->inputs) {
        if (edge.node) pending.push_back(edge.node);
      }
      nodes.push_back(std::move(node));
    }
    std::sort(nodes.begin(), nodes.end(),
              [](const auto& a, const auto& b) { return a->sequence > b->sequence; });
    return nodes;
  }

  std::vector<std::shared_ptr<Node>> roots_;
  std::unordered_map<const Node*, std::vector<Tensor>> grads_;
};

}  // namespace

void backward(std::span<const Tensor> roots, std::span<const Tensor> grads, bool retain_graph) {
  if (roots.empty()) throw ArgumentError("backward: no tensor given");
  NoGrad no_grad(roots[0].engine());
  Walk walk;
  for (size_t i = 0; i < roots.size(); ++i) {
    walk.seed(roots[i], i < grads.size() ? grads[i] : Tensor());
  }
  walk.run(retain_graph);
}

}  // namespace balora
